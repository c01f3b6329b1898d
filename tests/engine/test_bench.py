"""The bench: every figure is there, is positive, and is held against a limit measured in the same run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.engine import tiny

from freehold.engine.bench import bench, layer_weights
from freehold.engine.models import program_for
from freehold.errors import UsageError
from freehold.settings import EngineSettings

SETTINGS = EngineSettings(isa="portable", kv_memory_mb=8, threads=1)


def test_the_report_is_json_and_its_fractions_are_speed_over_limit(tmp_path: Path) -> None:
    model, told = tiny.write(tmp_path), list[str]()
    report = bench(model, SETTINGS, prefill=32, decode=16, streams=(1, 4), progress=lambda *news: told.append(news[2]))
    assert json.loads(json.dumps(report)) == report
    limits = report["limits"]
    assert limits["decode_tokens_per_second"] == limits["read_bytes_per_second"] / limits["step_bytes"]
    for name in ("prefill", "decode"):
        figure = report[name]
        assert figure["tokens_per_second"] > 0
        assert figure["fraction_of_limit"] == figure["tokens_per_second"] / limits[f"{name}_tokens_per_second"]
        assert sorted(figure["repetitions"])[1] == figure["tokens_per_second"]
    assert [row["streams"] for row in report["streams"]] == [1, 4]
    for row in report["streams"]:
        assert 0 < row["ttft_seconds"]["p50"] <= row["ttft_seconds"]["p95"]
        assert 0 < row["tpot_seconds"]["p50"] <= row["tpot_seconds"]["p95"]
    assert 0 < report["rss_loaded_bytes"] <= report["rss_peak_bytes"]
    assert told[0] == "loading"
    assert told[-1] == "done"


def test_a_step_reads_the_linear_weights_and_no_more(tmp_path: Path) -> None:
    untied = tiny.write(tmp_path / "a", tie_word_embeddings=False)
    tied = tiny.write(tmp_path / "b")
    read = [bench(m, SETTINGS, prefill=4, decode=4, streams=())["limits"]["step_bytes"] for m in (untied, tied)]
    assert read[0] == read[1], "the embedding is not read as a whole, the head is"
    assert read[0] >= 4 * (layer_weights(program_for(tiny.config())) + tiny.VOCABULARY * 64)


def test_weights_of_a_layer_are_counted_without_embedding_and_head() -> None:
    # per layer: qkv (64 + 2*32) * 64, o 64 * 64, gate and up 2 * 96 * 64, down 64 * 96
    assert layer_weights(program_for(tiny.config())) == 2 * (128 * 64 + 64 * 64 + 192 * 64 + 64 * 96)


def test_a_context_too_short_for_the_bench_is_refused(tmp_path: Path) -> None:
    model = tiny.write(tmp_path, max_position_embeddings=100)
    with pytest.raises(UsageError, match="context of 100 tokens is too short for a bench of 512"):
        bench(model, SETTINGS)
