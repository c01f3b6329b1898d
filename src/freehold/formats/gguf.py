"""GGUF files, versions 2 and 3: metadata and where each tensor lies.

Knows the container only: names stay llama.cpp's, metadata stays untranslated (`gguf_checkpoint` does that). Format:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Every count and length is checked against the bytes that are
left before anything of that size is allocated.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from freehold.errors import FormatError, UnsupportedError
from freehold.formats.gguf_quants import TYPES, BlockType, type_name
from freehold.formats.reading import ByteFile, Closing
from freehold.formats.tensors import MAX_ELEMENTS, Tensor, TensorInfo

MAGIC = b"GGUF"
MAX_HEADER_BYTES = 256 << 20
"""Metadata and tensor table. The largest in use (vocabularies of 256k tokens with merges) is below 32 MB."""
MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
MAX_KEY_BYTES = 65535  # as the format sets for keys; tensor names are shorter still
MAX_NESTING = 4
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 20
FETCH_BYTES = 1 << 20
SMALLEST_PAIR, SMALLEST_TENSOR = 14, 33  # bytes in the header, with a name of one byte

_BOOL, _STRING, _ARRAY = 7, 8, 9
_NUMBERS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 10: "<u8", 11: "<i8", 12: "<f8"}


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """One entry of the tensor table.

    Args:
        name: llama.cpp's name, "blk.0.attn_q.weight".
        type: number format.
        shape: rows first, the file's order reversed.
        offset: first byte, from the start of the file.
    """

    name: str
    type: BlockType
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) // self.type.elements * self.type.nbytes


class GGUFFile(Closing):
    """A GGUF file. Opening reads and checks metadata and tensor table; tensor data is read by `load`.

    `metadata` maps keys to int, float, bool, str or lists of these.

    Raises:
        FormatError: not GGUF, truncated, or any count, size, type, name or range that makes no sense.
        UnsupportedError: version 1, big-endian, split over several files, or a tensor type that can't be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = ByteFile(path)
        try:
            self.metadata: dict[str, Any]
            self.tensors: dict[str, GGUFTensor]
            self.version: int
            self._parse()
        except BaseException:
            self._file.close()
            raise

    def info(self, name: str) -> TensorInfo:
        """Type, shape and size of a tensor, by llama.cpp's name."""
        tensor = self._tensor(name)
        return TensorInfo(name, tensor.type.name, tensor.shape, tensor.nbytes)

    def load(self, name: str) -> Tensor:
        """The tensor, quantized where its grid allows; see `gguf_quants.BlockType.decode`."""
        tensor = self._tensor(name)
        return tensor.type.decode(self.raw(name), tensor.shape, f"{self.path}: tensor {name}")

    def raw(self, name: str) -> NDArray[np.uint8]:
        """The bytes of a tensor."""
        tensor = self._tensor(name)
        return self._file.read(tensor.offset, tensor.nbytes)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _tensor(self, name: str) -> GGUFTensor:
        try:
            return self.tensors[name]
        except KeyError:
            raise FormatError(f"no tensor {name} in {self.path}") from None

    def _parse(self) -> None:
        self.version = _version(self._file)
        header = _Header(self._file)
        self.metadata, tensors = header.parse()
        _check_ranges(self.path, tensors, self._file.size)
        self.tensors = {tensor.name: tensor for tensor in tensors}


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata alone, of a file that may end behind it: the first megabytes of one inside an archive, say.

    Raises:
        FormatError, UnsupportedError: as `GGUFFile`.
    """
    with ByteFile(path) as file:
        _version(file)
        return _Header(file).metadata()[0]


def _version(file: ByteFile) -> int:
    """The version of a file that begins as a GGUF file does."""
    head = file.read(0, min(8, file.size)).tobytes()
    if head[:4] != MAGIC:
        raise FormatError(f"{file.path}: expected a GGUF file, found one that begins with {head[:4]!r}")
    if len(head) < 8:
        raise FormatError(f"{file.path}: truncated after {len(head)} bytes", hint="fetch the file again")
    version: int = struct.unpack_from("<I", head, 4)[0]
    if version not in (2, 3):
        swapped = version in (2 << 24, 3 << 24)
        found = "a big-endian file" if swapped else f"version {version}"
        raise UnsupportedError(f"{file.path}: expected little-endian GGUF of version 2 or 3, found {found}")
    return version


class _Header:
    """A cursor over metadata and tensor table, which fetches the file piece by piece."""

    def __init__(self, file: ByteFile) -> None:
        self._file = file
        self._buffer = bytearray()
        self._position = 8  # behind magic and version
        self._where = "counts"

    def metadata(self) -> tuple[dict[str, Any], int]:
        """All metadata, and how many tensors follow."""
        tensors, pairs = self._unpack("<QQ")
        if tensors * SMALLEST_TENSOR + pairs * SMALLEST_PAIR > self._file.size:
            self._fail(f"{pairs} metadata entries and {tensors} tensors don't fit into {self._file.size} bytes")
        metadata: dict[str, Any] = {}
        for index in range(pairs):
            self._where = f"metadata entry {index + 1} of {pairs}"
            key = self._name(metadata)
            self._where = f"metadata {key!r}"
            (kind,) = self._unpack("<I")
            metadata[key] = self._value(kind, MAX_NESTING)
        return metadata, tensors

    def parse(self) -> tuple[dict[str, Any], list[GGUFTensor]]:
        """All metadata and tensors."""
        metadata, tensors = self.metadata()
        if metadata.get("split.count", 0) not in (0, 1):
            raise UnsupportedError(
                f"{self._file.path}: one of {metadata['split.count']} parts of a split GGUF file",
                hint="merge the parts with `llama-gguf-split --merge`",
            )
        table: dict[str, tuple[BlockType, tuple[int, ...], int]] = {}
        for index in range(tensors):
            self._where = f"tensor {index + 1} of {tensors}"
            name = self._name(table)
            self._where = f"tensor {name!r}"
            table[name] = self._tensor()
        alignment = self._alignment(metadata.get("general.alignment", DEFAULT_ALIGNMENT))
        return metadata, self._place(table, alignment)

    def _alignment(self, value: Any) -> int:
        self._where = "metadata 'general.alignment'"
        if type(value) is not int or not 0 < value <= MAX_ALIGNMENT or value & (value - 1):
            self._fail(f"expected a power of two up to {MAX_ALIGNMENT}, found {value!r:.100}")
        return value

    def _place(self, table: dict[str, tuple[BlockType, tuple[int, ...], int]], alignment: int) -> list[GGUFTensor]:
        base = -(-self._position // alignment) * alignment
        for name, (_, _, offset) in table.items():
            if offset % alignment:
                self._where = f"tensor {name!r}"
                self._fail(f"expected an offset in multiples of {alignment}, found {offset}")
        return [GGUFTensor(name, kind, shape, base + offset) for name, (kind, shape, offset) in table.items()]

    def _tensor(self) -> tuple[BlockType, tuple[int, ...], int]:
        (dimensions,) = self._unpack("<I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            self._fail(f"expected 1 to {MAX_DIMENSIONS} dimensions, found {dimensions}")
        shape = self._unpack(f"<{dimensions}Q")[::-1]
        code, offset = self._unpack("<IQ")
        if code not in TYPES:
            raise UnsupportedError(
                f"{self._file.path}: {self._where} has type {type_name(code)}, which can't be read",
                hint="use a file with " + ", ".join(kind.name for kind in TYPES.values()),
            )
        if not 0 < math.prod(shape) <= MAX_ELEMENTS:
            self._fail(f"absurd shape {list(shape)}")
        if shape[-1] % TYPES[code].elements:
            self._fail(f"{TYPES[code].name} needs rows in multiples of {TYPES[code].elements}, found {shape[-1]}")
        return TYPES[code], shape, offset

    def _value(self, kind: int, nesting: int) -> Any:
        if kind == _STRING:
            return self._string(self._file.size)
        if kind == _BOOL:
            return self._bools(1)[0]
        if kind in _NUMBERS:
            return self._numbers(kind, 1)[0]
        if kind != _ARRAY:
            self._fail(f"unknown value type {kind}")
        if nesting == 0:
            self._fail(f"arrays nested more than {MAX_NESTING} deep")
        kind, count = self._unpack("<IQ")
        if kind in _NUMBERS:
            return self._numbers(kind, count)
        if kind == _BOOL:
            return self._bools(count)
        smallest = {_STRING: 8, _ARRAY: 12}.get(kind)
        if smallest is None:
            self._fail(f"unknown element type {kind}")
        self._need(count * smallest)
        if kind == _STRING:
            return [self._string(self._file.size) for _ in range(count)]
        return [self._value(_ARRAY, nesting - 1) for _ in range(count)]

    def _numbers(self, kind: int, count: int) -> list[Any]:
        dtype = np.dtype(_NUMBERS[kind])
        out: list[Any] = np.frombuffer(self._take(count * dtype.itemsize), dtype).tolist()
        return out

    def _bools(self, count: int) -> list[bool]:
        raw = self._take(count)
        if raw and max(raw) > 1:
            self._fail(f"expected a bool of 0 or 1, found {max(raw)}")
        return [byte == 1 for byte in raw]

    def _name(self, taken: dict[str, Any]) -> str:
        name = self._string(MAX_KEY_BYTES)
        if not name or not name.isprintable():  # names end up in messages and on terminals
            self._fail(f"expected a printable name, found {name[:100]!r}")
        if name in taken:
            self._fail(f"the name {name!r} appears twice")
        return name

    def _string(self, limit: int) -> str:
        (length,) = self._unpack("<Q")
        if length > limit:
            self._fail(f"a string of {length} bytes is too long")
        raw = self._take(length)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            self._fail(f"expected UTF-8, found byte {raw[error.start]:#04x}")

    def _unpack(self, layout: str) -> tuple[int, ...]:
        return struct.unpack(layout, self._take(struct.calcsize(layout)))

    def _take(self, count: int) -> bytes:
        self._need(count)
        begin = self._position - 8
        self._position += count
        return bytes(self._buffer[begin : begin + count])

    def _need(self, count: int) -> None:
        end = self._position + count
        if end > self._file.size:
            self._fail(
                f"needs bytes up to {end}, but the file has {self._file.size}", "the file is truncated or damaged"
            )
        if end > MAX_HEADER_BYTES:
            self._fail(f"needs more than {MAX_HEADER_BYTES} bytes of header")
        have = 8 + len(self._buffer)
        if end > have:
            piece = min(max(end - have, FETCH_BYTES), self._file.size - have)
            self._buffer += self._file.read(have, piece).tobytes()

    def _fail(self, problem: str, hint: str | None = None) -> NoReturn:
        raise FormatError(f"{self._file.path}: {self._where}: {problem}", hint=hint)


def _check_ranges(path: Path, tensors: list[GGUFTensor], size: int) -> None:
    """Every tensor inside the file, no two sharing bytes."""
    end = 0
    for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
        if tensor.offset < end:
            raise FormatError(f"{path}: data of tensor {tensor.name!r} overlaps another tensor's")
        end = tensor.offset + tensor.nbytes
        if end > size:
            raise FormatError(
                f"{path}: tensor {tensor.name!r} ends at byte {end}, but the file has {size}",
                hint="the file is truncated; fetch it again",
            )
