"""Writing GGUF, version 3: metadata, tensor table, and tensors in the block formats whose grids are ours.

Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 hold what a grid of up to 4, 5 or 8 bits in groups of 32 or more holds, but for scales,
which are float16 there. Layout of the container: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; of the blocks:
ggml-common.h. Knows no models.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freehold.errors import FormatError
from freehold.formats.tensors import QuantizedTensor, Tensor, to_float32, widened

ALIGNMENT = 32
BLOCK = 32
F32_TYPE, F16_TYPE, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, BF16_TYPE = 0, 1, 2, 3, 6, 7, 8, 30
TYPE_NAMES = {
    F32_TYPE: "F32",
    F16_TYPE: "F16",
    Q4_0: "Q4_0",
    Q4_1: "Q4_1",
    Q5_0: "Q5_0",
    Q5_1: "Q5_1",
    Q8_0: "Q8_0",
    BF16_TYPE: "BF16",
}
_BLOCK_BYTES = {Q4_0: 18, Q4_1: 20, Q5_0: 22, Q5_1: 24, Q8_0: 34}
_BLOCK_BITS = {Q4_0: 4, Q4_1: 4, Q5_0: 5, Q5_1: 5, Q8_0: 8}
_WIDTHS = {F32_TYPE: 4, F16_TYPE: 2, BF16_TYPE: 2}


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor to write: llama.cpp's name, ggml's type, shape with rows first, and what gives its bytes."""

    name: str
    type: int
    shape: tuple[int, ...]
    data: Callable[[], bytes]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        count = math.prod(self.shape)
        return count // BLOCK * _BLOCK_BYTES[self.type] if self.type in _BLOCK_BYTES else count * _WIDTHS[self.type]


def write_gguf(path: Path, metadata: Mapping[str, Any], tensors: Sequence[Entry]) -> None:
    """Write a file under a temporary name and rename it; one tensor at a time is in memory."""
    partial = path.with_name(path.name + ".partial")
    head = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    head += [_string(key) + _value(value) for key, value in metadata.items()]
    offset = 0
    for tensor in tensors:
        shape = tensor.shape[::-1]
        head.append(_string(tensor.name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, tensor.type, offset))
        offset += _padded(tensor.nbytes)
    header = b"".join(head)
    with partial.open("wb") as file:
        file.write(header + bytes(_padded(len(header)) - len(header)))
        for tensor in tensors:
            data = tensor.data()
            if len(data) != tensor.nbytes:
                raise FormatError(f"{tensor.name}: expected {tensor.nbytes} bytes, found {len(data)}")
            file.write(data + bytes(_padded(len(data)) - len(data)))
    partial.rename(path)


def block_type(tensor: Tensor) -> int:
    """The ggml type that holds a tensor without rounding its values; only scales may lose bits."""
    if not isinstance(tensor, QuantizedTensor):
        return F32_TYPE if tensor.ndim < 2 or tensor.dtype == np.float32 else BF16_TYPE
    if tensor.codes.shape[1] % BLOCK or tensor.group_size % BLOCK or (tensor.bits > 5 and tensor.offsets is not None):
        return BF16_TYPE
    if tensor.bits > 5:
        return Q8_0
    if tensor.bits == 5:
        return Q5_0 if tensor.offsets is None else Q5_1
    return Q4_0 if tensor.offsets is None else Q4_1


def encode(tensor: Tensor, kind: int) -> bytes:
    """A tensor's bytes in a type that `block_type` gave, or in F32, F16 or BF16."""
    if kind in _BLOCK_BYTES and isinstance(tensor, QuantizedTensor):
        return _blocks(tensor, kind)
    if kind == BF16_TYPE and not isinstance(tensor, QuantizedTensor) and tensor.dtype == np.uint16:
        return tensor.astype("<u2").tobytes()
    values = to_float32(tensor)
    if kind == F32_TYPE:
        return values.astype("<f4").tobytes()
    if kind == F16_TYPE:
        return values.astype("<f2").tobytes()
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


def inexact_scales(tensor: Tensor, kind: int) -> int:
    """How many scales and offsets of a tensor float16 can't hold exactly."""
    if not isinstance(tensor, QuantizedTensor) or kind not in _BLOCK_BYTES:
        return 0
    with np.errstate(over="ignore"):
        lost = int((tensor.scales.astype(np.float16).astype(np.float32) != tensor.scales).sum())
        if tensor.offsets is not None:
            lost += int((tensor.offsets.astype(np.float16).astype(np.float32) != tensor.offsets).sum())
    return lost


def _blocks(tensor: QuantizedTensor, kind: int) -> bytes:
    tensor = widened(tensor, _BLOCK_BITS[kind])
    rows, columns = tensor.codes.shape
    count = columns // BLOCK
    out = np.empty((rows, count, _BLOCK_BYTES[kind]), np.uint8)
    times = tensor.group_size // BLOCK if tensor.group_size < columns else count
    out[:, :, :2] = _half(tensor.scales, times, count)
    codes = tensor.codes.reshape(rows, count, BLOCK)
    if kind == Q8_0:
        out[:, :, 2:] = codes ^ np.uint8(128)  # as signed bytes, 128 taken off
        return out.tobytes()
    first = 2
    if tensor.offsets is not None:
        out[:, :, 2:4] = _half(tensor.offsets, times, count)
        first = 4
    if kind in (Q5_0, Q5_1):  # the fifth bits of all 32 come first, little end first
        out[:, :, first : first + 4] = np.packbits(codes >> np.uint8(4), axis=-1, bitorder="little")
        codes, first = codes & np.uint8(15), first + 4
    out[:, :, first:] = codes[:, :, : BLOCK // 2] | (codes[:, :, BLOCK // 2 :] << np.uint8(4))
    return out.tobytes()


def _half(values: NDArray[np.float32], times: int, count: int) -> NDArray[np.uint8]:
    half = np.repeat(values.astype("<f2"), times, axis=1)[:, :count]
    if not np.isfinite(half).all():
        raise FormatError("a scale is beyond what float16, and so GGUF, can hold")
    return np.ascontiguousarray(half).view(np.uint8).reshape(len(half), count, 2)


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> bytes:
    if isinstance(value, list):
        kind = _kind(value)
        body = b"".join(_string(item) for item in value) if kind == 8 else _numbers(kind, value)
        return struct.pack("<IIQ", 9, kind, len(value)) + body
    kind = _kind([value])
    if kind == 5 and value >= 0:
        kind = 4  # sizes and ids are unsigned in llama.cpp's files, arrays of token types are not
    if kind == 4 and value >= 1 << 32:
        kind = 10
    return struct.pack("<I", kind) + (_string(value) if kind == 8 else _numbers(kind, [value]))


def _kind(values: list[Any]) -> int:
    if all(isinstance(value, bool) for value in values):
        return 7
    if all(isinstance(value, int) for value in values):
        return 5
    if all(isinstance(value, (int, float)) for value in values):
        return 6
    if all(isinstance(value, str) for value in values):
        return 8
    raise FormatError(f"GGUF metadata can't hold {values!r:.80}")


def _numbers(kind: int, values: list[Any]) -> bytes:
    return np.array(values, {7: "?", 5: "<i4", 4: "<u4", 10: "<u8", 6: "<f4"}[kind]).tobytes()
