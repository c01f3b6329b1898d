"""The reference server, judged once for the whole room."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from freehold.certify import Certificate, make, selftest
from freehold.certify.runner import Run
from freehold.signing import Identity

DAY = datetime(2026, 11, 20, tzinfo=UTC)
URL = "http://127.0.0.1:7411/v1"


@pytest.fixture(scope="session")
def identity() -> Identity:
    return Identity.from_seed(b"\x07" * 32)


@pytest.fixture(scope="session")
def well() -> Run:
    """A run at all levels against the reference server without a fault."""
    return selftest.well()


@pytest.fixture(scope="session")
def certificate(well: Run, identity: Identity) -> Certificate:
    """The certificate of that run."""
    return make(well, URL, identity, began=DAY)
