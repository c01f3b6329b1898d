"""Every ISA tier this machine can run, and small random programs to run on them."""

from __future__ import annotations

import numpy as np
import pytest

from freehold.kernels import _native
from freehold.kernels.matrix import FloatMatrix, Matrix, QuantizedMatrix
from freehold.kernels.program import Buffer, Op, Program, WeightSpec

ALL_TIERS = ["portable", "avx2", "avx512", "amx", "amx-emulated"]


@pytest.fixture(params=ALL_TIERS)
def tier(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if not _native.has_tier(name):
        pytest.skip(f"this machine can't run the {name} tier")
    return name


def quantized(
    rng: np.random.Generator, rows: int, columns: int, bits: int, group: int, symmetric: bool
) -> QuantizedMatrix:
    groups = -(-columns // group)
    codes = rng.integers(0, 1 << bits, (rows, columns), dtype=np.uint8)
    scales = (rng.standard_normal((rows, groups)) * 0.01).astype(np.float32)
    offsets = None if symmetric else (rng.standard_normal((rows, groups)) * 0.05).astype(np.float32)
    return QuantizedMatrix(codes, scales, offsets, bits, group)


def tiny_program(
    heads: int = 4,
    kv_heads: int = 2,
    dim: int = 16,
    layers: int = 2,
    vocabulary: int = 67,
    context: int = 512,
    window: int = 0,
) -> Program:
    """A two-layer decoder with every operation of the instruction set, on awkward sizes; `window` in the first layer.

    The last layer's branches are normed before they are added, and gated by GELU.
    """
    hidden, inner = 72, 88
    qkv = (heads + 2 * kv_heads) * dim
    ops = [
        Op("embed", "x", (), ("embed",), {"scale": 1.5}),
        Op("rope_table", "table", (), ("inv_freq",), {"factor": 1.1}),
    ]
    for layer in range(layers):
        here, last = f"{layer}.", layer == layers - 1
        branch, adds = ("branch", 0) if last else ("x", 1)
        ops += [
            Op("rmsnorm", "h", ("x",), (here + "norm1",), {"eps": 1e-5, "offset": 0.5}),
            Op("linear", "qkv", ("h",), (here + "qkv", here + "qkv_bias")),
            Op("headnorm", "qkv", (), (here + "qnorm",), {"eps": 1e-6, "column": 0, "heads": heads}),
            Op("rope", "qkv", ("table",), (), {"column": 0, "heads": heads, "head_dim": dim}),
            Op("rope", "qkv", ("table",), (), {"column": heads * dim, "heads": kv_heads, "head_dim": dim}),
            Op(
                "attention",
                "a",
                ("qkv",),
                (),
                {
                    "layer": layer,
                    "heads": heads,
                    "kv_heads": kv_heads,
                    "head_dim": dim,
                    "scale": dim**-0.5,
                    "window": 0 if layer else window,
                },
            ),
            Op("linear", branch, ("a",), (here + "o",), {"accumulate": adds}),
            *_added(here + "norm_o", last),
            Op("rmsnorm", "h", ("x",), (here + "norm2",), {"eps": 1e-5}),
            Op("linear", "gu", ("h",), (here + "gate_up",)),
            Op("gelu_mul" if last else "silu_mul", "m", ("gu",)),
            Op("linear", branch, ("m",), (here + "down",), {"accumulate": adds}),
            *_added(here + "norm_down", last),
        ]
    ops += [
        Op("gather", "last", ("x",)),
        Op("rmsnorm", "last_h", ("last",), ("norm",), {"eps": 1e-5}),
        Op("linear", "logits", ("last_h",), ("embed",)),
    ]
    buffers = {
        "x": Buffer(hidden),
        "h": Buffer(hidden),
        "branch": Buffer(hidden),
        "table": Buffer(dim),
        "qkv": Buffer(qkv),
        "a": Buffer(heads * dim),
        "gu": Buffer(2 * inner),
        "m": Buffer(inner),
        "last": Buffer(hidden, "outputs"),
        "last_h": Buffer(hidden, "outputs"),
        "logits": Buffer(vocabulary, "outputs"),
    }
    weights = {name: WeightSpec((name,)) for op in ops for name in op.weights}
    return Program("tiny", buffers, tuple(ops), weights, layers, heads, kv_heads, dim, vocabulary, context)


def _added(name: str, wanted: bool) -> list[Op]:
    return [Op("rmsnorm", "x", ("branch",), (name,), {"eps": 1e-5, "offset": 1.0, "accumulate": 1})] if wanted else []


def tiny_weights(program: Program, precision: str, seed: int = 0) -> dict[str, Matrix | np.ndarray]:
    """Random weights of one precision: "f32", "bf16" or "mixed" (int4, int8, asymmetric, several groups, fused parts)."""
    rng = np.random.default_rng(seed)
    out: dict[str, Matrix | np.ndarray] = {}
    for op in program.ops:
        for name in op.weights:
            if name in out:
                continue
            if name == "inv_freq":
                out[name] = (10000.0 ** (-np.arange(program.head_dim // 2) / (program.head_dim // 2))).astype(
                    np.float32
                )
            elif "norm" in name:
                columns = program.head_dim if "qnorm" in name else program.buffers[op.out].columns
                out[name] = (1 + 0.1 * rng.standard_normal(columns)).astype(np.float32)
            elif "bias" in name:
                out[name] = (0.1 * rng.standard_normal(program.buffers[op.out].columns)).astype(np.float32)
            else:
                rows, columns = _matrix_shape(program, op)
                out[name] = _matrix(rng, name, rows, columns, precision)
    return out


def _matrix_shape(program: Program, op: Op) -> tuple[int, int]:
    if op.kind == "embed":
        return program.vocabulary, program.buffers[op.out].columns
    return program.buffers[op.out].columns, program.buffers[op.inputs[0]].columns


def _matrix(rng: np.random.Generator, name: str, rows: int, columns: int, precision: str) -> Matrix:
    full = (rng.standard_normal((rows, columns)) * columns**-0.5).astype(np.float32)
    if precision == "f32":
        return Matrix((FloatMatrix(full),))
    if precision == "bf16":
        return Matrix((FloatMatrix((full.view(np.uint32) >> 16).astype(np.uint16)),))
    if name == "embed":
        return Matrix((quantized(rng, rows, columns, 8, columns, True),))
    if name.endswith("qkv"):  # mixed number formats in one fused matrix, units repeated and changed
        cut = rows // 4
        return Matrix(
            (
                quantized(rng, cut, columns, 4, 32, True),
                quantized(rng, cut, columns, 8, 32, True),
                quantized(rng, cut, columns, 4, 64, False),
                FloatMatrix(full[3 * cut :]),
            )
        )
    return Matrix((quantized(rng, rows, columns, 4, 32, name.endswith("o")),))
