"""Exchanges into the ledger, a batch at a time in one transaction: looked up, judged, and appended with their traces.

The only place that writes texts, fingerprints and states. A record that is there already is not written twice, so a
journal may be replayed. Order matters: an exchange is judged by what ended before it, in this batch too. Knows no
journal and no thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from freehold.database import Transaction
from freehold.provenance.exchanges import Begun, Deed, Ended, Part
from freehold.provenance.merkle_log import MOST_NAMES, Entry, append, names
from freehold.provenance.overlap import NEAR, Prints, similarity
from freehold.provenance.records import Texts, deed_entry, exchange_entry, texts_of
from freehold.provenance.taint import Known, Link, Said, judge, links, subtract
from freehold.provenance.terms import Source, Terms, TermsInForce


@dataclass(frozen=True, slots=True)
class Exchange:
    """An exchange that has ended, with the sources behind its parts."""

    begun: Begun
    ended: Ended
    sources: tuple[tuple[Part, Source, Terms], ...]


Item = Exchange | Deed


def with_sources(begun: Begun, ended: Ended, source_of: Callable[[Part], Source], terms: TermsInForce) -> Exchange:
    """An exchange with who was behind its parts and the terms in force when each was asked (R11)."""
    found = []
    for part in ended.parts:
        source = source_of(part)
        found.append((part, source, terms(source, datetime.fromtimestamp(part.at / 1_000_000, UTC))))
    return Exchange(begun, ended, tuple(found))


def write(transaction: Transaction, items: Sequence[Item], prints: Prints) -> list[Entry]:
    """Appends what is not in the ledger yet and gives the new entries."""
    there = _present(transaction, [_id(item) for item in items])
    fresh = list({_id(item): item for item in items if _id(item) not in there}.values())
    batch = _Batch(transaction, prints)
    batch.load([item for item in fresh if isinstance(item, Exchange)])
    entries = [batch.exchange(item) if isinstance(item, Exchange) else deed_entry(item) for item in fresh]
    if entries:
        append(transaction, entries)
    batch.flush()
    return entries


def _id(item: Item) -> str:
    return item.begun.id if isinstance(item, Exchange) else item.id


def _present(transaction: Transaction, ids: Sequence[str]) -> set[str]:
    return {row[0] for row in _rows(transaction, "select id from ledger_records where id in", ids)}


def _rows(transaction: Transaction, sql: str, values: Iterable[object]) -> Iterator[tuple[Any, ...]]:
    """The rows of a query that ends in `in`, for as many values as there are."""
    wanted = list(dict.fromkeys(values))
    for first in range(0, len(wanted), MOST_NAMES):
        piece = wanted[first : first + MOST_NAMES]
        piece += [piece[-1]] * (-len(piece) % 8 if len(piece) < MOST_NAMES else 0)  # few forms of the statement
        marks, named = names("v", piece)
        yield from transaction.rows(f"{sql} ({marks})", **named)


class _Batch:
    """The batch under way: what is known, and the rows that are to be written."""

    def __init__(self, transaction: Transaction, prints: Prints) -> None:
        self._transaction = transaction
        self._prints = prints
        self._known = Known()
        self._links: dict[str, tuple[list[Link], bytes]] = {}
        self._outputs: list[dict[str, object]] = []
        self._runs: list[dict[str, object]] = []
        self._passages: list[dict[str, object]] = []
        self._bands: list[dict[str, object]] = []
        self._contents: list[dict[str, object]] = []
        self._passage = 0

    def load(self, exchanges: Sequence[Exchange]) -> None:
        """Reads what these exchanges may have to do with."""
        self._links = {e.begun.id: links(e.begun.messages, self._prints) for e in exchanges}
        turns = [link for found, _ in self._links.values() for link in found]
        tags = [tag for link in turns for tag in (link.chain, link.tag)]
        for tag, record, state in _rows(
            self._transaction, "select tag, record, state from ledger_outputs where tag in", tags
        ):
            self._known.outputs.setdefault(bytes(tag), []).append(Said(str(record), str(state)))
        row = self._transaction.one("select max(id) from ledger_passages")
        self._passage = int(row[0]) + 1 if row and row[0] is not None else 0
        texts = [message.words for e in exchanges for message in e.begun.messages]
        if self._transaction.one("select 1 from ledger_runs limit 1") is not None:
            runs = (run for text in dict.fromkeys(texts) for run in self._prints.runs(text).tolist())
            for run, record in _rows(self._transaction, "select run, record from ledger_runs where run in", runs):
                self._known.runs[int(run)] = str(record)
        if self._passage:
            self._load_passages(texts)

    def _load_passages(self, texts: Sequence[str]) -> None:
        keys = (key for text in dict.fromkeys(texts) for row in self._prints.passages(text).bands for key in row)
        for band, passage in _rows(self._transaction, "select band, passage from ledger_bands where band in", keys):
            self._known.bands.setdefault(int(band), []).append(int(passage))
        wanted = (passage for found in self._known.bands.values() for passage in found)
        sql = "select id, record, signature from ledger_passages where id in"
        for id, record, signature in _rows(self._transaction, sql, wanted):
            self._known.passages[int(id)] = str(record), bytes(signature)

    def exchange(self, item: Exchange) -> Entry:
        """Judges an exchange, notes what is to be found again of it, and makes its record."""
        begun, ended = item.begun, item.ended
        turns, chain = self._links[begun.id]
        heard = [source for source in item.sources if source[0].heard]
        judgement = judge(begun, ended, heard, turns, self._known, self._prints)
        for number, answer in enumerate(ended.answers):
            said = Said(begun.id, judgement.state)
            for tag in {self._prints.chain(chain, answer), self._prints.tag(answer)}:
                self._known.outputs.setdefault(tag, []).append(said)
                self._outputs.append({"tag": tag, "record": begun.id, "answer": number, "state": said.state})
            if judgement.state != "clean":
                self._fingerprint(begun, answer.words)
        texts = texts_of(begun, ended)
        self._content(begun, texts)
        return exchange_entry(begun, ended, item.sources, judgement, texts, kept=begun.keep)

    def _fingerprint(self, begun: Begun, text: str) -> None:
        for run in subtract(text, begun.messages, self._prints).tolist():
            self._known.runs[run] = begun.id
            self._runs.append({"run": run, "record": begun.id})
        own = [s for message in begun.messages for s in self._prints.passages(message.words).signatures]
        passages = self._prints.passages(text)
        for signature, keys in zip(passages.signatures, passages.bands, strict=True):
            if any(similarity(signature, other) >= NEAR for other in own):  # the client's own words, said back
                continue
            self._known.passages[self._passage] = begun.id, signature
            self._passages.append({"id": self._passage, "record": begun.id, "signature": signature})
            for key in set(keys):
                self._known.bands.setdefault(key, []).append(self._passage)
                self._bands.append({"band": key, "passage": self._passage})
            self._passage += 1

    def _content(self, begun: Begun, texts: Texts) -> None:
        prompt, answer = (texts.prompt, texts.answer) if begun.keep else (None, None)
        self._contents.append({"record": begun.id, "salt": texts.salt, "prompt": prompt, "answer": answer})

    def flush(self) -> None:
        """Writes the rows."""
        for table, columns, rows in (
            ("ledger_outputs", "tag, record, answer, state", self._outputs),
            ("ledger_runs", "run, record", self._runs),
            ("ledger_passages", "id, record, signature", self._passages),
            ("ledger_bands", "band, passage", self._bands),
            ("ledger_contents", "record, salt, prompt, answer", self._contents),
        ):
            values = ", ".join(f":{name}" for name in columns.split(", "))
            sql = f"insert into {table} ({columns}) values ({values}) on conflict do nothing"  # noqa: S608  (our names)
            self._transaction.many(sql, rows)
