"""The database: one SQLite file by default, PostgreSQL by URL; the only module that imports SQLAlchemy.

One thread does all the work, so that an event loop never waits for a disk: whoever needs something hands over a function
from a `Transaction` to a result. Functions that wait at the same time share a commit, each behind a savepoint of its
own. Writers are one at a time across processes too (BEGIN IMMEDIATE, an advisory lock), so a check and the write that
depends on it can't be interleaved with another's.

SQL is plain text that both databases understand. What keys, budgets and usage mean is known to those who use the tables,
not here.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import queue
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, TextClause, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from freehold.errors import DatabaseError, FreeholdError, SettingError

T = TypeVar("T")
log = logging.getLogger("freehold.database")

FILE_NAME = "freehold.db"
BUSY_SECONDS = 10
"""How long a writer waits for another process's transaction before it gives up."""
LARGEST_BATCH = 128
_LOCK = 7411_0005
"""Number of the advisory lock that makes writers take turns on PostgreSQL; any number nobody else uses."""


class Transaction:
    """What work may do: run SQL with named values (`:name`)."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def rows(self, sql: str, **values: Any) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        return [tuple(row) for row in self._connection.execute(_statement(sql), values)]

    def one(self, sql: str, **values: Any) -> tuple[Any, ...] | None:
        """The first row of a query, None without one."""
        row = self._connection.execute(_statement(sql), values).first()
        return None if row is None else tuple(row)

    def run(self, sql: str, **values: Any) -> int:
        """Runs a statement and says how many rows it touched."""
        return int(self._connection.execute(_statement(sql), values).rowcount)

    def many(self, sql: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Runs a statement once for each row of named values; does nothing without rows.

        Straight to the driver: SQLAlchemy's own way costs 10 µs for each row.
        """
        if rows:
            named = sql if self._connection.dialect.name == "sqlite" else _PSYCOPG.sub(r"%(\1)s", sql)
            self._connection.exec_driver_sql(named, [dict(row) for row in rows])


Work = Callable[[Transaction], T]
_PSYCOPG = re.compile(r":(\w+)")


@functools.lru_cache(maxsize=256)
def _statement(sql: str) -> TextClause:
    return text(sql)


@dataclass(slots=True)
class _Job:
    work: Work[Any]
    future: Future[Any]
    result: Any = None
    error: BaseException | None = None


class Database:
    """A database that is open from `open` to `close`.

    Args:
        url: `postgresql://...` or `sqlite:///FILE`; empty = a SQLite file in the state directory.
    """

    def __init__(self, url: str = "") -> None:
        self.url = _parse(url)
        self._engine: Engine | None = None
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    @property
    def shown(self) -> str:
        """Where it is, without a password."""
        return self.url.render_as_string(hide_password=True)

    def open(self) -> Database:
        """Connects, brings the tables up to date and starts the thread; blocks while it does.

        Raises:
            DatabaseError: it can't be reached, or was written by a newer version.
        """
        if self._engine is None:
            self._engine = _engine(self.url)
            try:
                self._once(migrate)
            except BaseException:
                self._engine.dispose()
                self._engine = None
                raise
            self._thread = threading.Thread(target=self._serve, name="freehold-database", daemon=True)
            self._thread.start()
        return self

    def close(self) -> None:
        """Finishes what was handed over, then disconnects."""
        thread, self._thread = self._thread, None  # from here on `post` refuses
        if thread is not None:
            self._jobs.put(None)
            thread.join()
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None

    def __enter__(self) -> Database:
        return self.open()

    def __exit__(self, *exception: object) -> None:
        self.close()

    async def run(self, work: Work[T]) -> T:
        """The result of `work`, in a transaction on the database's thread. What it raises undoes what it did.

        Cancelling leaves work undone that has not begun; work under way is finished.

        Raises:
            DatabaseError: the database failed.
        """
        return await asyncio.wrap_future(self.post(work))

    def post(self, work: Work[T]) -> Future[T]:
        """As `run` from any thread, without waiting: work is done in the order it is handed over."""
        if self._thread is None:
            raise DatabaseError("the database is not open")
        job = _Job(work, Future())
        self._jobs.put(job)
        return job.future

    def now(self, work: Work[T]) -> T:
        """As `run`, blocking: for commands, not for an event loop."""
        return self.post(work).result()

    @property
    def waiting(self) -> int:
        """Roughly how much work waits for the thread."""
        return self._jobs.qsize()

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            batch, ending = self._waiting(job)
            begun = [job for job in batch if job.future.set_running_or_notify_cancel()]
            if begun:
                self._commit(begun)
            if ending:
                return

    def _waiting(self, first: _Job) -> tuple[list[_Job], bool]:
        """Whatever waits with the first job, and whether the end was among it."""
        batch = [first]
        while len(batch) < LARGEST_BATCH:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is None:
                return batch, True
            batch.append(job)
        return batch, False

    def _commit(self, batch: Sequence[_Job]) -> None:
        """Runs a batch in one transaction; when the database fails it, each job in one of its own."""
        try:
            self._once(lambda transaction: _run_all(transaction, batch))
        except FreeholdError as error:
            if len(batch) > 1:
                for job in batch:
                    self._commit([job])
                return
            batch[0].error = error
        except BaseException as error:  # a lone job's own exception: delivered to whoever waits for it
            batch[0].error = error
        for job in batch:
            if job.error is None:
                job.future.set_result(job.result)
            else:
                job.future.set_exception(job.error)

    def _once(self, work: Work[T]) -> T:
        """`work` in a transaction, tried again once when the connection turns out to be dead."""
        if self._engine is None:
            raise DatabaseError("the database is not open")
        for attempt in (1, 2):
            try:
                with self._engine.begin() as connection:
                    if connection.dialect.name == "postgresql":
                        connection.execute(_statement("select pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
                    return work(Transaction(connection))
            except SQLAlchemyError as error:
                if attempt == 1 and isinstance(error, DBAPIError) and error.connection_invalidated:
                    continue
                raise self._failure(error) from None
        raise AssertionError("unreachable")

    def _failure(self, error: SQLAlchemyError) -> DatabaseError:
        """The driver's own words: SQLAlchemy's would quote the statement."""
        words = str(getattr(error, "orig", None) or type(error).__name__).strip().split("\n")[0]
        return DatabaseError(f"database {self.shown}: {words}", hint="check database.url and that the server is up")


def _run_all(transaction: Transaction, batch: Sequence[_Job]) -> None:
    for job in batch:
        job.result, job.error = None, None
        if len(batch) == 1:
            job.result = job.work(transaction)
            return
        try:
            with transaction._connection.begin_nested():
                job.result = job.work(transaction)
        except SQLAlchemyError:
            raise
        except BaseException as error:  # its own exception undoes its own work, not the others'
            job.error = error


def state_directory() -> Path:
    """Where state that must survive is kept: FREEHOLD_HOME/state, by default the user's state directory."""
    if home := os.environ.get("FREEHOLD_HOME"):
        return Path(home).expanduser() / "state"
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "freehold"


def _parse(url: str) -> URL:
    if not url:
        return URL.create("sqlite", database=str(state_directory() / FILE_NAME))
    try:
        found = make_url(url)
    except ArgumentError:  # its message may quote a password
        raise SettingError("database.url: expected postgresql://HOST/NAME or sqlite:///FILE") from None
    if found.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        return found.set(drivername="postgresql+psycopg")
    if found.drivername == "sqlite" and found.database and found.database != ":memory:":
        return found
    shown = found.render_as_string(hide_password=True)
    raise SettingError(f"database.url: expected postgresql://HOST/NAME or sqlite:///FILE, found {shown}")


def _engine(url: URL) -> Engine:
    if url.get_backend_name() == "sqlite":
        return _sqlite(url)
    try:
        return create_engine(url, hide_parameters=True, connect_args={"connect_timeout": BUSY_SECONDS})
    except (ModuleNotFoundError, NoSuchModuleError):
        hint = "pip install 'freehold[postgresql]'"
        raise SettingError("database.url names PostgreSQL, but its driver is not installed", hint=hint) from None


def _sqlite(url: URL) -> Engine:
    path = Path(str(url.database))
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
    except OSError as error:
        raise DatabaseError(f"can't write {path}: {error.strerror}", hint="set FREEHOLD_HOME or database.url") from None
    engine = create_engine(url, hide_parameters=True, connect_args={"timeout": BUSY_SECONDS})

    @event.listens_for(engine, "connect")
    def configure(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves: the driver's would be DEFERRED
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(
            "PRAGMA synchronous = NORMAL"
        )  # a killed process loses nothing; a power cut, the last moment
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def migrate(transaction: Transaction) -> None:
    """Brings the tables up to date: each migration runs once, in order, all in this transaction.

    Raises:
        DatabaseError: a newer version has been here.
    """
    transaction.run("create table if not exists migrations (number integer primary key, name text not null)")
    row = transaction.one("select max(number) from migrations")
    done = int(row[0] or 0) if row else 0
    if done > len(MIGRATIONS):
        raise DatabaseError(
            f"the database is at version {done}, this program knows {len(MIGRATIONS)}", hint="update freehold"
        )
    for number, migration in enumerate(MIGRATIONS[done:], start=done + 1):
        migration(transaction)
        transaction.run("insert into migrations values (:number, :name)", number=number, name=migration.__name__)


def _m001_money(transaction: Transaction) -> None:
    """Keys, what they have reserved and spent, and a row for each exchange. Money in nano-dollars, times in microseconds."""
    for statement in (
        """create table keys (
            id text primary key, name text not null, digest text not null unique, created_at bigint not null,
            revoked_at bigint, usd_per_day bigint, usd_per_month bigint, tokens_per_minute bigint,
            requests_per_minute bigint, models text not null, backends text not null)""",
        """create table buckets (
            key_id text not null, unit text not null, level bigint not null, at bigint not null,
            primary key (key_id, unit))""",
        """create table reservations (
            id text not null, scope text not null, subject text not null, nanos bigint not null,
            expires_at bigint not null, primary key (id, scope, subject))""",
        "create index reservations_by_subject on reservations (scope, subject, expires_at)",
        """create table spending (
            scope text not null, subject text not null, period text not null, nanos bigint not null,
            primary key (scope, subject, period))""",
        "create table price_snapshots (id text primary key, price text not null)",
        """create table usage (
            request_id text not null, part integer not null, at bigint not null, key_id text not null,
            backend text not null, provider text not null, model text not null, prompt_tokens bigint not null,
            completion_tokens bigint not null, cached_tokens bigint not null, cache_write_tokens bigint not null,
            reasoning_tokens bigint not null, estimated integer not null, seconds double precision,
            finished integer not null, failure text, nanos bigint, price_snapshot text not null,
            primary key (request_id, at, part))""",
        "create index usage_by_time on usage (at)",
    ):
        transaction.run(statement)


def _m002_responses(transaction: Transaction) -> None:
    """Responses that clients may come back to: JSON, with the items that were their input. Times in microseconds."""
    for statement in (
        """create table responses (
            id text not null, owner text not null, previous text, response text not null, input text not null,
            bytes bigint not null, used_at bigint not null, primary key (owner, id))""",
        "create index responses_by_use on responses (owner, used_at, bytes)",
        "create index responses_by_age on responses (used_at)",
    ):
        transaction.run(statement)


def _m003_ledger(transaction: Transaction) -> None:
    """The ledger: records in a Merkle log, their texts apart (those can be deleted), and what finds quoted text again.

    Hashes are `bytea`, which SQLite takes as blobs. A node's address is level * 2^48 + index; leaves are in the records.
    """
    for statement in (
        "create table ledger_log (id text primary key, secret bytea not null, created_at bigint not null)",
        """create table ledger_records (
            position bigint primary key, id text not null unique, kind text not null, at bigint not null,
            leaf bytea not null, salt bytea, body text)""",
        "create table ledger_nodes (address bigint primary key, hash bytea not null)",
        """create table ledger_heads (
            size bigint not null, key_id text not null, at bigint not null, envelope text not null, key text not null,
            primary key (size, key_id))""",
        "create table ledger_contents (record text primary key, salt bytea not null, prompt text, answer text)",
        """create table ledger_outputs (
            tag bytea not null, record text not null, answer integer not null, state text not null,
            primary key (tag, record, answer))""",
        "create table ledger_runs (run bigint not null, record text not null, primary key (run, record))",
        "create table ledger_bands (band bigint not null, passage bigint not null, primary key (band, passage))",
        "create table ledger_passages (id bigint primary key, record text not null, signature bytea not null)",
        "create table ledger_weights (files text primary key, digest text not null, licence text)",
    ):
        transaction.run(statement)


MIGRATIONS: Sequence[Callable[[Transaction], None]] = (_m001_money, _m002_responses, _m003_ledger)
"""In order; never changed once released: a new one is added at the end."""
