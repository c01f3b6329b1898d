"""Codes as compressed-tensors stores them.

"pack-quantized": codes one after another without gaps, the first in the lowest bits of the first int32, each as an
unsigned number (value plus 2^(bits-1)), along a row for weights and along a column for zero points; the last int32 is
filled up with zero bits. "int-quantized": one int8 each. Source: compressed_tensors 0.20.0,
compressors/pack_quantized/helpers.py (pack_to_int32; older versions left gaps where 32 is no multiple of bits) and
compressors/naive_quantized/base.py. Knows arrays only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def pack_rows(codes: NDArray[np.uint8], bits: int) -> NDArray[np.int32]:
    """Codes uint8 [N, K] as int32 [N, ceil(K*bits/32)]; bits is 2 to 8."""
    rows, columns = codes.shape
    words = -(-columns * bits // 32)
    if columns % 32:
        codes = np.concatenate([codes, np.zeros((rows, -columns % 32), np.uint8)], axis=1)
    if bits == 8:
        octets = codes
    elif bits == 4:
        octets = codes[:, 0::2] | (codes[:, 1::2] << np.uint8(4))
    else:  # eight codes fill so many bytes as they have bits
        eights = codes.reshape(rows, -1, 8)
        joined = np.zeros(eights.shape[:2], "<u8")
        for place in range(8):
            joined |= eights[:, :, place].astype("<u8") << np.uint64(place * bits)
        octets = joined.view(np.uint8).reshape(rows, -1, 8)[:, :, :bits].reshape(rows, -1)
    return np.ascontiguousarray(np.ascontiguousarray(octets).view("<i4")[:, :words])


def pack_columns(codes: NDArray[np.uint8], bits: int) -> NDArray[np.int32]:
    """Codes uint8 [N, G] as int32 [ceil(N*bits/32), G]."""
    return np.ascontiguousarray(pack_rows(np.ascontiguousarray(codes.T), bits).T)


def signed(codes: NDArray[np.uint8]) -> NDArray[np.int8]:
    """8-bit codes as int8, 128 taken off."""
    return (codes ^ np.uint8(0x80)).view(np.int8)
