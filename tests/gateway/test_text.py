"""Stop strings, content and event streams: the same result however the text or the bytes were cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.errors import UpstreamError
from freehold.gateway.backends.sse import EventReader, ServerEvent
from freehold.gateway.backends.transcript import Content
from freehold.gateway.conversation import TokenLogprob
from freehold.gateway.stops import StopMatcher

letters = st.text("ab", max_size=12)


def naive(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The definition: the text up to where the first stop string completes (the longest, if several do)."""
    for end in range(1, len(text) + 1):
        done = [stop for stop in stops if text[:end].endswith(stop)]
        if done:
            longest = max(done, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(st.lists(letters, max_size=8), st.lists(st.text("ab", min_size=1, max_size=5), max_size=4))
def test_stop_strings_are_found_as_in_the_whole_text_and_nothing_of_them_is_shown(
    pieces: list[str], stops: list[str]
) -> None:
    matcher = StopMatcher(stops)
    shown = ""
    expected, stop = naive("".join(pieces), stops)
    for piece in pieces:
        shown += matcher.push(piece)
        assert expected.startswith(shown)
    if matcher.hit is None:
        shown += matcher.flush()
    assert (shown, matcher.hit) == (expected, stop)


def test_only_what_could_become_a_stop_string_is_held_back() -> None:
    matcher = StopMatcher(["STOP"])
    assert [matcher.push(c) for c in "a ST STO!"] == ["a", " ", "", "", "ST ", "", "", "", "STO!"]


@pytest.mark.parametrize("stops", [["ab", "b"], ["b", "ab"]])
def test_of_two_stop_strings_that_end_together_the_longer_counts(stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    assert (matcher.push("xa"), matcher.push("b"), matcher.hit) == ("x", "", "ab")


class Bytes:
    """A detokenizer for tokens that are bytes."""

    def __init__(self) -> None:
        import codecs

        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int, /) -> str:
        return self._decoder.decode(bytes([id]))

    def flush(self) -> str:
        return self._decoder.decode(b"", True)


@given(st.text("aé🙂.", max_size=20), st.lists(st.text("aé🙂", min_size=1, max_size=3), max_size=2))
def test_content_shows_each_token_once_beside_the_text_it_begins(text: str, stops: list[str]) -> None:
    detokenizer, content = Bytes(), Content(stops)
    shown, tokens = "", []
    for byte in text.encode():
        content.note(TokenLogprob(bytes([byte]), -1.0))
        piece, logprobs = content.feed(detokenizer.push(byte))
        shown, tokens = shown + piece, tokens + list(logprobs)
        if content.stopped:
            break
    else:
        piece, logprobs = content.end(detokenizer.flush())
        shown, tokens = shown + piece, tokens + list(logprobs)
    expected, _ = naive(text, stops)
    assert shown == expected
    assert b"".join(token.bytes for token in tokens) == expected.encode()


EVENTS = [ServerEvent("one"), ServerEvent("two\nlines", "named"), ServerEvent("日本 🙂"), ServerEvent("")]
STREAMS = [
    "data: one\n\nevent: named\ndata: two\ndata: lines\n\n: a comment\ndata:日本 🙂\n\ndata\n\n",
    "\ufeffdata: one\r\n\r\nevent: named\r\ndata: two\r\ndata: lines\r\n\r\n:\r\n\r\n"
    "id: 5\r\ndata: 日本 🙂\r\n\r\ndata:\r\n\r\n",
    "data: one\r\revent: named\rdata: two\rdata: lines\r\rretry: 9\rdata: 日本 🙂\r\rdata\r\r:",
]


@pytest.mark.parametrize("stream", STREAMS)
@given(cuts=st.lists(st.integers(0, 140), max_size=12))
def test_events_are_the_same_however_the_bytes_are_cut(stream: str, cuts: list[int]) -> None:
    raw = stream.encode()
    places = sorted({0, len(raw), *[min(cut, len(raw)) for cut in cuts]})
    reader = EventReader()
    pieces = [raw[a:b] for a, b in itertools.pairwise(places)]
    assert [event for piece in pieces for event in reader.push(piece)] == EVENTS


@pytest.mark.parametrize("stream", STREAMS)
def test_events_are_the_same_byte_by_byte(stream: str) -> None:
    reader = EventReader()
    assert [event for byte in stream.encode() for event in reader.push(bytes([byte]))] == EVENTS


def test_an_event_without_end_is_refused() -> None:
    for piece in (b"data: xxxxxxxx", b"data: x\n"):
        reader = EventReader(max_event=64)
        with pytest.raises(UpstreamError, match="more than 64 bytes"):
            for _ in range(20):
                reader.push(piece)


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(UpstreamError, match="not UTF-8"):
        EventReader().push(b"data: \xff\n\n")
