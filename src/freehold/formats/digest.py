"""What a model is called by its bytes: one SHA-256 over its weight and config files, wherever they lie.

Knows nothing of what is in them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from freehold.errors import FormatError

SUFFIXES = (".safetensors", ".json", ".gguf", ".jinja", ".model", ".txt")
PIECE = 1 << 22

Read = Callable[[int, int], None]
"""Told bytes read, and bytes in all."""


def model_files(source: Path) -> list[Path]:
    """The files that make a model: the file itself, or those of a directory by name."""
    if source.is_file():
        return [source]
    return sorted(path for path in source.iterdir() if path.is_file() and path.suffix in SUFFIXES)


def digest(source: Path, read: Read = lambda done, total: None) -> str:
    """SHA-256 over the source: the file's own, or that of "name sha256" lines of a directory's files, by name.

    Raises:
        FormatError: a file can't be read.
    """
    files = model_files(source)
    total, done = sum(path.stat().st_size for path in files), 0
    sums = []
    for path in files:
        sums.append(_file(path, lambda count, before=done: read(before + count, total)))  # type: ignore[misc]
        done += path.stat().st_size
    if source.is_file():
        return sums[0]
    lines = "".join(f"{path.name} {found}\n" for path, found in zip(files, sums, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


def _file(path: Path, read: Callable[[int], None]) -> str:
    sha, done = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                sha.update(piece)
                done += len(piece)
                read(done)
    except OSError as error:
        raise FormatError(f"can't read {path}: {error.strerror}") from error
    return sha.hexdigest()
