"""The suite itself: the reference server passes everything, each fault turns exactly its requirement red."""

from __future__ import annotations

import pytest

from freehold.certify import selftest
from freehold.certify.reference.faulty import FAULTS
from freehold.certify.requirements import load


@pytest.mark.slow
def test_the_reference_passes_everything_and_every_requirement_goes_red_on_a_fault_of_its_own() -> None:
    found = selftest.self_test()
    assert found["not_passed"] == [] and found["reference_passed"] == found["requirements"] >= 120
    assert found["uncaught"] == [] and found["collateral"] == {}
    assert found["mutations"] == len(FAULTS) >= found["requirements"]


def test_whatever_goes_red_with_a_fault_has_its_reason() -> None:
    ids = {requirement.id for requirement in load().requirements}
    for fault in FAULTS.values():
        assert fault.turns in ids and set(fault.collateral) <= ids - {fault.turns}
        assert all(len(reason) > 10 for reason in fault.collateral.values())
