"""How fast a model runs here, held against what this machine could do at most, measured in the same run.

Token ids are random but fixed: speed does not depend on them. Knows no text, HTTP or terminals.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from freehold.engine.request import GenerateRequest, Sampling, TokenOutput
from freehold.engine.runner import Engine
from freehold.errors import EngineError, UsageError
from freehold.kernels import limits
from freehold.kernels.program import Program
from freehold.process_memory import peak_resident_bytes, resident_bytes
from freehold.settings import EngineSettings

PREFILL, DECODE = 512, 128
STREAMS = (1, 8, 32)
STREAM_PROMPT, STREAM_OUTPUT = 128, 64
REPEATS = 3
"""Repetitions of prefill and decode; the median counts."""

Progress = Callable[[int, int | None, str], None]


def bench(
    model: Path,
    settings: EngineSettings | None = None,
    *,
    prefill: int = PREFILL,
    decode: int = DECODE,
    streams: Sequence[int] = STREAMS,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure a model; everything in the report is JSON.

    Limits: `decode` is bounded by read bandwidth over the bytes of weights that a step reads, prefill by the int8 peak
    over two operations per weight and token (attention and the head not counted). A fraction is of that limit.

    Args:
        prefill, decode: tokens of the two single-stream figures.
        streams: how many requests (128 tokens in, 64 out, or as many as the context allows) run at the same time.

    Raises:
        UsageError: the context is too short for the figures asked for.
    """
    settings = settings or EngineSettings()
    tell = progress or (lambda done, total, what: None)
    total = 3 + len(streams)
    tell(0, total, "loading")
    engine = Engine.load(model, settings)
    if max(prefill, decode + 1) >= engine.context:
        raise UsageError(
            f"the context of {engine.context} tokens is too short for a bench of {max(prefill, decode + 1)}"
        )
    loaded = resident_bytes()
    tell(1, total, "measuring this machine")
    machine = limits.measure(engine.facts.isa, engine.facts.threads)
    tell(2, total, "prefill and decode")
    step_bytes = getattr(engine.executor, "step_bytes", engine.facts.weight_bytes)
    prefill_limit = machine.int8_operations_per_second / (2 * layer_weights(engine.program))
    decode_limit = machine.read_bytes_per_second / step_bytes
    report: dict[str, Any] = {
        "model": str(model),
        "facts": msgspec.to_builtins(engine.facts),
        "limits": {
            **msgspec.to_builtins(machine),
            "step_bytes": step_bytes,
            "prefill_tokens_per_second": prefill_limit,
            "decode_tokens_per_second": decode_limit,
        },
        "load_seconds": engine.facts.load_seconds,
        "prefill": _rate(_prefill(engine, prefill), prefill_limit) | {"tokens": prefill},
        "decode": _rate(_decode(engine, decode), decode_limit) | {"tokens": decode},
        "streams": [],
    }
    for number, count in enumerate(streams):
        tell(3 + number, total, f"{count} streams")
        report["streams"].append(_streams(engine, count))
    tell(total, total, "done")
    return report | {"rss_loaded_bytes": loaded, "rss_peak_bytes": peak_resident_bytes()}


def layer_weights(program: Program) -> int:
    """Weights that every token of a prompt is multiplied with: all linear operations but the head."""
    return sum(
        (program.buffers[op.out].columns - int(op.attrs.get("column", 0))) * program.buffers[op.inputs[0]].columns
        for op in program.ops
        if op.kind == "linear" and program.buffers[op.out].rows == "tokens"
    )


def _prefill(engine: Engine, tokens: int) -> list[float]:
    """Tokens per second, from the request to its first token; the first run only warms up."""
    rates = []
    for _ in range(REPEATS + 1):
        begin = time.perf_counter()
        _run(engine, [_request(engine, 0, tokens, 1)])
        rates.append(tokens / (time.perf_counter() - begin))
    return rates[1:]


def _decode(engine: Engine, tokens: int) -> list[float]:
    """Tokens per second after the first token, one stream, from an almost empty context."""
    rates = []
    for _ in range(REPEATS):
        times = _run(engine, [_request(engine, 0, 1, tokens + 1)])["0"]
        rates.append((len(times) - 1) / (times[-1] - times[0]))
    return rates


def _streams(engine: Engine, count: int) -> dict[str, Any]:
    """All requests at once: output tokens per second over the whole run, and what each request felt."""
    prompt = min(STREAM_PROMPT, engine.context // 2)
    output = min(STREAM_OUTPUT, engine.context - prompt)
    begin = time.perf_counter()
    times = _run(engine, [_request(engine, number, prompt, output) for number in range(count)])
    seconds = time.perf_counter() - begin
    ttft = [given[0] - begin for given in times.values()]
    tpot = [(given[-1] - given[0]) / (len(given) - 1) for given in times.values()]
    return {
        "streams": count,
        "prompt_tokens": prompt,
        "output_tokens": output,
        "tokens_per_second": count * output / seconds,
        "ttft_seconds": _percentiles(ttft),
        "tpot_seconds": _percentiles(tpot),
    }


def _run(engine: Engine, requests: list[GenerateRequest]) -> dict[str, list[float]]:
    """Run requests to their end; when each token of each came."""
    for request in requests:
        engine.add(request)
    times: dict[str, list[float]] = {request.id: [] for request in requests}
    while engine.has_work:
        outputs = engine.step()
        now = time.perf_counter()
        for output in outputs:
            _refuse_failure(output)
            times[output.id].append(now)
    return times


def _refuse_failure(output: TokenOutput) -> None:
    if output.finish == "error":
        raise EngineError(f"the bench failed: {output.error}")


def _request(engine: Engine, number: int, prompt: int, output: int) -> GenerateRequest:
    ids = np.random.default_rng(number).integers(0, engine.program.vocabulary, prompt).tolist()
    return GenerateRequest(str(number), ids, Sampling(temperature=0.0, max_tokens=output))


def _rate(rates: list[float], limit: float) -> dict[str, Any]:
    rate = statistics.median(rates)
    return {"tokens_per_second": rate, "fraction_of_limit": rate / limit, "repetitions": rates}


def _percentiles(values: list[float]) -> dict[str, float]:
    p50, p95 = np.percentile(values, [50, 95])
    return {"p50": float(p50), "p95": float(p95)}
