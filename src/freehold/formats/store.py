"""The model store: from a reference to files on this machine, fetched if need be.

Built-in models and those made by `freehold compress` live below FREEHOLD_HOME (default: $XDG_CACHE_HOME/freehold);
models of the hub stay in Hugging Face's own cache. This module moves files; what is inside them is for `checkpoint` and
`tokenizer`.
"""

from __future__ import annotations

import difflib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from freehold.errors import ModelNotFoundError, StoreError, UnsupportedError, UsageError
from freehold.formats import references
from freehold.formats.builtin import BUILTINS, fetch, is_present, path_of
from freehold.formats.hub import Hub, HubSettings, disk_errors
from freehold.formats.hub_cache import cached, find_cached, forget
from freehold.formats.model_card import ModelCard, card_of
from freehold.formats.references import FORMS, HubReference, hub_reference, is_alias, looks_like_path
from freehold.formats.writing import tree_size
from freehold.progress import Progress

__all__ = ["ModelCard", "StoredModel", "home", "list_models", "models", "pull", "remove", "resolve", "show"]


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model on this machine.

    Attributes:
        name: the reference that resolves to it.
        kind: "built-in", "compressed" or "hub".
        size: bytes on disk.
        path: directory or .gguf file.
    """

    name: str
    kind: str
    size: int
    path: Path


def home() -> Path:
    """FREEHOLD_HOME, by default `freehold` in the user's cache directory."""
    if found := os.environ.get("FREEHOLD_HOME"):
        return Path(found).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "freehold"


def models() -> Path:
    """Where named models live; a compressed model in `models() / NAME` is found as NAME."""
    return home() / "models"


def resolve(reference: str, *, offline: bool = False, progress: Progress | None = None) -> Path:
    """The directory or .gguf file of a model; fetched when it isn't here, used as it is when it is.

    Args:
        reference: built-in name, name of a compressed model, path, or `org/repo[:variant][@revision]`.
        offline: never use the network.
        progress: told about transfers.

    Raises:
        ModelNotFoundError: nothing of that name, here or at the hub.
        StoreError: it can't be fetched or verified.
        UnsupportedError: a repository without files we can use.
    """
    return _here(reference) or _fetch(reference, offline, progress)


def pull(reference: str, *, offline: bool = False, progress: Progress | None = None) -> Path:
    """Like `resolve`, but asks the hub for the newest files of the revision even when some are here."""
    if hub_reference(reference) is not None and not _named_here(reference):
        return _fetch(reference, offline, progress)
    return resolve(reference, offline=offline, progress=progress)


def list_models() -> list[StoredModel]:
    """Every model that `resolve` finds by name without the network: built-in, compressed, then the hub's."""
    found = [
        StoredModel(name, "built-in", tree_size(path), path)
        for name, path in ((name, path_of(builtin, home())) for name, builtin in BUILTINS.items())
        if is_present(BUILTINS[name], home())
    ]
    found += [StoredModel(path.name, "compressed", tree_size(path), path) for path in _compressed()]
    return found + [
        StoredModel(model.name, "hub", model.size, model.path) for model in cached(HubSettings.from_environment())
    ]


def show(reference: str) -> ModelCard:
    """What is known of a model on this machine; reads headers, not weights.

    Raises:
        ModelNotFoundError: it isn't here.
        FormatError, UnsupportedError: its files can't be read.
    """
    path = _here(reference)
    if path is None:
        raise _not_here(reference)
    licence = BUILTINS[reference].licence if reference in BUILTINS else None
    return card_of(reference, path, licence)


def remove(reference: str) -> int:
    """Delete a model from the store and give the bytes freed.

    Raises:
        UsageError: the reference is a path of the user's own.
        ModelNotFoundError: it isn't in the store.
    """
    with disk_errors(f"removing {reference}"):
        if reference in BUILTINS or (is_alias(reference) and (models() / reference).is_dir()):
            target = path_of(BUILTINS[reference], home()).parent if reference in BUILTINS else models() / reference
            if not target.is_dir():
                raise _not_here(reference)
            if target.is_symlink():  # the user's own directory under a name in the store: only the name goes
                target.unlink()
                return 0
            freed = tree_size(target)
            shutil.rmtree(target)
            return freed
        if _path(reference) is not None or looks_like_path(reference):
            raise UsageError(f"{reference} is not in the store", hint="delete files of your own yourself")
        wanted = hub_reference(reference)
        settings = HubSettings.from_environment()
        held = forget(settings, wanted) if wanted else None
        if held is None:
            raise _not_here(reference)
        return held


def _named_here(reference: str) -> bool:
    return reference in BUILTINS or looks_like_path(reference) or _path(reference) is not None


def _here(reference: str) -> Path | None:
    """The model if it is on this machine."""
    if reference in BUILTINS:
        builtin = BUILTINS[reference]
        return path_of(builtin, home()) if is_present(builtin, home()) else None
    if is_alias(reference) and (models() / reference / "config.json").is_file():
        return models() / reference
    if (path := _path(reference)) is not None:
        return _local(path)
    if looks_like_path(reference):
        raise ModelNotFoundError(f"no such file or directory: {reference}", hint=f"a model is {FORMS}")
    wanted = hub_reference(reference)
    return find_cached(HubSettings.from_environment(), wanted) if wanted else None


def _path(reference: str) -> Path | None:
    """The reference as an existing path."""
    path = Path(os.path.expanduser(reference))  # noqa: PTH111 - unlike Path.expanduser, no error for unknown users
    return path if reference and os.path.exists(path) else None  # noqa: PTH110 - no error for impossible names


def _local(path: Path) -> Path:
    """A path of the user's own: the file, the directory, or the one .gguf file in it."""
    if path.is_file():
        if path.suffix in references.PICKLES:
            raise UnsupportedError(f"{path} is a pickle, which can run any code", hint="use .safetensors or .gguf")
        return path
    if (path / "config.json").is_file():
        return path
    names = [entry.name for entry in path.iterdir()] if path.is_dir() else []
    ggufs = references.gguf_files(names)
    if len(ggufs) == 1:
        return path / ggufs[0]
    if ggufs:
        raise ModelNotFoundError(f"{path} holds {len(ggufs)} .gguf files", hint="name one: " + ", ".join(ggufs[:10]))
    raise ModelNotFoundError(f"{path} holds no model: neither config.json nor a .gguf file", hint=f"a model is {FORMS}")


def _fetch(reference: str, offline: bool, progress: Progress | None) -> Path:
    settings = HubSettings.from_environment()
    if reference in BUILTINS:
        if offline:
            raise _not_here(reference)
        with disk_errors(f"fetching {reference}"):
            return fetch(BUILTINS[reference], home(), progress)
    wanted = hub_reference(reference)
    if wanted is None:
        raise _not_here(reference)
    if offline or settings.offline:
        held = find_cached(settings, wanted)
        if held is None:
            raise _not_here(reference, offline=True)
        return held
    return _from_hub(Hub(settings), wanted, progress)


def _from_hub(hub: Hub, wanted: HubReference, progress: Progress | None) -> Path:
    listing = hub.listing(wanted.repo, wanted.revision)
    names = references.choose(wanted, (file.name for file in listing.files))
    files = [file for file in listing.files if file.name in set(names)]
    snapshot = hub.fetch(listing, files, wanted.revision, progress)
    return snapshot / names[0] if names[0].endswith(".gguf") else snapshot


def _compressed() -> list[Path]:
    if not models().is_dir():
        return []
    return sorted(path for path in models().iterdir() if is_alias(path.name) and (path / "config.json").is_file())


def _not_here(reference: str, *, offline: bool = False) -> StoreError:
    """The error for a model that isn't on this machine, with the nearest names."""
    if reference in BUILTINS:
        return ModelNotFoundError(f"{reference} has not been fetched yet", hint=f"run `freehold pull {reference}`")
    if offline:
        return ModelNotFoundError(
            f"{reference} is not in the cache, and the hub may not be asked (offline)",
            hint="unset HF_HUB_OFFLINE, or fetch it once while online",
        )
    known = [*BUILTINS, *(model.name for model in list_models())]
    near = difflib.get_close_matches(reference, dict.fromkeys(known), n=3, cutoff=0.6)
    if near:
        return ModelNotFoundError(f"no model {reference!r}", hint="did you mean " + " or ".join(near) + "?")
    if hub_reference(reference) is not None:
        return ModelNotFoundError(f"{reference} is not on this machine", hint=f"run `freehold pull {reference}`")
    return ModelNotFoundError(f"no model {reference!r}", hint=f"a model is {FORMS}")
