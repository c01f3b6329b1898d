"""Small corpora on disk for the tests of tracing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from freehold.provenance.trace import Index, build_index


def write(root: Path, files: Mapping[str, bytes | str]) -> Path:
    """Files below a directory, by name."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def indexed(root: Path, files: Mapping[str, bytes | str]) -> Index:
    """An open index of these files: `root/corpus` and `root/index`."""
    build_index(write(root / "corpus", files), root / "index", jobs=1)
    return Index(root / "index")
