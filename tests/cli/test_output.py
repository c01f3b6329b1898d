"""Data to stdout, words to stderr."""

from __future__ import annotations

import io
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from freehold.cli import output


@dataclass(frozen=True, slots=True)
class Reported:
    path: Path
    share: float


def test_json_takes_dataclasses_and_paths_and_turns_nan_into_null(capsys: pytest.CaptureFixture[str]) -> None:
    output.emit_json([Reported(Path("/x"), math.nan)])
    said = capsys.readouterr()
    assert json.loads(said.out) == [{"path": "/x", "share": None}]
    assert said.err == ""


def test_words_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    output.say("words")
    assert capsys.readouterr() == ("", "words\n")


def test_a_table_aligns_words_left_and_numbers_right() -> None:
    drawn = output.table([("a", "5"), ("long", "12")], ("NAME", "N"))
    assert drawn.splitlines() == ["NAME   N", "a      5", "long  12"]


def test_text_from_a_model_file_cannot_drive_the_terminal() -> None:
    drawn = output.table([("evil\x1b]0;title\x07\nname", "1")], ("NAME", "N"))
    assert "\x1b" not in drawn and "\x07" not in drawn
    assert len(drawn.splitlines()) == 2


@pytest.mark.parametrize(("count", "words"), [(0, "0 B"), (999, "999 B"), (98_300_000, "98.3 MB"), (2.5e12, "2.5 TB")])
def test_sizes_are_in_powers_of_a_thousand(count: float, words: str) -> None:
    assert output.size(count) == words


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def draw(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(output, "BAR_AFTER_SECONDS", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    with output.progress() as bar:
        bar(1, 2, "reading [red]x[/red]")
        bar(2, 2, "reading [red]x[/red]")
    return stream.getvalue()


def test_a_bar_is_drawn_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "reading [red]x[/red]" in draw(Terminal(), monkeypatch)
    assert draw(io.StringIO(), monkeypatch) == ""


def test_short_work_draws_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with output.progress() as bar:
        bar(1, 1, "quick")
    assert terminal.getvalue() == ""
