"""Records out of the database, page by page, so that writers get their turn between the pages.

Knows nothing of what records mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from freehold.database import Database, Transaction
from freehold.errors import UsageError

PAGE = 2000


@dataclass(frozen=True, slots=True)
class Stored:
    """A record as it lies in the database; `text` (canonical JSON) and `salt` are None when it was forgotten."""

    position: int
    id: str
    kind: str
    at: int
    leaf: bytes
    salt: bytes | None
    text: str | None

    @property
    def body(self) -> dict[str, Any]:
        """The record; empty when it was forgotten."""
        found: dict[str, Any] = {} if self.text is None else msgspec.json.decode(self.text)
        return found


_SELECT = "select position, id, kind, at, leaf, salt, body from ledger_records"


def find(transaction: Transaction, id: str) -> Stored:
    """The record of that id, or of its only beginning.

    Raises:
        UsageError: there is none, or several.
    """
    if not id or not id.replace("_", "").isalnum():
        raise UsageError(f"expected a record's id, found {id[:50]!r}", hint="`freehold ledger log` lists them")
    pattern = id.replace("_", "\\_") + "%"
    rows = transaction.rows(_SELECT + " where id like :id escape '\\' order by position limit 2", id=pattern)
    if not rows:
        raise UsageError(f"no record {id[:50]!r}", hint="`freehold ledger log` lists them")
    if len(rows) > 1 and rows[0][1] != id:
        raise UsageError(f"several records begin with {id[:50]!r}", hint="give more of the id")
    return _stored(rows[0])


def page(transaction: Transaction, before: int, kind: str = "", count: int = PAGE) -> list[Stored]:
    """The records below a position, the newest first; of all kinds when `kind` is empty."""
    sql = _SELECT + " where position < :before"
    rows = (
        transaction.rows(
            f"{sql} and kind = :kind order by position desc limit :count", before=before, kind=kind, count=count
        )
        if kind
        else transaction.rows(f"{sql} order by position desc limit :count", before=before, count=count)
    )
    return [_stored(row) for row in rows]


def newest(database: Database, kind: str = "") -> Iterator[Stored]:
    """All records, the newest first."""
    before = 1 << 60
    while True:
        found = database.now(lambda t, before=before: page(t, before, kind))  # type: ignore[misc]
        yield from found
        if len(found) < PAGE:
            return
        before = found[-1].position


def texts(transaction: Transaction, record: str) -> tuple[bytes, str | None, str | None] | None:
    """Salt, prompt and answer of an exchange."""
    row = transaction.one("select salt, prompt, answer from ledger_contents where record = :record", record=record)
    return None if row is None else (bytes(row[0]), row[1], row[2])


def _stored(row: tuple[Any, ...]) -> Stored:
    position, id, kind, at, leaf, salt, text = row
    return Stored(int(position), id, kind, int(at), bytes(leaf), None if salt is None else bytes(salt), text)
