"""Runs the command line as a person does: in a process of its own, with a home of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """An environment without any FREEHOLD_* setting, whose store and settings lie in a temporary directory."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("FREEHOLD_", "XDG_", "HF_"))}
    return kept | {
        "FREEHOLD_HOME": str(tmp_path / "home"),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "1",
        "NO_COLOR": "1",
    }


@pytest.fixture
def freehold(home: dict[str, str], tmp_path: Path) -> Run:
    """`freehold(*words, env={...}, input="...")` -> the finished process."""

    def run(*words: str, env: dict[str, str] | None = None, input: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "freehold", *words]
        return subprocess.run(
            command, env=home | (env or {}), input=input, capture_output=True, text=True, cwd=tmp_path, timeout=120
        )

    return run
