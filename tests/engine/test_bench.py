"""The bench: every figure is there, is positive, and is held against a limit measured in the same run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.engine import tiny

from freehold.engine import shapes
from freehold.engine.bench import bench, layer_weights
from freehold.engine.models import program_for
from freehold.engine.packed import directory
from freehold.errors import UsageError
from freehold.settings import EngineSettings

SETTINGS = EngineSettings(isa="portable", kv_memory_mb=8, threads=1)


def test_the_report_is_json_and_its_fractions_are_speed_over_limit(tmp_path: Path) -> None:
    model, told = tiny.write(tmp_path), list[str]()
    report = bench(
        model,
        SETTINGS,
        prefill=(32, 64),
        decode=16,
        depths=(0, 200),
        streams=(1, 4),
        progress=lambda *news: told.append(news[2]),
    )
    assert json.loads(json.dumps(report)) == report
    limits = report["limits"]
    assert limits["decode_tokens_per_second"] == limits["read_bytes_per_second"] / limits["step_bytes"]
    assert [row["tokens"] for row in report["prefill"]] == [32, 64]
    for figure in report["prefill"]:
        assert figure["tokens_per_second"] > 0
        assert figure["fraction_of_limit"] == figure["tokens_per_second"] / limits["prefill_tokens_per_second"]
        assert 0 < figure["attention_share"] < 1
    assert [row["depth"] for row in report["decode"]] == [0, 200]
    for figure in report["decode"]:
        read = limits["step_bytes"] + (figure["depth"] + 8) * limits["kv_token_bytes"]
        expected = figure["tokens_per_second"] * read / limits["read_bytes_per_second"]
        assert figure["fraction_of_limit"] == pytest.approx(expected)
        assert sorted(figure["repetitions"])[1] == figure["tokens_per_second"]
        assert 0 < figure["share_outside_kernels"] < 1
        assert 0 < figure["attention_share"] < 1
    assert [row["streams"] for row in report["streams"]] == [1, 4]
    for row in report["streams"]:
        assert row["fraction_of_limit"] > 0
        assert 0 < row["ttft_seconds"]["p50"] <= row["ttft_seconds"]["p95"]
        assert 0 < row["tpot_seconds"]["p50"] <= row["tpot_seconds"]["p95"]
    memory = report["memory"]
    assert 0 < memory["loaded_bytes"] <= memory["resident_bytes"]
    assert memory["ratio"] == memory["resident_bytes"] / memory["weights_and_kv_bytes"]
    assert report["skipped"] == []
    assert told[0] == "loading"
    assert told[-1] == "done"


def test_lengths_without_room_are_left_out_and_named(tmp_path: Path) -> None:
    report = bench(tiny.write(tmp_path), SETTINGS, prefill=(8, 4096), decode=4, depths=(8192,), streams=())
    assert [row["tokens"] for row in report["prefill"]] == [8]
    assert "decode" not in report
    assert [line.split()[0] for line in report["skipped"]] == ["4096", "8197"]


def test_a_deep_context_is_copies_of_its_first_page() -> None:
    engine = tiny.engine(tier="portable", max_step_tokens=64, prefix_cache=False)
    page = list(range(64))
    engine.add(tiny.request("a", [*page * 3, 5], max_tokens=4))
    with pytest.raises(ValueError, match="has not computed a page"):
        engine.pretend("a", 192)
    engine.step()
    with pytest.raises(ValueError, match="more than 193 tokens"):
        engine.pretend("a", 193)
    engine.pretend("a", 192)
    assert engine.stats.kv_pages_used == 4
    given = tiny.drain(engine)["a"]
    assert len(given) == 4
    assert engine.stats.steps == 1 + 4, "the deep part was not computed"


def test_a_shape_is_made_once_and_benched_without_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path))
    monkeypatch.setattr(shapes, "SHAPES", {"tiny": tiny.config(hidden_act="silu")})
    report = bench("tiny", SETTINGS, prefill=(8,), decode=4, depths=(0,), streams=(2,))
    [made] = directory().glob("*.packed")
    inode = made.stat().st_ino
    assert report["facts"]["bits_per_weight"] < 10
    assert report["decode"][0]["tokens_per_second"] > 0
    bench("tiny", SETTINGS, prefill=(8,), decode=4, depths=(), streams=())
    assert made.stat().st_ino == inode


def test_all_shapes_are_models_this_version_runs() -> None:
    sizes = {name: program_for(config) for name, config in shapes.SHAPES.items()}
    millions = {name: (layer_weights(p) + p.vocabulary * p.buffers["x"].columns) / 1e6 for name, p in sizes.items()}
    told = {"llama-135m": 134, "qwen2.5-0.5b": 494, "qwen2.5-1.5b": 1544, "qwen3-4b": 4022, "deepseek-coder-6.7b": 6608}
    assert {name: round(size) for name, size in millions.items()} == told


def test_an_unknown_shape_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(UsageError, match="no shape 'nonsense'") as caught:
        bench("nonsense", SETTINGS)
    assert "qwen2.5-1.5b" in str(caught.value.hint)


def test_a_step_reads_the_linear_weights_and_no_more(tmp_path: Path) -> None:
    untied = tiny.write(tmp_path / "a", tie_word_embeddings=False)
    tied = tiny.write(tmp_path / "b")
    read = [
        bench(m, SETTINGS, prefill=(4,), decode=4, depths=(), streams=())["limits"]["step_bytes"]
        for m in (untied, tied)
    ]
    assert read[0] == read[1], "the embedding is not read as a whole, the head is"
    assert read[0] >= 4 * (layer_weights(program_for(tiny.config())) + tiny.VOCABULARY * 64)


def test_weights_of_a_layer_are_counted_without_embedding_and_head() -> None:
    # per layer: qkv (64 + 2*32) * 64, o 64 * 64, gate and up 2 * 96 * 64, down 64 * 96
    assert layer_weights(program_for(tiny.config())) == 2 * (128 * 64 + 64 * 64 + 192 * 64 + 64 * 96)


def test_a_context_too_short_for_the_bench_is_refused(tmp_path: Path) -> None:
    model = tiny.write(tmp_path, max_position_embeddings=100)
    with pytest.raises(UsageError, match="context of 100 tokens is too short for a bench of 129"):
        bench(model, SETTINGS)
