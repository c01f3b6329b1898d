"""A directory or a zip file as names and small texts: nothing is unpacked, nothing is followed out, everything is bounded.

Knows no licences. A wheel is a zip file that anybody could have made: absurd counts, sizes and names are refused.
"""

from __future__ import annotations

import hashlib
import os
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Protocol, Self

from freehold.errors import FormatError
from freehold.provenance.artefact.facts import File

MAX_FILES = 50_000
MAX_TEXT = 1_000_000  # bytes of one file that is read
MAX_READ = 192_000_000  # bytes read of one artefact
MAX_DEPTH = 12
TOOLING = frozenset(
    (".git", ".hg", ".svn", "__pycache__", ".cache", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".tox")
)
INSTALLED = frozenset((".venv", "venv", "node_modules", "build"))  # other people's files, or made ones: told in a note


class Tree(Protocol):
    """Files by name, with forward slashes."""

    name: str

    def left_out(self) -> list[str]:
        """Directories that `files` did not enter although they may hold the artefact's own files."""

    def files(self) -> list[File]:
        """Every regular file."""

    def read(self, name: str, limit: int = MAX_TEXT) -> bytes:
        """The first `limit` bytes of a file."""


class Folder:
    """A directory; links that leave it are not followed, except into the blobs of Hugging Face's cache."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.name
        self._left = MAX_READ
        self._out: list[str] = []
        self._roots = (path.resolve(), _blobs(path))

    def files(self) -> list[File]:
        """Every regular file, by name; FormatError when there are absurdly many."""
        found: list[File] = []
        for name in self._walk(self.path, 0):
            if len(found) >= MAX_FILES:
                raise FormatError(f"{self.path} holds more than {MAX_FILES} files", hint="name a directory below it")
            found.append(File(name, (self.path / name).stat().st_size))
        return sorted(found, key=lambda file: file.name)

    def left_out(self) -> list[str]:
        """Directories of installed packages, of builds, and those below MAX_DEPTH."""
        return sorted(set(self._out))

    def read(self, name: str, limit: int = MAX_TEXT) -> bytes:
        """The first bytes of a file; nothing once MAX_READ bytes were read in all."""
        limit = min(limit, self._left)
        with (self.path / name).open("rb") as file:
            content = file.read(limit)
        self._left -= len(content)
        return content

    def _walk(self, folder: Path, depth: int) -> Iterator[str]:
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise FormatError(f"can't list {folder}: {error.strerror}") from None
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if entry.name in INSTALLED or depth >= MAX_DEPTH:
                    self._out.append(Path(entry.path).relative_to(self.path).as_posix())
                elif entry.name not in TOOLING:
                    yield from self._walk(Path(entry.path), depth + 1)
                continue
            name = Path(entry.path).relative_to(self.path).as_posix()
            if self.holds(name):
                yield name

    def holds(self, name: str) -> bool:
        """Whether that is a regular file, and not a link that leaves the directory."""
        try:
            real = (self.path / name).resolve(strict=True)
            regular = stat.S_ISREG(real.stat().st_mode)
        except (OSError, RuntimeError):
            return False
        return regular and any(root is not None and real.is_relative_to(root) for root in self._roots)


class Zip:
    """A zip file; members are read as streams, never unpacked.

    Raises:
        FormatError: no zip file, too many members, or a member that inflates beyond what it declares.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.name
        self._left = MAX_READ
        try:
            self._archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
            raise FormatError(f"{path} is no zip file: {error}", hint="fetch it again") from None
        members = self._archive.infolist()
        if len(members) > MAX_FILES:
            self.close()
            raise FormatError(f"{path} holds {len(members)} members, more than {MAX_FILES}")
        self._members = {member.filename: member for member in members if _harmless(member)}

    def files(self) -> list[File]:
        """Every member with a harmless name; sizes are those the archive declares."""
        return [File(name, member.file_size) for name, member in sorted(self._members.items())]

    def left_out(self) -> list[str]:
        """Nothing: an archive is read whole."""
        return []

    def read(self, name: str, limit: int = MAX_TEXT) -> bytes:
        """The first bytes of a member, inflated as a stream."""
        limit = min(limit, self._left)
        try:
            with self._archive.open(self._members[name]) as member:
                content = member.read(limit)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, ValueError) as error:
            raise FormatError(f"{self.path}: can't read {name}: {error}") from None
        except Exception as error:  # zlib.error and its like of other methods
            raise FormatError(f"{self.path}: {name} is damaged: {error}") from None
        self._left -= len(content)
        return content

    def close(self) -> None:
        """Close the file."""
        self._archive.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def text_of(content: bytes) -> str:
    """Bytes as text, whatever they are."""
    for encoding in ("utf-8-sig", "utf-16") if content[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8-sig",):
        try:
            return content.decode(encoding)
        except UnicodeDecodeError:
            continue
    return content.decode("latin-1")


def digest_of(content: bytes) -> str:
    """SHA-256 in hex digits."""
    return hashlib.sha256(content).hexdigest()


def _harmless(member: zipfile.ZipInfo) -> bool:
    """A regular file with a relative, printable name."""
    parts = PurePosixPath(member.filename).parts
    mode = member.external_attr >> 16
    return (
        not member.is_dir()
        and bool(parts)
        and len(member.filename) <= 1000
        and not member.filename.startswith("/")
        and ".." not in parts
        and "\\" not in member.filename
        and member.filename.isprintable()
        and (mode == 0 or stat.S_IFMT(mode) in (0, stat.S_IFREG))
        and not member.flag_bits & 1
    )


def _blobs(path: Path) -> Path | None:
    """Where the files of a snapshot in Hugging Face's cache really lie."""
    for parent in path.resolve().parents:
        if parent.name == "snapshots" and (parent.parent / "blobs").is_dir():
            return (parent.parent / "blobs").resolve()
    return None
