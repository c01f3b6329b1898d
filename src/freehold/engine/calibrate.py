"""Calibration: what each linear of a model sees, and how much its errors would cost, measured on a text.

The model runs in float32, layer by layer, first forwards, then backwards from tokens drawn from its own predictions
(the Fisher information, whose quadratic form is the KL divergence to second order). For every linear this leaves

    moment      E[s x x^T] over tokens: its input's second moment, tokens weighted by s = the size of the gradient at its
                output (mean 1), stored as a correlation matrix in float16 and a scale. Tensors that read one input have
                one each: what a query's error costs, it costs at other tokens than a value's does
    importance  E[g^2] for each output feature

so that an error E of its weights costs about 1/2 * sum_n importance[n] * (E moment E^T)[n, n] nats of KL divergence (a
Kronecker factorization: arXiv 1503.05671; weighting by the gradient: arXiv 2505.07004). All of it goes to files, one
for each layer; a run that is cut off anywhere goes on from them. Memory: one layer's weights, moments and a window.

    DIR/calibration.json     what was measured, on what; written last
    DIR/00007.safetensors    a section: "<tensor>.correlation" f16 [K, K], ".scale" f32 [K], "<tensor>.importance"
                             f32 [N]; metadata "inputs": JSON, for each input its tensors and what int8 activations cost

Knows no text, no number formats of weights and no plans.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from freehold.engine.loading import load_weight
from freehold.engine.models import program_for
from freehold.engine.moments import Moment, Share
from freehold.engine.tape import F32, run_from
from freehold.errors import FormatError, UsageError
from freehold.formats.checkpoint import Checkpoint, open_checkpoint
from freehold.formats.reading import read_json
from freehold.kernels.cpu import choose_threads
from freehold.kernels.matrix import Matrix
from freehold.kernels.program import Op, Program
from freehold.progress import Progress, silent

VERSION = 3
"""Raised whenever the files would mean something else."""
WINDOW = 512
SMALLEST_WINDOW = 32
INDEX = "calibration.json"
_OURS = re.compile(
    r"((begun|calibration|\d{5})\.json|((state-|gradient-)?\d{5}|embedding)\.(npy|safetensors)|costs-\d+\.jsonl|tuning)|[a-z0-9-]+\.partial"
)


@dataclass(frozen=True, slots=True)
class Facts:
    """What was measured, on what.

    Args:
        source, text: digests (SHA-256) of the model and of the text.
        bos: the token id every window began with, None where it was the text's own.
        tokens, window: tokens seen, and tokens to a window.
        perplexity: of the model on this text: a number far off says that text and model don't fit.
        seconds: of this run.
    """

    version: int
    source: str
    text: str
    tokens: int
    window: int
    perplexity: float
    seconds: float
    bos: int | None = None


def calibrate(
    path: Path,
    ids: Sequence[int],
    out: Path,
    *,
    source: str,
    text: str,
    bos: int | None = None,
    progress: Progress | None = None,
) -> Facts:
    """Measure a checkpoint on token ids and leave the statistics in `out`; windows that are not full are left out.

    Args:
        bos: put in the place of each window's first token, for models that expect their text to begin so.

    Finished statistics of the same model and text are taken as they are, unfinished ones are completed.

    Raises:
        UsageError: too few tokens, or ids outside the vocabulary.
        FormatError, UnsupportedError: a checkpoint that can't be loaded, an operation without a derivative.
    """
    window = min(WINDOW, len(ids))
    if window < SMALLEST_WINDOW:
        raise UsageError(f"calibration needs at least {SMALLEST_WINDOW} tokens, got {len(ids)}")
    count = len(ids) // window
    windows = np.array(ids[: count * window], np.int64).reshape(count, window)
    if bos is not None:
        windows[:, 0] = bos
    wanted = {"version": VERSION, "source": source, "text": text, "tokens": count * window, "window": window}
    wanted |= {} if bos is None else {"bos": bos}
    if (known := _finished(out, wanted)) is not None:
        return known
    started = time.monotonic()
    with open_checkpoint(path) as checkpoint:
        program = program_for(checkpoint.config, guard=False)
        if not 0 <= windows.min() <= windows.max() < program.vocabulary:
            raise UsageError(f"a token id is outside the vocabulary of {program.vocabulary}")
        _take_up(out, wanted)
        work = _Work(checkpoint, program, windows, out, progress or silent)
        work.forward()
        loss = work.backward()
    facts = Facts(**wanted, perplexity=math.exp(loss), seconds=time.monotonic() - started)  # type: ignore[arg-type]
    _write(out / INDEX, json.dumps(asdict(facts), indent=2).encode())
    for path in [*out.glob("*.npy"), out / "begun.json"]:
        path.unlink()
    return facts


class _Work:
    """One calibration. Section n of `layers` is a decoder layer; the last one is the final norm and the output layer."""

    def __init__(
        self, checkpoint: Checkpoint, program: Program, windows: NDArray[np.int64], out: Path, progress: Progress
    ) -> None:
        self._checkpoint, self._program, self._windows, self._out = checkpoint, program, windows, out
        self._progress = progress
        self._prelude, self._sections = sections(program)
        self._threads = choose_threads()[0]
        self._pool = ThreadPoolExecutor(self._threads)
        self._step, self._steps = 0, len(self._sections) * 3 * len(windows)

    def forward(self) -> None:
        """The residual stream [windows, T, hidden] in front of every section, each in a file of its own."""
        if not self._state(0).exists():
            self._save(self._state(0), self._embedded())
        for number, ops in enumerate(self._sections[:-1]):
            if not self._state(number + 1).exists() and not self._section(number).exists():
                weights = self._weights(ops)
                x = np.load(self._state(number))

                def through(window: int, ops: list[Op] = ops, weights: dict[str, F32] = weights, x: F32 = x) -> None:
                    x[window] = run_from(self._prelude, ops, weights, x[window]).values["x"]

                for _ in self._pool.map(through, range(len(x))):
                    self._tick()
                self._save(self._state(number + 1), x)
            self._step = (number + 1) * len(self._windows)

    def backward(self) -> float:
        """Statistics of every section, from the last to the first; returns the mean negative log likelihood."""
        loss = 0.0
        for number in reversed(range(len(self._sections))):
            if not self._section(number).exists():  # written after the gradient that the section below needs
                self._measure(number)
            self._step = self._steps - 2 * number * len(self._windows)
        self._measure_embedding()
        index = json.loads((self._out / f"{len(self._sections) - 1:05d}.json").read_text())
        loss = index["loss"]
        return float(loss)

    def _measure(self, number: int) -> None:
        ops, last = self._sections[number], number == len(self._sections) - 1
        weights = self._weights(ops)
        x = np.load(self._state(number))
        gradient = None if last else np.load(self._gradient(number + 1))
        moments: dict[str, Moment] = {}
        before, loss = np.empty_like(x), 0.0

        def back(window: int) -> tuple[list[tuple[str, Share]], float]:
            tape, nll = run_from(self._prelude, ops, weights, x[window]), 0.0
            if gradient is None:
                given, nll = _drawn(tape.values["logits"], self._windows[window], window)
                before[window] = tape.backward({"logits": given})["x"]
            else:
                before[window] = tape.backward({"x": gradient[window]})["x"]
            return [(seen.weight, Share.of(seen, self._ends(seen.weight))) for seen in tape.linears], nll

        for first in range(0, len(x), self._threads):  # no more windows' shares in memory than threads
            for shares, nll in self._pool.map(back, range(first, min(first + self._threads, len(x)))):
                for name, share in shares:
                    if name not in moments:
                        moments[name] = Moment(share)
                    moments[name].add(share)
                loss += nll
                self._tick(2)
        if last:
            _write(self._out / f"{number:05d}.json", json.dumps({"loss": loss / len(x)}).encode())
        self._save(self._gradient(number), before)
        _write(self._section(number), self._encoded(moments))
        if not last:
            self._gradient(number + 1).unlink(missing_ok=True)

    def _encoded(self, moments: dict[str, Moment]) -> bytes:
        arrays: dict[str, NDArray[Any]] = {}
        inputs: dict[str, Any] = {}
        for name, moment in moments.items():
            tensors = self._program.weights[name].sources
            parts = np.split(moment.importance, self._ends(name))
            for tensor, part, (correlation, scale) in zip(tensors, parts, moment.normalized(), strict=True):
                arrays[f"{tensor}.importance"] = part
                arrays[f"{tensor}.correlation"], arrays[f"{tensor}.scale"] = correlation, scale
            inputs[name] = {"tensors": list(tensors), "int8": moment.int8, "peak": moment.peak}
        return save(arrays, {"inputs": json.dumps(inputs)})

    def _ends(self, weight: str) -> list[int]:
        """Rows of a weight at which the next of its tensors begins."""
        sources = self._program.weights[weight].sources
        return list(itertools.accumulate(self._checkpoint.info(tensor).shape[0] for tensor in sources[:-1]))

    def _measure_embedding(self) -> None:
        """How much errors of the embedding's columns cost where it is looked up, and how often each token is."""
        path = self._out / "embedding.safetensors"
        if path.exists():
            return
        gradient = np.load(self._gradient(0)).reshape(-1, self._program.buffers["x"].columns)
        op = next(op for op in self._program.ops if op.kind == "embed")
        squared = (gradient.astype(np.float64) ** 2).mean(axis=0) * op.attrs.get("scale", 1.0) ** 2
        counts = np.bincount(self._windows.reshape(-1), minlength=self._program.vocabulary)
        arrays = {"importance": squared.astype(np.float32), "counts": counts.astype(np.float32)}
        _write(path, save(arrays, {"tensor": self._program.weights[op.weights[0]].sources[0]}))

    def _weights(self, ops: Sequence[Op]) -> dict[str, F32]:
        found = {}
        for name in (name for op in [*self._prelude, *ops] for name in op.weights):
            loaded = load_weight(self._checkpoint, self._program.weights[name], "f32")
            found[name] = loaded.float32() if isinstance(loaded, Matrix) else loaded
        return found

    def _embedded(self) -> F32:
        op = next(op for op in self._program.ops if op.kind == "embed")
        table = load_weight(self._checkpoint, self._program.weights[op.weights[0]], "stored")
        rows = [cast(Matrix, table).rows(window.astype(np.int32)) for window in self._windows]
        return np.stack(rows) * np.float32(op.attrs.get("scale", 1.0))

    def _state(self, number: int) -> Path:
        return self._out / f"state-{number:05d}.npy"

    def _gradient(self, number: int) -> Path:
        return self._out / f"gradient-{number:05d}.npy"

    def _section(self, number: int) -> Path:
        return self._out / f"{number:05d}.safetensors"

    def _save(self, path: Path, values: F32) -> None:
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.save(file, values)
        partial.rename(path)

    def _tick(self, steps: int = 1) -> None:
        self._step += steps
        self._progress(self._step, self._steps, "calibrating")


def sections(program: Program) -> tuple[list[Op], list[list[Op]]]:
    """The operations every section needs (rope tables), and those of each layer and of the head."""
    prelude = [op for op in program.ops if op.kind == "rope_table"]
    found: list[list[Op]] = []
    current = None
    for op in program.ops:
        if op.kind in ("rope_table", "embed"):
            continue
        layer = next((name.split(".")[1] for name in op.weights if name.startswith("layers.")), None)
        if op.kind == "gather" or (layer is not None and layer != current):
            found.append([])
            current = layer
        found[-1].append(op)
    return prelude, found


def _drawn(logits: F32, tokens: NDArray[np.int64], seed: int) -> tuple[F32, float]:
    """Gradient of -log p(y) for tokens y drawn from the predictions, and the text's own mean -log p."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    p = np.exp(shifted)
    total = p.sum(axis=1, keepdims=True)
    nll = float((np.log(total[:-1, 0]) - shifted[np.arange(len(tokens) - 1), tokens[1:]]).mean())
    p /= total
    draws = np.random.default_rng(seed).random(len(p))
    drawn = [
        min(int(np.searchsorted(np.cumsum(row), draw)), p.shape[1] - 1) for row, draw in zip(p, draws, strict=True)
    ]
    p[np.arange(len(p)), drawn] -= 1
    return p, nll


def _finished(out: Path, wanted: dict[str, Any]) -> Facts | None:
    known = _known(out / INDEX)
    return Facts(**known) if {key: known.get(key) for key in wanted} == wanted else None


def _take_up(out: Path, wanted: dict[str, Any]) -> None:
    """An empty directory, or what an earlier run of the same work left."""
    begun = out / "begun.json"
    if _known(begun) != wanted:
        foreign = [entry.name for entry in out.iterdir() if not _OURS.fullmatch(entry.name)] if out.exists() else []
        if foreign:
            what = f"{out} is not empty: it holds {foreign[0][:80]!r}, which is no calibration's"
            raise UsageError(what, hint="choose another directory")
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        _write(begun, json.dumps(wanted).encode())


def _known(path: Path) -> dict[str, Any]:
    """What a file says of the work; nothing where there is none, or a damaged one."""
    try:
        return read_json(path, "calibration") if path.is_file() else {}
    except FormatError:
        return {}


def _write(path: Path, data: bytes) -> None:
    partial = path.with_suffix(".partial")
    partial.write_bytes(data)
    partial.rename(path)
