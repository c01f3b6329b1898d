"""Linears: each tier equals the NumPy twin, to the last bit where weights are quantized."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.kernels import _native
from freehold.kernels.executor import pack
from freehold.kernels.matrix import FloatMatrix, Matrix, QuantizedMatrix
from freehold.kernels.reference import linear, quantize_rows

from .conftest import ALL_TIERS, quantized


def activations(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    x = rng.standard_normal((rows, columns)).astype(np.float32)
    x[:, :: max(1, columns // 3)] *= 30  # outlier channels
    x[0, : columns // 2] = 0  # whole groups of zeros
    return x


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [32, 64, 128, None])
@pytest.mark.parametrize("rows", [1, 3, 8, 37, 65])
def test_quantized_linears_equal_the_reference_bit_for_bit(
    tier: str, bits: int, symmetric: bool, group: int | None, rows: int
) -> None:
    rng = np.random.default_rng(rows)
    for features, columns in ((16, 128), (90, 200), (130, 96)):
        part = quantized(rng, features, columns, bits, group or columns, symmetric)
        x = activations(rng, rows, columns)
        np.testing.assert_array_equal(_native.linear(tier, pack(part), x), linear(x, Matrix((part,))))


def test_extreme_codes_and_activations_do_not_saturate(tier: str) -> None:
    for bits in (4, 8):
        codes = np.full((32, 128), (1 << bits) - 1, np.uint8)
        part = QuantizedMatrix(codes, np.full((32, 1), 0.5, np.float32), None, bits, 128)
        for value in (1.0, -1.0):
            x = np.full((40, 128), value, np.float32)
            np.testing.assert_array_equal(_native.linear(tier, pack(part), x), linear(x, Matrix((part,))))


def test_scales_that_are_not_bfloat16_are_kept_exactly(tier: str) -> None:
    rng = np.random.default_rng(1)
    exact = quantized(rng, 48, 64, 4, 32, False)
    rounded = QuantizedMatrix(
        exact.codes,
        (exact.scales.view(np.uint32) & 0xFFFF0000).view(np.float32),
        None if exact.offsets is None else (exact.offsets.view(np.uint32) & 0xFFFF0000).view(np.float32),
        4,
        32,
    )
    x = activations(rng, 5, 64)
    for part in (exact, rounded):
        packed = pack(part)
        np.testing.assert_array_equal(_native.linear(tier, packed, x), linear(x, Matrix((part,))))
        np.testing.assert_array_equal(packed.float32(), part.float32())
    assert pack(rounded).nbytes < pack(exact).nbytes


@pytest.mark.parametrize("rows", [1, 5, 33])
@pytest.mark.parametrize("half", [False, True], ids=["f32", "bf16"])
def test_float_linears_agree_with_the_reference(tier: str, rows: int, half: bool) -> None:
    rng = np.random.default_rng(2)
    weight = rng.standard_normal((75, 130)).astype(np.float32)
    part = FloatMatrix((weight.view(np.uint32) >> 16).astype(np.uint16)) if half else FloatMatrix(weight)
    x = rng.standard_normal((rows, 130)).astype(np.float32)
    np.testing.assert_allclose(_native.linear(tier, pack(part), x), linear(x, Matrix((part,))), rtol=1e-4, atol=1e-4)


def test_a_row_gives_the_same_bits_alone_and_in_any_batch(tier: str) -> None:
    rng = np.random.default_rng(3)
    x = activations(rng, 70, 192)
    for part in (
        quantized(rng, 100, 192, 4, 64, True),
        quantized(rng, 100, 192, 8, 192, True),
        FloatMatrix(rng.standard_normal((100, 192)).astype(np.float32)),
    ):
        packed = pack(part)
        whole = _native.linear(tier, packed, x)
        for begin, end in ((0, 1), (1, 4), (4, 21), (21, 70)):
            np.testing.assert_array_equal(_native.linear(tier, packed, x[begin:end].copy()), whole[begin:end])


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_shape_agrees_on_every_tier(data: st.DataObject) -> None:
    features, columns = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 300))
    group = data.draw(st.sampled_from([32, 64, 128, columns]))
    bits, symmetric = data.draw(st.sampled_from([4, 8])), data.draw(st.booleans())
    rows = data.draw(st.integers(1, 40))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    part = quantized(rng, features, columns, bits, group, symmetric)
    x = activations(rng, rows, columns)
    expected = linear(x, Matrix((part,)))
    for tier in filter(_native.has_tier, ALL_TIERS):
        np.testing.assert_array_equal(_native.linear(tier, pack(part), x), expected, err_msg=tier)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=80))
def test_quantized_activations_stay_within_half_a_step(values: list[float]) -> None:
    x = np.array([values], np.float32)
    q, scale = quantize_rows(x, 32)
    assert np.abs(q.astype(int)).max() <= 127
    steps = np.repeat(scale, 32, axis=1)[:, : x.shape[1]].astype(np.float64)
    error = np.abs(q[:, : x.shape[1]] * steps - x)
    assert np.all(error <= 0.5001 * steps + 2e-36)


def test_packing_refuses_what_does_not_fit() -> None:
    codes = np.zeros((4, 64), np.uint8)
    scales = np.ones((4, 2), np.float32)
    with pytest.raises(ValueError, match="scales must be"):
        _native.pack_quantized(codes, scales, None, 4, 64)
    with pytest.raises(ValueError, match="group must be"):
        _native.pack_quantized(codes, np.ones((4, 4), np.float32), None, 4, 16)
    with pytest.raises(ValueError, match="bits must be"):
        _native.pack_quantized(codes, scales, None, 5, 32)
    with pytest.raises(ValueError, match="does not fit"):
        _native.pack_quantized(np.full((4, 64), 16, np.uint8), scales, None, 4, 32)
    with pytest.raises(ValueError, match="wrong number of columns"):
        _native.linear("portable", _native.pack_quantized(codes, scales, None, 4, 32), np.zeros((1, 32), np.float32))
