"""The calibration text that comes with Freehold; LICENCE.md beside it says where it is from."""

from __future__ import annotations

from importlib.resources import files


def builtin_text() -> str:
    """English prose, dialogues, technical documentation and code; disjoint from what `freehold eval` measures on."""
    return (files(__name__) / "calibration.txt").read_text(encoding="utf-8")
