"""How `freehold bench` tells its report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from freehold.cli.bench import command
from freehold.engine import bench as engine_bench


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch, tiny: Path) -> Path:
    """The tiny model, and a bench short enough for its context."""
    real = engine_bench.bench
    monkeypatch.setattr(engine_bench, "bench", lambda *args, **more: real(*args, prefill=32, decode=16, **more))
    return tiny


def test_the_table_and_the_json_tell_the_same_figures_with_their_limits(short: Path) -> None:
    runner = CliRunner()
    told = json.loads(runner.invoke(command, [str(short), "--json"], catch_exceptions=False).stdout)
    assert told["decode"]["tokens"] == 16
    limit = told["limits"]["decode_tokens_per_second"]
    assert told["decode"]["fraction_of_limit"] == pytest.approx(told["decode"]["tokens_per_second"] / limit)
    shown = runner.invoke(command, [str(short)], catch_exceptions=False).stdout
    for measure in ("isa", "limit: read", "limit: int8", "prefill 32", "decode 16", "32 streams", "load", "memory"):
        assert any(line.startswith(measure) for line in shown.splitlines()), measure


def test_the_bench_runs_under_the_settings_given(short: Path) -> None:
    words = [str(short), "--isa", "portable", "--threads", "1", "--json"]
    facts = json.loads(CliRunner().invoke(command, words, catch_exceptions=False).stdout)["facts"]
    assert (facts["isa"], facts["threads"]) == ("portable", 1)
