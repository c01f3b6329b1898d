"""The database: both kinds, one thread, shared commits, migrations, and what a killed process leaves behind."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from freehold import database as module
from freehold.database import MIGRATIONS, Database, Transaction
from freehold.errors import DatabaseError, FreeholdError, SettingError
from tests.conftest import counted


def spend(nanos: int, subject: str = "k") -> module.Work[int]:
    def work(transaction: Transaction) -> int:
        transaction.run(
            "insert into spending (scope, subject, period, nanos) values ('key', :subject, 'd', :nanos) "
            "on conflict (scope, subject, period) do update set nanos = spending.nanos + excluded.nanos",
            subject=subject,
            nanos=nanos,
        )
        row = transaction.one("select nanos from spending where subject = :subject", subject=subject)
        assert row is not None
        return int(row[0])

    return work


def test_work_runs_in_the_order_it_is_handed_over_and_gives_its_result(database: Database) -> None:
    async def run() -> list[int]:
        return await asyncio.gather(*[database.run(spend(1)) for _ in range(300)])

    assert asyncio.run(run()) == list(range(1, 301))


def test_what_fails_undoes_its_own_work_and_nobody_elses(database: Database) -> None:
    def refuse(transaction: Transaction) -> None:
        spend(1000)(transaction)
        raise FreeholdError("no")

    async def run() -> list[object]:
        work = [spend(1) if i % 2 else refuse for i in range(40)]
        return await asyncio.gather(*[database.run(w) for w in work], return_exceptions=True)

    results = asyncio.run(run())
    assert [r for r in results if isinstance(r, int)] == list(range(1, 21))
    assert sum(isinstance(r, FreeholdError) for r in results) == 20


def test_sql_that_the_database_refuses_fails_alone_in_words_without_the_statement(database: Database) -> None:
    def wrong(transaction: Transaction) -> None:
        transaction.run("insert into spending values (:secret)", secret="sk-fh-do-not-show")

    async def run() -> list[object]:
        return await asyncio.gather(
            database.run(spend(1)), database.run(wrong), database.run(spend(1)), return_exceptions=True
        )

    first, error, last = asyncio.run(run())
    assert (first, last) == (1, 2)
    assert isinstance(error, DatabaseError) and error.hint
    assert "sk-fh" not in error.message and "insert" not in error.message


def test_many_rows_are_written_by_one_statement(database: Database) -> None:
    sql = "insert into spending (scope, subject, period, nanos) values ('key', :subject, 'd', :nanos)"
    database.now(lambda t: t.many(sql, [{"subject": f"k{i}", "nanos": i} for i in range(500)]))
    database.now(lambda t: t.many(sql, []))
    assert counted(database, "spending") == 500
    assert database.now(lambda t: t.one("select sum(nanos) from spending")) in [(124750,)]


def test_the_event_loop_never_waits_for_the_database(database: Database) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def slow(transaction: Transaction) -> str:
        inside.set()
        assert go_on.wait(30)
        return "done"

    async def run() -> tuple[int, str]:
        waiting = asyncio.create_task(database.run(slow))
        turns = 0
        while turns < 100 or not inside.is_set():
            await asyncio.sleep(0)
            turns += 1
        go_on.set()
        return turns, await waiting

    turns, result = asyncio.run(run())
    assert turns >= 100 and result == "done"


def test_closing_finishes_what_was_handed_over(database_url: str) -> None:
    with Database(database_url) as first:
        for _ in range(50):
            first.post(spend(2))
    with Database(database_url) as second:
        assert second.now(spend(0)) == 100
    with pytest.raises(DatabaseError, match="not open"):
        second.post(spend(1))


def test_two_processes_take_turns_and_no_update_is_lost(database_url: str) -> None:
    program = (
        "import sys\nfrom freehold.database import Database\n"
        "def add(t):\n"
        "    row = t.one(\"select nanos from spending where subject = 'k'\")\n"
        "    t.run(\"update spending set nanos = :n where subject = 'k'\", n=row[0] + 1)\n"
        "with Database(sys.argv[1]) as d:\n"
        "    print('ready', flush=True)\n    sys.stdin.readline()\n    [d.now(add) for _ in range(400)]\n"
    )
    with Database(database_url) as database:
        database.now(spend(0))
        command, pipe = [sys.executable, "-c", program, database_url], subprocess.PIPE
        processes = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(2)]
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for process in processes:  # both are there: let them race
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in processes:
            process.communicate(timeout=60)
        assert [process.returncode for process in processes] == [0, 0]
        assert database.now(spend(0)) == 800


def test_a_killed_process_loses_no_committed_row(database_url: str) -> None:
    program = (
        "import sys, itertools\nfrom freehold.database import Database\n"
        "d = Database(sys.argv[1]).open()\n"
        "for i in itertools.count():\n"
        "    d.now(lambda t: t.run(\"insert into price_snapshots values (:i, '{}')\", i=str(i)))\n"
        "    print(i, flush=True)\n"
    )
    with Database(database_url) as database:
        process = subprocess.Popen([sys.executable, "-c", program, database_url], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= 20:
                process.send_signal(signal.SIGKILL)
                break
        rest = [int(word) for word in process.stdout.read().split() if word.isdigit()]
        process.stdout.close()
        assert process.wait(30) == -signal.SIGKILL
        committed = max([20, *rest])
        assert counted(database, "price_snapshots") in (
            committed + 1,
            committed + 2,
        )  # one may be committed, not yet told


def test_migrations_run_once_and_a_newer_database_is_refused(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def _m999_more(transaction: Transaction) -> None:
        transaction.run("create table more (n integer)")

    with Database(database_url) as database:
        assert counted(database, "migrations") == len(MIGRATIONS)
    monkeypatch.setattr(module, "MIGRATIONS", (*MIGRATIONS, _m999_more))
    for _ in range(2):
        with Database(database_url) as database:
            assert counted(database, "migrations") == len(MIGRATIONS) + 1
            assert counted(database, "more") == 0
    monkeypatch.setattr(module, "MIGRATIONS", MIGRATIONS)
    with pytest.raises(DatabaseError, match="version"):
        Database(database_url).open()


def test_a_failed_migration_leaves_nothing_behind(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def _m999_broken(transaction: Transaction) -> None:
        transaction.run("create table more (n integer)")
        transaction.run("insert into more values (1, 2)")

    monkeypatch.setattr(module, "MIGRATIONS", (*MIGRATIONS, _m999_broken))
    with pytest.raises(DatabaseError):
        Database(database_url).open()
    monkeypatch.setattr(module, "MIGRATIONS", MIGRATIONS)
    with Database(database_url) as database:
        assert counted(database, "migrations") == len(MIGRATIONS)
        with pytest.raises(DatabaseError):
            counted(database, "more")


def test_a_connection_that_died_is_replaced(postgresql: object) -> None:
    assert callable(postgresql)
    url = postgresql()
    with Database(url) as database, Database(url) as other:
        database.now(spend(1))
        # The server ends every other session, as a restart would.
        ending = (
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where pid <> pg_backend_pid() and datname = current_database()"
        )
        assert len(other.now(lambda t: t.rows(ending))) == 1
        assert database.now(spend(1)) == 2


def test_the_default_is_a_private_file_in_the_state_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    old = os.umask(0)
    try:
        with Database() as database:
            assert database.now(lambda t: t.one("pragma journal_mode")) == ("wal",)
    finally:
        os.umask(old)
    file = tmp_path / "home" / "state" / "freehold.db"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    monkeypatch.delenv("FREEHOLD_HOME")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    assert Database().url.database == str(tmp_path / "xdg" / "freehold" / "freehold.db")


@pytest.mark.parametrize("url", ["mysql://u:hunter2@h/x", "sqlite://", "nonsense", "sqlite:///:memory:"])
def test_an_url_we_do_not_speak_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(SettingError) as caught:
        Database(url)
    assert "database.url" in caught.value.message and "hunter2" not in caught.value.message


def test_a_server_that_is_not_there_is_named_without_the_password() -> None:
    database = Database("postgresql://me:hunter2@127.0.0.1:1/x")
    with pytest.raises(DatabaseError) as caught:
        database.open()
    assert "127.0.0.1" in caught.value.message and "hunter2" not in caught.value.message
