"""The report as a page: complete, self-contained, and deaf to what the texts of strangers say."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.provenance.trace import Limits, NearDuplicate, Report, Span, page, stretches, trace
from tests.provenance.trace.corpus import indexed

EVIL = "</pre></p><script>alert(1)</script><img src=x onerror=alert(2)>\" onmouseover='alert(3)' {{ 7 * 7 }} {% raw %}"


class Seen(HTMLParser):
    """Tags, attributes and text as a browser would see them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def hostile(tmp_path: Path) -> Report:
    corpus = f"{EVIL} and twelve more words so that this is long enough to be found again\u202e\x1b[31m here"
    with indexed(tmp_path, {"<b onclick=alert(4)>.txt": corpus, "LICENSE<i>": "text"}) as index:
        return trace(index, corpus, Limits(sources=2))


def test_nothing_of_the_texts_becomes_markup(tmp_path: Path):
    seen = Seen(page(hostile(tmp_path)))
    assert not seen.tags & {"script", "img", "i", "iframe", "object", "link", "base", "form"}
    assert not [name for name, _ in seen.attributes if name.startswith("on") or name == "src"]
    assert EVIL in seen.text
    assert "<b onclick=alert(4)>.txt" in seen.text
    assert not {"\u202e", "\x1b"} & set(seen.text)


def test_the_page_needs_nothing_from_elsewhere_and_forbids_it(tmp_path: Path):
    text = page(hostile(tmp_path))
    assert "default-src 'none'" in text
    assert all(value and value.startswith("#") for name, value in Seen(text).attributes if name == "href")
    assert not re.search(r"url\(|@import", text)


def test_every_link_of_the_page_leads_to_a_finding(tmp_path: Path):
    seen = Seen(page(hostile(tmp_path)))
    targets = {value for name, value in seen.attributes if name == "id"}
    links = {value[1:] for name, value in seen.attributes if name == "href" and value}
    assert links == targets == {"finding-1"}


def test_a_report_without_findings_says_so(tmp_path: Path):
    with indexed(tmp_path, {"a.txt": "something else"}) as index:
        text = page(trace(index, "not there at all"))
    assert "Nothing found" in text and "not there at all" in text


ranges = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 20)), max_size=6)


@settings(deadline=None)
@given(st.text(alphabet="abc é\n", min_size=1, max_size=40), ranges, ranges)
def test_stretches_are_the_query_in_order_and_know_what_covers_them(
    query: str, exact: list[tuple[int, int]], similar: list[tuple[int, int]]
):
    raw = query.encode()
    clipped = [
        [(min(a, len(raw) - 1), min(n, len(raw) - min(a, len(raw) - 1))) for a, n in one] for one in (exact, similar)
    ]
    report = Report(
        corpus="c", corpus_bytes=1, minimum_bytes=1, minimum_words=0, threshold=0.8, query=query, query_bytes=len(raw),
        covered_bytes=0, similar_bytes=0,
        spans=[Span(start=a, length=n, words=1, text="", count=1, sources=[]) for a, n in clipped[0]],
        near_duplicates=[NearDuplicate(start=a, length=n, text="", similar=[]) for a, n in clipped[1]],
    )  # fmt: skip
    found = stretches(report)
    assert sum(one.bytes for one in found) == len(raw)
    at = 0
    for one in found:
        kinds = ["exact" for a, n in clipped[0] if a <= at < a + n] + [
            "similar" for a, n in clipped[1] if a <= at < a + n
        ]
        assert one.kind == (kinds[0] if kinds else "")
        assert one.text == raw[at : at + one.bytes].decode("utf-8", "replace")
        at += one.bytes
    assert sorted(number for one in found for number in one.ends) == list(range(1, len(exact) + len(similar) + 1))
