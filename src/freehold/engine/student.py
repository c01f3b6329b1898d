"""A compressed model that learns from its original: scales, gains and biases as parameters, codes fixed.

    weight     w = exp(delta) * w0 for all weights of a group: exp(delta) times its scale (and offset)
    vector     v = v0 + unit * delta: norm gains and biases; unit = root mean square of v0

Values are rounded as they will be stored, so what is measured is what will be served; the gradient passes the rounding as
if it were not there. The loss is the mean KL divergence of the student's next-token distributions from the teacher's:
distillation as MLX's "distilled weight quantization" does it, of scales alone as in EfficientQAT's last phase (arXiv
2407.11062). A step holds one layer's weights in float32 at a time, and each window's input to every layer; what the
layers' derivatives need is computed again on the way back, or kept where memory is plenty. Knows no clock and no text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from freehold.engine.calibrate import sections
from freehold.engine.loading import load_weight, to_bfloat16
from freehold.engine.tape import F32, Linear, Tape, run_from
from freehold.formats.checkpoint import Checkpoint
from freehold.formats.tensors import QuantizedTensor, Tensor, bf16_to_float32, scale_type, to_float32
from freehold.kernels.matrix import Matrix
from freehold.kernels.program import Op, Program

HEAD_ROWS = 128
"""Tokens whose logits are in memory at a time, for each thread."""
CONTRACTED = 1024
"""Rows of a weight whose gradient is in memory at a time."""

T = TypeVar("T")
Gradients = dict[str, F32]
"""By tensor name, shaped as the parameters."""
Taped = tuple[list[Tape], dict[str, F32]]
"""A section's tapes of all windows, and the weights they ran with."""


class Source(Protocol):
    """Where a pass takes its weights from."""

    def section(self, ops: Sequence[Op]) -> dict[str, F32]:
        """Float32 weights of some operations, by the program's names."""

    def embedded(self, ids: NDArray[np.int64]) -> F32:
        """The residual stream in front of the first layer, [..., hidden]."""


class Teacher:
    """The original, a section at a time from the disk."""

    def __init__(self, checkpoint: Checkpoint, program: Program) -> None:
        self._checkpoint, self._program = checkpoint, program

    def section(self, ops: Sequence[Op]) -> dict[str, F32]:
        """See `Source.section`."""
        found = {}
        for name in (name for op in ops for name in op.weights):
            loaded = load_weight(self._checkpoint, self._program.weights[name], "f32")
            found[name] = loaded.float32() if isinstance(loaded, Matrix) else loaded
        return found

    def embedded(self, ids: NDArray[np.int64]) -> F32:
        """See `Source.embedded`."""
        op = next(op for op in self._program.ops if op.kind == "embed")
        table = cast(Matrix, load_weight(self._checkpoint, self._program.weights[op.weights[0]], "stored"))
        rows = table.rows(ids.reshape(-1).astype(np.int32)) * np.float32(op.attrs.get("scale", 1.0))
        return rows.reshape(*ids.shape, -1)


class Student:
    """The compressed model in memory as it is stored, and its parameters: `deltas`, by tensor name, all zero at first."""

    def __init__(self, checkpoint: Checkpoint, program: Program) -> None:
        self._program = program
        names = {source for spec in program.weights.values() for source in spec.sources}
        self._tensors: dict[str, Tensor] = {name: checkpoint.load(name) for name in sorted(names)}
        self._stored = {name: checkpoint.info(name).dtype for name in names}
        self._units = {name: unit for name, tensor in self._tensors.items() if (unit := _unit(tensor)) > 0}
        self.deltas: Gradients = {name: np.zeros(_parameters(self._tensors[name]), np.float32) for name in self._units}

    def section(self, ops: Sequence[Op]) -> dict[str, F32]:
        """See `Source.section`."""
        found: dict[str, F32] = {}
        for name in (name for op in ops for name in op.weights):
            spec = self._program.weights[name]
            if spec.value is not None:
                found[name] = spec.value
            elif name not in found:
                found[name] = np.concatenate([to_float32(self._current(source)) for source in spec.sources])
        return found

    def embedded(self, ids: NDArray[np.int64]) -> F32:
        """See `Source.embedded`."""
        name, scale = self.table
        rows = _rows(self._current(name), ids.reshape(-1)) * np.float32(scale)
        return rows.reshape(*ids.shape, -1)

    @property
    def table(self) -> tuple[str, float]:
        """The embedding's tensor, and what its rows are multiplied by."""
        op = next(op for op in self._program.ops if op.kind == "embed")
        return self._program.weights[op.weights[0]].sources[0], op.attrs.get("scale", 1.0)

    def values(self) -> dict[str, F32]:
        """What has changed and how it is stored: scales [N, groups] and vectors, float32 by tensor name."""
        found: dict[str, F32] = {}
        for name, delta in self.deltas.items():
            if delta.any():
                current = self._current(name)
                found[name] = current.scales if isinstance(current, QuantizedTensor) else to_float32(current)
        return found

    def gradients(self, linear: Linear, weight: F32) -> Gradients:
        """What one linear's derivative adds, given its weight [N, K] as it was."""
        found, begin = {}, 0
        for source in self._program.weights[linear.weight].sources:
            tensor = self._tensors[source]
            end = begin + tensor.shape[0]
            if source in self.deltas:
                groups = self.deltas[source].shape[1]
                found[source] = _contract(linear.gradient[:, begin:end], linear.input, weight[begin:end], groups)
            begin = end
        return found

    def along(self, name: str, gradient: F32) -> Gradients:
        """What the derivative with respect to one of the program's vectors adds."""
        sources = self._program.weights[name].sources
        ends = np.cumsum([self._tensors[source].shape[0] for source in sources])
        parts = zip(sources, np.split(gradient, ends[:-1]), strict=True)
        return {source: part * self._units[source] for source, part in parts if source in self.deltas}

    def looked_up(self, ids: NDArray[np.int64], gradient: F32) -> Gradients:
        """What the embedding's rows add, given the gradient [T, hidden] in front of the first layer."""
        name, scale = self.table
        if name not in self.deltas:
            return {}
        groups = self.deltas[name].shape[1]
        products = gradient * _rows(self._current(name), ids) * np.float32(scale)
        found = np.zeros_like(self.deltas[name])
        np.add.at(found, ids, products.reshape(len(ids), groups, -1).sum(axis=2))
        return {name: found}

    def _current(self, name: str) -> Tensor:
        tensor, delta = self._tensors[name], self.deltas.get(name)
        if delta is None:
            return tensor
        if isinstance(tensor, QuantizedTensor):
            scales = _as_stored(tensor.scales * np.exp(delta), scale_type(tensor.scales))
            grown = np.divide(scales, tensor.scales, out=np.ones_like(scales), where=tensor.scales != 0)
            offsets = None if tensor.offsets is None else tensor.offsets * grown
            return dataclasses.replace(tensor, scales=scales, offsets=offsets)
        return _as_stored(to_float32(tensor) + np.float32(self._units[name]) * delta, self._stored[name])


@dataclass(frozen=True, slots=True)
class Compared:
    """Sums over tokens: KL divergence from teacher to student in nats, and how often both hold one token likeliest."""

    divergence: float
    agreed: int
    tokens: int

    def __add__(self, other: Compared) -> Compared:
        return Compared(self.divergence + other.divergence, self.agreed + other.agreed, self.tokens + other.tokens)


class Passes:
    """Forward and backward passes of a program over windows of token ids, a thread for each window.

    Args:
        keep: what layers leave for their derivatives stays in memory instead of being computed again.
        tick: called after every section of every window, and may raise to end the work.
    """

    def __init__(self, program: Program, pool: ThreadPoolExecutor, *, keep: bool, tick: Callable[[], None]) -> None:
        self._prelude, self._sections = sections(program)
        self._pool, self._keep, self._tick = pool, keep, tick

    @property
    def head(self) -> list[Op]:
        """The operations from the last layer's output to the logits."""
        return self._sections[-1]

    def finals(self, source: Source, ids: NDArray[np.int64]) -> F32:
        """The residual stream behind the last layer, [windows, T, hidden]."""
        x = source.embedded(ids)
        for ops in self._sections[:-1]:
            x = self._forward(source, ops, x)
        return x

    def compare(self, student: Student, heads: tuple[dict[str, F32], dict[str, F32]], x: F32, truth: F32) -> Compared:
        """Of finals of both models; `heads` are the teacher's and the student's weights of `head`."""
        return _total(self._each(lambda w: self._loss(student, heads, x[w], truth[w], None)[0], len(x)))

    def descend(
        self, student: Student, head: dict[str, F32], ids: NDArray[np.int64], truth: F32
    ) -> tuple[Compared, Gradients]:
        """The loss on windows [B, T] whose teacher's finals are `truth`, and its gradient by every parameter."""
        x, inputs, kept = student.embedded(ids), [], []
        for ops in self._sections[:-1]:
            inputs.append(x)
            if self._keep:
                kept.append(self._taped(student, ops, x))
                x = np.stack([tape.values["x"] for tape in kept[-1][0]])
            else:
                x = self._forward(student, ops, x)
        compared, slope, total = self._descended(student, (head, student.section(self.head)), x, truth)
        for ops in reversed(self._sections[:-1]):
            before = inputs.pop()
            taped = kept.pop() if self._keep else None
            slope = self._backward(student, ops, before, slope, taped, total)
        for window, given in zip(ids, slope, strict=True):
            _sum(total, student.looked_up(window, given))
        return compared, total

    def _forward(self, source: Source, ops: Sequence[Op], x: F32) -> F32:
        weights = source.section([*self._prelude, *ops])
        return np.stack(self._each(lambda w: run_from(self._prelude, ops, weights, x[w]).values["x"], len(x)))

    def _taped(self, source: Source, ops: Sequence[Op], x: F32) -> Taped:
        weights = source.section([*self._prelude, *ops])
        return self._each(lambda w: run_from(self._prelude, ops, weights, x[w]), len(x)), weights

    def _descended(
        self, student: Student, heads: tuple[dict[str, F32], dict[str, F32]], x: F32, truth: F32
    ) -> tuple[Compared, F32, Gradients]:
        """The head's part of `descend`: the loss, the gradient at x, and the head's parameters'."""
        share = 1 / (x.shape[0] * x.shape[1])
        done = self._each(lambda w: self._loss(student, heads, x[w], truth[w], share), len(x))
        total: Gradients = {}
        for _, _, found in done:
            _sum(total, found)
        return _total([compared for compared, _, _ in done]), np.stack([given for _, given, _ in done]), total

    def _backward(
        self, student: Student, ops: Sequence[Op], x: F32, slope: F32, taped: Taped | None, total: Gradients
    ) -> F32:
        """One section's: the gradient in front of it; its parameters' are added to `total`."""
        weights = student.section([*self._prelude, *ops]) if taped is None else taped[1]

        def back(window: int) -> tuple[F32, Gradients]:
            tape = run_from(self._prelude, ops, weights, x[window]) if taped is None else taped[0][window]
            before = tape.backward({"x": slope[window]})["x"]
            return before, self._collected(student, tape, weights)

        done = self._each(back, len(x))
        for _, found in done:
            _sum(total, found)
        return np.stack([before for before, _ in done])

    def _loss(
        self,
        student: Student,
        heads: tuple[dict[str, F32], dict[str, F32]],
        x: F32,
        truth: F32,
        share: float | None,
    ) -> tuple[Compared, F32, Gradients]:
        """Of one window; with a token's share of the loss also the gradient at x and by the head's parameters."""
        compared, slope = Compared(0.0, 0, 0), np.zeros_like(x)
        total: Gradients = {}
        for begin in range(0, len(x), HEAD_ROWS):
            rows = slice(begin, begin + HEAD_ROWS)
            expected = self._headed(heads[0], truth[rows]).values["logits"]
            tape = self._headed(heads[1], x[rows])
            found, gradient = _divergence(expected, tape.values["logits"], share)
            compared += found
            if gradient is not None:
                slope[rows] = tape.backward({"logits": gradient})["x"]
                _sum(total, self._collected(student, tape, heads[1]))
        return compared, slope, total

    def _collected(self, student: Student, tape: Tape, weights: dict[str, F32]) -> Gradients:
        total: Gradients = {}
        for seen in tape.linears:
            _sum(total, student.gradients(seen, weights[seen.weight]))
        for name, gradient in tape.vectors.items():
            _sum(total, student.along(name, gradient))
        return total

    def _headed(self, weights: dict[str, F32], x: F32) -> Tape:
        tape = Tape(weights, len(x))
        tape.values["x"] = x
        tape.run(self.head)
        return tape

    def _each(self, work: Callable[[int], T], windows: int) -> list[T]:
        found = []
        for result in self._pool.map(work, range(windows)):
            self._tick()
            found.append(result)
        return found


def tape_bytes(program: Program, window: int) -> int:
    """About what the derivatives of one window need of memory, all layers together."""
    columns = sum(buffer.columns for name, buffer in program.buffers.items() if name != "logits")
    return program.layers * 4 * window * (program.heads * window + 4 * columns)


def _divergence(expected: F32, given: F32, share: float | None) -> tuple[Compared, F32 | None]:
    """Of logits [R, V], which are overwritten; with `share` also the gradient at `given`."""
    best, chosen = expected.argmax(axis=1), given.argmax(axis=1)
    p, total = _weights(expected, best)
    q, mass = _weights(given, chosen)
    p /= total
    expected -= given
    divergence = float(np.einsum("rv,rv->", p, expected, dtype=np.float64) + (np.log(mass) - np.log(total)).sum())
    compared = Compared(divergence, int((best == chosen).sum()), len(p))
    if share is None:
        return compared, None
    q *= np.float32(share) / mass
    p *= np.float32(share)
    q -= p
    return compared, q


def _weights(logits: F32, best: NDArray[np.int64]) -> tuple[F32, F32]:
    """Each row's probabilities before they are divided by their sum, and that sum; its largest is taken off the logits."""
    logits -= np.take_along_axis(logits, best[:, None], axis=1)
    weights = np.exp(logits)
    return weights, weights.sum(axis=1, keepdims=True)


def _contract(gradient: F32, x: F32, weight: F32, groups: int) -> F32:
    """Sum over each group of (dL/dw * w): the derivative by the logarithm of its scale, [N, groups]."""
    rows, columns = weight.shape
    out = np.empty((rows, groups), np.float32)
    for begin in range(0, rows, CONTRACTED):
        block = slice(begin, begin + CONTRACTED)
        product = gradient[:, block].T @ x
        product *= weight[block]
        out[block] = product.reshape(-1, groups, columns // groups).sum(axis=2)
    return out


def _sum(total: Gradients, more: Gradients) -> None:
    for name, gradient in more.items():
        if name in total:
            total[name] += gradient
        else:
            total[name] = gradient


def _total(parts: Sequence[Compared]) -> Compared:
    whole = Compared(0.0, 0, 0)
    for part in parts:
        whole += part
    return whole


def _parameters(tensor: Tensor) -> tuple[int, ...]:
    return tensor.scales.shape if isinstance(tensor, QuantizedTensor) else tensor.shape


def _unit(tensor: Tensor) -> float:
    """What a parameter of 1 stands for; 0 for what is not tuned: matrices in 16 bits, vectors of zeros."""
    if isinstance(tensor, QuantizedTensor):
        return 1.0
    return float(np.sqrt(np.mean(tensor.astype(np.float64) ** 2))) if tensor.ndim == 1 else 0.0


def _rows(tensor: Tensor, ids: NDArray[np.int64]) -> F32:
    if not isinstance(tensor, QuantizedTensor):
        return to_float32(tensor[ids])
    offsets = None if tensor.offsets is None else tensor.offsets[ids]
    return dataclasses.replace(tensor, codes=tensor.codes[ids], scales=tensor.scales[ids], offsets=offsets).float32()


def _as_stored(values: F32, dtype: str) -> F32:
    if dtype == "BF16":
        return bf16_to_float32(to_bfloat16(values))
    return values.astype(np.float16).astype(np.float32) if dtype == "F16" else values
