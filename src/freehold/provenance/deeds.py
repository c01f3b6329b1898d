"""Deeds that commands put on record: a model pulled, a model compressed, a text forgotten, an export written.

Each opens the ledger for the moment it takes. Models are named by the digest of their files, so that what was pulled,
what was compressed and what answered are the same thing under one name. Knows no terminal.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from freehold.database import Database, Transaction
from freehold.errors import LedgerError
from freehold.provenance.exchanges import Deed
from freehold.provenance.export import Manifest
from freehold.provenance.ledger import Ledger
from freehold.provenance.reading import find, texts
from freehold.provenance.records import new_id
from freehold.provenance.weights import Weights, files_of, weights_of
from freehold.settings import Settings


@contextmanager
def opened(settings: Settings, *, sign: bool = True) -> Iterator[Ledger]:
    """The ledger of these settings, with what killed processes left in their journals.

    Args:
        sign: a head when it is closed; readers need none.

    Raises:
        FreeholdError: the database, the journal or the key can't be used.
    """
    with Database(settings.database.url) as database:
        ledger = Ledger(database, settings.provenance).open()
        try:
            yield ledger
        finally:
            ledger.close(sign=sign)


def pulled(settings: Settings, reference: str, path: Path, licence: str | None = None) -> str:
    """Puts on record that a model was fetched; gives the record's id.

    Args:
        licence: when it is known better than from the files.

    Raises:
        FreeholdError: the ledger can't be written.
    """
    with opened(settings) as ledger:
        used = ({"id": f"model {reference}", "kind": "reference"},)
        return _record(ledger, "ingest", used, (_model(ledger.database, path, reference, licence),), {})


def compressed(
    settings: Settings, source: str, source_digest: str, out: Path, name: str, options: Mapping[str, Any]
) -> str:
    """Puts on record that a model was compressed.

    Args:
        source: what it was called.
        source_digest: of its files.

    Raises:
        FreeholdError: the ledger can't be written.
    """
    with opened(settings) as ledger:
        used = ({"id": f"sha256:{source_digest}", "kind": "model", "name": source},)
        facts = {"options": {key: str(value) for key, value in options.items()}}
        return _record(ledger, "quantize", used, (_model(ledger.database, out, name, None),), facts)


def exported(ledger: Ledger, manifest: Manifest) -> str:
    """Puts on record that training data was exported."""
    used = ({"id": f"ledger {manifest.log}", "kind": "ledger", "size": manifest.size},)
    made = ({"id": f"sha256:{manifest.sha256}", "kind": "dataset", "name": manifest.file, "lines": manifest.lines},)
    return _record(ledger, "export", used, made, {"left_out": dict(manifest.by_reason)})


def forget(ledger: Ledger, id: str, *, whole: bool = False) -> str:
    """Deletes the texts of an exchange and the salt of their hashes; what remains proves nothing about them.

    That it was done is on record first. Fingerprints stay: what was barred from training must go on being recognized.

    Args:
        whole: the record's own JSON and salt too; its place in the tree stays provable.

    Raises:
        UsageError: no such record.
        LedgerError: it says itself that something was forgotten, or there is nothing left of it to forget.
    """
    record = ledger.database.now(lambda t: find(t, id))
    if record.kind == "forget":
        raise LedgerError("a record of what was forgotten can't be forgotten")
    if record.body is None or not (whole or ledger.database.now(lambda t: texts(t, record.id))):
        raise LedgerError(f"{record.id} has no texts to forget: they were not kept, or were forgotten before")
    done = _record(ledger, "forget", (), (), {"record": record.id, "whole": whole})
    ledger.database.now(lambda t: _delete(t, record.id, whole))
    return done


def _delete(transaction: Transaction, id: str, whole: bool) -> None:
    transaction.run("delete from ledger_contents where record = :id", id=id)
    if whole:
        transaction.run("update ledger_records set body = null, salt = null where id = :id", id=id)


def _record(
    ledger: Ledger,
    kind: str,
    used: tuple[Mapping[str, Any], ...],
    generated: tuple[Mapping[str, Any], ...],
    facts: Mapping[str, Any],
) -> str:
    now = time.time()
    deed = Deed(new_id(now), kind, round(now * 1_000_000), used, generated, facts)
    ledger.record(deed)
    return deed.id


def _model(database: Database, path: Path, name: str, licence: str | None) -> dict[str, Any]:
    found: Weights | None = weights_of(database, files_of(path, licence))
    if found is None:
        raise LedgerError(f"{path} changed while it was read", hint="try again")
    return {"id": f"sha256:{found.digest}", "kind": "model", "name": name, "licence": found.licence}
