"""The ledger at work: takes finished exchanges from the gateway and deeds from commands, and keeps the Merkle log.

    gateway --begin, end--> journal (one write each) --thread, batches--> recorded.write --> database

Whoever hands over never waits for the database: `begin` and `end` cost a `write` to the journal. What that guarantees: when
`end` has returned, the exchange is in the operating system's hands, so `kill -9` of the process does not lose it; the next
`open` on the same directory writes it. A crash of the machine may lose what the system had not yet put on the disk.

Knows no HTTP and no rule of licences; terms come from a `TermsInForce`.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from freehold.database import Database, Transaction, state_directory
from freehold.errors import FormatError, FreeholdError, LedgerError
from freehold.provenance import heads, merkle_log
from freehold.provenance.exchanges import Begun, Deed, Ended, Part
from freehold.provenance.heads import Head
from freehold.provenance.journal import Journal, Orphan, orphans
from freehold.provenance.overlap import Prints
from freehold.provenance.published import publish
from freehold.provenance.recorded import Item, with_sources, write
from freehold.provenance.records import new_id
from freehold.provenance.terms import Source, TermsInForce, known_terms
from freehold.provenance.weights import Weights, weights_of
from freehold.settings import ProvenanceSettings
from freehold.signing import Identity, Vault

log = logging.getLogger("freehold.ledger")

GATHER_SECONDS = 0.1
"""How long exchanges gather before a batch is written."""
LARGEST_BATCH = 16
"""Exchanges in one transaction: a few milliseconds, for which others may wait who reserve money."""
RETRY_SECONDS = 2.0
KEY_FILE = "ledger.pem"


class Ledger:
    """A ledger that is open from `open` to `close`.

    Args:
        database: open while the ledger is.
        directory: of the signing key; the state directory by default.
        terms: looks up the terms of a source.
        now: seconds since 1970.
    """

    def __init__(
        self,
        database: Database,
        settings: ProvenanceSettings | None = None,
        *,
        directory: Path | None = None,
        terms: TermsInForce = known_terms,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.database = database
        self.settings = settings or ProvenanceSettings()
        self._directory = directory or state_directory()
        self._terms = terms
        self._now = now
        self._begun: dict[str, Begun] = {}
        self._ended: deque[Item | tuple[Begun, Ended]] = deque()
        self._weights: dict[str, Weights | None] = {}
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._writing = threading.Lock()
        self._thread: threading.Thread | None = None
        self._journal: Journal | None = None
        self._lost = 0
        self._head_due = 0.0
        self._head_size = -1

    def open(self) -> Ledger:
        """Reads or makes the log's identity, writes what killed processes left, and starts the thread. Blocks meanwhile.

        Raises:
            DatabaseError: the database can't be used.
            LedgerError: the journal can't be made.
        """
        self.id, secret = self.database.now(_identity_of_log(self._micros()))
        vault = Vault(secret)
        self._prints = Prints(secret)
        directory = (
            Path(self.settings.journal_dir).expanduser() if self.settings.journal_dir else self._directory / "ledger"
        )
        self._journal = Journal(directory, vault)
        self._journal.open()
        for orphan in orphans(directory, vault):
            self._adopt(orphan)
        self._head_due = self._now() + self.settings.head_seconds
        self._thread = threading.Thread(target=self._serve, name="freehold-ledger", daemon=True)
        self._thread.start()
        return self

    def close(self, *, sign: bool = True) -> None:
        """Writes what is left and signs a head over it; what no database takes stays in the journal for the next start."""
        thread, self._thread = self._thread, None
        if thread is None or self._journal is None:
            return
        self._stop.set()
        self._wake.set()
        thread.join()
        try:
            self.flush()
            self._note_lost()
            if sign and self.settings.head_seconds:
                self.head()
        except FreeholdError as error:
            log.error("the ledger is not complete before the next start: %s", error.message)
        self._journal.close()

    @property
    def is_open(self) -> bool:
        """Whether exchanges can be handed over."""
        return self._thread is not None

    @property
    def waiting(self) -> int:
        """Exchanges that are in the journal only."""
        return len(self._ended)

    def begin(self, begun: Begun) -> None:
        """An exchange is about to be answered: from here on it is on record, whatever comes."""
        begun = replace(begun, keep=self.settings.keep_content)
        self._begun[begun.id] = begun
        self._guard(lambda journal: journal.begin(begun))

    def end(self, ended: Ended) -> None:
        """An exchange is complete; call it before the client is given the last word."""
        begun = self._begun.pop(ended.id)
        self._guard(lambda journal: journal.end(ended))
        self._ended.append((begun, ended))
        self._wake.set()

    def record(self, deed: Deed) -> None:
        """Writes a deed and waits until it is in the database.

        Raises:
            DatabaseError: it could not be written.
        """
        self.flush()
        self._store([deed])

    def flush(self) -> None:
        """Waits until everything that has ended is in the database.

        Raises:
            DatabaseError: it can't be written now.
        """
        with self._writing:
            while self._ended:
                self._write_batch()

    def head(self) -> Head:
        """A signed head over all records that are in the database now; kept there, and published if the settings say so."""
        signed = self.database.now(lambda t: sign_head(t, self.identity, self.id, self._micros()))
        if signed.size != self._head_size and self.settings.publish_heads:
            publish(Path(self.settings.publish_heads).expanduser(), signed)
        self._head_size = signed.size
        return signed

    @property
    def identity(self) -> Identity:
        """The key that signs; made on first use.

        Raises:
            FreeholdError: it can't be read or made.
        """
        return Identity.at(self._directory / KEY_FILE)

    def _guard(self, write: Callable[[Journal], None]) -> None:
        """A journal that can't be written must not stop answers: what is at risk is said, in the log and in the ledger."""
        assert self._journal is not None  # noqa: S101  (open)
        try:
            write(self._journal)
        except LedgerError as error:
            self._lost += 1
            log.error("%s: exchanges can be lost if this process is killed now", error.message)

    def _serve(self) -> None:
        while not self._stop.is_set():
            self._wake.wait(self._until_head())
            self._stop.wait(GATHER_SECONDS)
            self._wake.clear()
            try:
                self.flush()
                self._note_lost()
                self._sign_when_due()
            except FreeholdError as error:
                log.warning("the ledger waits for its database: %s", error.message)
                self._wake.set()
                self._stop.wait(RETRY_SECONDS)
            except Exception:
                log.exception("the ledger failed in a way it should not")
                self._stop.wait(RETRY_SECONDS)

    def _until_head(self) -> float | None:
        return max(0.0, self._head_due - self._now()) if self.settings.head_seconds else None

    def _sign_when_due(self) -> None:
        if self.settings.head_seconds and self._now() >= self._head_due:
            self._head_due = self._now() + self.settings.head_seconds
            self.head()

    def _write_batch(self) -> None:
        batch = [self._ended.popleft() for _ in range(min(len(self._ended), LARGEST_BATCH))]
        try:
            self._store([self._item(item) for item in batch])
        except FreeholdError:
            self._ended.extendleft(reversed(batch))
            raise
        except Exception:
            self._one_by_one(batch)
        else:
            self._release(batch)

    def _one_by_one(self, batch: Sequence[Item | tuple[Begun, Ended]]) -> None:
        """Something in the batch breaks us: the rest is written, and that one is said to be lost."""
        for number, item in enumerate(batch):
            try:
                self._store([self._item(item)])
            except FreeholdError:
                self._ended.extendleft(reversed(batch[number:]))
                raise
            except Exception:
                self._lost += 1
                log.exception("an exchange can't be recorded")
            self._release([item])

    def _release(self, batch: Sequence[Item | tuple[Begun, Ended]]) -> None:
        """These need the journal no more."""
        assert self._journal is not None  # noqa: S101  (open)
        self._journal.release([item[0].id for item in batch if isinstance(item, tuple)])

    def _store(self, items: Sequence[Item]) -> None:
        self.database.now(lambda t: write(t, items, self._prints))

    def _item(self, item: Item | tuple[Begun, Ended]) -> Item:
        if not isinstance(item, tuple):
            return item
        return with_sources(*item, self._source_of, self._terms)

    def _source_of(self, part: Part) -> Source:
        if not part.local:
            return Source(False, part.provider, part.model)
        if part.files not in self._weights:
            self._weights[part.files] = self._digested(part.files) if part.files else None
        weights = self._weights[part.files]
        if weights is None:
            return Source(True, "", part.model)
        return Source(True, "", part.model, weights.digest, weights.licence)

    def _digested(self, files: str) -> Weights | None:
        try:
            return weights_of(self.database, files)
        except (FormatError, OSError) as error:
            log.warning("the local model has no digest in the ledger: %s", error)
            return None

    def _note_lost(self) -> None:
        """Says in the ledger itself how many exchanges were at risk of being lost."""
        if not self._lost:
            return
        lost, self._lost = self._lost, 0
        facts = {"what": "exchanges that the journal did not take", "pieces": lost}
        try:
            self._store([Deed(new_id(self._now()), "gap", self._micros(), facts=facts)])
        except FreeholdError:
            self._lost += lost
            raise

    def _adopt(self, orphan: Orphan) -> None:
        """Writes the exchanges of a process that is gone."""
        try:
            for first in range(0, len(orphan.exchanges), LARGEST_BATCH):
                self._store([self._item(pair) for pair in orphan.exchanges[first : first + LARGEST_BATCH]])
        except BaseException:
            orphan.keep()
            raise
        if orphan.exchanges:
            log.info("%d exchanges of a process that was killed are in the ledger now", len(orphan.exchanges))
        orphan.remove()

    def _micros(self) -> int:
        return round(self._now() * 1_000_000)


def _identity_of_log(now: int) -> Callable[[Transaction], tuple[str, bytes]]:
    """The id and the secret of this database's log; made on first use."""

    def work(transaction: Transaction) -> tuple[str, bytes]:
        row = transaction.one("select id, secret from ledger_log")
        if row is not None:
            return str(row[0]), bytes(row[1])
        id, secret = secrets.token_hex(16), secrets.token_bytes(32)
        sql = "insert into ledger_log (id, secret, created_at) values (:id, :secret, :now)"
        transaction.run(sql, id=id, secret=secret, now=now)
        return id, secret

    return work


def sign_head(transaction: Transaction, identity: Identity, log: str, now: int) -> Head:
    """A signed head over all records; the one that is there already when nothing was added since."""
    size = merkle_log.size(transaction)
    row = transaction.one(
        "select envelope, key from ledger_heads where size = :size and key_id = :key", size=size, key=identity.public.id
    )
    root = merkle_log.root(transaction, size)
    if row is not None:
        kept = heads.from_row(*row)
        if kept.root == root:
            return kept
    signed = heads.sign(identity, log, size, root, now)
    transaction.run(
        "insert into ledger_heads (size, key_id, at, envelope, key) values (:size, :key_id, :at, :envelope, :key) "
        "on conflict (size, key_id) do nothing",
        size=size, key_id=identity.public.id, at=now, envelope=heads.text(signed), key=identity.public.pem,
    )  # fmt: skip
    return signed
