"""The journal: what a killed process leaves, what is cut, and who owns which file."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from freehold.errors import LedgerError
from freehold.provenance import journal as module
from freehold.provenance.exchanges import Begun, Ended
from freehold.provenance.journal import Journal, orphans
from freehold.signing import Vault
from tests.provenance.made import exchange

VAULT = Vault(b"k" * 32)


def written(directory: Path, *exchanges: tuple[Begun, Ended | None]) -> Journal:
    journal = Journal(directory, VAULT)
    journal.open()
    for begun, ended in exchanges:
        journal.begin(begun)
        if ended is not None:
            journal.end(ended)
    return journal


def left(directory: Path) -> list[tuple[Begun, Ended]]:
    found = []
    for orphan in orphans(directory, VAULT):
        found += orphan.exchanges
        orphan.remove()
    return found


def test_what_was_not_released_is_there_for_the_next_start(tmp_path: Path) -> None:
    one, two = exchange("one"), exchange("two")
    journal = written(tmp_path, one, two)
    journal.release([one[0].id])
    journal.close()
    assert {begun.id for begun, _ in left(tmp_path)} == {one[0].id, two[0].id}  # writing one twice does no harm
    assert left(tmp_path) == []


def test_a_journal_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    journal = written(tmp_path, exchange("one"))
    assert left(tmp_path) == []
    journal.close()
    assert len(left(tmp_path)) == 1


def test_an_empty_journal_leaves_no_file(tmp_path: Path) -> None:
    one = exchange("one")
    journal = written(tmp_path, one)
    journal.release([one[0].id])
    assert journal.path.stat().st_size == 0
    journal.close()
    assert list(tmp_path.iterdir()) == []


def test_no_text_lies_on_the_disk_in_the_open(tmp_path: Path) -> None:
    journal = written(tmp_path, exchange("the secret plan", "a secret answer"))
    assert b"secret" not in journal.path.read_bytes()
    assert journal.path.stat().st_mode & 0o777 == 0o600
    journal.close()


def test_an_exchange_that_began_and_never_ended_was_interrupted(tmp_path: Path) -> None:
    begun, _ = exchange("one")
    written(tmp_path, (begun, None)).close()
    ((found, ended),) = left(tmp_path)
    assert (found, ended.outcome, ended.answers) == (begun, "interrupted", ())


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_cut_tail_loses_only_itself(tmp_path: Path, cut: int) -> None:
    one, two = exchange("one"), exchange("two")
    journal = written(tmp_path, one, two)
    journal.close()
    journal.path.write_bytes(journal.path.read_bytes()[:-cut])
    found = {begun.id: ended.outcome for begun, ended in left(tmp_path)}
    assert found == {one[0].id: "finished", two[0].id: "interrupted"}


def test_a_damaged_piece_is_told_and_the_others_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one, two = exchange("one"), exchange("two")
    journal = written(tmp_path, one, two)
    journal.close()
    data = bytearray(journal.path.read_bytes())
    data[60] ^= 1
    journal.path.write_bytes(data)
    assert [begun.id for begun, _ in left(tmp_path)] == [two[0].id]
    assert "can't be read" in caplog.text


def test_a_large_journal_is_written_anew_with_what_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COMPACT_BYTES", 4000)
    many = [exchange(f"number {i} " * 30) for i in range(20)]
    journal = written(tmp_path, *many)
    before = journal.path.stat().st_size
    journal.release([begun.id for begun, _ in many[:-1]])
    assert journal.path.stat().st_size < before / 10
    last = exchange("after that")
    journal.begin(last[0])
    assert left(tmp_path) == []  # the new file is held as the old one was
    journal.close()
    assert [begun.id for begun, _ in left(tmp_path)] == [many[-1][0].id, last[0].id]


def test_a_backlog_is_not_copied_for_each_batch_that_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "COMPACT_BYTES", 100)
    many = [exchange(f"number {i} " * 30) for i in range(20)]
    journal = written(tmp_path, *many)
    before = journal.path.stat().st_size
    for begun, _ in many[:9]:
        journal.release([begun.id])
    assert journal.path.stat().st_size == before
    for begun, _ in many[9:12]:
        journal.release([begun.id])
    assert journal.path.stat().st_size < before / 2
    journal.close()
    assert len(left(tmp_path)) in (8, 9)


def test_a_disk_that_is_full_while_a_journal_is_written_anew_costs_nothing_that_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "COMPACT_BYTES", 100)
    one, two, three = exchange("one" * 100), exchange("two"), exchange("three")
    journal = written(tmp_path, one, two)
    real = module.os.write
    with monkeypatch.context() as full:
        full.setattr(module.os, "write", lambda fd, data: real(fd, data[:10]))
        journal.release([one[0].id])
    journal.begin(three[0])
    journal.close()
    assert {begun.id for begun, _ in left(tmp_path)} >= {two[0].id, three[0].id}
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="can't write the journal"):
        Journal(tmp_path / "file" / "x", VAULT).open()


def test_a_full_disk_is_an_error_and_hides_nothing_that_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = exchange("one"), exchange("two")
    journal = written(tmp_path, one)
    real = module.os.write
    monkeypatch.setattr(module.os, "write", lambda fd, data: real(fd, data[:10]))
    with pytest.raises(LedgerError, match="No space left"):
        journal.begin(two[0])
    monkeypatch.setattr(module.os, "write", real)
    journal.begin(two[0])
    journal.end(two[1])
    journal.close()
    assert [begun.id for begun, _ in left(tmp_path)] == [one[0].id, two[0].id]


def test_a_killed_process_loses_nothing_it_has_ended(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom freehold.provenance.journal import Journal\n"
        "from freehold.signing import Vault\nfrom tests.provenance.made import exchange\n"
        "journal = Journal(Path(sys.argv[1]), Vault(b'k' * 32))\njournal.open()\n"
        "while True:\n"
        "    begun, ended = exchange('a prompt', 'an answer')\n"
        "    journal.begin(begun)\n    journal.end(ended)\n    print(begun.id, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    ids = [process.stdout.readline().strip() for _ in range(50)]
    process.send_signal(signal.SIGKILL)
    ids += process.stdout.read().split()
    process.stdout.close()
    process.wait(30)
    finished = {begun.id for begun, ended in left(tmp_path) if ended.outcome == "finished"}
    assert len(ids) >= 50 and {id for id in ids if len(id) == len(ids[0])} <= finished
