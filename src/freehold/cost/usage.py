"""The table of usage: rows in, and what they add up to out. Knows SQL, no gateway.

Rows are written with the price they were made from, so that each can be computed again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from freehold.cost.meter import LOCAL, UsageRow
from freehold.cost.prices import Price, PriceBook
from freehold.database import Database, Transaction
from freehold.errors import UsageError

_COLUMNS = tuple(item.name for item in dataclasses.fields(UsageRow))
_INSERT = (
    f"insert into usage ({', '.join(_COLUMNS)}) values ({', '.join(':' + name for name in _COLUMNS)}) "  # noqa: S608
    "on conflict (request_id, at, part) do nothing"  # (names of our own fields)
)
_SELECT = f"select {', '.join(_COLUMNS)} from usage where at >= :since and request_id > :after "  # noqa: S608
PAGE = 10_000


def write(transaction: Transaction, row: UsageRow, price: Price | None) -> bool:
    """Writes a row with its price; False when it was there already, so that writing twice charges once."""
    if transaction.run(_INSERT, **dataclasses.asdict(row)) == 0:
        return False
    if price is not None:
        transaction.run(
            "insert into price_snapshots (id, price) values (:id, :price) on conflict (id) do nothing",
            id=price.snapshot,
            price=price.json(),
        )
    return True


def read(database: Database, since: int = 0) -> Iterator[UsageRow]:
    """All rows since a time in microseconds, request by request. Writers get their turn between the pages."""
    after = ""
    while True:
        values = {"since": since, "after": after, "page": PAGE}
        page = database.now(lambda t, v=values: t.rows(_SELECT + "order by request_id, at, part limit :page", **v))  # type: ignore[misc]
        rows = [UsageRow(*values) for values in page]
        if len(rows) < PAGE:
            yield from rows
            return
        # The last request may go on behind the page's end.
        whole = [row for row in rows if row.request_id != rows[-1].request_id]
        if not whole:
            raise UsageError(f"request {rows[-1].request_id} has more than {PAGE} parts")
        yield from whole
        after = whole[-1].request_id


def price_of(transaction: Transaction, snapshot: str) -> Price | None:
    """The price a row was made from."""
    found = transaction.one("select price from price_snapshots where id = :id", id=snapshot)
    return None if found is None else Price.from_json(found[0])


@dataclass(slots=True)
class Line:
    """What a group of rows adds up to; money in nano-dollars.

    Args:
        unpriced: parts whose price was not known; `spent`, `elsewhere` and `saved` are without them.
        elsewhere: the same tokens at the provider compared with; None without one, or when it has no price for some.
    """

    name: str
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    estimated: int = 0
    unpriced: int = 0
    local_seconds: float = 0.0
    elsewhere: int | None = None
    _last: str = field(default="", repr=False)
    _spent: int = 0
    _priced: int = 0

    def add(self, row: UsageRow, elsewhere: int | None) -> None:
        """Takes a row into account; rows of one request must follow each other."""
        self.requests += row.request_id != self._last
        self._last = row.request_id
        self.prompt_tokens += row.prompt_tokens
        self.completion_tokens += row.completion_tokens
        self.cached_tokens += row.cached_tokens
        self.estimated += row.estimated
        self.unpriced += row.nanos is None
        self.local_seconds += row.seconds if row.provider == LOCAL else 0.0
        if row.nanos is None:  # free, for all we know, or dear: neither spent nor saved
            return
        self._spent += row.nanos
        self._priced += 1
        if elsewhere is not None:
            self.elsewhere = (self.elsewhere or 0) + elsewhere

    @property
    def spent(self) -> int | None:
        """On what has a known price; None when nothing has."""
        return None if self.unpriced and not self._priced else self._spent

    @property
    def saved(self) -> int | None:
        """What the comparison would have cost more."""
        return None if self.elsewhere is None or self.spent is None else self.elsewhere - self.spent


GROUPS: dict[str, Callable[[UsageRow], str]] = {
    "key": lambda row: row.key_id or "-",
    "backend": lambda row: row.backend,
    "model": lambda row: row.model,
}


def summarize(rows: Iterable[UsageRow], by: str, book: PriceBook, compare_with: str = "") -> tuple[list[Line], Line]:
    """A line for each group, dearest first, and the total.

    Args:
        by: one of `GROUPS`.
        compare_with: `PROVIDER/MODEL`; its prices at the time of each row.

    Raises:
        UsageError: no such provider or model.
    """
    lines: dict[str, Line] = {}
    total = Line("total")
    elsewhere = _comparison(book, compare_with)
    for row in rows:
        name, other = GROUPS[by](row), elsewhere(row)
        lines.setdefault(name, Line(name)).add(row, other)
        total.add(row, other)
    return sorted(lines.values(), key=lambda line: (-(line.spent or 0), line.name)), total


def _comparison(book: PriceBook, name: str) -> Callable[[UsageRow], int | None]:
    """What a row's tokens would have cost there. Only answers count: a part that failed would not have been asked for."""
    if not name:
        return lambda row: None
    provider, _, model = name.partition("/")
    hint = "for example openai/gpt-4o-mini; prices of your own go into the file of cost.prices"
    if not model or book.find(provider, model, datetime.now(UTC), name=provider) is None:
        raise UsageError(f"no price is known for {name!r}, expected PROVIDER/MODEL", hint=hint)

    def cost(row: UsageRow) -> int | None:
        price = book.find(provider, model, datetime.fromtimestamp(row.at / 1_000_000, UTC), name=provider)
        return 0 if row.failure is not None else None if price is None else price.cost(row.tokens)

    return cost
