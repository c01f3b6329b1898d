"""`freehold compress`: what its flags mean together, and that the built-in text is not what `eval` measures on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Run

from freehold.cli.compress import _options, read_text
from freehold.cli.eval import help_topics
from freehold.compress import ANY, CompressOptions, builtin_text
from freehold.errors import UsageError

GIVEN: dict[str, Any] = {
    "bits": None,
    "uniform": None,
    "plan": None,
    "calibration": "builtin",
    "asymmetric": False,
    "widths": None,
    "fused": False,
    "group_size": None,
    "embedding_bits": None,
    "force": False,
}


def options(**given: Any) -> CompressOptions:
    return _options(**(GIVEN | given))


def test_without_flags_the_result_is_70_percent_smaller_or_what_transformers_needs() -> None:
    found = options()
    assert (found.budget, found.stretch, found.embedding_bits) == (4.75, True, 8)


def test_a_budget_that_is_asked_for_is_kept_and_may_take_the_embedding() -> None:
    found = options(bits=4.5)
    assert (found.budget, found.stretch, found.embedding_bits) == (4.5, False, ANY)
    assert options(bits=5.5, embedding_bits="8").embedding_bits == 8


def test_without_calibration_formats_follow_the_rules() -> None:
    found = options(calibration="none", bits=8.0, group_size="64")
    assert (found.budget, found.bits, found.group_size, found.embedding_bits) == (None, 8, 64, 8)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"bits": 4.5, "uniform": "int4 g32"}, "--bits, --uniform and --plan"),
        ({"group_size": "64"}, "--group-size is for"),
        ({"calibration": "none", "bits": 4.5}, "4 or 8"),
        ({"calibration": "none", "uniform": "int4 g32"}, "needs a calibration"),
        ({"calibration": "none", "embedding_bits": "4"}, "embedding"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(given: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        options(**given)


def test_a_text_that_is_not_utf8_is_refused_with_the_byte(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"abc\xff")
    with pytest.raises(UsageError, match="0xff at 3"):
        read_text(path)


def test_no_long_line_of_the_calibration_text_is_scored_by_eval() -> None:
    scored = help_topics()
    lines = [line.strip() for line in builtin_text().splitlines()]
    assert len(lines) > 1000
    assert not [line for line in lines if len(line) > 40 and line in scored]


def test_tuning_is_part_of_the_report_and_leaves_nothing_else_behind(freehold: Run, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("A text to tune on, said again and again. " * 60)
    words = ("compress", str(tiny), "--out", "made", "--uniform", "int4 g32", "--calibration", "text.txt")
    done = freehold(*words, "--tune", "0.02", "--json")
    assert done.returncode == 0, done.stderr
    tuning = json.loads(done.stdout)["report"]["tuning"]
    assert tuning["minutes"] == 0.02
    assert 0 < tuning["kld_after"] <= tuning["kld_before"]
    assert "tuning on 2,4" in done.stderr
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("also", [("--calibration", "none"), ("--plan-only",)])
def test_tuning_without_a_text_or_a_result_is_refused(freehold: Run, tiny: Path, also: tuple[str, ...]) -> None:
    done = freehold("compress", str(tiny), "--tune", "1", *also)
    assert done.returncode == 2
    assert "--tune needs a text and a result" in done.stderr
