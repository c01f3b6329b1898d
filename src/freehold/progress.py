"""How long work tells how far it is. Any room may tell; the command line draws it.

Knows nobody.
"""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told how far the work is."""

    def __call__(self, done: int, total: int | None, what: str) -> None:
        """`done` of `total` units (None: unknown how many) of `what`."""


def silent(done: int, total: int | None, what: str) -> None:
    """Tells nobody."""
