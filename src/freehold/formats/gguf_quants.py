"""GGUF's number formats: from blocks of bytes to a quantization grid or to float32, whole tensors at a time.

Layouts are those of ggml (`ggml-common.h`, block_q4_0 ... block_q6_K, and `dequantize_row_*` in `ggml-quants.c`);
`tests/vectors/gguf` holds blocks that the `gguf` package decoded. Knows blocks, not files.

A format whose groups of 32 share one scale keeps its grid: 4-bit codes stay int4, 5- and 8-bit codes become int8
without rounding. Formats with a scale for each 16 (Q2_K, Q3_K, Q6_K) have no such grid and become float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from freehold.errors import FormatError
from freehold.formats.tensors import QuantizedTensor, Tensor, bf16_to_float32

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]

GROUP = 32
CHUNK_ELEMENTS = 1 << 20
"""Values decoded at a time, so that temporaries stay at a few MB whatever the tensor."""


@dataclass(frozen=True, slots=True)
class BlockType:
    """One number format.

    Args:
        name: ggml's name, "Q4_K".
        elements: values in a block.
        nbytes: bytes in a block.
    """

    name: str
    elements: int
    nbytes: int

    def decode(self, raw: U8, shape: tuple[int, ...], where: str) -> Tensor:
        """A whole tensor from its bytes.

        Matrices keep their grid where there is one, and bfloat16 its bits; everything else, also vectors, is float32.

        Args:
            raw: uint8, as many bytes as `shape` takes.
            shape: rows first; the last is a multiple of `elements`.
            where: names the tensor in errors.

        Raises:
            FormatError: a scale that is not a finite number.
        """
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class FloatType(BlockType):
    """A format that becomes float32. `floats`: blocks uint8 [n, nbytes] -> float32 [n, elements]."""

    floats: Callable[[U8], F32]

    def decode(self, raw: U8, shape: tuple[int, ...], where: str) -> Tensor:
        """See `BlockType.decode`."""
        if self.name == "BF16" and len(shape) > 1:
            return raw.view(np.uint16).reshape(shape)
        blocks = raw.reshape(-1, self.nbytes)
        out = np.empty((len(blocks), self.elements), np.float32)
        chunk = CHUNK_ELEMENTS // self.elements
        with np.errstate(over="ignore", invalid="ignore"):
            for begin in range(0, len(blocks), chunk):
                out[begin : begin + chunk] = self.floats(blocks[begin : begin + chunk])
        return out.reshape(shape)


@dataclass(frozen=True, slots=True)
class GridType(BlockType):
    """A format with a scale for each 32 values.

    Args:
        bits: 4 or 8, of the codes it becomes.
        grid: blocks uint8 [n, nbytes] -> codes uint8 [n, elements], scales float32 [n, elements/32], offsets likewise
            or None.
    """

    bits: int
    grid: Callable[[U8], tuple[U8, F32, F32 | None]]

    def decode(self, raw: U8, shape: tuple[int, ...], where: str) -> Tensor:
        """See `BlockType.decode`."""
        codes, scales, offsets = self._unpack(raw.reshape(-1, self.nbytes))
        for values in (scales, offsets):
            if values is not None and not np.isfinite(values).all():
                hint = "the file is damaged; fetch it again"
                raise FormatError(f"{where}: a scale is not a finite number", hint=hint)
        rows, columns = math.prod(shape[:-1]), shape[-1]
        tensor = QuantizedTensor(
            codes.reshape(rows, columns),
            scales.reshape(rows, columns // GROUP),
            None if offsets is None else offsets.reshape(rows, columns // GROUP),
            self.bits,
            GROUP,
        )
        return tensor if len(shape) == 2 else tensor.float32().reshape(shape)

    def _unpack(self, blocks: U8) -> tuple[U8, F32, F32 | None]:
        count, groups = len(blocks), self.elements // GROUP
        codes = np.empty((count, self.elements), np.uint8)
        scales = np.empty((count, groups), np.float32)
        offsets = np.empty((count, groups), np.float32)
        shift: F32 | None = None
        chunk = CHUNK_ELEMENTS // self.elements
        with np.errstate(over="ignore", invalid="ignore"):
            for begin in range(0, count, chunk):
                part = slice(begin, begin + chunk)
                codes[part], scales[part], shift = self.grid(blocks[part])
                if shift is not None:
                    offsets[part] = shift
        return codes, scales, None if shift is None else offsets


def _half(blocks: U8, at: int) -> F32:
    """The float16 at byte `at` of each block, as float32 [n, 1]."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(packed: U8, run: int) -> U8:
    """[n, m] bytes to [n, 2m] values: each run of bytes holds its low nibbles' values first, then its high nibbles'."""
    count = len(packed)
    runs = packed.reshape(count, -1, run)
    out = np.empty((count, runs.shape[1], 2, run), np.uint8)
    np.bitwise_and(runs, 15, out=out[:, :, 0])
    np.right_shift(runs, 4, out=out[:, :, 1])
    return out.reshape(count, -1)


def _pairs(packed: U8) -> U8:
    """[n, 32r] bytes to [n, 128r] two-bit values: each run of 32 bytes holds 4 x 32 values, lowest bits first."""
    count = len(packed)
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    out: U8 = (packed.reshape(count, -1, 1, 32) >> shifts) & np.uint8(3)
    return out.reshape(count, -1)


def _planes(packed: U8) -> U8:
    """[n, 32] bytes to [n, 256] bits: bit b of byte i belongs to value 32b + i."""
    out: U8 = (packed[:, None, :] >> np.arange(8, dtype=np.uint8)[:, None]) & np.uint8(1)
    return out.reshape(len(packed), 256)


def _fifth_bits(packed: U8) -> U8:
    """[n, 4] bytes to [n, 32]: 16 where the value's bit is set."""
    out: U8 = np.unpackbits(packed, axis=1, bitorder="little") << np.uint8(4)
    return out


def _q4_0(blocks: U8) -> tuple[U8, F32, None]:
    return _nibbles(blocks[:, 2:], 16), _half(blocks, 0), None


def _q4_1(blocks: U8) -> tuple[U8, F32, F32]:
    return _nibbles(blocks[:, 4:], 16), _half(blocks, 0), _half(blocks, 2)


def _q5_0(blocks: U8) -> tuple[U8, F32, None]:
    codes = _nibbles(blocks[:, 6:], 16) | _fifth_bits(blocks[:, 2:6])
    return codes + np.uint8(128 - 16), _half(blocks, 0), None


def _q5_1(blocks: U8) -> tuple[U8, F32, F32]:
    codes = _nibbles(blocks[:, 8:], 16) | _fifth_bits(blocks[:, 4:8])
    return codes, _half(blocks, 0), _half(blocks, 2)


def _q8_0(blocks: U8) -> tuple[U8, F32, None]:
    return blocks[:, 2:] ^ np.uint8(128), _half(blocks, 0), None  # signed to offset by 128: the top bit turns


def _k_scales(blocks: U8) -> tuple[F32, F32]:
    """Scales and minima [n, 8] of Q4_K and Q5_K: 6 bits each, in 12 bytes behind two float16 factors."""
    low, middle, high = (blocks[:, 4 + 4 * i : 8 + 4 * i] for i in range(3))
    scales = np.concatenate([low & 63, (high & 15) | ((low >> 6) << 4)], axis=1)
    minima = np.concatenate([middle & 63, (high >> 4) | ((middle >> 6) << 4)], axis=1)
    return _half(blocks, 0) * scales.astype(np.float32), _half(blocks, 2) * minima.astype(np.float32)


def _q4_k(blocks: U8) -> tuple[U8, F32, F32]:
    scales, minima = _k_scales(blocks)
    return _nibbles(blocks[:, 16:], 32), scales, -minima


def _q5_k(blocks: U8) -> tuple[U8, F32, F32]:
    scales, minima = _k_scales(blocks)
    codes: U8 = _nibbles(blocks[:, 48:], 32) | (_planes(blocks[:, 16:48]) << np.uint8(4))
    return codes, scales, -minima


def _q2_k(blocks: U8) -> F32:
    packed = blocks[:, :16]
    scales = _half(blocks, 80) * (packed & 15).astype(np.float32)
    minima = _half(blocks, 82) * (packed >> 4).astype(np.float32)
    codes = _pairs(blocks[:, 16:80]).reshape(-1, 16, 16).astype(np.float32)
    return (codes * scales[:, :, None] - minima[:, :, None]).reshape(-1, 256)


def _q3_k(blocks: U8) -> F32:
    low = _nibbles(blocks[:, 96:104], 8)
    high = ((blocks[:, None, 104:108] >> np.arange(0, 8, 2, dtype=np.uint8)[:, None]) & 3).reshape(-1, 16)
    scales = _half(blocks, 108) * ((low | (high << 4)).astype(np.float32) - np.float32(32))
    # The high bit is stored inverted: set means nothing is subtracted.
    codes = (_pairs(blocks[:, 32:96]) | (_planes(blocks[:, :32]) << 2)).astype(np.float32) - np.float32(4)
    return (codes.reshape(-1, 16, 16) * scales[:, :, None]).reshape(-1, 256)


def _q6_k(blocks: U8) -> F32:
    codes = _nibbles(blocks[:, :128], 64) | (_pairs(blocks[:, 128:192]) << 4)
    scales = _half(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    centred = codes.astype(np.float32) - np.float32(32)
    return (centred.reshape(-1, 16, 16) * scales[:, :, None]).reshape(-1, 256)


def _plain(kind: str) -> Callable[[U8], F32]:
    return lambda blocks: blocks.reshape(-1).view(kind).astype(np.float32).reshape(len(blocks), 1)


def _bf16(blocks: U8) -> F32:
    return bf16_to_float32(blocks.reshape(-1).view("<u2")).reshape(len(blocks), 1)


TYPES: dict[int, BlockType] = {
    0: FloatType("F32", 1, 4, floats=_plain("<f4")),
    1: FloatType("F16", 1, 2, floats=_plain("<f2")),
    30: FloatType("BF16", 1, 2, floats=_bf16),
    2: GridType("Q4_0", 32, 18, 4, grid=_q4_0),
    3: GridType("Q4_1", 32, 20, 4, grid=_q4_1),
    6: GridType("Q5_0", 32, 22, 8, grid=_q5_0),
    7: GridType("Q5_1", 32, 24, 8, grid=_q5_1),
    8: GridType("Q8_0", 32, 34, 8, grid=_q8_0),
    10: FloatType("Q2_K", 256, 84, floats=_q2_k),
    11: FloatType("Q3_K", 256, 110, floats=_q3_k),
    12: GridType("Q4_K", 256, 144, 4, grid=_q4_k),
    13: GridType("Q5_K", 256, 176, 8, grid=_q5_k),
    14: FloatType("Q6_K", 256, 210, floats=_q6_k),
}
"""By number in the file (enum ggml_type of ggml.h)."""

_OTHER_NAMES = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
    22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0",
    35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip


def type_name(code: int) -> str:
    """The name of a type we may not read, or its number."""
    return TYPES[code].name if code in TYPES else _OTHER_NAMES.get(code, f"number {code}")
