"""The files of a corpus: which can be read as text, as what, under which licence file, and which are left out and why.

It knows directories and bytes; nothing of indexes. A corpus is hostile: symbolic links are never followed (so loops don't
matter), pipes and devices never opened, compressed files expand to a limit only, and no file is in memory as a whole.
"""

from __future__ import annotations

import gzip
import os
import re
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from freehold.errors import FormatError, UsageError

TEXT, JSON, HTML = "text", "json", "html"
EXPANDED_LIMIT: Final = 512 << 20  # bytes a compressed file may expand to
HTML_LIMIT: Final = 128 << 20  # HTML is read as a whole
PIECE: Final = 32 << 20  # bytes of a file that stay together
_KINDS = {".jsonl": JSON, ".ndjson": JSON, ".json": JSON, ".html": HTML, ".htm": HTML, ".xhtml": HTML}
_LEFT_OUT = {".git", ".hg", ".svn", "__pycache__"}
_LICENCES = re.compile(r"(un)?licen[cs]e|copying|copyright|notice", re.IGNORECASE)
_NOT_LICENCES = {
    ".py",
    ".pyi",
    ".pyc",
    ".js",
    ".ts",
    ".c",
    ".h",
    ".cpp",
    ".go",
    ".rs",
    ".java",
    ".json",
    ".png",
    ".svg",
}
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\v\f\r\b\x1b"))


class SourceFile(msgspec.Struct, frozen=True):
    """A file of the corpus: path below its root, size and time of change as the directory says, and nearest licence."""

    path: str
    size: int
    modified: int  # ns since 1970
    kind: str
    compressed: bool
    licence: str | None  # path below the root


class Skipped(msgspec.Struct, frozen=True):
    """A file that is not in the index, and the reason in words."""

    path: str
    reason: str


class NotTextError(FormatError):
    """A file can't be had as text; the words say why."""


def scan(root: Path, leave_out: Path | None = None) -> tuple[list[SourceFile], list[Skipped]]:
    """Every file below a directory (or the one file), by path; contents are not looked at.

    Args:
        root: the corpus.
        leave_out: a directory below it that does not belong to it (an index).

    Raises:
        UsageError: there is no such directory or file.
    """
    if not root.exists():
        raise UsageError(f"no corpus at {root}", hint="--corpus names a directory of texts")
    if not root.is_dir():
        return [_source(root.name, root.stat(), None)], []
    files: list[SourceFile] = []
    skipped: list[Skipped] = []
    waiting: list[tuple[str, str | None]] = [("", None)]  # directory below the root, licence file that holds for it
    while waiting:
        folder, licence = waiting.pop()
        try:
            entries = sorted(os.scandir(root / folder), key=lambda entry: entry.name)
        except OSError as error:
            skipped.append(Skipped(folder or ".", f"can't be read: {error.strerror}"))
            continue
        licence = _licence_among(folder, entries) or licence
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            if reason := _unreadable(entry):
                skipped.append(Skipped(os.fsencode(path).decode("utf-8", "backslashreplace"), reason))
            elif not entry.is_dir(follow_symlinks=False):
                files.append(_source(path, entry.stat(follow_symlinks=False), licence))
            elif entry.name not in _LEFT_OUT and root / path != leave_out:
                waiting.append((path, licence))
    files.sort(key=lambda file: file.path)
    return files, sorted(skipped, key=lambda one: one.path)


@contextmanager
def opened(root: Path, file: SourceFile) -> Iterator[BinaryIO | gzip.GzipFile]:
    """The content of a file, expanded if it is compressed, as a stream.

    Raises:
        NotTextError: it can't be read, which may show as late as its last byte.
    """
    path = root / file.path if root.is_dir() else root
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as stream:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise NotTextError("not a regular file")
            if file.compressed:
                with gzip.GzipFile(fileobj=stream) as expanded:
                    yield expanded
            else:
                yield stream
    except (OSError, EOFError, zlib.error) as error:
        raise NotTextError(f"can't be read: {getattr(error, 'strerror', None) or error}") from None


def pieces(root: Path, file: SourceFile) -> Iterator[bytes]:
    """The content of a file in pieces of PIECE bytes at most that end at line ends if they can; HTML is one.

    Raises:
        NotTextError: it is no text, or expands to too much; pieces may have been given already.
    """
    limit = HTML_LIMIT if file.kind == HTML else PIECE
    total, rest = 0, b""
    with opened(root, file) as stream:
        while data := rest + stream.read(limit + 1 - len(rest)):
            if reason := _binary(data):
                raise NotTextError(reason)
            if file.kind == HTML and len(data) > limit:
                raise NotTextError(f"HTML of more than {HTML_LIMIT >> 20} MiB")
            stop = len(data) if len(data) <= limit else data.rfind(b"\n", 0, limit) + 1 or limit
            total += stop
            if file.compressed and total > EXPANDED_LIMIT:
                raise NotTextError(f"expands to more than {EXPANDED_LIMIT >> 20} MiB")
            yield data[:stop]
            rest = data[stop:]


def _source(path: str, found: os.stat_result, licence: str | None) -> SourceFile:
    inner = Path(path)
    compressed = inner.suffix.lower() == ".gz"
    if compressed:
        inner = inner.with_suffix("")
    kind = _KINDS.get(inner.suffix.lower(), TEXT)
    return SourceFile(path, found.st_size, found.st_mtime_ns, kind, compressed, licence)


def _unreadable(entry: os.DirEntry[str]) -> str | None:
    try:
        entry.name.encode()
    except UnicodeEncodeError:
        return "its name is not valid UTF-8"
    if entry.is_symlink():
        return "a symbolic link"
    if not entry.is_dir(follow_symlinks=False) and not entry.is_file(follow_symlinks=False):
        return "not a regular file"
    return None


def _licence_among(folder: str, entries: list[os.DirEntry[str]]) -> str | None:
    """The file that says most of the licence: LICENSE before COPYING before COPYRIGHT before NOTICE."""
    order = ("l", "u", "copyi", "copyr", "n")
    found = [entry.name for entry in entries if is_licence(entry.name) and entry.is_file(follow_symlinks=False)]
    if not found:
        return None
    best = min(
        found, key=lambda name: (next(i for i, start in enumerate(order) if name.lower().startswith(start)), name)
    )
    return f"{folder}/{best}" if folder else best


def is_licence(name: str) -> bool:
    """Is this a file that holds a licence's text, by its name (LICENSE, LICENCE.txt, LICENSE-MIT, COPYING, copyright)?"""
    match = _LICENCES.match(name)
    rest = name[match.end() :] if match else ""
    return bool(match) and (not rest or rest[0] in "-._sS") and Path(name).suffix.lower() not in _NOT_LICENCES


def _binary(data: bytes) -> str | None:
    """Why these bytes are no text: UTF-8 and every encoding that keeps ASCII are."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16, not UTF-8"
    if data.startswith(b"PAR1"):
        return "Parquet (as JSON lines it can be searched)"
    if b"\0" in data:
        return "binary"
    head = data[:8192]
    controls = len(head) - len(head.translate(None, _CONTROLS))
    return "binary" if controls * 20 > len(head) else None


def differing(one: list[SourceFile], other: list[SourceFile]) -> Iterator[str]:
    """Paths that differ in being there, size or time of change."""
    before = {file.path: (file.size, file.modified) for file in one}
    after = {file.path: (file.size, file.modified) for file in other}
    for path in sorted(before.keys() | after.keys()):
        if before.get(path) != after.get(path):
            yield path
