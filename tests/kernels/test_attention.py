"""Attention alone, over many pages: every tier equals the NumPy twin closely, and nobody's share of the work shows."""

from __future__ import annotations

import numpy as np
import pytest

from freehold.kernels.executor import Executor
from freehold.kernels.matrix import FloatMatrix, Matrix
from freehold.kernels.program import Buffer, Op, Program, Step, WeightSpec
from freehold.kernels.reference import ReferenceExecutor

HEADS, KV_HEADS = 6, 2
CONTEXT = 1300
"""A whole segment and a part of the next."""

Run = tuple[int, int]
"""The first token of a chunk, and how many."""


def attention_program(dim: int, window: int = 0) -> tuple[Program, dict[str, Matrix | np.ndarray]]:
    """Rows of a table are taken for queries, keys and values; what attention makes of them comes out as it is."""
    width, columns = (HEADS + 2 * KV_HEADS) * dim, HEADS * dim
    heads = {"layer": 0, "heads": HEADS, "kv_heads": KV_HEADS, "head_dim": dim, "scale": dim**-0.5, "window": window}
    ops = (
        Op("embed", "qkv", (), ("embed",)),
        Op("attention", "a", ("qkv",), (), heads),
        Op("gather", "last", ("a",)),
        Op("linear", "logits", ("last",), ("eye",)),
    )
    buffers = {
        "qkv": Buffer(width),
        "a": Buffer(columns),
        "last": Buffer(columns, "outputs"),
        "logits": Buffer(columns, "outputs"),
    }
    rng = np.random.default_rng(3)
    # Some keys matter far more than others, values differ in size, and channels do too.
    table = rng.standard_normal((CONTEXT, width)) * rng.uniform(0.3, 3, (CONTEXT, 1)) * rng.uniform(0.2, 2, (1, width))
    weights: dict[str, Matrix | np.ndarray] = {
        "embed": Matrix((FloatMatrix(table.astype(np.float32)),)),
        "eye": Matrix((FloatMatrix(np.eye(columns, dtype=np.float32)),)),
    }
    specs = {name: WeightSpec((name,)) for name in weights}
    return Program("attention", buffers, ops, specs, 1, HEADS, KV_HEADS, dim, CONTEXT, CONTEXT), weights


def chunk(run: Run, table: list[int]) -> Step:
    """Tokens of one sequence; all of them are asked for."""
    positions = np.arange(run[0], run[0] + run[1], dtype=np.int32)
    rows = np.arange(run[1], dtype=np.int32)
    return Step(positions, positions, np.zeros_like(rows), np.array([table], np.int32), rows)


def together(runs: list[Run], tables: list[list[int]]) -> Step:
    """Chunks of several sequences in one step."""
    positions = np.concatenate([np.arange(first, first + count) for first, count in runs]).astype(np.int32)
    sequences = np.repeat(np.arange(len(runs)), [count for _, count in runs]).astype(np.int32)
    rows = np.arange(len(positions), dtype=np.int32)
    return Step(positions, positions, sequences, np.array(tables, np.int32), rows)


TABLE = list(range(21))


@pytest.mark.parametrize("kv_dtype", ["int8", "f16", "f32"])
@pytest.mark.parametrize(("dim", "window"), [(64, 0), (80, 700), (16, 65)])
def test_long_contexts_agree_with_the_reference(tier: str, kv_dtype: str, dim: int, window: int) -> None:
    program, weights = attention_program(dim, window)
    native = Executor(program, weights, pages=21, kv_dtype=kv_dtype, threads=2, tier=tier)
    reference = ReferenceExecutor(program, weights, pages=21, kv_dtype=kv_dtype)
    for run in [(0, 1200), (1200, 1), (1201, 99)]:
        got, expected = native.run(chunk(run, TABLE)), reference.run(chunk(run, TABLE))
        np.testing.assert_allclose(got, expected, rtol=0, atol=5e-5 * np.abs(expected).max())


@pytest.mark.parametrize("kv_dtype", ["int8", "f32"])
@pytest.mark.parametrize("window", [0, 700])
def test_long_contexts_do_not_depend_on_chunks_threads_or_company(tier: str, kv_dtype: str, window: int) -> None:
    program, weights = attention_program(32, window)

    def executor(threads: int) -> Executor:
        return Executor(program, weights, pages=44, kv_dtype=kv_dtype, threads=threads, tier=tier)

    alone, expected = executor(1), []
    for run in [(0, 1000), (1000, 290), (1290, 1)]:
        expected.append(alone.run(chunk(run, TABLE)))
    want = np.concatenate(expected)

    shared = executor(3)  # cut into segments, which members share
    got = [shared.run(chunk(run, TABLE)) for run in [(0, 64), (64, 1199), (1263, 20), (1283, 1), (1284, 7)]]
    np.testing.assert_array_equal(np.concatenate(got), want)

    crowded = executor(2)  # beside another sequence, on pages that held something else
    crowded.run(chunk((0, 1290), [*range(23, 44)]))
    tables = [list(range(43, 22, -1)), [22, *range(20)]]
    other = [
        crowded.run(together([(first, count), (first // 2, 30)], tables)) for first, count in [(0, 1290), (1290, 1)]
    ]
    np.testing.assert_array_equal(np.concatenate([other[0][:1290], other[1][:1]]), want)


def test_values_of_tokens_that_a_row_does_not_see_change_nothing(tier: str) -> None:
    program, weights = attention_program(64)
    fresh = Executor(program, weights, pages=1, tier=tier)
    used = Executor(program, weights, pages=1, tier=tier)
    used.run(chunk((1236, 64), [0] * 21))  # keys, values and scales of another sequence lie in the page
    np.testing.assert_array_equal(used.run(chunk((0, 37), [0])), fresh.run(chunk((0, 37), [0])))
