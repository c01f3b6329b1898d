"""Operations of a program in float32 NumPy, forwards and backwards: what calibration measures with.

The arithmetic is that of `kernels.reference` with float weights, over one whole sequence at a time, so that attention is
a few matrix products instead of pages. `Tape.backward` gives the gradient at every buffer that was read; derivatives
with respect to weights are left to whoever has a linear's input and output gradient (`Linear`). Knows no files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from freehold.errors import UnsupportedError
from freehold.kernels.program import Op
from freehold.kernels.reference import gelu

F32 = NDArray[np.float32]
_f = np.float32


@dataclass(slots=True)
class Linear:
    """What passed through one linear: its weight's name, input [T, K], and after `backward` two gradients.

    Args:
        gradient: at its output, [T, N]; input_gradient: at its input, [T, K], through this linear alone.
    """

    weight: str
    input: F32
    gradient: F32 = field(default_factory=lambda: np.empty(0, _f))
    input_gradient: F32 = field(default_factory=lambda: np.empty(0, _f))


class Tape:
    """Runs operations on one sequence and remembers what their derivatives need.

    What an operation leaves for its derivative holds arrays, never the tape: a ring of references would keep all of a
    window's memory until Python looks for rings.

    Args:
        weights: float32 arrays by the program's names.
        length: tokens of the sequence; they stand at positions 0 .. length-1.
    """

    def __init__(self, weights: Mapping[str, F32], length: int) -> None:
        self._weights = weights
        self._length = length
        self._undo: list[Callable[[dict[str, F32]], None]] = []
        self.values: dict[str, F32] = {}
        self.linears: list[Linear] = []
        self.vectors: dict[str, F32] = {}
        """After `backward`: gradients of gains and biases, by the program's names."""

    def run(self, ops: Iterable[Op]) -> None:
        """Run operations on `values`. Every one writes a new array: earlier versions of a buffer stay as they were."""
        for op in ops:
            self._known(op)(op)

    def backward(self, gradients: dict[str, F32]) -> dict[str, F32]:
        """From gradients at the buffers' last versions to those at their first."""
        for undo in reversed(self._undo):
            undo(gradients)
        return gradients

    def _known(self, op: Op) -> Callable[[Op], None]:
        known: dict[str, Callable[[Op], None]] = {
            "rmsnorm": self._rmsnorm,
            "linear": self._linear,
            "headnorm": self._headnorm,
            "rope_table": self._rope_table,
            "rope": self._rope,
            "attention": self._attention,
            "silu_mul": self._silu_mul,
            "gelu_mul": self._gelu_mul,
            "gather": self._gather,
        }
        if op.kind not in known:
            raise UnsupportedError(f"calibration has no derivative for the operation {op.kind}")
        return known[op.kind]

    def _rmsnorm(self, op: Op) -> None:
        x, source, out = self.values[op.inputs[0]], op.inputs[0], op.out
        gain = self._weights[op.weights[0]] + _f(op.attrs.get("offset", 0.0))
        normed, back = _norm(x, gain, op.attrs["eps"])
        adds, vectors = bool(op.attrs.get("accumulate")), self.vectors
        self.values[out] = self.values[out] + normed if adds else normed

        def undo(grads: dict[str, F32]) -> None:
            slope, along = back(grads[out] if adds else grads.pop(out))
            _add(vectors, op.weights[0], along)
            _add(grads, source, slope)

        self._undo.append(undo)

    def _headnorm(self, op: Op) -> None:
        gain, out = self._weights[op.weights[0]] + _f(op.attrs.get("offset", 0.0)), op.out
        columns = slice(int(op.attrs["column"]), int(op.attrs["column"]) + int(op.attrs["heads"]) * len(gain))
        length, vectors = self._length, self.vectors
        heads = self.values[out][:, columns].reshape(length, -1, len(gain))
        normed, back = _norm(heads, gain, op.attrs["eps"])
        self._replace(out, columns, normed.reshape(length, -1))

        def undo(grads: dict[str, F32]) -> None:
            slope, along = back(grads[out][:, columns].reshape(heads.shape))
            _add(vectors, op.weights[0], along)
            grads[out][:, columns] = slope.reshape(length, -1)

        self._undo.append(undo)

    def _linear(self, op: Op) -> None:
        name, source, out = op.weights[0], op.inputs[0], op.out
        weight, x, adds = self._weights[name], self.values[source], bool(op.attrs.get("accumulate"))
        vectors = self.vectors
        y = x @ weight.T
        if len(op.weights) > 1:
            y += self._weights[op.weights[1]]
        columns = slice(int(op.attrs.get("column", 0)), int(op.attrs.get("column", 0)) + len(weight))
        seen = Linear(name, x)
        self.linears.append(seen)
        if adds:
            self._replace(out, columns, self.values[out][:, columns] + y)
        elif out in self.values and y.shape != self.values[out].shape:
            self._replace(out, columns, y)
        else:
            self.values[out] = y

        def undo(grads: dict[str, F32]) -> None:
            seen.gradient = grads[out][:, columns].copy()
            if len(op.weights) > 1:
                _add(vectors, op.weights[1], seen.gradient.sum(axis=0))
            seen.input_gradient = seen.gradient @ weight
            _add(grads, source, seen.input_gradient)
            if not adds:
                grads[out][:, columns] = 0

        self._undo.append(undo)

    def _rope_table(self, op: Op) -> None:
        angle = np.arange(self._length, dtype=_f)[:, None] * self._weights[op.weights[0]][None, :]
        factor = _f(op.attrs.get("factor", 1.0))
        self.values[op.out] = np.concatenate([np.cos(angle) * factor, np.sin(angle) * factor], axis=1)

    def _rope(self, op: Op) -> None:
        dim, out, half = int(op.attrs["head_dim"]), op.out, int(op.attrs["head_dim"]) // 2
        columns = slice(int(op.attrs["column"]), int(op.attrs["column"]) + int(op.attrs["heads"]) * dim)
        table, length = self.values[op.inputs[0]], self._length
        cos, sin = table[:, None, :half], table[:, None, half:]

        def turn(x: F32, sine: F32) -> F32:
            heads = x.reshape(length, -1, dim)
            first, second = heads[..., :half], heads[..., half:]
            turned = np.concatenate([first * cos - second * sine, second * cos + first * sine], axis=-1)
            return turned.reshape(length, -1)

        self._replace(out, columns, turn(self.values[out][:, columns], sin))

        def undo(grads: dict[str, F32]) -> None:
            grads[out][:, columns] = turn(grads[out][:, columns], -sin)

        self._undo.append(undo)

    def _attention(self, op: Op) -> None:
        heads, kv_heads, dim = (int(op.attrs[a]) for a in ("heads", "kv_heads", "head_dim"))
        scale, source, out, length = _f(op.attrs["scale"]), op.inputs[0], op.out, self._length
        group, qkv = heads // kv_heads, self.values[op.inputs[0]]
        # Query heads of a group lie below each other: [KV, G*T, D] against [KV, T, D].
        q = _by_head(qkv[:, : heads * dim], heads).reshape(kv_heads, group * length, dim)
        k = _by_head(qkv[:, heads * dim : (heads + kv_heads) * dim], kv_heads)
        v = _by_head(qkv[:, (heads + kv_heads) * dim :], kv_heads)
        scores = (q @ k.transpose(0, 2, 1)).reshape(kv_heads, group, length, length)
        scores *= scale
        scores += _mask(length, int(op.attrs.get("window", 0)))
        scores -= scores.max(axis=-1, keepdims=True)
        p = np.exp(scores, out=scores)
        p /= p.sum(axis=-1, keepdims=True)
        p = p.reshape(kv_heads, group * length, length)
        self.values[out] = _by_token((p @ v).reshape(heads, length, dim))

        def undo(grads: dict[str, F32]) -> None:
            given = _by_head(grads.pop(out), heads).reshape(kv_heads, group * length, dim)
            slope = given @ v.transpose(0, 2, 1)
            slope -= (slope * p).sum(axis=-1, keepdims=True)
            slope *= p
            slope *= scale
            parts = (
                (slope @ k).reshape(heads, length, dim),
                slope.transpose(0, 2, 1) @ q,
                p.transpose(0, 2, 1) @ given,
            )
            _add(grads, source, np.concatenate([_by_token(part) for part in parts], axis=1))

        self._undo.append(undo)

    def _silu_mul(self, op: Op) -> None:
        x, source, out = self.values[op.inputs[0]], op.inputs[0], op.out
        half = x.shape[1] // 2
        gate, up = x[:, :half], x[:, half:]
        with np.errstate(over="ignore"):
            sigmoid = _f(1) / (_f(1) + np.exp(-gate))
        self.values[out] = gate * sigmoid * up

        def undo(grads: dict[str, F32]) -> None:
            given = grads.pop(out)
            slope = sigmoid * (_f(1) + gate * (_f(1) - sigmoid))
            _add(grads, source, np.concatenate([given * up * slope, given * gate * sigmoid], axis=1))

        self._undo.append(undo)

    def _gelu_mul(self, op: Op) -> None:
        x, source, out = self.values[op.inputs[0]], op.inputs[0], op.out
        half = x.shape[1] // 2
        up, (gate, slope) = x[:, half:], gelu(x[:, :half])
        self.values[out] = gate * up

        def undo(grads: dict[str, F32]) -> None:
            given = grads.pop(out)
            _add(grads, source, np.concatenate([given * up * slope, given * gate], axis=1))

        self._undo.append(undo)

    def _gather(self, op: Op) -> None:
        source, out = op.inputs[0], op.out  # calibration wants the logits of every row
        self.values[out] = self.values[source]
        self._undo.append(lambda grads: _add(grads, source, grads.pop(out)))

    def _replace(self, name: str, columns: slice, values: F32) -> None:
        made = self.values[name].copy()
        made[:, columns] = values
        self.values[name] = made


def run_from(prelude: Iterable[Op], ops: Iterable[Op], weights: Mapping[str, F32], x: F32) -> Tape:
    """A tape that has run a program's prelude and then some of its operations on a residual stream x [T, hidden]."""
    tape = Tape(weights, len(x))
    tape.run(prelude)
    tape.values["x"] = x
    tape.run(ops)
    return tape


def _mask(length: int, window: int) -> F32:
    """0 where a query sees a key, -inf where it comes later or (with a window) too early, [T, T]."""
    full = np.full((length, length), -np.inf, _f)
    return np.triu(full, 1) + (np.tril(full, -window) if window else _f(0))


def _add(grads: dict[str, F32], name: str, value: F32) -> None:
    grads[name] = grads[name] + value if name in grads else value


def _by_head(x: F32, heads: int) -> F32:
    """[T, H*D] as [H, T, D]."""
    return np.ascontiguousarray(x.reshape(len(x), heads, -1).transpose(1, 0, 2))


def _by_token(x: NDArray[np.floating]) -> F32:
    """[H, T, D] as [T, H*D]."""
    return np.ascontiguousarray(x.transpose(1, 0, 2), _f).reshape(x.shape[1], -1)


def _norm(x: F32, gain: F32, eps: float) -> tuple[F32, Callable[[F32], tuple[F32, F32]]]:
    """RMSNorm over the last axis, and its derivatives with respect to x and to the gain."""
    inverse = (_f(1) / np.sqrt((x * x).mean(axis=-1, keepdims=True, dtype=_f) + _f(eps))).astype(_f)
    normed = x * inverse

    def back(given: F32) -> tuple[F32, F32]:
        scaled = given * gain
        slope: F32 = inverse * (scaled - normed * (scaled * normed).mean(axis=-1, keepdims=True, dtype=_f))
        return slope, (given * normed).reshape(-1, len(gain)).sum(axis=0)

    return normed * gain, back
