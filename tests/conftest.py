"""Databases for every test that keeps something in one: SQLite in a file, and a real PostgreSQL."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from freehold.database import Database, Transaction
from tests import postgres

# The same examples on every run, however slow the machine; `HYPOTHESIS_PROFILE=explore make test` draws new ones.
hypothesis.settings.register_profile("same", derandomize=True, deadline=None)
hypothesis.settings.register_profile("explore", deadline=None, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Callable[[], str]]:
    """A function that makes a fresh, empty PostgreSQL database and gives its URL."""
    import psycopg

    bin = postgres.programs()
    if bin is None:
        pytest.skip(postgres.REASON)
    with postgres.server(bin) as url:

        def fresh() -> str:
            name = f"test{next(_numbers)}"
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(f"create database {name}".encode())
            return url.replace("/postgres?", f"/{name}?")

        yield fresh


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, once of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'freehold.db'}"
    made: str = request.getfixturevalue("postgresql")()
    return made


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """An open database with our tables, once of each kind."""
    with Database(database_url) as found:
        yield found


def counted(database: Database, table: str) -> int:
    """How many rows a table has."""

    def count(transaction: Transaction) -> int:
        row = transaction.one(f"select count(*) from {table}")  # noqa: S608  (a name of the test's own)
        return int(row[0]) if row else 0

    return database.now(count)
