"""One shard of an index: its files on disk, how they are made, and how positions in them become places in sources.

A shard holds text (documents, each behind a separator byte that no UTF-8 has), its suffix array, and the MinHash bands of its
passages. It knows sources by the hash of their content only; which files have that content is the index's affair.

    text.bin      uint8  [n]         documents, a SEPARATOR before each and at the end
    suffixes.bin  uint32 [n]         suffix array of the text
    segments.bin  uint32 [3, s]      from this position on; bytes from the beginning of the piece; line
    passages.bin  uint32 [p, 3]      begin and end in the text; how often it stands in this shard
    keys.bin      uint32 [BANDS, p]  keys of each band, sorted
    units.bin     uint32 [BANDS, p]  the passage that each key is of
    shard.json    pieces, sizes and hashes of these files
"""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from freehold.errors import FormatError, StoreError
from freehold.formats.writing import sync
from freehold.provenance import minhash
from freehold.provenance.trace.extract import extract
from freehold.provenance.trace.plan import Piece, ShardPlan, digest_of
from freehold.provenance.trace.sources import NotTextError, SourceFile, opened
from freehold.provenance.trace.suffixes import suffix_array

META: Final = "shard.json"
BLOCK: Final = 8 << 20  # bytes whose passages are looked for at a time
SEPARATOR: Final = bytes([minhash.SEPARATOR])
REBUILD: Final = (
    "the index is damaged: `freehold trace --build` makes anew what is broken, `--check` tells whether all is well"
)
Advance = Callable[[int], None]
U32 = NDArray[np.uint32]


class StoredFile(msgspec.Struct, frozen=True):
    """Size and hash of one of a shard's files."""

    size: int
    digest: str


class PlacedPiece(msgspec.Struct, frozen=True):
    """A piece and where its text begins in the shard."""

    piece: Piece
    text: int


class Meta(msgspec.Struct, frozen=True):
    """What `shard.json` holds."""

    name: str
    pieces: list[PlacedPiece]
    files: dict[str, StoredFile]


class Place(NamedTuple):
    """A byte of a source: the hash of its content, the byte's offset in it, its line (from 1)."""

    digest: str
    offset: int
    line: int


# -- making ---------------------------------------------------------------------------------------------------------------


def build_shard(root: Path, plan: ShardPlan, files: Mapping[str, SourceFile], target: Path, advance: Advance) -> None:
    """Index the pieces of a plan as the directory `target`, which appears only when it is whole.

    Args:
        root: the corpus.
        plan: which pieces.
        files: a file for each digest of the plan.
        target: directory to make; its parent exists.
        advance: told of bytes of source that are done; they sum to the plan's size.

    Raises:
        StoreError: a file changed since it was planned, or the disk refused.
    """
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        stored = _write_all(root, plan, files, partial, advance)
        _write(partial, META, [msgspec.json.encode(stored)])
        partial.rename(target)
    except OSError as error:
        raise StoreError(f"can't write the index below {target.parent}: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_all(root: Path, plan: ShardPlan, files: Mapping[str, SourceFile], into: Path, advance: Advance) -> Meta:
    share = [plan.size // 5, plan.size // 2]
    share.append(plan.size - sum(share))  # what the third step is worth; reading, sorting and hashing take about this
    text, segments, pieces = _gather(root, plan, files)
    stored = {"text.bin": _write(into, "text.bin", [text]), "segments.bin": _write(into, "segments.bin", [segments])}
    advance(share[0])
    stored["suffixes.bin"] = _write(into, "suffixes.bin", [suffix_array(np.frombuffer(text, np.uint8))])
    advance(share[1])
    found, keys, units = _near_duplicates(text)
    for name, array in (("passages.bin", found), ("keys.bin", keys), ("units.bin", units)):
        stored[name] = _write(into, name, [array])
    advance(share[2])
    return Meta(plan.name, pieces, stored)


def _write(folder: Path, name: str, parts: list[bytes | bytearray | NDArray[np.uint32]]) -> StoredFile:
    hashed = hashlib.blake2b(digest_size=20)
    size = 0
    with (folder / name).open("wb") as file:
        for part in parts:
            view = (
                part.reshape(-1).view(np.uint8) if isinstance(part, np.ndarray) else np.frombuffer(part, np.uint8)
            ).data
            file.write(view)
            hashed.update(view)
            size += len(view)
        file.flush()
        sync(file.fileno())
    return StoredFile(size, hashed.hexdigest())


def _gather(root: Path, plan: ShardPlan, files: Mapping[str, SourceFile]) -> tuple[bytearray, U32, list[PlacedPiece]]:
    text = bytearray(SEPARATOR)
    placed: list[PlacedPiece] = []
    segments: list[U32] = []
    for piece, data in _contents(root, plan, files):
        placed.append(PlacedPiece(piece, len(text)))
        rows: list[tuple[int, int, int]] = []
        for document in extract(piece.kind, data, piece.line):
            rows += [(len(text) + at, source, line) for at, source, line in document.segments]
            text += document.text
            text += SEPARATOR
        segments.append(np.array(rows, np.uint32).reshape(-1, 3))
    columns = np.concatenate([np.zeros((0, 3), np.uint32), *segments]).T
    return text, np.ascontiguousarray(columns), placed


def _contents(root: Path, plan: ShardPlan, files: Mapping[str, SourceFile]) -> Iterator[tuple[Piece, bytes]]:
    for digest, pieces in groupby(plan.pieces, key=lambda piece: piece.digest):
        file = files[digest]
        try:
            with opened(root, file) as stream:
                for piece in pieces:
                    stream.seek(piece.start)
                    data = stream.read(piece.stop - piece.start)
                    if digest_of(data) != piece.own:
                        raise NotTextError("other bytes")
                    yield piece, data
        except NotTextError:
            hint = "build the index again when nobody writes there"
            raise StoreError(f"{root / file.path} changed while it was indexed", hint=hint) from None


def _near_duplicates(text: bytearray) -> tuple[U32, U32, U32]:
    """(passages, sorted keys of each band, their passages); passages with equal signatures are kept once and counted."""
    rows: list[U32] = []
    signed: list[U32] = []
    for start, stop in _blocks(text):
        found = minhash.passages(bytes(memoryview(text)[start:stop]))
        rows.append((np.stack((found.starts, found.ends), axis=1) + start).astype(np.uint32))
        signed.append(minhash.signatures(found.shingles, found.offsets))
    keys = minhash.bands(np.concatenate(signed))
    _, first, counts = np.unique(keys.view(f"V{keys.shape[1] * 4}").ravel(), return_index=True, return_counts=True)
    order = np.argsort(first)
    first, counts = first[order], counts[order]
    passages = np.concatenate((np.concatenate(rows)[first], counts[:, None].astype(np.uint32)), axis=1)
    columns = np.ascontiguousarray(keys[first].T)
    units = np.argsort(columns, axis=1, kind="stable")
    return passages, np.take_along_axis(columns, units, axis=1), units.astype(np.uint32)


def _blocks(text: bytearray) -> Iterator[tuple[int, int]]:
    """Ranges of about BLOCK bytes that end where a passage ends anyway."""
    start = 0
    while start < len(text):
        stop = start + BLOCK
        ends = [at for at in (text.find(SEPARATOR, stop), text.find(b"\n\n", stop)) if at >= 0]
        stop = min(ends, default=len(text)) if stop < len(text) else len(text)
        yield start, stop
        start = stop


# -- reading --------------------------------------------------------------------------------------------------------------


class Shard:
    """A shard open for reading: its files are mapped, so memory is taken only while it is free.

    Raises:
        FormatError: a file is missing, of another size than recorded, or not what it should be.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.meta = _meta(folder, name)
        self.text = self._map("text.bin")
        try:
            self.suffixes = self._map("suffixes.bin").view(np.uint32)
            self.segments = self._map("segments.bin").view(np.uint32).reshape(3, -1)
            self.passages = self._map("passages.bin").view(np.uint32).reshape(-1, 3)
            self.keys = self._map("keys.bin").view(np.uint32).reshape(minhash.BANDS, -1)
            self.units = self._map("units.bin").view(np.uint32).reshape(minhash.BANDS, -1)
        except ValueError as error:
            raise FormatError(f"a file of {folder} has an impossible size: {error}", hint=REBUILD) from None
        self._starts = np.array([placed.text for placed in self.meta.pieces], np.int64)
        if len(self.suffixes) != len(self.text) or self.keys.shape != (minhash.BANDS, len(self.passages)):
            raise FormatError(f"the files of {folder} don't belong together", hint=REBUILD)

    def _map(self, name: str) -> NDArray[np.uint8]:
        path = self.folder / name
        expected = self.meta.files.get(name)
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if expected is None or size != expected.size:
                    wanted = "no such file" if expected is None else f"{expected.size} bytes"
                    raise FormatError(f"{path}: expected {wanted}, found {size} bytes", hint=REBUILD)
                if size == 0:
                    return np.zeros(0, np.uint8)
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                mapped.madvise(
                    mmap.MADV_RANDOM
                )  # a search reads a page here and a page there: reading ahead is in vain
                return np.frombuffer(mapped, np.uint8)
        except OSError as error:
            raise FormatError(f"can't read {path}: {error.strerror}", hint=REBUILD) from None

    def place(self, position: int) -> Place:
        """Where a byte of the text is from."""
        at = int(np.searchsorted(self._starts, position, "right")) - 1
        row = int(np.searchsorted(self.segments[0], position, "right")) - 1
        if at < 0 or row < 0 or position >= len(self.text):
            raise FormatError(f"{self.folder}: no source for byte {position}", hint=REBUILD)
        piece = self.meta.pieces[at].piece
        text, source, line = map(int, self.segments[:, row])
        line += int(np.count_nonzero(self.text[text:position] == ord("\n")))
        return Place(piece.digest, piece.start + source + position - text, line)

    def around(self, start: int, stop: int, margin: int) -> tuple[bytes, bytes]:
        """Up to `margin` bytes before and after a range, within its document."""
        before = self.text[max(0, start - margin) : start].tobytes().rpartition(SEPARATOR)[2]
        after = self.text[stop : stop + margin].tobytes().partition(SEPARATOR)[0]
        return before, after

    def check(self) -> Iterator[str]:
        """The files whose content is not what was written."""
        for name, expected in self.meta.files.items():
            with (self.folder / name).open("rb") as file:
                found = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=20))
            if found.hexdigest() != expected.digest:
                yield str(self.folder / name)


def _meta(folder: Path, name: str) -> Meta:
    path = folder / META
    try:
        meta = msgspec.json.decode(path.read_bytes(), type=Meta)
    except OSError as error:
        raise FormatError(f"can't read {path}: {error.strerror}", hint=REBUILD) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"{path}: expected the description of a shard: {error}", hint=REBUILD) from None
    if meta.name != name:
        raise FormatError(f"{path}: expected shard {name}, found {meta.name[:64]!r}", hint=REBUILD)
    if strange := [file for file in meta.files if "/" in file]:
        raise FormatError(f"{path}: expected names of files, found {strange[0][:64]!r}", hint=REBUILD)
    return meta
