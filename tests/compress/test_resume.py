"""Interruptions, full disks, two runs at once: what is left behind and what a later run makes of it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from freehold.compress import CompressOptions, compress
from freehold.compress.write import JOURNAL, Destination
from freehold.errors import FreeholdError, UsageError
from tests.compress.checkpoints import tiny_tensors, write_checkpoint

KILLED_AT_TENSOR = """
import os, signal, sys
from pathlib import Path
from freehold.compress import compress

left = int(sys.argv[3])

def progress(done, total, what):
    global left
    if what == "compressing":
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

compress(Path(sys.argv[1]), Path(sys.argv[2]), progress=progress)
"""

WITH_A_FILE_SIZE_LIMIT = """
import resource, sys
from pathlib import Path
from freehold.compress import compress
from freehold.errors import FreeholdError

resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    compress(Path(sys.argv[1]), Path(sys.argv[2]))
except FreeholdError as error:
    print(error.message, "hint:", error.hint)
"""


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True)


def contents(directory: Path) -> dict[str, bytes]:
    """Every file but the report, which holds the time taken."""
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name != "freehold-report.json"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "source")


@pytest.mark.parametrize("tensors", [0, 1, 11, 19, len(tiny_tensors())])
def test_a_killed_run_is_taken_up_again_and_ends_with_the_same_bytes(
    source: Path, tmp_path: Path, tensors: int
) -> None:
    compress(source, tmp_path / "whole")
    killed = run(KILLED_AT_TENSOR, source, tmp_path / "out", tensors)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    report = compress(source, tmp_path / "out")
    assert report.resumed_tensors == tensors
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source", "whole"]


def interrupt(source: Path, out: Path, tensors: int) -> None:
    """Stop a run after some tensors, as Ctrl-C does."""
    left = tensors

    def progress(done: int, total: int | None, what: str) -> None:
        nonlocal left
        if what == "compressing":
            if left == 0:
                raise KeyboardInterrupt
            left -= 1

    with pytest.raises(KeyboardInterrupt):
        compress(source, out, None, progress)


def test_finished_work_whose_bytes_were_damaged_is_done_again(source: Path, tmp_path: Path) -> None:
    compress(source, tmp_path / "whole")
    interrupt(source, tmp_path / "out", 10)
    weights = tmp_path / "out.partial" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    for position in range(len(data) // 2, len(data)):
        data[position] ^= 0xFF
    weights.write_bytes(data)
    report = compress(source, tmp_path / "out")
    assert report.resumed_tensors < 10
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_journal_cut_off_in_the_middle_of_a_line_is_read_up_to_there(source: Path, tmp_path: Path) -> None:
    compress(source, tmp_path / "whole")
    interrupt(source, tmp_path / "out", 10)
    journal = tmp_path / "out.partial" / JOURNAL
    journal.write_bytes(journal.read_bytes()[:-20])
    report = compress(source, tmp_path / "out")
    assert report.resumed_tensors == 9
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize(("line", "kept"), [(0, 0), (5, 4)])
@pytest.mark.parametrize("damage", [b"\0" * 40 + b"\n", b"[]\n", b"{\n"])
def test_a_journal_that_a_power_cut_damaged_is_read_up_to_the_damage(
    line: int, kept: int, damage: bytes, source: Path, tmp_path: Path
) -> None:
    compress(source, tmp_path / "whole")
    interrupt(source, tmp_path / "out", 10)
    journal = tmp_path / "out.partial" / JOURNAL
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:line], damage, *lines[line + 1 :]]))
    report = compress(source, tmp_path / "out")
    assert report.resumed_tensors == kept
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("change", ["options", "source"])
def test_unfinished_work_of_another_source_or_other_options_is_dropped(
    source: Path, tmp_path: Path, change: str
) -> None:
    interrupt(source, tmp_path / "out", 10)
    options = CompressOptions(group_size=64) if change == "options" else CompressOptions()
    if change == "source":
        shutil.rmtree(source)
        write_checkpoint(source, tiny_tensors(seed=8))
    compress(source, tmp_path / "whole", options)
    report = compress(source, tmp_path / "out", options)
    assert report.resumed_tensors == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_result_that_exists_is_only_replaced_when_asked(source: Path, tmp_path: Path) -> None:
    compress(source, tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(UsageError, match="exists already"):
        compress(source, tmp_path / "out", CompressOptions(bits=8))
    assert contents(tmp_path / "out") == before
    compress(source, tmp_path / "out", CompressOptions(bits=8, overwrite=True))
    assert contents(tmp_path / "out") != before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_a_directory_that_is_not_ours_is_never_replaced(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("ten years of work")
    with pytest.raises(UsageError, match="not written by freehold"):
        compress(source, tmp_path / "out", CompressOptions(overwrite=True))
    assert (tmp_path / "out" / "thesis.txt").read_text() == "ten years of work"


def test_a_partial_directory_that_is_not_ours_is_not_touched(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "thesis.txt").write_text("ten years of work")
    with pytest.raises(UsageError, match="not an unfinished compression"):
        compress(source, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out.partial").iterdir()] == ["thesis.txt"]


def test_an_empty_directory_is_a_fine_destination(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    compress(source, tmp_path / "out")
    assert (tmp_path / "out" / "config.json").exists()


def test_a_second_run_to_the_same_place_is_refused_while_the_first_works(source: Path, tmp_path: Path) -> None:
    first = Destination(tmp_path / "out", overwrite=False)
    with first, pytest.raises(FreeholdError, match="another freehold compress"):
        compress(source, tmp_path / "out")
    compress(source, tmp_path / "out")


def test_a_full_disk_gives_one_clear_error_and_leaves_only_partial_work(source: Path, tmp_path: Path) -> None:
    result = run(WITH_A_FILE_SIZE_LIMIT, source, tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert "can't write" in result.stdout
    assert "goes on where it stopped" in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.partial", "source"]
    compress(source, tmp_path / "out")


def test_too_little_space_is_said_before_the_work_begins(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(FreeholdError, match="bytes free"):
        compress(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_without_write_permission_gives_one_clear_error(source: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(FreeholdError, match="can't write"):
        compress(source, tmp_path / "locked" / "out")


def test_a_file_in_the_way_of_the_destination_gives_one_clear_error(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FreeholdError, match="can't write"):
        compress(source, tmp_path / "file" / "out")


def test_a_destination_that_appears_meanwhile_costs_no_finished_work(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def progress(done: int, total: int | None, what: str) -> None:
        if what == "compressing" and done == total:
            out.mkdir(exist_ok=True)
            (out / "somebody-elses").write_text("here first")

    with pytest.raises(UsageError, match="exists already"):
        compress(source, out, progress=progress)
    kept = tmp_path / "out.partial" / JOURNAL
    assert len(kept.read_bytes().splitlines()) > 1
    (out / "somebody-elses").unlink()
    compress(source, out)
    assert (out / "model.safetensors").is_file() and not kept.exists()
