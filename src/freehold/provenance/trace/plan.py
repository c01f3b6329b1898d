"""How a corpus is cut: files into pieces, pieces into shards, each named after what is in it.

Equal contents are one piece wherever they lie, and a shard's name is the hash of its pieces: what did not change keeps its
name, so nobody indexes it again, whatever was renamed or added elsewhere. It reads files and writes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from freehold.provenance import minhash
from freehold.provenance.trace.sources import NotTextError, Skipped, SourceFile, pieces

FORMAT: Final = "freehold-trace-2"
SMALLEST, LARGEST = 128 << 20, 256 << 20  # bytes of a shard; between them, a piece's hash says whether one ends
ENDS_AT: Final = 64  # one piece in so many may end a shard


class Piece(msgspec.Struct, frozen=True):
    """Bytes `start:stop` of a file's (expanded) content; `line` is the number of its first line.

    `digest` names the whole content, `own` the bytes of this piece.
    """

    digest: str
    own: str
    kind: str
    start: int
    stop: int
    line: int


class ShardPlan(msgspec.Struct, frozen=True):
    """Pieces that are indexed together, and the name that follows from them."""

    name: str
    pieces: list[Piece]

    @property
    def size(self) -> int:
        """Bytes of source."""
        return sum(piece.stop - piece.start for piece in self.pieces)


def digest_of(data: bytes) -> str:
    """The name of a content."""
    return hashlib.blake2b(data, digest_size=20).hexdigest()


def pieces_of(root: Path, file: SourceFile) -> list[Piece] | Skipped:
    """The pieces of a file, or why it has none."""
    whole = hashlib.blake2b(digest_size=20)
    found: list[tuple[str, int, int, int]] = []
    start, line = 0, 1
    try:
        for data in pieces(root, file):
            whole.update(data)
            found.append((digest_of(data), start, start + len(data), line))
            start += len(data)
            line += data.count(b"\n")
    except NotTextError as error:
        return Skipped(file.path, str(error))
    digest = whole.hexdigest()
    return [Piece(digest, own, file.kind, *place) for own, *place in found] or Skipped(file.path, "empty")


def shards_of(pieces: list[Piece]) -> Iterator[ShardPlan]:
    """Pieces in their order as shards. Where a shard ends follows from the pieces near its end only."""
    gathered: list[Piece] = []
    size = 0
    for piece in pieces:
        if gathered and size + piece.stop - piece.start > LARGEST:
            yield ShardPlan(_name(gathered), gathered)
            gathered, size = [], 0
        gathered.append(piece)
        size += piece.stop - piece.start
        if size >= SMALLEST and int(piece.digest[:8], 16) % ENDS_AT == 0:
            yield ShardPlan(_name(gathered), gathered)
            gathered, size = [], 0
    if gathered:
        yield ShardPlan(_name(gathered), gathered)


def _name(pieces: list[Piece]) -> str:
    hashed = hashlib.blake2b(f"{FORMAT}\n{minhash.ALGORITHM}\n".encode(), digest_size=16)
    for piece in pieces:
        hashed.update(f"{piece.digest} {piece.own} {piece.kind} {piece.start} {piece.stop} {piece.line}\n".encode())
    return hashed.hexdigest()
