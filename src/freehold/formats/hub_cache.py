"""Reading and pruning Hugging Face's cache: which runnable models it holds, where, and how to let go of one.

Knows the cache's layout (https://huggingface.co/docs/huggingface_hub/guides/manage-cache) and which files make a model;
no network.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from freehold.errors import FreeholdError
from freehold.formats.hub import HubSettings
from freehold.formats.references import BESIDE, HubReference, choose, gguf_files, safetensors, variant_of
from freehold.formats.writing import tree_size


@dataclass(frozen=True, slots=True)
class HubModel:
    """A runnable model in the cache: its reference, its bytes, its directory or file."""

    name: str
    size: int
    path: Path


def cached(settings: HubSettings) -> list[HubModel]:
    """Every runnable model in the cache, by name."""
    found: dict[str, HubModel] = {}
    for directory in sorted(settings.cache.glob("models--*--*")):
        repo = directory.name.removeprefix("models--").replace("--", "/", 1)
        for revision, snapshot in _snapshots(directory):
            suffix = "" if revision == "main" else f"@{revision}"
            for name, path, files in _models(repo, suffix, snapshot):
                found.setdefault(name, HubModel(name, sum(file.stat().st_size for file in files), path))
    return list(found.values())


def find_cached(settings: HubSettings, wanted: HubReference) -> Path | None:
    """A model of the cache, if all its files are there."""
    snapshot = _snapshot(settings, wanted)
    if snapshot is None:
        return None
    try:
        names = choose(wanted, _names(snapshot))
    except FreeholdError:
        return None  # not the files that were asked for; the hub may have them
    if names[0].endswith(".gguf"):
        return snapshot / names[0]
    return snapshot if _complete(snapshot) else None


def forget(settings: HubSettings, wanted: HubReference) -> int | None:
    """Delete a model from the cache; bytes freed, None if it isn't there.

    Without variant and revision the whole repository goes. Blobs that another snapshot uses stay.
    """
    directory = settings.repository(wanted.repo)
    snapshot = _snapshot(settings, wanted)
    if not directory.is_dir() or directory.is_symlink() or snapshot is None:
        return None
    before = tree_size(directory)
    if wanted.variant is not None:
        path = find_cached(settings, wanted)
        if path is None:
            return None
        path.unlink()
    elif wanted.revision == "main":
        shutil.rmtree(directory)
        return before
    else:
        shutil.rmtree(snapshot)
    _sweep(directory)
    return before - (tree_size(directory) if directory.exists() else 0)


def _snapshots(directory: Path) -> Iterator[tuple[str, Path]]:
    """Revisions with their snapshots; those without a name go by their commit."""
    named = set()
    refs = directory / "refs"
    for reference in sorted(refs.rglob("*"), key=lambda file: (file.name != "main", file)):
        if reference.is_file():
            commit = reference.read_text(encoding="utf-8", errors="replace").strip()
            if commit and "/" not in commit and (snapshot := directory / "snapshots" / commit).is_dir():
                named.add(commit)
                yield str(reference.relative_to(refs)), snapshot
    for snapshot in sorted((directory / "snapshots").glob("*")):
        if snapshot.is_dir() and snapshot.name not in named:
            yield snapshot.name, snapshot


def _snapshot(settings: HubSettings, wanted: HubReference) -> Path | None:
    return dict(_snapshots(settings.repository(wanted.repo))).get(wanted.revision) or _by_commit(settings, wanted)


def _by_commit(settings: HubSettings, wanted: HubReference) -> Path | None:
    snapshot = settings.repository(wanted.repo) / "snapshots" / wanted.revision
    return snapshot if len(wanted.revision) == 40 and snapshot.is_dir() else None


def _names(snapshot: Path) -> list[str]:
    """Files that are really there: a link whose blob is gone doesn't count."""
    return [str(file.relative_to(snapshot)) for file in snapshot.rglob("*") if file.is_file()]


def _models(repo: str, suffix: str, snapshot: Path) -> Iterator[tuple[str, Path, list[Path]]]:
    names = _names(snapshot)
    if safetensors(names) and _complete(snapshot):
        yield f"{repo}{suffix}", snapshot, [snapshot / name for name in (*safetensors(names), *BESIDE) if name in names]
    for name in gguf_files(names):
        yield f"{repo}:{variant_of(name)}{suffix}", snapshot / name, [snapshot / name]


def _complete(snapshot: Path) -> bool:
    """Whether config and every weight file the index names are there."""
    if not (snapshot / "config.json").is_file():
        return False
    index = snapshot / "model.safetensors.index.json"
    if not index.is_file() or (snapshot / "model.safetensors").is_file():
        return bool(safetensors(_names(snapshot)))
    try:
        shards = set(json.loads(index.read_bytes())["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError):
        return False
    return all(isinstance(shard, str) and (snapshot / shard).is_file() for shard in shards)


def _sweep(directory: Path) -> None:
    """Drop blobs nothing points to, empty snapshots, and references to them."""
    snapshots = directory / "snapshots"
    used = {link.resolve() for link in snapshots.rglob("*") if link.is_symlink()}
    for blob in list((directory / "blobs").glob("*")):
        if blob.resolve() not in used:
            blob.unlink()
    for snapshot in list(snapshots.glob("*")):
        if not any(entry.is_symlink() or entry.is_file() for entry in snapshot.rglob("*")):
            shutil.rmtree(snapshot)
    left = {snapshot.name for snapshot in snapshots.glob("*")}
    for reference in [file for file in (directory / "refs").rglob("*") if file.is_file()]:
        if reference.read_text(encoding="utf-8", errors="replace").strip() not in left:
            reference.unlink()
    if not left:
        shutil.rmtree(directory)
