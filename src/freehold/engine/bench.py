"""How fast a model runs here, held against what this machine could do at most, measured in the same run.

Token ids are random but fixed: speed does not depend on them. Deep contexts are not computed but filled with copies of
one page, which costs the same to read. Knows no text, HTTP or terminals.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from freehold.engine.memory import page_bytes
from freehold.engine.request import GenerateRequest, Sampling
from freehold.engine.runner import Engine
from freehold.engine.shapes import shape_model
from freehold.errors import EngineError, UsageError
from freehold.kernels import limits
from freehold.kernels.limits import Limits
from freehold.kernels.program import PAGE, Program, Step
from freehold.process_memory import resident_bytes
from freehold.progress import Progress, silent
from freehold.settings import EngineSettings

PREFILL, DECODE = (512, 4096), 128
DEPTHS = (0, 8192, 32768)
STREAMS = (1, 8, 16, 32)
STREAM_PROMPT, STREAM_OUTPUT = 128, 64
REPEATS = 3
"""Repetitions of prefill and decode; the median counts."""
ENOUGH_SECONDS = 20.0
"""A figure that took so long is not repeated."""


def bench(
    model: Path | str,
    settings: EngineSettings | None = None,
    *,
    prefill: Sequence[int] = PREFILL,
    decode: int = DECODE,
    depths: Sequence[int] = DEPTHS,
    streams: Sequence[int] = STREAMS,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure a model; everything in the report is JSON.

    Limits: `decode` is bounded by read bandwidth over the bytes of weights and of the KV cache that a step reads, prefill
    by the int8 peak over two operations per weight and token (attention and the head not counted); of streams, each
    step by the slower of both. A fraction is of that limit. Lengths that the context or the KV cache have no room for
    are left out and listed in `skipped`.

    Args:
        model: a checkpoint's path, or the name of a shape (`shapes.SHAPES`), which gets random weights.
        prefill, decode: tokens of the single-stream figures.
        depths: tokens that lie in the context before those that are decoded.
        streams: how many requests (128 tokens in, 64 out, or as many as the context allows) run at the same time.

    Raises:
        UsageError: no such shape, or the context is too short for any of the figures asked for.
    """
    settings = replace(settings or EngineSettings(), prefix_cache=False)  # repetitions must compute their prompts
    tell = progress or silent
    tell(0, None, "loading")
    load = _loader(model, settings)
    first = load().facts.load_seconds
    engine = load()
    room = min(engine.context, engine.facts.kv_pages * PAGE)
    wanted = [*prefill, *(depth + decode + 1 for depth in depths)]
    if wanted and min(wanted) >= room:
        raise UsageError(f"the context of {room} tokens is too short for a bench of {min(wanted)}")
    loaded = resident_bytes()
    tell(1, None, "measuring this machine")
    run = _Run(engine, limits.measure(engine.facts.isa, engine.facts.threads), settings)
    report: dict[str, Any] = {
        "model": str(model),
        "facts": msgspec.to_builtins(engine.facts),
        "limits": run.limits(),
        "load": {"first_seconds": first, "warm_seconds": engine.facts.load_seconds},
        "meetings_per_step": getattr(engine.executor, "meetings", None),
        "skipped": [f"{n} tokens: context and KV cache have room for {room}" for n in wanted if n >= room],
    }
    jobs: list[tuple[str, str, Callable[[], dict[str, Any]]]] = [
        *(("prefill", f"prefill {n}", partial(run.prefill, n)) for n in prefill if n < room),
        *(("decode", f"decode at {n}", partial(run.decode, decode, n)) for n in depths if n + decode + 1 < room),
        *(("streams", f"{n} streams", partial(run.streams, n)) for n in streams),
    ]
    for done, (kind, what, job) in enumerate(jobs):
        tell(2 + done, 2 + len(jobs), what)
        report.setdefault(kind, []).append(job())
    tell(2 + len(jobs), 2 + len(jobs), "done")
    return report | {"memory": {"loaded_bytes": loaded, **run.memory()}}


def _loader(model: Path | str, settings: EngineSettings) -> Callable[[], Engine]:
    """Loads an engine of a checkpoint, or of a shape, whose weights are made before the clock runs."""
    if isinstance(model, Path):
        return lambda: Engine.load(model, settings)
    shape_model(model)

    def load() -> Engine:
        begin = time.perf_counter()
        return Engine.of(*shape_model(model), settings, begin=begin)

    return load


def layer_weights(program: Program) -> int:
    """Weights that every token of a prompt is multiplied with: all linear operations but the head."""
    return sum(
        (program.buffers[op.out].columns - int(op.attrs.get("column", 0))) * program.buffers[op.inputs[0]].columns
        for op in program.ops
        if op.kind == "linear" and program.buffers[op.out].rows == "tokens"
    )


class _Run:
    """A loaded model, what this machine could do at most, and how much of the KV cache was in use at most."""

    def __init__(self, engine: Engine, machine: Limits, settings: EngineSettings) -> None:
        self._engine = engine
        self._machine = machine
        self._step_bytes = getattr(engine.executor, "step_bytes", engine.facts.weight_bytes)
        self._packed_bytes = getattr(engine.executor, "weight_bytes", engine.facts.weight_bytes)
        self._page_bytes = page_bytes(engine.program, settings.kv_dtype)
        self._row_operations = 2 * layer_weights(engine.program)
        self._chunk = settings.max_step_tokens
        self._pages = 0

    def limits(self) -> dict[str, float]:
        """The machine's, and what a step reads."""
        return {
            **msgspec.to_builtins(self._machine),
            "step_bytes": self._step_bytes,
            "kv_token_bytes": self._page_bytes / PAGE,
            "prefill_tokens_per_second": self._machine.int8_operations_per_second / self._row_operations,
            "decode_tokens_per_second": self._machine.read_bytes_per_second / self._step_bytes,
        }

    def memory(self) -> dict[str, float]:
        """What this process takes, beside its packed weights and the part of the KV cache that it filled.

        Now, not at its peak: that is measuring the bandwidth. What a step needs is kept for the next one.
        """
        kept, taken = self._packed_bytes + self._pages * self._page_bytes, resident_bytes()
        return {"resident_bytes": taken, "weights_and_kv_bytes": kept, "ratio": taken / kept}

    def prefill(self, tokens: int) -> dict[str, Any]:
        """Tokens per second, from the request to its first token; the first run only warms up."""
        rates: list[float] = []
        self._attention_share()
        for _ in _repeats(REPEATS + 1):
            begin = time.perf_counter()
            self._drain([_request(self._engine, 0, tokens, 1)])
            rates.append(tokens / (time.perf_counter() - begin))
        limit = self._machine.int8_operations_per_second / self._row_operations
        return {"tokens": tokens, "attention_share": self._attention_share()} | _rate(rates[1:] or rates, limit)

    def decode(self, tokens: int, depth: int) -> dict[str, Any]:
        """Tokens per second after the first token, one stream; and the share of that time outside of the kernels."""
        clock = _Clock(self._engine)
        rates: list[float] = []
        shares: list[float] = []
        attention: list[float] = []

        def begin() -> None:
            clock.begin()
            self._attention_share()

        for _ in _repeats(REPEATS):
            self._engine.add(_request(self._engine, 0, depth + 1, tokens + 1))
            if depth > self._chunk >= PAGE:
                self._engine.step()
                self._engine.pretend("0", depth)
            times = self._drain([], begin)["0"]
            seconds = times[-1] - times[0]
            rates.append((len(times) - 1) / seconds)
            shares.append(1 - clock.inside / seconds)
            attention.append(self._attention_share())
        clock.stop()
        read = self._step_bytes + (depth + tokens / 2) * self._page_bytes / PAGE
        figure = {
            "tokens": tokens,
            "depth": depth,
            "share_outside_kernels": statistics.median(shares),
            "attention_share": statistics.median(attention),
        }
        return figure | _rate(rates, self._machine.read_bytes_per_second / read)

    def _attention_share(self) -> float:
        """The part of the kernels' time since the last call that attention took; 0 if the executor keeps no time."""
        profile = getattr(self._engine.executor, "profile", None)
        times = profile() if profile else {}
        return times["attention"] / total if (total := sum(times.values())) else 0.0

    def streams(self, count: int) -> dict[str, Any]:
        """All requests at once: output tokens per second over the whole run, and what each request felt."""
        prompt = min(STREAM_PROMPT, self._engine.context // 2)
        output = min(STREAM_OUTPUT, self._engine.context - prompt)
        begin = time.perf_counter()
        times = self._drain([_request(self._engine, number, prompt, output) for number in range(count)])
        seconds = time.perf_counter() - begin
        row = self._row_operations / self._machine.int8_operations_per_second
        step = max(self._step_bytes / self._machine.read_bytes_per_second, count * row)
        ttft = [given[0] - begin for given in times.values()]
        tpot = [(given[-1] - given[0]) / (len(given) - 1) for given in times.values()]
        return {
            "streams": count,
            "prompt_tokens": prompt,
            "output_tokens": output,
            "tokens_per_second": count * output / seconds,
            "fraction_of_limit": (count * prompt * row + (output - 1) * step) / seconds,
            "ttft_seconds": _percentiles(ttft),
            "tpot_seconds": _percentiles(tpot),
        }

    def _drain(
        self, requests: list[GenerateRequest], first: Callable[[], None] | None = None
    ) -> dict[str, list[float]]:
        """Run requests to their end; when each token of each came. `first` is called after the first token."""
        for request in requests:
            self._engine.add(request)
        times: dict[str, list[float]] = {}
        while self._engine.has_work:
            outputs = self._engine.step()
            now = time.perf_counter()
            if first is not None and outputs and not times:
                first()
            for output in outputs:
                if output.finish == "error":
                    raise EngineError(f"the bench failed: {output.error}")
                times.setdefault(output.id, []).append(now)
            self._pages = max(self._pages, self._engine.stats.kv_pages_used)
        return times


class _Clock:
    """Seconds an engine spends in its executor."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._executor = engine.executor
        self.inside = 0.0
        engine.executor = self  # stands in front of it until `stop`

    def run(self, step: Step) -> NDArray[np.float32]:
        begin = time.perf_counter()
        logits = self._executor.run(step)
        self.inside += time.perf_counter() - begin
        return logits

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executor, name)

    def begin(self) -> None:
        self.inside = 0.0

    def stop(self) -> None:
        self._engine.executor = self._executor


def _repeats(times: int) -> Iterator[int]:
    """Counts, but not beyond ENOUGH_SECONDS."""
    begin = time.perf_counter()
    for number in range(times):
        if number and time.perf_counter() - begin > ENOUGH_SECONDS:
            return
        yield number


def _request(engine: Engine, number: int, prompt: int, output: int) -> GenerateRequest:
    ids = np.random.default_rng(number).integers(0, engine.program.vocabulary, prompt).tolist()
    return GenerateRequest(str(number), ids, Sampling(temperature=0.0, max_tokens=output))


def _rate(rates: list[float], limit: float) -> dict[str, Any]:
    rate = statistics.median(rates)
    return {"tokens_per_second": rate, "fraction_of_limit": rate / limit, "repetitions": rates}


def _percentiles(values: list[float]) -> dict[str, float]:
    p50, p95 = np.percentile(values, [50, 95])
    return {"p50": float(p50), "p95": float(p95)}
