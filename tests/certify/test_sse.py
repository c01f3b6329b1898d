"""Server-sent events out of bytes that arrive in any portions."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.certify.sse import Event, parse

LINES = st.sampled_from(
    [
        "data: a",
        "data:b",
        "data",
        "data: naïve 🦊",
        "event: x",
        "event:",
        ": comment",
        "id: 1",
        "retry: 5",
        "",
        "",
        "odd: y",
    ]
)
ENDS = st.sampled_from(["\n", "\r\n", "\r"])


@given(st.lists(st.tuples(LINES, ENDS), max_size=30), st.randoms(use_true_random=False))
def test_the_events_are_the_same_however_the_bytes_are_split(
    lines: list[tuple[str, str]], chance: random.Random
) -> None:
    body = "".join(line + end for line, end in lines).encode()
    whole = parse([body])
    for _ in range(10):
        cuts = sorted(chance.randrange(len(body) + 1) for _ in range(chance.randrange(1, 8)))
        assert parse(body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)) == whole


def test_a_thousand_random_splits_and_every_single_byte_give_the_same_events() -> None:
    body = 'event: a\ndata: {"x": "日本"}\r\n\r\n: ping\n\ndata: one\ndata: two\n\ndata: [DONE]\n\n'.encode()
    whole = parse([body])
    assert whole == [Event("a", '{"x": "日本"}'), Event("", "one\ntwo"), Event("", "[DONE]")]
    chance = random.Random(7)
    for _ in range(1000):
        cuts = sorted(chance.randrange(len(body) + 1) for _ in range(chance.randrange(1, 20)))
        assert parse(body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)) == whole
    assert parse(body[i : i + 1] for i in range(len(body))) == whole


def test_an_event_without_its_blank_line_is_none_and_a_byte_order_mark_is_no_data() -> None:
    assert parse([b"\xef\xbb\xbfdata: a\n\ndata: cut\n"]) == [Event("", "a")]
    assert parse([b"data: a\r\n\r"]) == [Event("", "a")]


def test_bytes_that_are_no_utf8_are_refused_and_not_repaired() -> None:
    with pytest.raises(UnicodeDecodeError):
        parse([b"data: caf\xe9\n\n"])
