"""The NumPy twin: the same program, operation by operation, in plain NumPy.

It is the definition of what the native kernels must compute. Quantized `linear` is defined to the last bit (integer
dot products, then float32 multiplications and additions in a fixed order), so every ISA tier must equal it exactly;
the other operations agree to float32 rounding. Slow by design: used in tests and by `FREEHOLD_ISA=reference`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import cast

import numpy as np
from numpy.typing import NDArray

from freehold.kernels.matrix import FloatMatrix, Matrix, QuantizedMatrix
from freehold.kernels.program import PAGE, Op, Program, Step

F32 = NDArray[np.float32]
_f = np.float32


def quantize_rows(x: F32, group: int) -> tuple[NDArray[np.int8], F32]:
    """Quantize activations to int8, symmetric, one scale per row and group of columns.

    scale = absmax / 127 (float32 division); q = round-half-even(x * (1 / scale)) with 1/scale a float32 division; 0 where
    the group is all zero or its scale subnormal (no usable inverse). Returns int8 [T, K padded to a multiple of `group`]
    and float32 [T, K/group].
    """
    rows, columns = x.shape
    padded = -(-columns // group) * group
    if padded != columns:
        x = np.concatenate([x, np.zeros((rows, padded - columns), _f)], axis=1)
    grouped = np.ascontiguousarray(x, dtype=_f).reshape(rows, padded // group, group)
    scale = (np.abs(grouped).max(axis=2) / _f(127)).astype(_f)
    scale = np.where(scale >= np.finfo(_f).tiny, scale, _f(0)).astype(_f)
    inverse = np.divide(_f(1), scale, out=np.zeros_like(scale), where=scale > 0)
    q = np.rint(grouped * inverse[:, :, None]).astype(np.int8)
    return q.reshape(rows, padded), scale


def quantized_linear(x: F32, matrix: QuantizedMatrix) -> F32:
    """X @ W.T with int8 activations, bit for bit what every kernel tier computes.

    For each unit u of `matrix.unit` columns, in order: dot = sum q_w * q_x (exact integers, q_w centred by
    2^(bits-1) when symmetric, else unsigned), f = float(dot) * w_scale, asymmetric: f += float(sum q_x) * w_offset,
    acc += f * x_scale. No fused multiply-add.
    """
    q, sx = quantize_rows(x, matrix.act_group)
    unit = matrix.unit
    codes = matrix.codes.astype(np.int32)
    if matrix.symmetric:
        codes = codes - (1 << (matrix.bits - 1))
    acc = np.zeros((x.shape[0], codes.shape[0]), _f)
    columns = codes.shape[1]
    for begin in range(0, columns, unit):
        qu = q[:, begin : begin + unit].astype(np.int32)
        width = min(unit, columns - begin)
        dot = qu[:, :width] @ codes[:, begin : begin + width].T
        part = dot.astype(_f) * matrix.scales[:, begin // matrix.group][None, :]
        if matrix.offsets is not None:
            part = (
                part
                + qu.sum(axis=1, dtype=np.int32).astype(_f)[:, None] * matrix.offsets[:, begin // matrix.group][None, :]
            )
        acc = acc + part * sx[:, begin // matrix.act_group][:, None]
    return acc


def linear(x: F32, matrix: Matrix) -> F32:
    """X [T, K] @ W.T [K, N], by the matrix's own number format; segments side by side."""
    parts = [
        quantized_linear(x, part) if isinstance(part, QuantizedMatrix) else _float_linear(x, part)
        for part in matrix.parts
    ]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def _float_linear(x: F32, part: FloatMatrix) -> F32:
    out: F32 = x @ part.float32().T
    return out


class ReferenceExecutor:
    """Runs a program in NumPy; same interface as `executor.Executor`."""

    def __init__(
        self,
        program: Program,
        weights: Mapping[str, Matrix | F32],
        *,
        pages: int,
        kv_dtype: str = "int8",
        threads: int = 1,
    ) -> None:
        self.program = program
        self.weights = weights
        self.kv_dtype = kv_dtype
        self.threads = threads
        self.steps_alone = 0
        shape = (program.layers, pages * PAGE, program.kv_heads, program.head_dim)
        self._keys = np.zeros(shape, _f)
        self._values = np.zeros(shape, _f)
        self._value_scales = np.zeros(shape[:3], _f)  # as int8 has them
        self.buffers: dict[str, F32] = {}
        self._run: dict[str, Callable[[Op, Step], None]] = {
            "embed": self._embed,
            "rmsnorm": self._rmsnorm,
            "linear": self._linear,
            "headnorm": self._headnorm,
            "rope_table": self._rope_table,
            "rope": self._rope,
            "attention": self._attention,
            "silu_mul": self._silu_mul,
            "gelu_mul": self._gelu_mul,
            "gather": self._gather,
            "residual": self._residual,
        }

    def run(self, step: Step) -> F32:
        """Run every operation for one step; returns logits float32 [R, vocabulary]."""
        for name, buffer in self.program.buffers.items():
            rows = len(step.tokens) if buffer.rows == "tokens" else len(step.outputs)
            self.buffers[name] = np.zeros((rows, buffer.columns), _f)
        for op in self.program.ops:
            self._run[op.kind](op, step)
        return self.buffers["logits"]

    def buffer(self, name: str, rows: int) -> F32:
        """A copy of the first rows of a buffer as the last step left it, float32 [rows, columns]."""
        return self.buffers[name][:rows].copy()

    def copy_page(self, source: int, target: int) -> None:
        """Copy one KV page, in all layers, onto another."""
        for cache in (self._keys, self._values, self._value_scales):
            cache[:, target * PAGE : target * PAGE + PAGE] = cache[:, source * PAGE : source * PAGE + PAGE]

    def _matrix(self, name: str) -> Matrix:
        return cast(Matrix, self.weights[name])

    def _vector(self, name: str) -> F32:
        return cast(F32, self.weights[name])

    def _embed(self, op: Op, step: Step) -> None:
        self.buffers[op.out][:] = self._matrix(op.weights[0]).rows(step.tokens) * _f(op.attrs.get("scale", 1.0))

    def _rmsnorm(self, op: Op, step: Step) -> None:
        gain = self._vector(op.weights[0]) + _f(op.attrs.get("offset", 0.0))
        normed = _norm(self.buffers[op.inputs[0]], gain, op.attrs["eps"])
        target = self.buffers[op.out]
        target[:] = target + normed if op.attrs.get("accumulate") else normed

    def _linear(self, op: Op, step: Step) -> None:
        out = linear(self.buffers[op.inputs[0]], self._matrix(op.weights[0]))
        if len(op.weights) > 1:
            out = out + self._vector(op.weights[1])
        column = int(op.attrs.get("column", 0))
        target = self.buffers[op.out][:, column : column + out.shape[1]]
        target[:] = target + out if op.attrs.get("accumulate") else out

    def _heads(self, op: Op, head_dim: int) -> F32:
        column, heads = int(op.attrs["column"]), int(op.attrs["heads"])
        view = self.buffers[op.out][:, column : column + heads * head_dim]
        return view.reshape(view.shape[0], heads, head_dim)

    def _headnorm(self, op: Op, step: Step) -> None:
        gain = self._vector(op.weights[0])
        column, heads = int(op.attrs["column"]), int(op.attrs["heads"])
        normed = _norm(self._heads(op, len(gain)), gain + _f(op.attrs.get("offset", 0.0)), op.attrs["eps"])
        self.buffers[op.out][:, column : column + heads * len(gain)] = normed.reshape(normed.shape[0], -1)

    def _rope_table(self, op: Op, step: Step) -> None:
        angle = step.positions[:, None].astype(_f) * self._vector(op.weights[0])[None, :]
        factor = _f(op.attrs.get("factor", 1.0))
        self.buffers[op.out][:] = np.concatenate([np.cos(angle) * factor, np.sin(angle) * factor], axis=1)

    def _rope(self, op: Op, step: Step) -> None:
        table = self.buffers[op.inputs[0]]
        dim = int(op.attrs["head_dim"])
        half = dim // 2
        cos, sin = table[:, None, :half], table[:, None, half:]
        column, heads = int(op.attrs["column"]), int(op.attrs["heads"])
        x = self._heads(op, dim)
        first, second = x[..., :half], x[..., half:]
        turned = np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
        self.buffers[op.out][:, column : column + heads * dim] = turned.reshape(turned.shape[0], -1)

    def _attention(self, op: Op, step: Step) -> None:
        layer, heads, kv_heads, dim = (int(op.attrs[a]) for a in ("layer", "heads", "kv_heads", "head_dim"))
        window = int(op.attrs.get("window", 0))
        qkv = self.buffers[op.inputs[0]]
        rows = qkv.shape[0]
        q = qkv[:, : heads * dim].reshape(rows, heads, dim)
        k = qkv[:, heads * dim : (heads + kv_heads) * dim].reshape(rows, kv_heads, dim)
        v = qkv[:, (heads + kv_heads) * dim :].reshape(rows, kv_heads, dim)
        slots = step.tables[step.sequences, step.positions // PAGE] * PAGE + step.positions % PAGE
        self._keys[layer, slots] = store_kv(k, self.kv_dtype)
        self._values[layer, slots] = store_kv(v, self.kv_dtype)
        self._value_scales[layer, slots] = quantize_rows(v.reshape(-1, dim), dim)[1].reshape(rows, kv_heads)
        if self.kv_dtype == "int8":
            q = round_queries(q)
        out = self.buffers[op.out].reshape(rows, heads, dim)
        for row in range(rows):
            length = int(step.positions[row]) + 1
            first = max(length - window, 0) if window else 0
            pages = step.tables[step.sequences[row], : -(-length // PAGE)]
            seen = (pages[:, None] * PAGE + np.arange(PAGE)[None, :]).reshape(-1)[first:length]
            keys = np.repeat(self._keys[layer, seen], heads // kv_heads, axis=1)
            values = np.repeat(self._values[layer, seen], heads // kv_heads, axis=1)
            scores = np.einsum("hd,thd->ht", q[row], keys) * _f(op.attrs["scale"])
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            total = weights.sum(axis=1, keepdims=True)
            if self.kv_dtype == "int8":
                scales = np.repeat(self._value_scales[layer, seen], heads // kv_heads, axis=1).T
                weights = int8_weights(weights, scales, first)
            out[row] = np.einsum("ht,thd->hd", weights / total, values)

    def _silu_mul(self, op: Op, step: Step) -> None:
        x = self.buffers[op.inputs[0]]
        half = x.shape[1] // 2
        gate = x[:, :half]
        self.buffers[op.out][:] = gate / (_f(1) + np.exp(-gate)) * x[:, half:]

    def _gelu_mul(self, op: Op, step: Step) -> None:
        x = self.buffers[op.inputs[0]]
        half = x.shape[1] // 2
        self.buffers[op.out][:] = gelu(x[:, :half])[0] * x[:, half:]

    def _residual(self, op: Op, step: Step) -> None:
        x, unit = self.buffers[op.inputs[0]], int(op.attrs["unit"])
        codes, scales = quantize_rows(x, unit)
        rounded = codes.reshape(len(x), -1, unit).astype(_f) * scales[:, :, None]
        self.buffers[op.out][:] = x - rounded.reshape(len(x), -1)[:, : x.shape[1]]

    def _gather(self, op: Op, step: Step) -> None:
        self.buffers[op.out][:] = self.buffers[op.inputs[0]][step.outputs]


def gelu(x: F32) -> tuple[F32, F32]:
    """GELU by tanh (arXiv 1606.08415), and its derivative."""
    inner = _f(math.sqrt(2 / math.pi)) * (x + _f(0.044715) * x * x * x)
    tanh = np.tanh(inner)
    half = _f(0.5) * (_f(1) + tanh)
    turn = _f(math.sqrt(2 / math.pi)) * (_f(1) + _f(3 * 0.044715) * x * x)
    return x * half, half + _f(0.5) * x * (_f(1) - tanh * tanh) * turn


def store_kv(x: F32, dtype: str) -> F32:
    """What a KV cache of `dtype` ("int8", "f16" or "f32") gives back after storing x [T, H, D].

    int8: symmetric, one float32 scale per token and head.
    """
    if dtype == "f32":
        return x
    if dtype == "f16":
        return x.astype(np.float16).astype(_f)
    rows, heads, dim = x.shape
    q, scale = quantize_rows(x.reshape(rows * heads, dim), dim)
    out: F32 = (q.astype(_f) * scale).reshape(x.shape)
    return out


def round_queries(q: F32) -> F32:
    """Queries [T, H, D] as attention takes them where the cache is int8: each head in steps of its absmax / 32512."""
    unit = np.abs(q).max(axis=2, keepdims=True) / _f(32512)
    unit = np.where(unit >= np.finfo(_f).tiny, unit, _f(0)).astype(_f)
    inverse = np.divide(_f(1), unit, out=np.zeros_like(unit), where=unit > 0)
    out: F32 = np.rint(q * inverse) * unit
    return out


def int8_weights(weights: F32, scales: F32, first: int) -> F32:
    """Softmax weights [H, T] as they multiply values in an int8 cache, whose scales are [H, T].

    In each page, weight times scale becomes a whole number of 65280ths of the page's largest weight times its largest
    scale, of the tokens seen. The first token is at position `first`.
    """
    out = np.zeros_like(weights)
    ends = [*range((first // PAGE + 1) * PAGE - first, weights.shape[1], PAGE), weights.shape[1]]
    for begin, end in zip([0, *ends], ends, strict=False):
        w, s = weights[:, begin:end], scales[:, begin:end]
        unit = w.max(axis=1, keepdims=True) * s.max(axis=1, keepdims=True) / _f(65280)
        codes = np.rint(np.divide(w * s, unit, out=np.zeros_like(w), where=unit > 0))
        out[:, begin:end] = np.divide(codes * unit, s, out=np.zeros_like(w), where=s > 0)
    return out


def _norm(x: F32, gain: F32, eps: float) -> F32:
    mean = np.mean(x.astype(np.float64) ** 2, axis=-1, keepdims=True)
    out: F32 = (x / np.sqrt(mean + eps).astype(_f)).astype(_f) * gain
    return out
