"""Which weights the local engine runs: found by their files, digested once, and remembered with their licence.

Digesting gigabytes takes seconds, so an exchange names its weights by the files' names, sizes and times; who writes
the record turns that into a digest, which is kept in the database for the next start. Knows no engine.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from freehold.database import Database
from freehold.formats.digest import digest, model_files
from freehold.formats.model_card import declared_licence


@dataclass(frozen=True, slots=True)
class Weights:
    """A model by its bytes; `digest` as in `freehold-report.json`."""

    digest: str
    licence: str | None


def files_of(path: Path, licence: str | None = None) -> str:
    """What stands for a model's files until they are digested: where they are, with sizes and times.

    Args:
        licence: when it is known better than from the files, as of a built-in model.
    """
    facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in model_files(path)]
    return json.dumps([str(path.absolute()), licence, facts])


def weights_of(database: Database, files: str) -> Weights | None:
    """The weights behind what `files_of` gave; None when the files are gone or are others by now."""
    row = database.now(lambda t: t.one("select digest, licence from ledger_weights where files = :files", files=files))
    if row is not None:
        return Weights(row[0], row[1])
    where, licence, _ = json.loads(files)
    path = Path(where)
    if not path.exists() or files_of(path, licence) != files:
        return None
    found = Weights(digest(path), licence or declared_licence(path))
    if files_of(path, licence) != files:  # changed while it was read
        return None
    database.now(
        lambda t: t.run(
            "insert into ledger_weights values (:files, :digest, :licence) on conflict (files) do nothing",
            files=files, digest=found.digest, licence=found.licence,
        )
    )  # fmt: skip
    return found
