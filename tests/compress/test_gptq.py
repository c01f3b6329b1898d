"""GPTQ: its error is the one it reports, lower than rounding to nearest, and every step on the way lowers it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from freehold.compress.gptq import FLOOR, curvature, gptq
from freehold.compress.quantize import quantize
from freehold.errors import FormatError

LIGHT = 0.01
"""Damping: little of the inputs' correlation is lost, so what it is worth shows."""


def inputs(columns: int = 128, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Correlated inputs: moment, its correlation and scale."""
    random = np.random.default_rng(seed)
    x = random.normal(0, 1, (600, columns)) @ random.normal(0, 1, (columns, columns)) * random.uniform(0.2, 3, columns)
    moment = x.T @ x / len(x)
    scale = np.sqrt(np.diag(moment))
    return moment, (moment / scale[:, None] / scale[None, :]).astype(np.float32), scale.astype(np.float32)


def damped(correlation: np.ndarray, scale: np.ndarray) -> np.ndarray:
    made = correlation.astype(np.float64) + LIGHT * np.eye(len(scale))
    squares = scale.astype(np.float64) ** 2
    return made * scale[:, None] * scale[None, :] + FLOOR * squares.mean() * np.eye(len(scale))


def weights(rows: int = 48, columns: int = 128) -> np.ndarray:
    return np.random.default_rng(5).normal(0, 0.1, (rows, columns)).astype(np.float32)


def dequantized(found, bits: int, group: int) -> np.ndarray:  # type: ignore[no-untyped-def]
    zeros = 1 << (bits - 1) if found.zeros is None else np.repeat(found.zeros.astype(np.float64), group, axis=1)
    return (found.codes.astype(np.float64) - zeros) * np.repeat(found.scales, group, axis=1)


@pytest.mark.parametrize("columns", [64, 600])
def test_the_root_squared_is_the_inverse(columns: int) -> None:
    _, correlation, scale = inputs(columns)
    found, expected = curvature(correlation, scale, LIGHT), damped(correlation, scale)
    root = found.root.astype(np.float64)
    assert np.array_equal(root, np.triu(root))
    assert np.allclose(root.T @ root @ expected[found.order][:, found.order], np.eye(columns), atol=2e-2)
    assert np.allclose(found.matrix, expected, rtol=1e-4, atol=1e-4 * expected.max())


def test_the_heaviest_columns_come_first() -> None:
    _, correlation, scale = inputs()
    assert (np.diff(scale[curvature(correlation, scale, LIGHT).order]) <= 0).all()


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("symmetric", [True, False])
def test_it_costs_what_it_says_and_much_less_than_rounding_to_nearest(group: int, symmetric: bool) -> None:
    _, correlation, scale = inputs()
    moment, w = damped(correlation, scale), weights()
    found = gptq(w, curvature(correlation, scale, LIGHT), 4, group, symmetric=symmetric)
    error = w - dequantized(found, 4, group)
    assert np.allclose(found.costs, np.einsum("nk,kl,nl->n", error, moment, error), rtol=1e-2)
    assert found.squared_error == pytest.approx((error**2).sum(), rel=1e-3)
    plain = w - dequantized(quantize(w, 4, group, symmetric=symmetric), 4, group)
    assert found.costs.sum() < 0.5 * np.einsum("nk,kl,nl->n", plain, moment, plain).sum()


@pytest.mark.parametrize("bits", [3, 4, 5, 6])
@pytest.mark.parametrize("symmetric", [True, False])
def test_each_sweep_lowers_the_cost_and_keeps_to_the_grid(bits: int, symmetric: bool) -> None:
    _, correlation, scale = inputs()
    given, w = curvature(correlation, scale, LIGHT), weights()
    costs = []
    for sweeps in range(4):
        found = gptq(w, given, bits, 32, symmetric=symmetric, sweeps=sweeps)
        costs.append(found.costs.sum())
        assert found.codes.max() < 1 << bits
        assert not (found.scales.view(np.uint32) & 0xFFFF).any()
    assert costs == sorted(costs, reverse=True)
    assert costs[2] < 0.97 * costs[0]


def test_a_bit_more_quarters_the_cost() -> None:
    _, correlation, scale = inputs()
    given, w = curvature(correlation, scale, LIGHT), weights()
    costs = [gptq(w, given, bits, 32, symmetric=True).costs.sum() for bits in (3, 4, 5, 6)]
    assert all(2.8 < more / less < 6.5 for more, less in itertools.pairwise(costs))


def test_scales_are_bfloat16_and_rows_do_not_depend_on_each_other() -> None:
    _, correlation, scale = inputs()
    given, w = curvature(correlation, scale, LIGHT), weights(65)
    whole = gptq(w, given, 4, 32, symmetric=True)
    assert not (whole.scales.view(np.uint32) & 0xFFFF).any()
    for rows in (slice(0, 1), slice(40, 65)):
        part = gptq(w[rows], given, 4, 32, symmetric=True)
        assert (part.codes == whole.codes[rows]).mean() > 0.99  # matrix products may differ in the last bit


def test_inputs_that_never_move_do_no_harm() -> None:
    _, correlation, scale = inputs()
    scale[[3, 70]] = 0
    correlation[[3, 70]] = 0
    correlation[:, [3, 70]] = 0
    found = gptq(weights(), curvature(correlation, scale, LIGHT), 4, 32, symmetric=True)
    assert np.isfinite(found.costs).all()
    assert np.abs(weights() - dequantized(found, 4, 32)).max() < 0.2


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(bad: float) -> None:
    _, correlation, scale = inputs()
    w = weights()
    w[3, 4] = bad
    with pytest.raises(FormatError, match="finite"):
        gptq(w, curvature(correlation, scale, LIGHT), 4, 32, symmetric=True)


def test_a_matrix_that_is_no_moment_is_refused() -> None:
    correlation = np.full((64, 64), -0.9, np.float32)
    with pytest.raises(FormatError, match="positive definite"):
        curvature(correlation, np.ones(64, np.float32))
