"""Verification: every way to change a ledger is found, and what it can't prove is said."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from freehold.database import Database, Transaction
from freehold.provenance import heads
from freehold.provenance.ledger import KEY_FILE, Ledger
from freehold.provenance.verify import WITHOUT_HEAD, verify
from freehold.signing import Identity
from tests.provenance import attacks
from tests.provenance.attacks import Attack
from tests.provenance.made import add, exchange, ledger

SIZE = 60


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Ledger, Path]]:
    directory = tmp_path_factory.mktemp("ledger")
    with Database(f"sqlite:///{directory / 'x.db'}") as database, ledger(database, directory) as kept:
        add(kept, *[exchange(f"prompt {i}", f"answer {i}") for i in range(SIZE)])
        yield kept, directory


@pytest.fixture
def attacked(honest: tuple[Ledger, Path], tmp_path: Path) -> Iterator[Callable[[Attack, int], Database]]:
    """A copy of the honest ledger after an attack."""
    kept, _ = honest
    copies: list[Database] = []

    def attack(how: Attack, seed: int) -> Database:
        file = tmp_path / f"{len(copies)}.db"
        copied = kept.database.now(lambda t: copy(t, file))
        database = Database(f"sqlite:///{copied}").open()
        copies.append(database)
        database.now(lambda t: how(t, random.Random(seed), SIZE))
        return database

    yield attack
    for database in copies:
        database.close()


def copy(transaction: Transaction, file: Path) -> Path:
    source = Path(transaction.rows("select file from pragma_database_list where name = 'main'")[0][0])
    import sqlite3

    with sqlite3.connect(source) as one, sqlite3.connect(file) as other:
        one.backup(other)
    one.close()
    other.close()
    return file


def test_an_honest_ledger_is_good_and_says_what_it_cannot_prove(honest: tuple[Ledger, Path]) -> None:
    kept, _ = honest
    report = verify(kept.database, [kept.head()])
    assert report.good and (report.size, report.covered, report.texts) == (SIZE, SIZE, SIZE)
    assert any("everything was recorded" in line for line in report.not_proved)
    assert WITHOUT_HEAD in verify(kept.database).not_proved and WITHOUT_HEAD not in report.not_proved


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("how", attacks.CARELESS, ids=lambda how: how.__name__)
def test_a_careless_change_is_found(
    honest: tuple[Ledger, Path], attacked: Callable[[Attack, int], Database], how: Attack, seed: int
) -> None:
    head = honest[0].head()
    report = verify(attacked(how, seed), [head])
    assert not report.good, how.__name__


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("how", attacks.CAREFUL, ids=lambda how: how.__name__)
def test_a_careful_change_by_the_owner_is_found_with_a_head_from_outside_and_only_then(
    honest: tuple[Ledger, Path], attacked: Callable[[Attack, int], Database], how: Attack, seed: int
) -> None:
    kept, directory = honest
    head, identity = kept.head(), Identity.load(directory / KEY_FILE)
    database = attacked(attacks.careful(how, identity), seed)
    found = {problem.kind for problem in verify(database, [head]).problems}
    assert found & {"fork", "cut"}
    alone = [p for p in verify(database).problems if p.kind != "text"]  # texts of records that are gone
    assert alone == []


def test_an_edit_is_located(honest: tuple[Ledger, Path], attacked: Callable[[Attack, int], Database]) -> None:
    def edit(t: Transaction, r: random.Random, size: int) -> None:
        sql = "update ledger_records set body = replace(body, :old, :new) where position = 17"
        assert t.run(sql, old='"turns":1', new='"turns":2') == 1

    (problem,) = verify(attacked(edit, 0)).problems
    assert (problem.kind, problem.position) == ("edited", 17) and problem.id


def test_two_heads_of_one_size_that_differ_are_a_fork(honest: tuple[Ledger, Path]) -> None:
    kept, directory = honest
    forged = heads.sign(Identity.load(directory / KEY_FILE), kept.id, SIZE, b"\1" * 32, 1)
    problems = verify(kept.database, [kept.head(), forged]).problems
    assert any("the log was forked" in problem.what for problem in problems)


def test_a_head_of_another_ledger_is_told_apart(honest: tuple[Ledger, Path]) -> None:
    kept, directory = honest
    other = heads.sign(Identity.load(directory / KEY_FILE), "another", SIZE, kept.head().root, 1)
    (problem,) = verify(kept.database, [other]).problems
    assert problem.kind == "fork" and "another" in problem.what


def test_a_ledger_in_postgresql_is_verified_alike(database: Database, tmp_path: Path) -> None:
    with ledger(database, tmp_path) as kept:
        add(kept, *[exchange(f"prompt {i}", f"answer {i}") for i in range(20)])
        head = kept.head()
        assert verify(database, [head]).good
        database.now(lambda t: attacks.swap(t, random.Random(1), 20))
        assert not verify(database, [head]).good


def test_an_empty_ledger_is_good(database: Database, tmp_path: Path) -> None:
    with ledger(database, tmp_path) as kept:
        assert verify(database, [kept.head()]).good
