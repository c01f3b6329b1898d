"""Rows of a tensor as float32, and float32 values as they are stored. Knows arrays only: no files, no names."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from freehold.compress.quantize import bf16_bits
from freehold.formats import QuantizedTensor, Tensor
from freehold.formats.tensors import to_float32

F32 = NDArray[np.float32]


def rows_of(tensor: Tensor, rows: slice) -> F32:
    """Some rows, dequantized."""
    if not isinstance(tensor, QuantizedTensor):
        return to_float32(tensor[rows])
    offsets = None if tensor.offsets is None else tensor.offsets[rows]
    return QuantizedTensor(tensor.codes[rows], tensor.scales[rows], offsets, tensor.bits, tensor.group_size).float32()


def stored_values(values: F32, dtype: str) -> tuple[bytes, F32]:
    """Bytes in the wanted type ("F32", "F16" or "BF16"), and what they will be read as."""
    if dtype == "F32":
        return values.astype("<f4").tobytes(), values
    if dtype == "F16":
        half = values.astype("<f2")
        return half.tobytes(), half.astype(np.float32)
    bits = bf16_bits(values)
    return bits.astype("<u2").tobytes(), to_float32(bits)
