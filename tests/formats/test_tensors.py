"""The grid of a quantized tensor, by its definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.errors import FormatError
from freehold.formats.tensors import QuantizedTensor, bf16_to_float32, to_float32, widened


def quantized(rows: int, columns: int, group: int, bits: int, *, shifted: bool, seed: int = 0) -> QuantizedTensor:
    rng = np.random.default_rng(seed)
    shape = (rows, -(-columns // group))
    scales, offsets = rng.normal(0, 1, (2, *shape)).astype(np.float32)
    codes = rng.integers(0, 1 << bits, (rows, columns), dtype=np.uint8)
    return QuantizedTensor(codes, scales, offsets if shifted else None, bits, group)


@given(
    rows=st.integers(1, 4),
    columns=st.integers(1, 200),
    group=st.sampled_from([32, 64, 128]),
    bits=st.sampled_from([4, 8]),
    shifted=st.booleans(),
)
def test_every_weight_is_what_the_definition_says(
    rows: int, columns: int, group: int, bits: int, shifted: bool
) -> None:
    tensor = quantized(rows, columns, group, bits, shifted=shifted)
    values = tensor.float32()
    assert values.dtype == np.float32
    for row in range(rows):
        for column in range(columns):
            scale, code = tensor.scales[row, column // group], np.float32(tensor.codes[row, column])
            if tensor.offsets is None:
                expected = scale * (code - np.float32(1 << (bits - 1)))
            else:
                expected = scale * code + tensor.offsets[row, column // group]
            assert values[row, column] == expected


def test_dequantizing_leaves_the_codes_alone() -> None:
    tensor = quantized(2, 64, 32, 4, shifted=True)
    before = tensor.codes.copy()
    tensor.float32()
    np.testing.assert_array_equal(tensor.codes, before)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"bits": 9}, "2 to 8 bits per weight, found 9"),
        ({"codes": np.zeros((2, 64), np.int8)}, r"uint8 codes \[N, K\], found int8"),
        ({"codes": np.zeros(64, np.uint8)}, r"uint8 codes \[N, K\], found uint8 \[64\]"),
        ({"group_size": 0}, "a positive group size, found 0"),
        ({"scales": np.zeros((2, 3), np.float32)}, r"float32 scales \[2, 2\], found float32 \[2, 3\]"),
        ({"scales": np.zeros((2, 2), np.float64)}, r"float32 scales \[2, 2\], found float64"),
        ({"offsets": np.zeros((1, 2), np.float32)}, r"float32 offsets \[2, 2\], found float32 \[1, 2\]"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change: dict[str, Any], problem: str) -> None:
    good = quantized(2, 64, 32, 4, shifted=True)
    parts = {name: getattr(good, name) for name in ("codes", "scales", "offsets", "bits", "group_size")}
    with pytest.raises(FormatError, match=problem):
        QuantizedTensor(**(parts | change))


def test_bfloat16_bits_are_the_upper_half_of_a_float32() -> None:
    bits = np.array([[0x3F80, 0xC000], [0x7F80, 0x0000]], np.uint16)
    expected = np.array([[1.0, -2.0], [np.inf, 0.0]], np.float32)
    np.testing.assert_array_equal(bf16_to_float32(bits), expected)
    np.testing.assert_array_equal(to_float32(bits), expected)
    np.testing.assert_array_equal(to_float32(expected), expected)


@pytest.mark.parametrize("shifted", [True, False])
@pytest.mark.parametrize(("bits", "wider"), [(3, 4), (4, 5), (5, 8), (6, 8), (8, 8)])
def test_wider_codes_hold_the_very_same_values(bits: int, wider: int, *, shifted: bool) -> None:
    tensor = quantized(4, 64, 32, bits, shifted=shifted)
    found = widened(tensor, wider)
    assert found.bits == wider
    np.testing.assert_array_equal(found.float32(), tensor.float32())
