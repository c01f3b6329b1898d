"""Matches by suffix array equal those a plain search finds; damaged arrays are refused, not followed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from freehold.kernels.matching import Match, maximal_matches


def suffix_array(text: bytes) -> NDArray[np.uint32]:
    return np.array(sorted(range(len(text)), key=lambda i: text[i:]), np.uint32)


def found_in(text: bytes, query: bytes, minimum: int) -> list[Match]:
    return maximal_matches(np.frombuffer(text, np.uint8), suffix_array(text), query, minimum)


def plain_matches(text: bytes, query: bytes, minimum: int) -> list[tuple[int, int, set[int]]]:
    """The definition: the longest match from each position, without those that lie in another."""
    ends, found = 0, []
    for start in range(len(query)):
        length = max((n for n in range(len(query) - start + 1) if query[start : start + n] in text), default=0)
        if length >= minimum and start + length > ends:
            ends = start + length
            piece = query[start:ends]
            found.append((start, length, {i for i in range(len(text)) if text.startswith(piece, i)}))
    return found


few_letters = st.binary(max_size=60).map(lambda raw: bytes(97 + byte % 2 for byte in raw))


@settings(deadline=None)
@given(text=few_letters | st.binary(max_size=60), query=few_letters, minimum=st.integers(1, 12))
@example(text=b"abababab", query=b"bababababab", minimum=2)
@example(text=b"aaaaaaaa", query=b"aaaabaaaaaaaaaab", minimum=3)
@example(text=b"\xff\x00\xff", query=b"\x00\xff\xff", minimum=1)
def test_matches_equal_those_of_a_plain_search(text: bytes, query: bytes, minimum: int):
    order = suffix_array(text)
    found = [
        (match.start, match.length, {int(i) for i in order[match.low : match.high]})
        for match in found_in(text, query, minimum)
    ]
    assert found == plain_matches(text, query, minimum)


def test_a_text_that_repeats_itself_does_not_make_a_long_query_slow():
    # A plain walk from every position would compare 10^10 bytes here.
    text = b"a" * 100_000
    order = np.arange(len(text), dtype=np.uint32)[::-1].copy()
    query = b"a" * 99_999 + b"b" + b"a" * 99_999
    found = maximal_matches(np.frombuffer(text, np.uint8), order, query, 32)
    assert [(match.start, match.length) for match in found] == [(0, 99_999), (100_000, 99_999)]


def test_no_text_no_query_and_a_query_shorter_than_the_minimum_match_nothing():
    assert found_in(b"", b"abc", 1) == found_in(b"abc", b"", 1) == found_in(b"abc", b"abc", 4) == []


def test_an_array_that_points_outside_its_text_is_refused():
    order = np.array([2, 0, 2**32 - 1], np.uint32)
    with pytest.raises(ValueError, match="outside its text"):
        maximal_matches(np.frombuffer(b"abc", np.uint8), order, b"abc", 1)


def test_an_array_of_another_length_is_refused():
    with pytest.raises(ValueError, match="same length"):
        maximal_matches(np.frombuffer(b"abc", np.uint8), np.arange(2, dtype=np.uint32), b"abc", 1)


def test_a_minimum_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        found_in(b"abc", b"abc", 0)


def test_a_wrong_order_finds_less_but_does_no_harm():
    text = bytes(np.random.default_rng(1).integers(97, 100, 500, np.uint8))
    shuffled = np.random.default_rng(2).permutation(500).astype(np.uint32)
    found = maximal_matches(np.frombuffer(text, np.uint8), shuffled, text[100:200], 8)
    assert all(match.length <= 100 and match.low <= match.high <= 500 for match in found)
