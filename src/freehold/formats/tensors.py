"""Tensors as they come out of a checkpoint: what is stored, and the grid of a quantized one.

Knows number formats and shapes; knows nothing of files, layers or kernels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from freehold.errors import FormatError

MAX_ELEMENTS = 1 << 40
"""No tensor of any model comes near this; sizes beyond it are a damaged or hostile file."""
BITS = (2, 3, 4, 5, 6, 7, 8)
"""Widths of codes."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a checkpoint says about one tensor, known without reading its data.

    Args:
        name: Hugging Face name, "model.layers.0.self_attn.q_proj.weight".
        dtype: number format as stored: "F32", "BF16", "Q4_1", "int4" ...
        shape: rows first, as in PyTorch; [N, K] for a linear layer.
        nbytes: bytes in the file, scales and zero points included.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class QuantizedTensor:
    """An integer [N, K] tensor of 2 to 8 bits with one scale for each row and group of columns.

    w = scales * (codes - 2^(bits-1)) if offsets is None, else scales * codes + offsets.

    Args:
        codes: uint8 [N, K], values 0 .. 2^bits-1, one byte each.
        scales: float32 [N, ceil(K/group_size)].
        offsets: float32 shaped as scales, or None when the grid is symmetric.
        bits: 2 to 8.
        group_size: columns that share a scale: 32, 64, 128 or K.

    Raises:
        FormatError: shapes or types that do not fit together. Values of codes are the reader's duty.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    offsets: NDArray[np.float32] | None
    bits: int
    group_size: int

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise FormatError(f"expected 2 to 8 bits per weight, found {self.bits}")
        if self.codes.ndim != 2 or self.codes.dtype != np.uint8:
            raise FormatError(f"expected uint8 codes [N, K], found {self.codes.dtype} {list(self.codes.shape)}")
        if self.group_size < 1:
            raise FormatError(f"expected a positive group size, found {self.group_size}")
        rows, columns = self.codes.shape
        expected = (rows, -(-columns // self.group_size))
        for name, array in (("scales", self.scales), ("offsets", self.offsets)):
            if array is not None and (array.shape != expected or array.dtype != np.float32):
                found = f"{array.dtype} {list(array.shape)}"
                raise FormatError(f"expected float32 {name} {list(expected)}, found {found}")

    @property
    def shape(self) -> tuple[int, int]:
        """[N, K]."""
        rows, columns = self.codes.shape
        return rows, columns

    def float32(self) -> NDArray[np.float32]:
        """The weights as float32 [N, K]: one multiplication and at most one addition each, in float32."""
        rows, columns = self.codes.shape
        groups = self.scales.shape[1]
        out = self.codes.astype(np.float32)
        if self.offsets is None:
            out -= np.float32(1 << (self.bits - 1))
        if groups * self.group_size == columns:
            view = out.reshape(rows, groups, self.group_size)
            view *= self.scales[:, :, None]
            if self.offsets is not None:
                view += self.offsets[:, :, None]
            return out
        out *= np.repeat(self.scales, self.group_size, axis=1)[:, :columns]
        if self.offsets is not None:
            out += np.repeat(self.offsets, self.group_size, axis=1)[:, :columns]
        return out


def in_columns(
    codes: NDArray[np.uint8],
    scales: NDArray[np.float32],
    offsets: NDArray[np.float32] | None,
    bits: int,
    groups: NDArray[np.intp],
) -> NDArray[np.float32]:
    """The float32 values [N, K] of codes whose columns belong to scattered groups.

    Args:
        codes, scales, offsets, bits: as in `QuantizedTensor`.
        groups: [K], the group of each column.
    """
    out = codes.astype(np.float32)
    if offsets is None:
        out -= np.float32(1 << (bits - 1))
    out *= scales[:, groups]
    if offsets is not None:
        out += offsets[:, groups]
    return out


def widened(tensor: QuantizedTensor, bits: int) -> QuantizedTensor:
    """The very same values in codes of more bits; scales and offsets are shared."""
    if bits == tensor.bits:
        return tensor
    shift = np.uint8((1 << (bits - 1)) - (1 << (tensor.bits - 1)) if tensor.offsets is None else 0)
    return QuantizedTensor(tensor.codes + shift, tensor.scales, tensor.offsets, bits, tensor.group_size)


def scale_type(scales: NDArray[np.float32]) -> str:
    """The smallest type that holds float32 scales exactly: "BF16", "F16" or "F32"."""
    if not (np.ascontiguousarray(scales).view(np.uint32) & 0xFFFF).any():
        return "BF16"
    with np.errstate(over="ignore"):
        half = scales.astype(np.float16).astype(np.float32)
    return "F16" if np.array_equal(half, scales) else "F32"


Tensor = QuantizedTensor | NDArray[np.float32] | NDArray[np.uint16]
"""uint16 holds bfloat16 bits."""


def bf16_to_float32(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The float32 values of bfloat16 bits; exact."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_float32(tensor: Tensor) -> NDArray[np.float32]:
    """Any tensor as float32."""
    if isinstance(tensor, QuantizedTensor):
        return tensor.float32()
    if tensor.dtype == np.uint16:
        return bf16_to_float32(tensor.astype(np.uint16, copy=False))
    return tensor.astype(np.float32, copy=False)
