"""Pieces of a query in a text of hundreds of megabytes, by the text's suffix array.

It knows bytes and positions; documents, files and what a match means are its caller's.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from freehold.kernels import _native


class Match(NamedTuple):
    """`query[start:start + length]` stands in the text at `suffixes[low:high]` and is part of no longer match."""

    start: int
    length: int
    low: int
    high: int


def maximal_matches(text: NDArray[np.uint8], suffixes: NDArray[np.uint32], query: bytes, minimum: int) -> list[Match]:
    """The matches of at least `minimum` bytes that no other contains, in order.

    Args:
        text: uint8 [n]; a mapped file is fine.
        suffixes: uint32 [n], the text's suffix array.
        query: what is looked for.
        minimum: bytes, at least 1.

    Raises:
        ValueError: the suffix array has another length than the text, or points outside it (a damaged file).
    """
    found = _native.maximal_matches(text, suffixes, np.frombuffer(query, np.uint8), minimum)
    return [Match(*row) for row in found]
