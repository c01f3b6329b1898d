"""Text out of JSON and HTML, and where each of its bytes was."""

from __future__ import annotations

import html
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.provenance.trace.extract import SHORTEST_STRING, Document, extract
from freehold.provenance.trace.sources import HTML, JSON, TEXT


def source_of(document: Document, at: int) -> tuple[int, int]:
    """(offset, line) of a byte of a document, as its segments say."""
    segment = max((one for one in document.segments if one.text <= at), key=lambda one: one.text)
    line = segment.line + document.text.count(b"\n", segment.text, at)
    return segment.source + at - segment.text, line


def test_plain_text_is_taken_as_it_is():
    (document,) = extract(TEXT, b"one\ntwo\r\n\xe9", line=7)
    assert document.text == b"one\ntwo\r\n\xe9"
    assert source_of(document, 4) == (4, 8)


LONG = "a string that is long enough"


def test_json_gives_its_values_and_not_its_names_and_labels():
    data = json.dumps({"id": "short", "a name that is long enough": LONG, "more": [LONG + "!", {"x": LONG + "?"}]})
    assert [one.text.decode() for one in extract(JSON, data.encode())] == [LONG, LONG + "!", LONG + "?"]


@settings(deadline=None)
@given(st.lists(st.text(min_size=4).map(lambda text: text * 5), max_size=5), st.booleans())
def test_strings_of_json_are_what_json_says_and_each_letter_is_where_it_was(texts: list[str], escaped: bool):
    data = "".join(json.dumps({"text": text}, ensure_ascii=escaped) + "\n" for text in texts).encode()
    documents = list(extract(JSON, data))
    known = [text for text in texts if len(json.dumps(text, ensure_ascii=escaped).encode()) - 2 >= SHORTEST_STRING]
    assert [one.text for one in documents] == [text.encode() for text in known]
    for document in documents:
        for match in re.finditer(rb"[a-zA-Z0-9]", document.text):
            offset, line = source_of(document, match.start())
            at = data[offset : offset + 1]
            assert at == match[0] or data[offset - 5 : offset].startswith(b"\\u")
            assert line == data.count(b"\n", 0, offset) + 1


def test_a_broken_line_of_json_does_not_disturb_the_next():
    data = b'{"text": "this one is never closed \\\n' + json.dumps({"text": LONG}).encode()
    (document,) = extract(JSON, data)
    assert document.text == LONG.encode()
    assert source_of(document, 0) == (data.index(LONG.encode()), 2)


def test_half_a_surrogate_pair_and_unknown_escapes_do_no_harm():
    texts = [
        one.text.decode()
        for one in extract(JSON, rb'["\ud83d\ude00 smiles at all of you", "\ud83d is half of it, \q \u12"]')
    ]
    assert texts == ["\U0001f600 smiles at all of you", "\ufffd is half of it, q u12"]


def test_html_gives_what_a_reader_sees():
    data = (
        b"<!doctype html><html><head><title>T</title><style>p { color: red }</style><SCRIPT>var x = '<p>';</SCRIPT></head>"
        b"<body><!-- <p>no</p> --><p class='a'>One <b>bold</b> &amp; caf&eacute;</p><p>Two &lt;tags&gt; 1 < 2</p></body>"
    )
    (document,) = extract(HTML, data)
    shown = document.text.decode().split()
    assert shown == ["T", "One", "bold", "&", "caf\u00e9", "Two", "<tags>", "1", "<", "2"]


def test_words_of_html_are_where_they_were():
    data = b"<p>first</p>\n<p>sec<i>ond</i> &nbsp;third</p>\n<!-- a\nb -->\n<div>fourth</div>"
    (document,) = extract(HTML, data, line=1)
    for word in (b"first", b"sec", b"ond", b"third", b"fourth"):
        assert source_of(document, document.text.index(word)) == (
            data.index(word),
            data.count(b"\n", 0, data.index(word)) + 1,
        )


@settings(deadline=None)
@given(st.text(alphabet="ab <>&;!-/\n\"'scriptdivx", max_size=200))
def test_any_html_is_read_to_its_end(text: str):
    (document,) = extract(HTML, text.encode())
    assert all(one.source <= len(text) for one in document.segments)
    assert [one.text for one in document.segments] == sorted(one.text for one in document.segments)


@settings(deadline=None)
@given(st.text(alphabet=st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=40))
def test_escaped_text_comes_back_from_html(text: str):
    text = f"{text} <&> {text}"
    (document,) = extract(HTML, f"<p>{html.escape(text)}</p>".encode())
    assert document.text.decode().strip() == text


# Each of these is quadratic or worse for a reader that looks from every place to the end.
HOSTILE = [
    b"<" * 500_000,
    b"<a" * 250_000,
    b"<" + b"a" * 500_000,
    b"<!--" * 125_000,
    b"<script>" * 60_000,
    b"&" * 500_000,
    b"<!" * 250_000,
    b"</p " * 125_000,
]


@pytest.mark.parametrize("data", HOSTILE, ids=[repr(one[:9]) for one in HOSTILE])
def test_html_without_ends_is_read_in_linear_time(data: bytes):
    (document,) = extract(HTML, data)
    assert len(document.text) <= len(data)


@pytest.mark.parametrize("data", [b'"' + b'\\"' * 500_000, b'"\\' * 500_000, b'"' * 1_000_001, b'"a\n' * 300_000])
def test_json_without_ends_is_read_in_linear_time(data: bytes):
    assert all(len(one.text) <= len(data) for one in extract(JSON, data))
