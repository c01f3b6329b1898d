"""How `freehold bench` tells its report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from freehold.cli.bench import command

BRIEF = ["--prefill", "32", "--depth", "0,100", "--decode", "16", "--streams", "1,2"]


def test_the_table_and_the_json_tell_the_same_figures_with_their_limits(tiny: Path) -> None:
    runner = CliRunner()
    told = json.loads(runner.invoke(command, [str(tiny), *BRIEF, "--json"], catch_exceptions=False).stdout)
    assert [(row["tokens"], row["depth"]) for row in told["decode"]] == [(16, 0), (16, 100)]
    limit, [prefill] = told["limits"]["prefill_tokens_per_second"], told["prefill"]
    assert prefill["fraction_of_limit"] == pytest.approx(prefill["tokens_per_second"] / limit)
    shown = runner.invoke(command, [str(tiny), *BRIEF], catch_exceptions=False).stdout
    for measure in ("isa", "limit: read", "limit: int8", "prefill 32", "decode at 100", "2 streams", "load", "memory"):
        assert any(line.startswith(measure) for line in shown.splitlines()), measure


def test_the_bench_runs_under_the_settings_given(tiny: Path) -> None:
    words = [str(tiny), *BRIEF, "--isa", "portable", "--threads", "1", "--json"]
    facts = json.loads(CliRunner().invoke(command, words, catch_exceptions=False).stdout)["facts"]
    assert (facts["isa"], facts["threads"]) == ("portable", 1)


def test_a_model_and_a_shape_together_and_lists_that_are_none_are_refused(tiny: Path) -> None:
    runner = CliRunner()
    assert "not both" in str(runner.invoke(command, [str(tiny), "--shape", "qwen2.5-0.5b"]).exception)
    refused = runner.invoke(command, [str(tiny), "--streams", "1,many"])
    assert refused.exit_code == 2
    assert "whole numbers such as 1,8,32" in refused.stderr
