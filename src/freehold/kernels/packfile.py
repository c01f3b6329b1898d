"""Files of packed weights: matrices in the kernels' own layout, mapped into memory as they are.

    bytes 0-63    magic (16), version, index offset, index length (uint64 each), 24 of the index's SHA-256
    sections      codes, scales, offsets, vectors; each begins at a multiple of 64
    index         JSON: facts of the writer's, and for every weight where its sections are

The beginning is written last, so a file that was cut short has none. Whoever opens a file gets either all of it or
`DamagedError`. This module knows no checkpoints, models or directories.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from freehold.kernels import _native
from freehold.kernels.executor import PackedMatrix

F32 = NDArray[np.float32]
MAGIC = b"freehold packed\n"
LAYOUT = 1
"""Version of the file and of the layout in it; a change makes all older files useless."""
ALIGNMENT = 64
MAX_INDEX = 64 << 20
STAMP = 1_000_000_000_000_000_000
"""Nanoseconds: the time of change that whoever made a file gives it, so that later changes show."""
_BEGINNING = struct.Struct("<16sQQQ24s")


class DamagedError(Exception):
    """A file that is cut short, changed, or none of ours."""


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: str
    rows: int
    columns: int
    group: int
    narrow_scales: bool
    codes_at: int
    scales_at: int
    offsets_at: int


class _Index(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    facts: dict[str, Any]
    digest: str
    matrices: dict[str, tuple[_Part, ...]]
    vectors: dict[str, tuple[int, int]]


class _Writer:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()

    def add(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._digest.update(data)

    def section(self, data: NDArray[np.uint8] | None) -> int:
        """Where the bytes begin; -1 where there are none."""
        if data is None:
            return -1
        at = self.align()
        self.add(data.data)
        return at

    def align(self) -> int:
        self.add(bytes(-self._file.tell() % ALIGNMENT))
        return self._file.tell()

    def part(self, part: _native.Packed) -> _Part:
        rows, columns = part.shape
        places = [self.section(part.codes), self.section(part.scales), self.section(part.offsets)]
        return _Part(part.format, rows, columns, part.group, part.narrow_scales, *places)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def write(
    file: BinaryIO, weights: Iterable[tuple[str, PackedMatrix | F32]], facts: Callable[[], Mapping[str, Any]]
) -> None:
    """Write weights, one after the other, then what the reader should know of them (JSON; asked for last)."""
    file.write(bytes(_BEGINNING.size))
    writer = _Writer(file)
    matrices: dict[str, tuple[_Part, ...]] = {}
    vectors: dict[str, tuple[int, int]] = {}
    for name, weight in weights:
        if isinstance(weight, PackedMatrix):
            matrices[name] = tuple(writer.part(part) for part in weight.parts)
        else:
            raw = np.ascontiguousarray(weight, np.float32)
            vectors[name] = writer.section(raw.view(np.uint8)), len(raw)
    at = writer.align()
    index = msgspec.json.encode(_Index(dict(facts()), writer.hexdigest(), matrices, vectors))
    file.write(index)
    file.seek(0)
    file.write(_BEGINNING.pack(MAGIC, LAYOUT, at, len(index), hashlib.sha256(index).digest()[:24]))


def read(path: Path, *, whole: bool = False) -> tuple[dict[str, PackedMatrix | F32], dict[str, Any]]:
    """The weights, mapped, and the writer's facts.

    Args:
        whole: compare all sections with their checksum, too: reads the whole file.

    Raises:
        DamagedError: not a whole file of this version.
        OSError: it can't be read.
    """
    with path.open("rb") as file:
        index, at = _index_of(file)
        if whole and _digest_of(file, at) != index.digest:
            raise DamagedError(f"{path}: the weights are not those that were written")
        try:
            mapping = _native.Mapping(str(path))
            weights: dict[str, PackedMatrix | F32] = {
                name: PackedMatrix(tuple(_native.packed_in(mapping, *msgspec.structs.astuple(part)) for part in parts))
                for name, parts in index.matrices.items()
                if parts
            }
        except (ValueError, TypeError, RuntimeError) as error:  # TypeError: more than an int holds
            raise DamagedError(f"{path}: {error}") from error
        for name, (at, length) in index.vectors.items():
            file.seek(at)
            data = file.read(4 * length) if 0 < length <= 1 << 24 else b""
            if len(data) != 4 * length or not data:
                raise DamagedError(f"{path}: {name} is not in the file")
            weights[name] = np.frombuffer(data, np.float32).copy()
    return weights, index.facts


def facts_of(path: Path) -> dict[str, Any]:
    """What the writer said of a file; errors as `read`."""
    with path.open("rb") as file:
        return _index_of(file)[0].facts


def _index_of(file: BinaryIO) -> tuple[_Index, int]:
    """The index and where it begins."""
    beginning = file.read(_BEGINNING.size)
    if len(beginning) != _BEGINNING.size:
        raise DamagedError(f"{file.name}: too short")
    magic, layout, at, length, digest = _BEGINNING.unpack(beginning)
    if magic != MAGIC or layout != LAYOUT or length > MAX_INDEX or at > os.fstat(file.fileno()).st_size:
        raise DamagedError(f"{file.name}: not a file of packed weights of version {LAYOUT}")
    file.seek(at)
    raw = file.read(length + 1)
    if len(raw) != length or hashlib.sha256(raw).digest()[:24] != digest:
        raise DamagedError(f"{file.name}: the index is damaged")
    try:
        return msgspec.json.decode(raw, type=_Index), at
    except msgspec.MsgspecError as error:
        raise DamagedError(f"{file.name}: {error}") from error


def _digest_of(file: BinaryIO, end: int) -> str:
    """SHA-256 of the sections."""
    digest, left = hashlib.sha256(), end - _BEGINNING.size
    file.seek(_BEGINNING.size)
    while left > 0 and (piece := file.read(min(left, 1 << 20))):
        digest.update(piece)
        left -= len(piece)
    return digest.hexdigest()
