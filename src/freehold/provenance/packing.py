"""The allegation pack: for "your model was made from our API", what was recorded, in one archive that proves itself.

It holds the chosen records with their proofs, the signed head they are proved against, proofs that this head
continues the earlier ones, the texts if they are to be shown, an overlap report if there is one, and in words what
was *not* logged. Whoever gets it needs nothing else but a head that was published before (`checking.py`). Knows no
terminal; who checks is another module.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from freehold import __version__
from freehold.database import Database, Transaction
from freehold.errors import UsageError
from freehold.provenance import heads, merkle_log
from freehold.provenance.archive import Member, pack
from freehold.provenance.heads import Head
from freehold.provenance.prov import prov_json, statement, time_of
from freehold.provenance.reading import Stored, newest, texts
from freehold.signing import Identity, canonical, sign_envelope

T = TypeVar("T")

MANIFEST_TYPE = "application/vnd.freehold.pack-manifest+json"
PAGE = 200
"""Records of one transaction: a hundred thousand proofs in one would hold up who answers meanwhile."""
_EARLIER = "select envelope, key from ledger_heads where size <= :size order by size"
LINE_DIGITS = 12
"""Hexadecimal digits of a line's SHA-256 in the manifest: they say which line was changed, the whole file's prove it."""

README = """What this is
============
Records of a Freehold ledger, with what proves that they were recorded, and when at the latest.

  manifest.json     what is in here and what is not; signed in manifest.sig (DSSE)
  head.json         the signed tree head that the records are proved against
  heads.jsonl       earlier signed heads, each with a proof that head.json continues it
  records.jsonl     records with their salts and inclusion proofs (RFC 6962)
  texts.jsonl       prompts and answers with the salts of their hashes, as far as they are shown
  prov.json         the same records as W3C PROV
  overlap.*         a report of overlap with other texts, if there is one

How to check it
===============
  freehold ledger check PACK --head HEAD

HEAD is a head of this ledger that was published before, by a way you trust. Nothing else is needed.

What it can't show
==================
That everything was recorded. `not_logged` in manifest.json lists what is known not to have been.
"""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which records go into a pack; empty = all. Times in microseconds since 1970."""

    records: tuple[str, ...] = ()
    provider: str = ""
    since: int = 0
    until: int = 1 << 62
    show_texts: bool = True

    def takes(self, record: Stored) -> bool:
        """Whether a record is chosen by itself; ancestors come along all the same."""
        if self.records:
            return record.id in self.records
        return self.since <= record.at < self.until and (not self.provider or _by(record, self.provider))


@dataclass(slots=True)
class Pack:
    """A pack, and what its manifest says."""

    data: bytes
    manifest: dict[str, Any] = field(default_factory=dict)


def make_pack(
    database: Database,
    identity: Identity,
    head: Head,
    selection: Selection,
    *,
    now: int,
    overlap: tuple[str, bytes] | None = None,
    unseen: Iterable[str] = (),
) -> Pack:
    """A pack of the chosen records and of all that they were made from.

    Args:
        head: signed now, over all records.
        overlap: name and contents of a report of overlaps.
        unseen: providers that are configured, to be named where no record is theirs.

    Raises:
        UsageError: nothing is chosen.
    """
    records = _chosen(database, selection, head.size)
    if not records:
        raise UsageError("no record is chosen", hint="`freehold ledger log` lists them")
    shown = _lines(database, records, _text) if selection.show_texts else b""
    earlier = database.now(lambda t: t.rows(_EARLIER, size=head.size))
    members: list[Member] = [
        ("README.txt", README.encode()),
        ("head.json", _json(head.published())),
        ("heads.jsonl", _lines(database, earlier, lambda t, row: _earlier(t, row, head.size))),
        ("records.jsonl", _lines(database, records, lambda t, record: _record(t, record, head.size))),
        ("texts.jsonl", shown),
        ("prov.json", _json(prov_json(statement(record.body) for record in records if record.text is not None))),
    ]
    if overlap is not None:
        members.append((f"overlap{_suffix(overlap[0])}", overlap[1]))
    manifest = {
        "format": 1,
        "made_by": f"freehold {__version__}",
        "made_at": time_of(now),
        "log": head.log,
        "size": head.size,
        "root": head.root.hex(),
        "records": len(records),
        "chosen": _words(selection),
        "overlap_report": None if overlap is None else members[-1][0],
        "counts": _counts(records),
        "not_logged": _not_logged(database, records, selection, shown.count(b"\n"), unseen),
        "files": [_file(name, data) for name, data in members],
    }
    text = canonical(manifest)
    envelope = _json(sign_envelope(identity, text, MANIFEST_TYPE))
    return Pack(pack([("manifest.json", text), ("manifest.sig", envelope), *members]), manifest)


def _chosen(database: Database, selection: Selection, size: int) -> list[Stored]:
    """The chosen records and their ancestors, in the order of the log."""
    wanted: set[str] = set()
    found = []
    for record in newest(database):  # parents are older than their children
        if record.position < size and (record.id in wanted or selection.takes(record)):
            found.append(record)
            wanted.update(record.body.get("parents", ()))
    return found[::-1]


def _by(record: Stored, provider: str) -> bool:
    served = record.body.get("served_by", ()), record.body.get("attempts", ())
    return any(provider in (who.get("provider"), who.get("backend")) for group in served for who in group)


def _lines(database: Database, items: Sequence[T], line: Callable[[Transaction, T], dict[str, Any] | None]) -> bytes:
    """One line of JSON for each item that has one; page by page, so that writers get their turn in between."""
    found: list[bytes] = []
    for first in range(0, len(items), PAGE):
        page = items[first : first + PAGE]
        made = database.now(lambda t, page=page: [line(t, item) for item in page])  # type: ignore[misc]
        found += [_json(each) for each in made if each is not None]
    return b"".join(found)


def _record(transaction: Transaction, record: Stored, size: int) -> dict[str, Any]:
    proof = [value.hex() for value in merkle_log.inclusion(transaction, record.position, size)]
    line: dict[str, Any] = {"position": record.position, "id": record.id, "proof": proof}
    if record.text is None or record.salt is None:
        return line | {"leaf": record.leaf.hex()}
    return line | {"salt": record.salt.hex(), "record": record.text}


def _text(transaction: Transaction, record: Stored) -> dict[str, Any] | None:
    found = texts(transaction, record.id)
    if found is None or found[1] is None or found[2] is None:
        return None
    return {"id": record.id, "salt": found[0].hex(), "prompt": found[1], "answer": found[2]}


def _earlier(transaction: Transaction, row: tuple[Any, ...], size: int) -> dict[str, Any]:
    """An earlier head with its consistency proof, for whoever kept it."""
    kept = heads.from_row(*row)
    proof = [value.hex() for value in merkle_log.consistency(transaction, kept.size, size)]
    return kept.published() | {"size": kept.size, "proof": proof}


def _not_logged(
    database: Database, records: Sequence[Stored], selection: Selection, shown: int, unseen: Iterable[str]
) -> list[str]:
    """In words, what this pack and its ledger know nothing of."""
    begun = database.now(lambda t: t.one("select created_at from ledger_log"))
    gaps = database.now(lambda t: t.one("select count(*) from ledger_records where kind = 'gap'"))
    exchanges = [record for record in records if record.kind == "exchange"]
    found = [
        f"everything before {time_of(int(begun[0]))}, when this ledger began" if begun else "when this ledger began",
        "answers asked in process (`freehold run`, `freehold chat`): only the gateway's exchanges are recorded",
        "requests to providers that did not pass through this gateway, whatever key or account they used",
        "training and other use of models outside Freehold",
    ]
    seen = {who.get("backend") for record in exchanges for who in record.body.get("attempts", ())}
    for name in unseen:
        if name not in seen:
            found.append(f"{name} is configured as a provider, and none of these records is an answer of it")
    if gaps and gaps[0]:
        found.append(f"{gaps[0]} times the journal could not be written and exchanges were at risk (records `gap`)")
    if cut := sum(record.body.get("outcome") == "interrupted" for record in exchanges):
        found.append(f"the answers of {cut} exchanges during which the gateway was killed")
    if len(exchanges) > shown:
        why = "not kept, deleted, or not shown" if selection.show_texts else "not shown on purpose"
        found.append(
            f"the texts of {len(exchanges) - shown} of {len(exchanges)} exchanges: {why}; their hashes are here"
        )
    return found


def _counts(records: Sequence[Stored]) -> dict[str, dict[str, int]]:
    kinds, states, backends = Counter[str](), Counter[str](), Counter[str]()
    for record in records:
        kinds[record.kind] += 1
        body = record.body
        if record.kind == "exchange" and body:
            states[body["training"]["state"]] += 1
            backends.update({who["backend"] for who in body["served_by"]})
    return {"by_kind": dict(kinds), "by_training_state": dict(states), "by_backend": dict(backends)}


def _words(selection: Selection) -> dict[str, Any]:
    found: dict[str, Any] = {"texts": selection.show_texts}
    if selection.records:
        found["records"] = list(selection.records)
    if selection.provider:
        found["provider"] = selection.provider
    if selection.since:
        found["since"] = time_of(selection.since)
    if selection.until < 1 << 62:
        found["until"] = time_of(selection.until)
    return found


def _file(name: str, data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {"name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    if name.endswith(".jsonl"):
        found["lines"] = [line_digest(line) for line in data.splitlines()]
    return found


def line_digest(line: bytes) -> str:
    """What the manifest says of a line."""
    return hashlib.sha256(line).hexdigest()[:LINE_DIGITS]


def _suffix(name: str) -> str:
    dot = name.rfind(".")
    return name[dot:] if dot > 0 and name[dot + 1 :].isalnum() else ".txt"


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"), sort_keys=True).encode() + b"\n"
