"""Whole programs: each tier equals the NumPy twin, and no row depends on its company."""

from __future__ import annotations

import numpy as np
import pytest

from freehold.kernels.executor import Executor
from freehold.kernels.program import Step
from freehold.kernels.reference import ReferenceExecutor

from .conftest import tiny_program, tiny_weights


def step_of(rows: list[tuple[int, int, int]], tables: list[list[int]], outputs: list[int] | None = None) -> Step:
    """rows: (token, position, sequence)."""
    width = max(len(table) for table in tables)
    padded = [table + [-1] * (width - len(table)) for table in tables]
    token, position, sequence = (np.array(column, np.int32) for column in zip(*rows, strict=True))
    wanted = np.arange(len(rows), dtype=np.int32) if outputs is None else np.array(outputs, np.int32)
    return Step(token, position, sequence, np.array(padded, np.int32), wanted)


def prompt(length: int, sequence: int, begin: int = 0, seed: int = 7) -> list[tuple[int, int, int]]:
    tokens = np.random.default_rng(seed + sequence).integers(0, 67, 500)
    return [(int(tokens[p]), p, sequence) for p in range(begin, begin + length)]


@pytest.mark.parametrize("kv_dtype", ["int8", "f16", "f32"])
@pytest.mark.parametrize("precision", ["f32", "bf16", "mixed"])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_program_agrees_with_the_reference(tier: str, kv_dtype: str, precision: str, threads: int) -> None:
    program = tiny_program()
    weights = tiny_weights(program, precision)
    native = Executor(program, weights, pages=8, kv_dtype=kv_dtype, threads=threads, tier=tier)
    reference = ReferenceExecutor(program, weights, pages=8, kv_dtype=kv_dtype)
    tables = [[3, 0, 5], [1, 7]]
    # A prompt over three pages, another in two chunks, then a decode step of both.
    steps = [
        step_of(prompt(150, 0) + prompt(20, 1), tables),
        step_of(prompt(60, 1, begin=20), tables),
        step_of([(5, 150, 0), (9, 80, 1)], tables, outputs=[1, 0]),
    ]
    # Where something is rounded to int8 or to half precision, float noise may flip a rounding.
    limit = {"f32": 2e-4, "f16": 1e-3, "int8": 0.03}[kv_dtype if precision != "mixed" else "int8"]
    for step in steps:
        got, expected = native.run(step), reference.run(step)
        assert got.shape == expected.shape
        assert np.abs(got - expected).max() <= limit * np.abs(expected).max()


@pytest.mark.parametrize("window", [1, 5, 64, 65, 150, 1000])
@pytest.mark.parametrize("kv_dtype", ["int8", "f32"])
def test_a_window_hides_what_lies_before_it(tier: str, kv_dtype: str, window: int) -> None:
    program, dense = tiny_program(window=window), tiny_program()
    weights = tiny_weights(program, "f32")
    native = Executor(program, weights, pages=8, kv_dtype=kv_dtype, threads=2, tier=tier)
    reference = ReferenceExecutor(program, weights, pages=8, kv_dtype=kv_dtype)
    whole = ReferenceExecutor(dense, weights, pages=8, kv_dtype=kv_dtype)
    step = step_of(prompt(200, 0) + prompt(70, 1), [[3, 0, 5, 2], [1, 7]])
    got, expected, other = native.run(step), reference.run(step), whole.run(step)
    limit = 2e-4 if kv_dtype == "f32" else 0.03  # where something is rounded to int8, noise may flip a rounding
    assert np.abs(got - expected).max() <= limit * np.abs(expected).max()
    assert np.array_equal(expected[:window], other[:window])
    assert (window >= 200) == np.array_equal(expected, other)


@pytest.mark.parametrize("window", [3, 70])
def test_a_window_gives_a_row_the_same_whatever_the_chunks(tier: str, window: int) -> None:
    program = tiny_program(heads=6, kv_heads=2, window=window)
    weights = tiny_weights(program, "mixed")

    def last(chunks: list[int]) -> np.ndarray:
        executor = Executor(program, weights, pages=12, kv_dtype="int8", threads=2, tier=tier)
        begin = 0
        for size in chunks:
            result = executor.run(step_of(prompt(size, 0, begin), [[4, 2, 7]], outputs=[size - 1]))
            begin += size
        return result[0]

    expected = last([170])
    np.testing.assert_array_equal(last([64, 64, 42]), expected)
    np.testing.assert_array_equal(last([1, 100, 68, 1]), expected)


@pytest.mark.parametrize("precision", ["f32", "mixed"])
def test_results_do_not_depend_on_chunks_batches_threads_or_pages(tier: str, precision: str) -> None:
    program = tiny_program(heads=6, kv_heads=2)
    weights = tiny_weights(program, precision)

    def last(threads: int, chunks: list[int], table: list[int], company: int) -> np.ndarray:
        executor = Executor(program, weights, pages=12, kv_dtype="int8", threads=threads, tier=tier)
        tables = [table, [9, 10, 11]]
        begin = 0
        for size in chunks:
            rows = prompt(size, 0, begin)
            rows += prompt(min(company, 192 - begin), 1, begin) if company else []
            result = executor.run(step_of(rows, tables, outputs=[size - 1]))
            begin += size
        return result[0]

    expected = last(1, [170], [0, 1, 2], 0)
    np.testing.assert_array_equal(last(2, [64, 64, 42], [0, 1, 2], 0), expected)
    np.testing.assert_array_equal(last(3, [1, 100, 68, 1], [4, 2, 7], 0), expected)
    np.testing.assert_array_equal(last(2, [169, 1], [8, 0, 3], 11), expected)


@pytest.mark.parametrize("threads", [2, 3])
def test_far_contexts_give_the_same_however_many_share_the_heads(threads: int) -> None:
    program = tiny_program(layers=1, context=2048)
    weights, table = tiny_weights(program, "mixed"), list(range(18))

    def decoded(threads: int, rows: int) -> np.ndarray:
        executor = Executor(program, weights, pages=18, threads=threads)
        executor.run(step_of([(p % 67, p, 0) for p in range(1100)], [table]))
        return executor.run(step_of([(p % 67, p, 0) for p in range(1100, 1100 + rows)], [table]))

    np.testing.assert_array_equal(decoded(threads, 3), decoded(1, 3))
    np.testing.assert_array_equal(decoded(threads, 1), decoded(1, 3)[:1])


def test_a_step_of_one_row_meets_five_times_a_layer_and_twice_more_where_branches_are_normed() -> None:
    program = tiny_program(layers=2)
    executor = Executor(program, tiny_weights(program, "mixed"), pages=1, threads=2)
    assert executor.meetings == 5 + 7 + 2, "the embedding and the end have one each"


def test_logits_stay_as_they_were_while_later_steps_run(tier: str) -> None:
    program = tiny_program()
    executor = Executor(program, tiny_weights(program, "mixed"), pages=2, tier=tier)
    kept = [executor.run(step_of([(token, 0, 0)], [[0]])) for token in range(6)]
    for token, logits in enumerate(kept):
        np.testing.assert_array_equal(logits, executor.run(step_of([(token, 0, 0)], [[0]])))


def test_copied_pages_hold_the_same_keys_and_values(tier: str) -> None:
    program = tiny_program()
    executor = Executor(program, tiny_weights(program, "mixed"), pages=6, kv_dtype="int8", tier=tier)
    executor.run(step_of(prompt(100, 0), [[0, 1]]))
    expected = executor.run(step_of([(3, 100, 0)], [[0, 1]]))
    executor.copy_page(0, 4)
    executor.copy_page(1, 5)
    np.testing.assert_array_equal(executor.run(step_of([(3, 100, 0)], [[4, 5]])), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": [67]}, "token id"),
        ({"tokens": [-1]}, "token id"),
        ({"positions": [512]}, "position"),
        ({"positions": [64]}, "beyond the sequence's pages"),
        ({"sequences": [1]}, "sequence"),
        ({"tables": [[8]]}, "page"),
        ({"tables": [[-1]]}, "page"),
        ({"outputs": [1]}, "output row"),
    ],
)
def test_a_step_that_points_outside_is_refused(change: dict[str, list[int]], message: str) -> None:
    program = tiny_program()
    executor = Executor(program, tiny_weights(program, "f32"), pages=8)
    fields = {"tokens": [1], "positions": [0], "sequences": [0], "tables": [[0]], "outputs": [0]}
    arrays = {name: np.array(value, np.int32) for name, value in (fields | change).items()}
    with pytest.raises(ValueError, match=message):
        executor.run(Step(**arrays))


def test_a_program_that_does_not_fit_its_weights_is_refused() -> None:
    program = tiny_program()
    weights = tiny_weights(program, "f32")
    broken = weights | {"norm": np.ones(3, np.float32)}
    with pytest.raises(ValueError, match="gain of rmsnorm"):
        Executor(program, broken, pages=1)
    with pytest.raises(ValueError, match="window of attention"):
        Executor(tiny_program(window=-1), weights, pages=1)
    with pytest.raises(ValueError, match="matrix rows of linear"):
        Executor(program, weights | {"0.o": weights["0.gate_up"]}, pages=1)
