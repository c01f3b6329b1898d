"""Virtual keys: made, limited and revoked by the owner of the gateway; recognized at its door.

A key is shown once, when it is made; what is kept is its SHA-256. That is enough, and fast, because a key is 256 random
bits: there is no dictionary to try. Knows the table of keys; no HTTP and no request.
"""

from __future__ import annotations

import asyncio
import fnmatch
import hashlib
import logging
import secrets
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from freehold.database import Database, Transaction, Work
from freehold.errors import DatabaseError, UsageError

log = logging.getLogger("freehold.budget")

PREFIX = "sk-fh-"
REFRESH_SECONDS = 2.0
"""How old knowledge of keys may be before it is renewed in the background, while it is used once more."""

STALE_SECONDS = 30.0
"""How old it may be at all: without its database a gateway lets nobody in for longer."""

MAX_NAME = 100
_LIMITS = ("usd_per_day", "usd_per_month", "tokens_per_minute", "requests_per_minute")
_SELECT = (
    "select id, name, digest, created_at, revoked_at, usd_per_day, usd_per_month, tokens_per_minute, "
    "requests_per_minute, models, backends from keys "
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a key may do; None = as much as it likes. Money in nano-dollars; days and months are UTC's.

    Args:
        models: patterns (`*` and `?`) of the models it may ask for; empty = all.
        backends: names of those that may answer it; empty = all.
    """

    usd_per_day: int | None = None
    usd_per_month: int | None = None
    tokens_per_minute: int | None = None
    requests_per_minute: int | None = None
    models: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()

    @property
    def money(self) -> bool:
        """Whether it has a limit in USD."""
        return self.usd_per_day is not None or self.usd_per_month is not None

    @property
    def rates(self) -> bool:
        """Whether it has a limit by the minute."""
        return self.tokens_per_minute is not None or self.requests_per_minute is not None

    def allows_model(self, model: str) -> bool:
        """Whether it may ask for that model."""
        return not self.models or any(fnmatch.fnmatchcase(model, pattern) for pattern in self.models)


@dataclass(frozen=True, slots=True)
class VirtualKey:
    """A key as it is kept. Times in microseconds since 1970."""

    id: str
    name: str
    created_at: int
    revoked_at: int | None
    limits: Limits


def digest(key: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()


def looks_right(key: str) -> bool:
    """Whether its checksum fits: a mistyped or made-up key is refused without looking it up."""
    body, checksum = key[len(PREFIX) : -8], key[-8:]
    return key.startswith(PREFIX) and bool(body) and _checksum(body) == checksum


def create(name: str, limits: Limits, now: float) -> tuple[str, Work[VirtualKey]]:
    """A new key, and the work that keeps it. The key is nowhere else: show it, then forget it.

    Raises:
        UsageError: from the work, when a key of that name is in use.
    """
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise UsageError(f"expected a name of 1 to {MAX_NAME} printable characters")
    body = secrets.token_urlsafe(32)
    key = PREFIX + body + _checksum(body)
    made = VirtualKey("key_" + secrets.token_hex(6), name, int(now * 1_000_000), None, limits)

    def work(transaction: Transaction) -> VirtualKey:
        if transaction.one("select id from keys where name = :name and revoked_at is null", name=name):
            raise UsageError(f"a key named {name!r} is in use", hint="`freehold key revoke` ends it")
        transaction.run(
            "insert into keys (id, name, digest, created_at, revoked_at, usd_per_day, usd_per_month, tokens_per_minute, "
            "requests_per_minute, models, backends) values (:id, :name, :digest, :created_at, null, :usd_per_day, "
            ":usd_per_month, :tokens_per_minute, :requests_per_minute, :models, :backends)",
            id=made.id, name=name, digest=digest(key), created_at=made.created_at, **_columns(limits),
        )  # fmt: skip
        return made

    return key, work


def revoke(name: str, now: float) -> Work[VirtualKey]:
    """Ends a key, for good; what it spent stays on record."""

    def work(transaction: Transaction) -> VirtualKey:
        found = _find(transaction, name)
        transaction.run("update keys set revoked_at = :now where id = :id", now=int(now * 1_000_000), id=found.id)
        return found

    return work


def in_use(transaction: Transaction) -> int:
    """How many keys are in use."""
    return len(transaction.rows("select id from keys where revoked_at is null"))


def limit(name: str, change: Callable[[Limits], Limits]) -> Work[VirtualKey]:
    """Changes a key's limits."""

    def work(transaction: Transaction) -> VirtualKey:
        found = _find(transaction, name)
        changed = change(found.limits)
        transaction.run(
            "update keys set usd_per_day = :usd_per_day, usd_per_month = :usd_per_month, "
            "tokens_per_minute = :tokens_per_minute, requests_per_minute = :requests_per_minute, models = :models, "
            "backends = :backends where id = :id",
            id=found.id,
            **_columns(changed),
        )
        transaction.run("delete from buckets where key_id = :id", id=found.id)
        return VirtualKey(found.id, found.name, found.created_at, found.revoked_at, changed)

    return work


def all_keys(transaction: Transaction) -> list[VirtualKey]:
    """Every key there ever was, oldest first."""
    return [_key(row) for row in transaction.rows(_SELECT + "order by created_at, id")]


class KeyRing:
    """The keys in use, in memory: a lookup never waits for the database, except for a key made a moment ago.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._keys: dict[str, VirtualKey] = {}  # by digest
        self._by_id: dict[str, VirtualKey] = {}
        self._made: int | None = None  # whether any key was made; None = not read yet
        self._read_at = float("-inf")
        self._renewing: asyncio.Task[None] | None = None

    @property
    def closes(self) -> bool:
        """Whether everybody needs a key: one was made once. Revoking the last one does not let everybody in again.

        Raises:
            DatabaseError: nobody knows, because the keys were not read yet.
        """
        if self._made is None:
            raise DatabaseError("the keys are not read yet", hint="try again in a moment")
        return self._made > 0

    async def refresh(self) -> None:
        """Reads the keys again."""
        began = self._clock()

        def read(transaction: Transaction) -> tuple[list[tuple[Any, ...]], int]:
            in_use = transaction.rows(_SELECT + "where revoked_at is null")
            return in_use, len(transaction.rows("select id from keys limit 1"))

        rows, self._made = await self._database.run(read)
        self._keys = {row[2]: _key(row) for row in rows}
        self._by_id = {key.id: key for key in self._keys.values()}
        self._read_at = began

    async def look_up(self, key: str) -> VirtualKey | None:
        """The key's record; None for one that is not in use.

        A known key is found in memory, and what has grown old is renewed behind it: a revoked key works for a few more
        seconds at most. The table is looked up by digest: how long that takes tells nothing about any key.

        Raises:
            DatabaseError: knowledge is too old, and the database can't be asked.
        """
        if not looks_right(key):
            return None
        wanted = digest(key)
        if self._age > STALE_SECONDS or (wanted not in self._keys and self._age > REFRESH_SECONDS / 10):
            await self.refresh()  # made just now, perhaps
        else:
            self.renew()
        return self._keys.get(wanted)

    def renew(self) -> None:
        """Reads the keys again in the background, if that was not done a moment ago."""
        if self._age > REFRESH_SECONDS and (self._renewing is None or self._renewing.done()):
            self._renewing = asyncio.get_running_loop().create_task(self._renew())

    async def close(self) -> None:
        """Waits for what runs in the background."""
        if self._renewing is not None:
            await asyncio.wait([self._renewing])

    async def _renew(self) -> None:
        try:
            await self.refresh()
        except DatabaseError as error:
            log.warning("keys can't be read again: %s", error)

    @property
    def _age(self) -> float:
        return self._clock() - self._read_at

    def by_id(self, id: str) -> VirtualKey | None:
        """A key in use, by its id."""
        return self._by_id.get(id)


def _checksum(body: str) -> str:
    return f"{zlib.crc32(body.encode('utf-8', 'replace')):08x}"


def _find(transaction: Transaction, name: str) -> VirtualKey:
    row = transaction.one(_SELECT + "where (name = :name or id = :name) and revoked_at is null", name=name)
    if row is None:
        raise UsageError(f"no key named {name!r} is in use", hint="`freehold key list` shows them")
    return _key(row)


def _key(row: tuple[object, ...]) -> VirtualKey:
    id, name, _, created_at, revoked_at, day, month, tokens, requests, models, backends = row
    limits = Limits(
        usd_per_day=_number(day), usd_per_month=_number(month), tokens_per_minute=_number(tokens),
        requests_per_minute=_number(requests), models=_names(models), backends=_names(backends),
    )  # fmt: skip
    return VirtualKey(str(id), str(name), _number(created_at) or 0, _number(revoked_at), limits)


def _number(value: object) -> int | None:
    return None if value is None else int(str(value))


def _names(value: object) -> tuple[str, ...]:
    return tuple(str(value).split(",")) if value else ()


def _columns(limits: Limits) -> dict[str, object]:
    numbers: dict[str, object] = {name: getattr(limits, name) for name in _LIMITS}
    return numbers | {"models": ",".join(limits.models), "backends": ",".join(limits.backends)}
