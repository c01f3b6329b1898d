"""Models shared by the gateway's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.gateway import byte_model


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model directory."""
    return byte_model.write(tmp_path_factory.mktemp("byte-model"))
