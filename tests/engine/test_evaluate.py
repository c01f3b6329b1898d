"""Evaluation: a model is no distance from itself, and the distance of another is what the formula says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.engine import tiny

from freehold.engine.evaluate import evaluate
from freehold.engine.models import program_for
from freehold.errors import UsageError
from freehold.kernels import make_executor
from freehold.kernels.program import Step
from freehold.settings import EngineSettings

SETTINGS = EngineSettings(isa="reference", kv_dtype="f32")


def ids(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, tiny.VOCABULARY, count).tolist()


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    return wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))


def test_a_model_is_no_distance_from_itself(tmp_path: Path) -> None:
    model = tiny.write(tmp_path)
    result = evaluate(model, model, ids(80), window=40, settings=SETTINGS)
    assert result.kld_mean == pytest.approx(0, abs=1e-9)
    assert result.perplexity_original == pytest.approx(result.perplexity_compressed, rel=1e-6)
    assert result.top1_agreement == 1.0
    assert (result.tokens, result.windows, result.bits_per_weight) == (2 * 19, 2, 32.0)
    assert (result.size_ratio, result.size_ratio_original) == (2.0, 1.0)


def test_every_window_begins_with_the_token_the_model_expects(tmp_path: Path) -> None:
    first, second = tiny.write(tmp_path / "a", seed=0), tiny.write(tmp_path / "b", seed=1)
    tokens = ids(80)
    begun = [7 if place % 40 == 0 else token for place, token in enumerate(tokens)]
    told = evaluate(first, second, tokens, window=40, bos=7, settings=SETTINGS)
    assert told == evaluate(first, second, begun, window=40, settings=SETTINGS)
    assert told != evaluate(first, second, tokens, window=40, settings=SETTINGS)


def test_two_models_differ_by_what_the_formula_says_whatever_the_chunks(tmp_path: Path) -> None:
    first, second = tiny.write(tmp_path / "a", seed=0), tiny.write(tmp_path / "b", seed=1)
    window, count = 300, 2
    tokens = ids(window * count + 7)
    result = evaluate(first, second, tokens, window=window, settings=SETTINGS)
    program = program_for(tiny.config())
    p, q, targets = [], [], []
    for begin in range(0, window * count, window):
        piece = np.array(tokens[begin : begin + window], np.int32)
        rows = np.arange(window, dtype=np.int32)
        scored = rows[window // 2 : -1]
        step = Step(piece, rows, np.zeros_like(rows), np.arange(5, dtype=np.int32)[None], scored)
        for seed, out in ((0, p), (1, q)):
            weights = tiny.weights(program, quantized=False, seed=seed)
            out.append(
                log_softmax(make_executor(program, weights, pages=5, kv_dtype="f32", tier="reference").run(step))
            )
        targets += piece[scored + 1].tolist()
    left, right = np.concatenate(p), np.concatenate(q)
    divergence = (np.exp(left) * (left - right)).sum(axis=1)
    rows = np.arange(len(targets))
    assert result.tokens == len(targets) == 2 * 149
    assert result.kld_mean == pytest.approx(divergence.mean(), rel=1e-4)
    assert result.kld_p99 == pytest.approx(np.percentile(divergence, 99), rel=1e-4)
    assert result.perplexity_original == pytest.approx(np.exp(-left[rows, targets].mean()), rel=1e-4)
    assert result.perplexity_compressed == pytest.approx(np.exp(-right[rows, targets].mean()), rel=1e-4)
    assert result.top1_agreement == (left.argmax(axis=1) == right.argmax(axis=1)).mean()


def test_progress_is_told_window_by_window(tmp_path: Path) -> None:
    model, told = tiny.write(tmp_path), list[tuple[int, int | None, str]]()
    evaluate(model, model, ids(24), window=8, settings=SETTINGS, progress=lambda *news: told.append(news))
    assert [(done, total) for done, total, _ in told] == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    model = tiny.write(tmp_path / "a")
    other = tiny.write(tmp_path / "b", vocab_size=50)
    with pytest.raises(UsageError, match="97 and 50"):
        evaluate(model, other, ids(20), settings=SETTINGS)
    with pytest.raises(UsageError, match="at least 8 tokens, got 3"):
        evaluate(model, model, ids(3), settings=SETTINGS)
    with pytest.raises(UsageError, match="token id 97"):
        evaluate(model, model, [97] * 20, settings=SETTINGS)
    with pytest.raises(UsageError, match="context of 1024 tokens, got 1100"):
        evaluate(model, model, ids(2000), window=1100, settings=SETTINGS)
