"""Weight matrices as the kernels take them: logical form here, packed form in `executor`.

This module knows number formats, not files: `formats` hands over anything that looks like `Quantized`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

PER_CHANNEL_UNIT = 64
"""Columns per activation group where a weight has one scale for a whole row."""


class Quantized(Protocol):
    """A quantized [N, K] tensor: w = scales * (codes - 2^(bits-1)) if symmetric, else scales * codes + offsets."""

    @property
    def codes(self) -> NDArray[np.uint8]: ...  # noqa: D102
    @property
    def scales(self) -> F32: ...  # noqa: D102
    @property
    def offsets(self) -> F32 | None: ...  # noqa: D102
    @property
    def bits(self) -> int: ...  # noqa: D102
    @property
    def group_size(self) -> int: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """An int4 or int8 [N, K] matrix with one scale per row and group of columns.

    Args:
        codes: uint8 [N, K], each in 0 .. 2^bits - 1.
        scales: float32 [N, ceil(K/group)].
        offsets: float32, as scales, for w = scales * codes + offsets; None when symmetric: w = scales * (codes -
            2^(bits-1)).
        bits: 4 or 8.
        group: columns per scale: 32, 64, 128 or K (one scale per row).
    """

    codes: NDArray[np.uint8]
    scales: F32
    offsets: F32 | None
    bits: int
    group: int

    def __post_init__(self) -> None:
        columns = self.codes.shape[1]
        if self.bits not in (4, 8):
            raise ValueError(f"bits must be 4 or 8, got {self.bits}")
        if self.group not in (32, 64, 128) and self.group != columns:
            raise ValueError(f"group must be 32, 64, 128 or the whole row ({columns}), got {self.group}")
        expected = (self.codes.shape[0], -(-columns // self.group))
        if self.scales.shape != expected or (self.offsets is not None and self.offsets.shape != expected):
            raise ValueError(f"scales must be {expected}, got {self.scales.shape}")

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def symmetric(self) -> bool:
        """True when codes are centred and there are no offsets."""
        return self.offsets is None

    @property
    def act_group(self) -> int:
        """Columns that share an activation scale."""
        return self.group if self.group in (32, 64, 128) else PER_CHANNEL_UNIT

    @property
    def unit(self) -> int:
        """Columns accumulated as integers before scales apply: the smaller of the two groups."""
        return self.act_group

    def float32(self) -> F32:
        """The dequantized matrix, float32 [N, K]."""
        scale = np.repeat(self.scales, self.group, axis=1)[:, : self.codes.shape[1]]
        if self.offsets is None:
            out: F32 = (self.codes.astype(np.float32) - np.float32(1 << (self.bits - 1))) * scale
            return out
        offset = np.repeat(self.offsets, self.group, axis=1)[:, : self.codes.shape[1]]
        full: F32 = self.codes.astype(np.float32) * scale + offset
        return full


@dataclass(frozen=True, slots=True)
class FloatMatrix:
    """A float32 [N, K] matrix, or bfloat16 as its upper 16 bits (uint16 [N, K])."""

    data: NDArray[np.float32] | NDArray[np.uint16]

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.data.shape[0], self.data.shape[1]

    def float32(self) -> F32:
        """The matrix as float32 [N, K]."""
        if self.data.dtype == np.uint16:
            return (self.data.astype(np.uint32) << 16).view(np.float32)
        return self.data.astype(np.float32, copy=False)


@dataclass(frozen=True, slots=True)
class Matrix:
    """Parts stacked along rows (a fused QKV may mix number formats); all have the same K."""

    parts: tuple[QuantizedMatrix | FloatMatrix, ...]

    def __post_init__(self) -> None:
        if len({part.shape[1] for part in self.parts}) != 1:
            raise ValueError(f"parts must have the same columns, got {[part.shape for part in self.parts]}")

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return sum(part.shape[0] for part in self.parts), self.parts[0].shape[1]

    def float32(self) -> F32:
        """The dequantized matrix, float32 [N, K]."""
        return np.concatenate([part.float32() for part in self.parts], axis=0)

    def rows(self, indices: NDArray[np.int32]) -> F32:
        """Some rows, dequantized: float32 [len(indices), K]."""
        out = np.empty((len(indices), self.shape[1]), np.float32)
        begin = 0
        for part in self.parts:
            here = (indices >= begin) & (indices < begin + part.shape[0])
            local = indices[here] - begin
            out[here] = _select(part, local).float32()
            begin += part.shape[0]
        return out


def _select(part: QuantizedMatrix | FloatMatrix, rows: NDArray[np.int32]) -> QuantizedMatrix | FloatMatrix:
    if isinstance(part, FloatMatrix):
        return FloatMatrix(part.data[rows])
    offsets = None if part.offsets is None else part.offsets[rows]
    return QuantizedMatrix(part.codes[rows], part.scales[rows], offsets, part.bits, part.group)


def from_tensor(tensor: Quantized | F32 | NDArray[np.uint16]) -> QuantizedMatrix | FloatMatrix:
    """A checkpoint tensor as a matrix part; arrays are float32 or bfloat16 bits (uint16)."""
    if isinstance(tensor, np.ndarray):
        return FloatMatrix(tensor)
    return QuantizedMatrix(tensor.codes, tensor.scales, tensor.offsets, tensor.bits, tensor.group_size)
