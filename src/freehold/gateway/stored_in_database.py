"""Stored responses in the database: a restart forgets none, and gateways that share a database share them.

Each key has its own room: what one key stores pushes out nobody else's. Reading waits for the database; storing does not:
it is handed over, in order, and what the database refuses is told in the log. Knows one table; no dialect and no HTTP.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from freehold.database import Database, Transaction
from freehold.errors import FreeholdError
from freehold.gateway.stored import Stored, linked
from freehold.settings import ResponsesSettings

log = logging.getLogger("freehold.gateway")

SECOND = 1_000_000
TOUCH = 3600 * SECOND
"""How exactly the last use is known: a conversation's every turn would otherwise rewrite all turns before it."""

MOST_WAITING = 64 << 20
"""Bytes that may wait for the database; more are not stored."""

AT_ONCE = 64
_INSERT = (
    "insert into responses (id, owner, previous, response, input, bytes, used_at) "
    "values (:id, :owner, :previous, :response, :input, :bytes, :now) on conflict (owner, id) do update set "
    "previous = excluded.previous, response = excluded.response, input = excluded.input, bytes = excluded.bytes, "
    "used_at = excluded.used_at"
)


class DatabaseStore:
    """A `stored.Store` in a database.

    Args:
        database: opened and closed by others.
        settings: how much is kept of each owner's, and how long.
        now: seconds since 1970.
    """

    blocks = True

    def __init__(self, database: Database, settings: ResponsesSettings, now: Callable[[], float] = time.time) -> None:
        self._database = database
        self._most = settings.responses_per_key
        self._size = int(settings.responses_mb * 2**20)
        self._age = int(settings.responses_days * 86400 * SECOND)
        self._now = now
        self._lock = threading.Lock()
        self._waiting = 0

    def put(self, stored: Stored) -> None:
        """Keeps it, unless it is larger than everything together may be; returns at once."""
        if not self._most or stored.size > self._size:
            return
        with self._lock:
            full = self._waiting + stored.size > MOST_WAITING
            self._waiting += 0 if full else stored.size
        if full:
            log.warning("response %s is not stored: the database can't keep up", stored.id)
            return

        def written(done: Future[None]) -> None:
            with self._lock:
                self._waiting -= stored.size
            if not done.cancelled() and (error := done.exception()) is not None:
                log.warning("response %s is not stored: %s", stored.id, error)

        now = self._micros()
        try:
            self._database.post(lambda transaction: self._put(transaction, stored, now)).add_done_callback(written)
        except FreeholdError as error:
            with self._lock:
                self._waiting -= stored.size
            log.warning("response %s is not stored: %s", stored.id, error.message)

    def get(self, id: str, owner: str) -> Stored | None:
        """The response of that owner; None when there is none.

        Raises:
            DatabaseError: nobody can tell.
        """
        return self._database.now(lambda transaction: self._get(transaction, id, owner))

    def chain(self, id: str, owner: str) -> list[Stored]:
        """See `Store.chain`; all in one transaction.

        Raises:
            DatabaseError: nobody can tell.
        """
        return self._database.now(lambda transaction: linked(id, lambda name: self._get(transaction, name, owner)))

    def delete(self, id: str, owner: str) -> bool:
        """Forgets it; whether it was there.

        Raises:
            DatabaseError: nobody can tell.
        """
        statement = "delete from responses where owner = :owner and id = :id"
        if "\0" in id:
            return False
        return self._database.now(lambda transaction: transaction.run(statement, id=id, owner=owner)) > 0

    def _put(self, transaction: Transaction, stored: Stored, now: int) -> None:
        if self._age:
            transaction.run("delete from responses where used_at < :oldest", oldest=now - self._age)
        transaction.run(
            _INSERT, id=stored.id, owner=stored.owner, previous=stored.previous, response=stored.response.decode(),
            input=stored.input.decode(), bytes=stored.size, now=now,
        )  # fmt: skip
        self._make_room(transaction, stored.owner)

    def _get(self, transaction: Transaction, id: str, owner: str) -> Stored | None:
        if "\0" in id:  # no id of ours, and PostgreSQL has no such text
            return None
        now = self._micros()
        row = transaction.one(
            "select previous, response, input, used_at from responses where owner = :owner and id = :id",
            id=id,
            owner=owner,
        )
        if row is None or (self._age and row[3] < now - self._age):
            return None
        if now - row[3] > TOUCH:
            statement = "update responses set used_at = :now where owner = :owner and id = :id"
            transaction.run(statement, now=now, id=id, owner=owner)
        return Stored(id, owner, row[1].encode(), row[2].encode(), row[0])

    def _make_room(self, transaction: Transaction, owner: str) -> None:
        """Deletes what an owner did not use for longest until the rest is within the limits."""
        row = transaction.one("select count(*), sum(bytes) from responses where owner = :owner", owner=owner)
        count, size = (int(row[0]), int(row[1] or 0)) if row else (0, 0)
        while count > self._most or size > self._size:
            oldest = transaction.rows(
                "select id, bytes from responses where owner = :owner order by used_at, id limit :some",
                owner=owner,
                some=AT_ONCE,
            )
            for id, taken in oldest:
                if count <= self._most and size <= self._size:
                    return
                transaction.run("delete from responses where owner = :owner and id = :id", owner=owner, id=id)
                count, size = count - 1, size - int(taken)

    def _micros(self) -> int:
        return round(self._now() * SECOND)
