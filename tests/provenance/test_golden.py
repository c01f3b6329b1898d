"""The golden table: licence x purpose x derivation, each with the verdict, the rule and the path reasoned by hand."""

from __future__ import annotations

import pytest

from freehold.provenance.rules import VERDICTS, judge
from tests.provenance.golden import cases, full_path

CASES = cases()


def test_the_table_has_two_hundred_cases_and_every_rule_decides_some():
    assert len(CASES) >= 200
    assert {case.rule for case in CASES} == {f"R{number}" for number in range(1, 13)}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_verdict_rule_and_path_are_the_reasoned_ones(case):
    lineage, found = case.lineage()
    judgement = judge(lineage, case.purpose, found=found)
    assert judgement.verdict == case.verdict, [(item.rule, item.verdict, item.path) for item in judgement.findings]
    deciding = {(item.rule, item.path) for item in judgement.findings if item.verdict == case.verdict}
    assert (case.rule, " | ".join(full_path(path) for path in case.path.split(";"))) in deciding


@pytest.mark.parametrize("case", CASES[::7], ids=lambda case: case.name)
def test_findings_are_strictest_first(case):
    lineage, found = case.lineage()
    order = [VERDICTS.index(item.verdict) for item in judge(lineage, case.purpose, found=found).findings]
    assert order == sorted(order, reverse=True)
