"""Codes as compressed-tensors stores them.

"pack-quantized": 32/bits codes to an int32, the first in the lowest bits, each as an unsigned number (value plus
2^(bits-1)), along a row for weights and along a column for zero points; the last int32 is filled up with zero bits.
"int-quantized": one int8 each. Source: compressed_tensors 0.20.0, compressors/pack_quantized/helpers.py (pack_to_int32)
and compressors/naive_quantized/base.py. Knows arrays only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def pack_rows(codes: NDArray[np.uint8], bits: int) -> NDArray[np.int32]:
    """Codes uint8 [N, K] as int32 [N, ceil(K*bits/32)]; bits is 4 or 8."""
    rows, columns = codes.shape
    per_word = 32 // bits
    padded = -(-columns // per_word) * per_word
    if padded != columns:
        codes = np.concatenate([codes, np.zeros((rows, padded - columns), np.uint8)], axis=1)
    octets = codes if bits == 8 else codes[:, 0::2] | (codes[:, 1::2] << np.uint8(4))
    return np.ascontiguousarray(octets).view("<i4")


def pack_columns(codes: NDArray[np.uint8], bits: int) -> NDArray[np.int32]:
    """Codes uint8 [N, G] as int32 [ceil(N*bits/32), G]."""
    return np.ascontiguousarray(pack_rows(np.ascontiguousarray(codes.T), bits).T)


def signed(codes: NDArray[np.uint8]) -> NDArray[np.int8]:
    """8-bit codes as int8, 128 taken off."""
    return (codes ^ np.uint8(0x80)).view(np.int8)
