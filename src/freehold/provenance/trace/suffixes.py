"""Suffix arrays: the only place that knows pydivsufsort (libdivsufsort, MIT; Y. Mori).

A text of n bytes takes 5n of memory while it is sorted. It knows nothing of files.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydivsufsort import divsufsort

LONGEST = (1 << 31) - 1  # bytes: positions are 32 bits wide


def suffix_array(text: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Where the suffixes of a text begin, in the order of their bytes: uint32 [n]."""
    if len(text) > LONGEST:
        raise ValueError(f"a text of {len(text)} bytes is longer than {LONGEST}")
    order: NDArray[np.int32] = divsufsort(np.require(text, requirements=["C", "W"]))  # it refuses what is read-only
    return order.astype(np.int32, copy=False).view(np.uint32)
