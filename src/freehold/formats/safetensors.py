"""Safetensors files, single and sharded: an own reader, because bfloat16 has no NumPy type and the files are hostile.

Knows names, types, shapes and byte ranges; does not know what a tensor is for. Format:
https://github.com/huggingface/safetensors#format (8 bytes of header length, JSON header, data without holes).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freehold.errors import FormatError, UnsupportedError
from freehold.formats.reading import MAX_JSON_BYTES, ByteFile, Closing, parse_json, read_json
from freehold.formats.tensors import MAX_ELEMENTS, TensorInfo

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
MAX_SHARDS = 1000
MAX_DIMENSIONS = 16

_BF16_BITS = "<u2"
_NUMPY = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": _BF16_BITS,
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}
_OTHER_SIZES = {"U64": 8, "U32": 4, "U16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "C64": 8}
"""Types the format allows and we only measure: a file may hold them, loading one is an UnsupportedError."""
_SIZES = {name: np.dtype(kind).itemsize for name, kind in _NUMPY.items()} | _OTHER_SIZES


@dataclass(frozen=True, slots=True)
class _Entry:
    info: TensorInfo
    offset: int


class SafetensorsFile(Closing):
    """One .safetensors file. Opening reads and checks the header only.

    Raises:
        FormatError: truncated, header too large or not JSON, ranges that overlap, leave holes, run past the end or
            don't fit type and shape.
        UnsupportedError: a type this version doesn't know.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = ByteFile(path)
        try:
            self.metadata: dict[str, str] = {}
            self._entries = self._header()
        except BaseException:
            self._file.close()
            raise

    def names(self) -> list[str]:
        """Tensor names in order of the header."""
        return list(self._entries)

    def info(self, name: str) -> TensorInfo:
        """Type, shape and size of a tensor."""
        return self._entry(name).info

    def read(self, name: str) -> NDArray[Any]:
        """The values as stored, in their NumPy type and own memory; bfloat16 as uint16 bits.

        Raises:
            UnsupportedError: a type with no NumPy counterpart.
        """
        entry = self._entry(name)
        info = entry.info
        if info.dtype not in _NUMPY:
            raise UnsupportedError(f"{self.path}: tensor {name} has type {info.dtype}, which can't be loaded")
        return self._file.read(entry.offset, info.nbytes).view(_NUMPY[info.dtype]).reshape(info.shape)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _entry(self, name: str) -> _Entry:
        try:
            return self._entries[name]
        except KeyError:
            raise FormatError(f"no tensor {name} in {self.path}") from None

    def _header(self) -> dict[str, _Entry]:
        if self._file.size < 8:
            raise FormatError(f"{self.path}: expected a safetensors file, found {self._file.size} bytes")
        length = int.from_bytes(self._file.read(0, 8).tobytes(), "little")
        if length > MAX_JSON_BYTES or 8 + length > self._file.size:
            raise FormatError(
                f"{self.path}: header of {length} bytes in a file of {self._file.size} bytes",
                hint="this is not a safetensors file, or it is truncated; fetch it again",
            )
        raw = self._file.read(8, length).tobytes()
        if not raw.startswith(b"{"):
            raise FormatError(f"{self.path}: expected a safetensors header to begin with '{{', found {raw[:1]!r}")
        table = parse_json(raw, f"header of {self.path}")
        self.metadata = self._string_map(table.pop("__metadata__", {}))
        base = 8 + length
        entries = {name: self._parse(name, entry, base) for name, entry in table.items()}
        self._check_layout(entries, base)
        return entries

    def _string_map(self, table: Any) -> dict[str, str]:
        if not isinstance(table, dict) or not all(isinstance(value, str) for value in table.values()):
            raise FormatError(f"{self.path}: expected __metadata__ to map strings to strings")
        return table

    def _parse(self, name: str, entry: Any, base: int) -> _Entry:
        where = f"{self.path}: tensor {name[:200]!r}"
        if not name.isprintable():  # names end up in messages and on terminals
            raise FormatError(f"{where}: expected a printable name")
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise FormatError(f"{where}: expected dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
            raise FormatError(f"{where}: expected a type name, a list of sizes and two offsets")
        if dtype not in _SIZES:
            raise UnsupportedError(f"{where}: unknown type {dtype[:40]!r}", hint="known types: " + ", ".join(_SIZES))
        elements = math.prod(shape) if len(shape) <= MAX_DIMENSIONS else MAX_ELEMENTS + 1
        if elements > MAX_ELEMENTS:
            raise FormatError(f"{where}: absurd shape {str(shape)[:200]}")
        begin, end = offsets
        nbytes = elements * _SIZES[dtype]
        if end - begin != nbytes:
            raise FormatError(f"{where}: {dtype} {shape} takes {nbytes} bytes, but its range holds {end - begin}")
        if base + end > self._file.size:
            raise FormatError(
                f"{where}: ends at byte {base + end}, but the file has {self._file.size}",
                hint="the file is truncated; fetch it again",
            )
        return _Entry(TensorInfo(name, dtype, tuple(shape), nbytes), base + begin)

    def _check_layout(self, entries: dict[str, _Entry], base: int) -> None:
        position = base
        for entry in sorted(entries.values(), key=lambda entry: (entry.offset, entry.info.nbytes)):
            if entry.offset != position:
                kind = "overlaps the one before it" if entry.offset < position else "follows a hole"
                raise FormatError(f"{self.path}: data of tensor {entry.info.name[:200]!r} {kind}")
            position += entry.info.nbytes
        if position != self._file.size:
            raise FormatError(f"{self.path}: {self._file.size - position} bytes after the last tensor")


class SafetensorsSet(Closing):
    """The tensors of a directory: `model.safetensors`, or the shards that `model.safetensors.index.json` names."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._files: dict[str, SafetensorsFile] = {}
        self._home: dict[str, SafetensorsFile] = {}
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def names(self) -> list[str]:
        """Tensor names of all shards."""
        return list(self._home)

    def info(self, name: str) -> TensorInfo:
        """Type, shape and size of a tensor."""
        return self._of(name).info(name)

    def read(self, name: str) -> NDArray[Any]:
        """The values as stored; see `SafetensorsFile.read`."""
        return self._of(name).read(name)

    def close(self) -> None:
        """Close all shards."""
        for file in self._files.values():
            file.close()

    def _of(self, name: str) -> SafetensorsFile:
        try:
            return self._home[name]
        except KeyError:
            raise FormatError(f"no tensor {name} in {self.directory}") from None

    def _open(self) -> None:
        single, index = self.directory / SINGLE_NAME, self.directory / INDEX_NAME
        if single.exists() or not index.exists():
            if not single.exists():
                raise FormatError(
                    f"expected {SINGLE_NAME} or {INDEX_NAME} in {self.directory}, found neither",
                    hint="PyTorch .bin files are not read; get the model's safetensors, or name a .gguf file",
                )
            file = self._files[SINGLE_NAME] = SafetensorsFile(single)
            self._home = dict.fromkeys(file.names(), file)
            return
        for name, shard in _weight_map(index).items():
            if shard not in self._files:
                if len(self._files) == MAX_SHARDS:
                    raise FormatError(f"{index} names more than {MAX_SHARDS} files")
                self._files[shard] = SafetensorsFile(self.directory / shard)
            self._files[shard].info(name)
            self._home[name] = self._files[shard]


def _weight_map(index: Path) -> dict[str, str]:
    table = read_json(index, "index").get("weight_map")
    if not isinstance(table, dict) or not table:
        raise FormatError(f"{index}: expected a weight_map from tensor names to files")
    for shard in set(map(str, table.values())):
        # Only a plain file name: an index must not make us read outside the model's directory.
        if (
            PurePosixPath(shard).name != shard
            or "\\" in shard
            or not (shard.isprintable() and shard.endswith(".safetensors"))
        ):
            raise FormatError(f"{index}: expected a plain .safetensors file name, found {shard[:200]!r}")
    return {name: str(shard) for name, shard in table.items()}


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
