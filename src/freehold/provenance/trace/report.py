"""What tracing found, as plain data: spans and near-duplicates of a query, each with the places it may be from.

Offsets and lengths are bytes of UTF-8. It knows no index and no terminal.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict

import msgspec


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """A place in the corpus.

    `offset` counts bytes of the file (of its expanded content if `compressed`), `line` from 1. `licence` is the nearest
    licence file above, named, not judged. `copies` are files with the same content.
    """

    file: str
    offset: int
    line: int
    licence: str | None
    compressed: bool
    copies: list[str]
    copies_count: int
    before: str
    text: str
    after: str


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the query that stands in the corpus word for word, and in no longer part that does."""

    start: int
    length: int
    words: int
    text: str
    count: int  # how often it stands in the corpus, equal files counted once
    sources: list[Source]


class Similar(msgspec.Struct, frozen=True, kw_only=True):
    """A passage of the corpus that is nearly one of the query's."""

    jaccard: float
    count: int  # how often it stands there, equal files counted once
    source: Source


class NearDuplicate(msgspec.Struct, frozen=True, kw_only=True):
    """A passage of the query and the passages of the corpus it resembles, most similar first."""

    start: int
    length: int
    text: str
    similar: list[Similar]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything found for one query."""

    corpus: str
    corpus_bytes: int  # of text that was searched
    minimum_bytes: int
    minimum_words: int
    threshold: float
    query: str
    query_bytes: int
    covered_bytes: int  # by spans
    similar_bytes: int  # by near-duplicates beyond those
    spans: list[Span]
    near_duplicates: list[NearDuplicate]

    @property
    def covered(self) -> float:
        """Share of the query that stands in the corpus word for word."""
        return self.covered_bytes / self.query_bytes if self.query_bytes else 0.0


class Stretch(msgspec.Struct, frozen=True):
    """A piece of the query and what covers it: "exact", "similar" or nothing.

    `ends` are the numbers (from 1) of the findings that end with it, `bytes` its length.
    """

    text: str
    kind: str
    bytes: int
    ends: list[int]


def stretches(report: Report) -> list[Stretch]:
    """The query cut wherever what covers it changes. Spans are numbered first, near-duplicates after them."""
    raw = report.query.encode("utf-8", "surrogatepass")
    ranges = [(one.start, one.start + one.length, "exact") for one in report.spans]
    ranges += [(one.start, one.start + one.length, "similar") for one in report.near_duplicates]
    changes: dict[int, Counter[str]] = defaultdict(
        Counter
    )  # at a byte: findings of a kind that begin less those that end
    ends: dict[int, list[int]] = defaultdict(list)
    for number, (start, stop, kind) in enumerate(ranges, 1):
        changes[start][kind] += 1
        changes[stop][kind] -= 1
        ends[stop].append(number)
    found: list[Stretch] = []
    over = Counter[str]()
    for start, stop in itertools.pairwise(sorted({0, len(raw), *changes})):
        over.update(changes.get(start, {}))
        kind = "exact" if over["exact"] else "similar" if over["similar"] else ""
        found.append(Stretch(raw[start:stop].decode("utf-8", "replace"), kind, stop - start, ends.get(stop, [])))
    return found
