"""Suffix arrays order suffixes as their bytes do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.provenance.trace import suffixes


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=200) | st.binary(min_size=1, max_size=50).map(lambda part: part * 5))
def test_suffixes_are_in_the_order_of_their_bytes(text: bytes):
    order = suffixes.suffix_array(np.frombuffer(text, np.uint8))
    assert order.dtype == np.uint32
    assert order.tolist() == sorted(range(len(text)), key=lambda i: text[i:])


def test_a_text_whose_positions_need_more_than_31_bits_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(suffixes, "LONGEST", 3)
    with pytest.raises(ValueError, match="longer than 3"):
        suffixes.suffix_array(np.zeros(4, np.uint8))
