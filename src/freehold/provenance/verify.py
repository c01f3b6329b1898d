"""Does the ledger still hold what it held? Everything is computed anew from the records and compared.

Checks: positions without gaps; each record's JSON against its leaf, and the columns beside it against its JSON; every
node above the leaves; texts against their hashes; every head kept in the database; and every head from outside.
Without a head from outside, who owns database and key could have written the whole log anew: the report says so. What
no ledger can prove: that everything was recorded. Knows no key: a head is checked against the one it carries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from freehold import merkle
from freehold.database import Database, Transaction
from freehold.errors import FormatError
from freehold.progress import Progress, silent
from freehold.provenance import heads
from freehold.provenance.heads import Head
from freehold.provenance.merkle_log import LEVEL, leaf_of
from freehold.provenance.records import text_hash

PAGE = 2000

NOT_PROVED = (
    "that everything was recorded: what never reached the ledger leaves no trace in it",
    "that what providers said of themselves is true: their names and request ids are theirs",
)
WITHOUT_HEAD = "that this is the log others have seen: without a head kept elsewhere, its owner could write it anew"


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as it was; `position` and `id` say where, when one record can be named."""

    kind: str  # edited, missing, moved, node, text, head, fork, cut
    what: str
    position: int | None = None
    id: str | None = None


@dataclass(slots=True)
class Report:
    """What was found.

    Args:
        forgotten: records whose content was deleted, which the log itself says.
        heads: kept in the database; `outside`: given.
        covered: records that the largest good head from outside vouches for.
    """

    size: int = 0
    root: str = ""
    texts: int = 0
    forgotten: int = 0
    heads: int = 0
    outside: int = 0
    covered: int = 0
    problems: list[Problem] = field(default_factory=list)
    not_proved: tuple[str, ...] = NOT_PROVED

    @property
    def good(self) -> bool:
        """Nothing was found."""
        return not self.problems


class _Body(msgspec.Struct):
    id: str
    kind: str
    at: int
    facts: msgspec.Raw = msgspec.Raw(b"{}")
    prompt: msgspec.Raw = msgspec.Raw(b"null")
    answer: msgspec.Raw = msgspec.Raw(b"null")


class _Hashed(msgspec.Struct):
    hash: str
    kept: bool = False


class _Forgets(msgspec.Struct):
    record: str
    whole: bool = False


_body = msgspec.json.Decoder(_Body)
_hashed = msgspec.json.Decoder(_Hashed | None)
_forgets = msgspec.json.Decoder(_Forgets)

Row = tuple[Any, ...]


def verify(database: Database, outside: Sequence[Head] = (), progress: Progress = silent) -> Report:
    """Checks the whole ledger.

    Args:
        outside: heads that were published.
        progress: told about records.

    Raises:
        DatabaseError: it can't be read.
    """
    return _Check(database, outside, progress).run()


class _Check:
    def __init__(self, database: Database, outside: Sequence[Head], progress: Progress) -> None:
        self._database = database
        self._outside = outside
        self._progress = progress
        self._report = Report()
        self._tree = merkle.Tree()
        self._empty: dict[str, int] = {}  # records without their JSON
        self._edited: set[str] = set()
        self._forgotten: dict[str, bool] = {}  # whether the whole record was
        self._hashes: dict[str, tuple[int, bool, str, str]] = {}  # position, whether texts were kept, their hashes

    def run(self) -> Report:
        """The checks, in the order of what they build on."""
        self._records()
        self._nodes()
        self._texts()
        self._heads()
        report = self._report
        report.size, report.root = self._tree.size, self._tree.root().hex()
        if not report.outside:
            report.not_proved = (*NOT_PROVED, WITHOUT_HEAD)
        return report

    def _found(self, kind: str, what: str, position: int | None = None, id: str | None = None) -> None:
        self._report.problems.append(Problem(kind, what, position, id))

    def _records(self) -> None:
        expected = 0
        for position, *rest in self._pages():
            if position != expected:
                last = position - 1
                which = f"record {expected} is" if last == expected else f"records {expected} to {last} are"
                self._found("missing", f"{which} missing", expected)
            self._record(position, *rest)
            expected = position + 1
        for id, position in self._empty.items():
            if id not in self._forgotten:
                self._found(
                    "missing", f"record {position} lost its content, and nothing says that it may", position, id
                )
        self._report.forgotten = len(self._forgotten)

    def _record(
        self, position: int, id: str, kind: str, at: int, leaf: bytes, salt: bytes | None, text: str | None
    ) -> None:
        self._tree.append(leaf)
        if text is None or salt is None:
            self._empty[id] = position
            return
        if leaf_of(salt, text) != leaf:
            self._edited.add(id)
            self._found("edited", f"record {position} is not what was recorded", position, id)
            return
        try:
            body = _body.decode(text)
        except msgspec.DecodeError:
            self._edited.add(id)
            self._found("edited", f"record {position} is no record", position, id)
            return
        if (body.id, body.kind, body.at) != (id, kind, at):
            self._found("edited", f"record {position} is listed as something else than it says", position, id)
        if kind == "forget":
            forgets = _forgets.decode(body.facts)
            self._forgotten[forgets.record] = forgets.whole or self._forgotten.get(forgets.record, False)
        elif kind == "exchange":
            prompt, answer = _hashed.decode(body.prompt), _hashed.decode(body.answer)
            if prompt is not None and answer is not None:
                self._hashes[id] = position, prompt.kept, prompt.hash, answer.hash

    def _nodes(self) -> None:
        """Every stored node against the one computed; a leaf that was replaced with its record shows in those above."""
        wrong: list[tuple[int, int]] = []
        seen = 0
        for address, stored in self._all("select address, hash from ledger_nodes where address > :after", "address"):
            level, i = address // LEVEL, address % LEVEL
            computed = self._tree.node(level, i)
            seen += computed is not None
            if computed is None or computed != stored:
                wrong.append((level, i))
        if wrong and any(problem.kind == "missing" for problem in self._report.problems):
            self._found("node", f"{len(wrong)} nodes of the tree are over other records than there are")
            wrong = []
        lowest = min((level for level, _ in wrong), default=0)
        for level, i in wrong:
            if level == lowest:
                first, last = i << level, ((i + 1) << level) - 1
                self._found("node", f"records {first} to {last} are not those that the tree was built over", first)
        if seen < self._tree.inner:
            self._found("node", f"{self._tree.inner - seen} nodes of the tree are missing")

    def _texts(self) -> None:
        rest = dict(self._hashes)
        sql = "select record, salt, prompt, answer from ledger_contents where record > :after"
        for record, salt, *texts in self._all(sql, "record", ""):
            if record not in rest:
                if record not in self._empty and record not in self._edited:
                    self._found("text", f"there is a text for {record}, which is no exchange here", None, record)
                continue
            position, kept, *hashes = rest.pop(record)
            if None in texts:
                if kept and record not in self._forgotten:
                    self._lost_text(record, position)
                continue
            self._report.texts += 1
            if [text_hash(salt, kind, text) for kind, text in zip(("prompt", "answer"), texts, strict=True)] != hashes:
                self._found("text", f"the text of record {position} is not the one that was recorded", position, record)
        for record, (position, *_) in rest.items():
            if record not in self._forgotten:
                self._lost_text(record, position)

    def _lost_text(self, record: str, position: int) -> None:
        self._found("text", f"what belongs to record {position} was deleted, and nothing says so", position, record)

    def _heads(self) -> None:
        rows = self._database.now(lambda t: t.rows("select size, envelope, key from ledger_heads order by size"))
        log = self._database.now(lambda t: t.one("select id from ledger_log"))
        for size, envelope, key in rows:
            self._report.heads += 1
            try:
                head = heads.from_row(envelope, key)
            except FormatError as error:
                self._found("head", f"the head of {size} records in the database: {error.message}")
                continue
            if head.size != size:
                self._found("head", f"the head of {size} records in the database is one of {head.size}")
            self._head(head, "the database")
        for head in self._outside:
            self._report.outside += 1
            if log is None or head.log != log[0]:
                self._found(
                    "fork", f"the head of {head.size} records is of ledger {head.log}, this is {log and log[0]}"
                )
            elif self._head(head, "outside"):
                self._report.covered = max(self._report.covered, head.size)
        self._forks([*self._outside])

    def _head(self, head: Head, whence: str) -> bool:
        if head.size > self._tree.size:
            what = f"a head from {whence} was signed over {head.size} records, there are {self._tree.size}"
            self._found("cut", what, self._tree.size)
            return False
        if self._tree.root(head.size) != head.root:
            self._found("fork", f"the first {head.size} records are not those of a head from {whence}", None)
            return False
        return True

    def _forks(self, known: Sequence[Head]) -> None:
        roots: dict[int, bytes] = {}
        for head in known:
            if roots.setdefault(head.size, head.root) != head.root:
                self._found("fork", f"two signed heads of {head.size} records differ: the log was forked")

    def _pages(self) -> Iterator[Row]:
        total = self._database.now(lambda t: t.one("select count(*) from ledger_records"))
        count = int(total[0]) if total else 0
        sql = "select position, id, kind, at, leaf, salt, body from ledger_records where position > :after"
        for done, row in enumerate(self._all(sql, "position")):
            if done % PAGE == 0:
                self._progress(done, count, "checking records")
            yield row
        self._progress(count, count, "checking records")

    def _all(self, sql: str, key: str, after: int | str = -1) -> Iterator[Row]:
        """All rows behind `after`, page by page: writers get their turn in between."""
        statement = f"{sql} order by {key} limit {PAGE}"
        while True:
            page = self._database.now(lambda t, after=after: _read(t, statement, after))  # type: ignore[misc]
            yield from page
            if len(page) < PAGE:
                return
            after = page[-1][0]


def _read(transaction: Transaction, statement: str, after: int | str) -> list[Row]:
    return transaction.rows(statement, after=after)
