"""How far a compressed model strays from its original, on given token ids.

The original runs dequantized in float32 with a float32 KV cache: the truth it stands for. The compressed model runs as
it is served: its own number formats, activations quantized by the kernels, the KV cache of the settings. Both go
window by window, so never more than a chunk of logits of each is in memory. Deterministic. Knows no text.

Windows are independent, and only the second half of each is scored, so that every scored token has at least half a
window of context (as llama.cpp's `perplexity` does).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from freehold.engine.blocks import pages_for
from freehold.engine.loading import Precision, load_weights
from freehold.engine.models import program_for
from freehold.engine.runner import Executor
from freehold.errors import UsageError
from freehold.formats.checkpoint import open_checkpoint
from freehold.kernels import make_executor
from freehold.kernels.cpu import choose_threads, choose_tier
from freehold.kernels.program import Program, Step
from freehold.progress import Progress
from freehold.settings import EngineSettings

CHUNK = 128
"""Tokens per step: bounds the logits in memory to CHUNK rows of each model."""

SMALLEST_WINDOW = 8

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was measured.

    Args:
        perplexity_original, perplexity_compressed: exp of the mean negative log likelihood of the scored tokens.
        kld_mean, kld_p99, kld_max: KL divergence in nats from the original's next-token distribution to the
            compressed model's: its mean, 99th percentile and maximum over scored positions.
        kld_ci95: half the width of the mean's 95% confidence interval, from how windows differ; NaN for a single one.
        top1_agreement: share of positions where both hold the same token most likely.
        stored_bytes: its tensors' bytes.
        bits_per_weight: of the compressed model: stored bits of all tensors (embeddings, scales and norms included,
            tied ones once) over parameters.
        size_ratio: its tensors' bytes over those of the same model in bfloat16.
        size_ratio_original: its tensors' bytes over the original's as stored.
        tokens: positions scored.
        window, windows, scored: tokens per window, their number, and which positions count.
    """

    perplexity_original: float
    perplexity_compressed: float
    kld_mean: float
    kld_ci95: float
    kld_p99: float
    kld_max: float
    top1_agreement: float
    bits_per_weight: float
    size_ratio: float
    size_ratio_original: float
    stored_bytes: int
    tokens: int
    window: int
    windows: int
    scored: str
    kv_dtype: str
    isa: str


@dataclass(frozen=True, slots=True)
class _Model:
    program: Program
    executor: Executor
    parameters: int
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class _Scores:
    """Per scored position: both negative log likelihoods, the divergence, and whether the likeliest tokens agree."""

    original: F64
    compressed: F64
    divergence: F64
    agrees: NDArray[np.bool_]


def evaluate(
    original: Path,
    compressed: Path,
    ids: list[int],
    *,
    window: int = 512,
    bos: int | None = None,
    progress: Progress | None = None,
    settings: EngineSettings | None = None,
) -> Evaluation:
    """Compare two checkpoints of one model on token ids; see `evaluate_all`."""
    return evaluate_all(original, [compressed], ids, window=window, bos=bos, progress=progress, settings=settings)[0]


def evaluate_all(
    original: Path,
    compressed: Sequence[Path],
    ids: list[int],
    *,
    window: int = 512,
    bos: int | None = None,
    progress: Progress | None = None,
    settings: EngineSettings | None = None,
) -> list[Evaluation]:
    """Compare several checkpoints with the one they were made from; a last window that is not full is left out.

    Args:
        bos: put in the place of each window's first token, for models that expect their text to begin so.

    Raises:
        UsageError: too few ids, ids outside the vocabulary, vocabularies or contexts that don't fit.
        FormatError, UnsupportedError: a checkpoint that can't be loaded.
    """
    settings = settings or EngineSettings()
    window = min(window, len(ids))
    if window < SMALLEST_WINDOW:
        raise UsageError(f"evaluation needs windows of at least {SMALLEST_WINDOW} tokens, got {window}")
    tier, threads = choose_tier(settings.isa).value, choose_threads(settings.threads)[0]
    truth = _load(original, "f32", "f32", tier, threads, window)
    served = [_load(path, "stored", settings.kv_dtype, tier, threads, window) for path in compressed]
    for model in served:
        _check(truth.program, model.program, ids, window)
    count = len(ids) // window
    windows: list[list[_Scores]] = [[] for _ in served]
    for number in range(count):
        if progress:
            progress(number, count, "evaluating")
        piece = np.array(ids[number * window : (number + 1) * window], np.int32)
        if bos is not None:
            piece[0] = bos
        for scores, found in zip(windows, zip(*_window(truth, served, piece), strict=True), strict=True):
            scores.append(_joined(list(found)))
    if progress:
        progress(count, count, "evaluating")
    return [
        _summary(truth, model, scores, window, settings.kv_dtype, tier)
        for model, scores in zip(served, windows, strict=True)
    ]


def _load(path: Path, precision: Precision, kv_dtype: str, tier: str, threads: int, window: int) -> _Model:
    with open_checkpoint(path) as checkpoint:
        program = program_for(checkpoint.config, guard=precision == "stored")
        loaded = load_weights(checkpoint, program, precision)
    executor = make_executor(
        program, loaded.weights, pages=pages_for(window), kv_dtype=kv_dtype, threads=threads, tier=tier
    )
    return _Model(program, executor, loaded.parameters, loaded.stored_bytes)


def _check(original: Program, compressed: Program, ids: list[int], window: int) -> None:
    if original.vocabulary != compressed.vocabulary:
        raise UsageError(
            f"both models must have one vocabulary, found {original.vocabulary} and {compressed.vocabulary} tokens"
        )
    context = min(original.context, compressed.context)
    if window > context:
        raise UsageError(f"the window must fit the context of {context} tokens, got {window}")
    wrong = next((token for token in ids if not 0 <= token < original.vocabulary), None)
    if wrong is not None:
        raise UsageError(f"token id {wrong} is outside the vocabulary of {original.vocabulary}")


def _window(truth: _Model, served: list[_Model], ids: NDArray[np.int32]) -> Iterator[list[_Scores]]:
    """Chunk by chunk, each served model's scores."""
    first = len(ids) // 2
    for begin in range(0, len(ids), CHUNK):
        rows = np.arange(begin, min(begin + CHUNK, len(ids)), dtype=np.int32)
        wanted = rows[(rows >= first) & (rows < len(ids) - 1)]
        step = Step(
            tokens=ids[rows],
            positions=rows,
            sequences=np.zeros(len(rows), np.int32),
            tables=np.arange(pages_for(len(ids)), dtype=np.int32)[None, :],
            outputs=(wanted - begin).astype(np.int32),
        )
        expected = truth.executor.run(step)
        given = [model.executor.run(step) for model in served]
        if len(wanted):
            yield [_score(expected, logits, ids[wanted + 1]) for logits in given]


def _score(expected: F32, given: F32, targets: NDArray[np.int32]) -> _Scores:
    """Scores of some rows of logits [R, V] of both models."""
    divergence = np.empty(len(targets))
    likelihoods = np.empty((2, len(targets)))
    for row, target in enumerate(targets):
        log_p, log_q = _log_softmax(expected[row]), _log_softmax(given[row])
        likelihoods[:, row] = log_p[target], log_q[target]
        divergence[row] = np.dot(np.exp(log_p), log_p - log_q)
    agrees = expected.argmax(axis=1) == given.argmax(axis=1)
    return _Scores(-likelihoods[0], -likelihoods[1], divergence, agrees)


def _log_softmax(logits: F32) -> F64:
    shifted = logits.astype(np.float64) - float(logits.max())
    out: F64 = shifted - np.log(np.exp(shifted).sum())
    return out


def _joined(parts: list[_Scores]) -> _Scores:
    return _Scores(
        np.concatenate([part.original for part in parts]),
        np.concatenate([part.compressed for part in parts]),
        np.concatenate([part.divergence for part in parts]),
        np.concatenate([part.agrees for part in parts]),
    )


def _summary(truth: _Model, served: _Model, parts: list[_Scores], window: int, kv_dtype: str, tier: str) -> Evaluation:
    scores = _joined(parts)
    means = np.array([part.divergence.mean() for part in parts])
    spread = 1.96 * float(means.std(ddof=1)) / len(means) ** 0.5 if len(means) > 1 else float("nan")
    return Evaluation(
        perplexity_original=float(np.exp(scores.original.mean())),
        perplexity_compressed=float(np.exp(scores.compressed.mean())),
        kld_mean=float(scores.divergence.mean()),
        kld_ci95=spread,
        kld_p99=float(np.percentile(scores.divergence, 99)),
        kld_max=float(scores.divergence.max()),
        top1_agreement=float(scores.agrees.mean()),
        bits_per_weight=8 * served.stored_bytes / served.parameters,
        size_ratio=served.stored_bytes / (2 * truth.parameters),
        size_ratio_original=served.stored_bytes / truth.stored_bytes,
        stored_bytes=served.stored_bytes,
        tokens=len(scores.divergence),
        window=window,
        windows=len(parts),
        scored="second half of each window",
        kv_dtype=kv_dtype,
        isa=tier,
    )
