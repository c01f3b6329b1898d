"""The search for scales, and packing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from freehold.compress.pack import pack_columns, pack_rows, signed
from freehold.compress.quantize import Quantized, bf16_bits, quantize, round_bf16
from freehold.errors import FormatError

GRIDS = [(bits, group, symmetric) for bits in (3, 4, 5, 6, 8) for group in (32, 64) for symmetric in (True, False)]


def dequantized(made: Quantized, bits: int, group: int) -> np.ndarray:
    zeros = np.full(made.scales.shape, 1 << (bits - 1)) if made.zeros is None else made.zeros.astype(int)
    steps = made.codes.astype(int) - np.repeat(zeros, group, axis=1)
    return steps * np.repeat(made.scales, group, axis=1).astype(np.float64)


def absmax_error(weights: np.ndarray, bits: int, group: int) -> np.ndarray:
    """Squared error of each group with plain rounding: scale = absmax / (2^(bits-1) - 1), as bfloat16."""
    grouped = weights.reshape(len(weights), -1, group).astype(np.float64)
    high = (1 << (bits - 1)) - 1
    scale = round_bf16((np.abs(grouped).max(axis=2) / high).astype(np.float32)).astype(np.float64)[:, :, None]
    safe = np.where(scale == 0, 1, scale)
    return ((grouped - np.clip(np.rint(grouped / safe), -high - 1, high) * scale) ** 2).sum(axis=2)


@pytest.mark.parametrize(("bits", "group", "symmetric"), GRIDS)
def test_the_stated_error_is_that_of_the_stored_codes_and_scales(bits: int, group: int, symmetric: bool) -> None:
    weights = np.random.default_rng(1).normal(0.3, 1, (24, 128)).astype(np.float32)
    made = quantize(weights, bits, group, symmetric=symmetric)
    true = float(((weights - dequantized(made, bits, group)) ** 2).sum())
    assert made.squared_error == pytest.approx(true, rel=1e-4)
    assert made.squared_norm == pytest.approx(float((weights.astype(np.float64) ** 2).sum()), rel=1e-5)


@given(
    hnp.arrays(
        np.float32, (4, 64), elements=st.floats(-1000, 1000, width=32).filter(lambda x: x == 0 or abs(x) > 1e-6)
    ),
    st.sampled_from((4, 8)),
)
@settings(max_examples=60, deadline=None)
def test_no_group_is_worse_than_with_plain_absmax_rounding(weights: np.ndarray, bits: int) -> None:
    made = quantize(weights, bits, 32, symmetric=True)
    found = ((weights - dequantized(made, bits, 32)) ** 2).reshape(4, 2, 32).sum(axis=2)
    plain = absmax_error(weights, bits, 32)
    assert (found <= plain * (1 + 1e-4) + 1e-9).all()


def test_the_search_takes_a_seventh_off_the_error_of_plain_int4_rounding() -> None:
    weights = np.random.default_rng(2).normal(0, 1, (64, 256)).astype(np.float32)
    made = quantize(weights, 4, 32, symmetric=True)
    assert made.squared_error**0.5 < 6 / 7 * absmax_error(weights, 4, 32).sum() ** 0.5


def test_zero_points_help_where_weights_lie_on_one_side() -> None:
    weights = np.random.default_rng(3).uniform(0.5, 1.0, (32, 64)).astype(np.float32)
    symmetric = quantize(weights, 4, 32, symmetric=True).squared_error
    lopsided = np.random.default_rng(3).uniform(-0.2, 1.0, (32, 64)).astype(np.float32)
    assert (
        quantize(lopsided, 4, 32, symmetric=False).squared_error
        < 0.6 * quantize(lopsided, 4, 32, symmetric=True).squared_error
    )
    assert quantize(weights, 4, 32, symmetric=False).squared_error <= symmetric * 1.01


@pytest.mark.parametrize(("bits", "group", "symmetric"), GRIDS)
def test_codes_stay_in_range_and_scales_are_bfloat16(bits: int, group: int, symmetric: bool) -> None:
    weights = np.random.default_rng(4).standard_cauchy((16, 128)).astype(np.float32)
    made = quantize(weights, bits, group, symmetric=symmetric)
    assert made.codes.max() < 1 << bits
    assert np.array_equal(round_bf16(made.scales), made.scales)
    if made.zeros is not None:
        assert made.zeros.max() < 1 << bits


def test_a_matrix_of_zeros_stays_zero_with_a_usable_scale() -> None:
    made = quantize(np.zeros((8, 64), np.float32), 4, 32, symmetric=True)
    assert not dequantized(made, 4, 32).any()
    assert (made.scales == 1).all()


def test_weights_already_on_a_grid_come_back_exactly() -> None:
    codes = np.random.default_rng(5).integers(-8, 8, (16, 64))
    codes[:, ::32] = -8
    weights = (codes * 0.25).astype(np.float32)
    assert quantize(weights, 4, 32, symmetric=True).squared_error == 0


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, 1e30])
def test_weights_that_are_not_finite_are_refused(poison: float) -> None:
    weights = np.ones((8, 32), np.float32)
    weights[3, 7] = poison
    with pytest.raises(FormatError, match="finite"):
        quantize(weights, 4, 32, symmetric=True)


def test_denormal_weights_become_zero_without_a_warning() -> None:
    made = quantize(np.full((8, 32), 1e-44, np.float32), 4, 32, symmetric=True)
    assert np.isfinite(made.scales).all()
    assert made.squared_error <= made.squared_norm


def test_bfloat16_rounding_is_to_nearest_and_ties_to_even() -> None:
    values = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -1 - 2**-8], np.float32)
    assert [hex(bits) for bits in bf16_bits(values)] == ["0x3f80", "0x3f80", "0x3f82", "0x3f81", "0xbf80"]


def test_packed_words_are_those_of_compressed_tensors() -> None:
    # Recorded from compressed_tensors 0.20.0: pack_to_int32(values, 4) and (values, 8) for the int8 row below.
    values = np.array([[-8, -7, 0, 7, 3, -1, 2, 5, 1, 4]], np.int8)
    assert pack_rows((values + 8).astype(np.uint8), 4).tolist() == [[-629409776, 201]]
    assert pack_rows((values.astype(np.int16) + 128).astype(np.uint8), 8).tolist() == [
        [-2021623432, -2055045245, 33921]
    ]


@pytest.mark.parametrize("bits", [2, 3, 5, 6, 7])
@pytest.mark.parametrize("columns", [32, 64, 100])
def test_codes_are_packed_one_after_another_without_gaps(bits: int, columns: int) -> None:
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (3, columns)).astype(np.uint8)
    packed = pack_rows(codes, bits)
    assert packed.shape == (3, -(-columns * bits // 32))
    for row, words in zip(codes.tolist(), packed, strict=True):
        number = int.from_bytes(words.tobytes(), "little")
        assert [number >> (bits * place) & ((1 << bits) - 1) for place in range(columns)] == row
        assert number >> (bits * columns) == 0


def test_zero_points_are_packed_down_the_rows() -> None:
    codes = np.arange(10, dtype=np.uint8).reshape(10, 1) % 16
    assert pack_columns(codes, 4).tolist() == [[0x76543210], [0x98]]


def test_int8_codes_lose_the_offset() -> None:
    assert signed(np.array([0, 128, 255], np.uint8)).tolist() == [-128, 0, 127]
