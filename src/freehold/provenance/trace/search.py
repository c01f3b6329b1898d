"""Tracing a text: its spans that stand in the corpus word for word, and its passages that nearly do.

Spans are maximal: none is part of a longer one that stands in the corpus too. Near-duplicates are compared passage by
passage (paragraphs, see `minhash.passages`): MinHash bands name candidates, and the exact Jaccard similarity decides.
It knows no files beyond what the index says, and judges no licence.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple

import numpy as np

from freehold.errors import FormatError, UsageError
from freehold.kernels.matching import Match, maximal_matches
from freehold.progress import Progress, silent
from freehold.provenance import minhash
from freehold.provenance.trace.index import Index
from freehold.provenance.trace.report import NearDuplicate, Report, Similar, Source, Span
from freehold.provenance.trace.shard import REBUILD, SEPARATOR, Shard

LONGEST_QUERY: Final = 16 << 20  # bytes
MARGIN: Final = 80  # bytes of a source shown before and after what was found
SHOWN: Final = 4000  # bytes of a found passage in a report
ORDERED: Final = 10_000  # of more occurrences, the first in the suffix array's order are shown
MOST_THREADS: Final = 16
BUCKET: Final = 4096  # passages of one key that are looked at: a corpus made to collide must not make queries slow
CANDIDATES: Final = 16  # compared for each passage and shard: those that share most bands


class Limits(NamedTuple):
    """What is worth reporting."""

    minimum_bytes: int = 50
    minimum_words: int = 8
    threshold: float = 0.8  # Jaccard similarity
    sources: int = 5  # shown for each finding


class _Occurrences(NamedTuple):
    shard: Shard
    low: int
    high: int


def trace(
    index: Index,
    query: str | bytes,
    limits: Limits = Limits(),  # noqa: B008 (immutable)
    *,
    progress: Progress = silent,
) -> Report:
    """Find where a text may be from.

    Args:
        index: an open index.
        query: the text; bytes need not be valid UTF-8.
        limits: the shortest spans and the least similarity to report.
        progress: shown shards searched; a megabyte of query takes seconds.

    Raises:
        UsageError: the query is longer than LONGEST_QUERY, or a limit makes no sense.
        FormatError: the index is damaged.
    """
    raw = query.encode("utf-8", "surrogatepass") if isinstance(query, str) else query
    if len(raw) > LONGEST_QUERY:
        hint = "trace it in parts"
        raise UsageError(f"expected a text of at most {LONGEST_QUERY:,} bytes, found more", hint=hint)
    if limits.minimum_bytes < 1 or limits.sources < 1 or not 0 < limits.threshold <= 1:
        raise UsageError("expected at least 1 byte and 1 source, and a similarity above 0 and up to 1")
    spans = list(_report_spans(index, raw, limits, progress))
    near = [one for one in _near_duplicates(index, raw, limits, progress) if not _inside(one, spans)]
    covered = _covered(len(raw), spans)
    similar = _covered(len(raw), near) & ~covered
    return Report(
        corpus=index.manifest.root,
        corpus_bytes=index.text_bytes,
        minimum_bytes=limits.minimum_bytes,
        minimum_words=limits.minimum_words,
        threshold=limits.threshold,
        query=raw.decode("utf-8", "replace") if isinstance(query, bytes) else query,
        query_bytes=len(raw),
        covered_bytes=int(covered.sum()),
        similar_bytes=int(similar.sum()),
        spans=spans,
        near_duplicates=near,
    )


# -- word for word --------------------------------------------------------------------------------------------------------


def maximal_spans(
    index: Index, raw: bytes, minimum: int, progress: Progress = silent
) -> dict[tuple[int, int], list[_Occurrences]]:
    """(start, length) of each maximal span of a query, in order, with its places in the suffix arrays."""
    found: dict[tuple[int, int], list[_Occurrences]] = defaultdict(list)
    parts = list(_parts(raw, minimum))
    with ThreadPoolExecutor(max(1, min(len(index.shards), MOST_THREADS))) as pool:
        # The native search holds no lock of Python's, and where the index is not in memory it waits for the disk.
        tasks = [
            (shard, at, pool.submit(_matches, shard, part, minimum)) for shard in index.shards for at, part in parts
        ]
        for done, (shard, at, task) in enumerate(tasks):
            progress(done, len(tasks), "exact spans")
            for match in task.result():
                found[at + match.start, match.length].append(_Occurrences(shard, match.low, match.high))
    maximal: dict[tuple[int, int], list[_Occurrences]] = {}
    end = -1
    for start, length in sorted(found, key=lambda span: (span[0], -span[1])):
        if start + length > end:
            end = start + length
            maximal[start, length] = found[start, length]
    return maximal


def _parts(raw: bytes, minimum: int) -> Iterator[tuple[int, bytes]]:
    """The query between separator bytes, so that no span reaches from one document into the next."""
    at = 0
    for part in raw.split(SEPARATOR):
        if len(part) >= minimum:
            yield at, part
        at += len(part) + 1


def _matches(shard: Shard, part: bytes, minimum: int) -> list[Match]:
    try:
        return maximal_matches(shard.text, shard.suffixes, part, minimum)
    except ValueError as error:
        raise FormatError(f"{shard.folder}: {error}", hint=REBUILD) from None


def _report_spans(index: Index, raw: bytes, limits: Limits, progress: Progress) -> Iterator[Span]:
    words = minhash.words(raw)
    for (start, length), occurrences in maximal_spans(index, raw, limits.minimum_bytes, progress).items():
        first, last = _whole_characters(raw, start, start + length)
        inside = int(np.searchsorted(words.ends, last, "right") - np.searchsorted(words.starts, first, "left"))
        if last - first < limits.minimum_bytes or inside < limits.minimum_words:
            continue
        places = _first_places(occurrences, limits.sources)
        moved = first - start
        yield Span(
            start=first,
            length=last - first,
            words=inside,
            text=raw[first:last].decode("utf-8", "replace"),
            count=sum(one.high - one.low for one in occurrences),
            sources=[_source(index, shard, at + moved, last - first) for shard, at in places],
        )


def _whole_characters(raw: bytes, start: int, stop: int) -> tuple[int, int]:
    """The range without parts of characters at its ends."""
    begin = start
    while begin < stop and begin - start < 3 and raw[begin] & 0xC0 == 0x80:
        begin += 1
    for back in range(1, min(4, stop - begin) + 1):
        lead = raw[stop - back]
        if lead & 0xC0 != 0x80:
            need = 1 + (lead >= 0xC0) + (lead >= 0xE0) + (lead >= 0xF0)
            return begin, stop if need <= back else stop - back
    return begin, stop


def _first_places(occurrences: list[_Occurrences], count: int) -> list[tuple[Shard, int]]:
    places: list[tuple[Shard, int]] = []
    for shard, low, high in occurrences:
        positions = shard.suffixes[low : min(high, low + ORDERED)]
        places += [(shard, int(at)) for at in np.sort(positions)[: count - len(places)]]
    return places


# -- nearly ---------------------------------------------------------------------------------------------------------------


def _near_duplicates(index: Index, raw: bytes, limits: Limits, progress: Progress) -> Iterator[NearDuplicate]:
    found = minhash.passages(raw)
    if not len(found):
        return
    keys = minhash.bands(minhash.signatures(found.shingles, found.offsets))
    similar: list[list[tuple[float, Shard, int]]] = [[] for _ in range(len(found))]
    for done, shard in enumerate(index.shards):
        progress(done, len(index.shards), "near-duplicates")
        for passage, candidates in enumerate(_candidates(shard, keys)):
            mine = found.of(passage)
            for unit in candidates:
                score = minhash.jaccard(mine, minhash.shingles(_passage(shard, unit)))
                if score >= limits.threshold:
                    similar[passage].append((score, shard, unit))
    for passage, ranked in enumerate(similar):
        if ranked:
            start, stop = int(found.starts[passage]), int(found.ends[passage])
            ranked.sort(key=lambda one: -one[0])
            yield NearDuplicate(
                start=start,
                length=stop - start,
                text=raw[start:stop].decode("utf-8", "replace"),
                similar=[_similar(index, *one) for one in ranked[: limits.sources]],
            )


def _candidates(shard: Shard, keys: np.ndarray[tuple[int, int], np.dtype[np.uint32]]) -> Iterator[list[int]]:
    """For each row of keys the passages that share a band, most bands first."""
    lows = [np.searchsorted(shard.keys[band], keys[:, band], "left") for band in range(minhash.BANDS)]
    highs = [np.searchsorted(shard.keys[band], keys[:, band], "right") for band in range(minhash.BANDS)]
    for row in range(len(keys)):
        ends = [min(highs[band][row], lows[band][row] + BUCKET) for band in range(minhash.BANDS)]
        hits = [shard.units[band, lows[band][row] : end] for band, end in enumerate(ends)]
        units, counts = np.unique(np.concatenate(hits), return_counts=True)
        yield [int(unit) for unit in units[np.argsort(-counts, kind="stable")[:CANDIDATES]]]


def _passage(shard: Shard, unit: int) -> bytes:
    if unit >= len(shard.passages):
        raise FormatError(f"{shard.folder}: no passage {unit}", hint=REBUILD)
    start, stop, _ = map(int, shard.passages[unit])
    return shard.text[start:stop].tobytes()


def _similar(index: Index, score: float, shard: Shard, unit: int) -> Similar:
    start, stop, count = map(int, shard.passages[unit])
    return Similar(jaccard=round(score, 4), count=count, source=_source(index, shard, start, stop - start))


# -- both -----------------------------------------------------------------------------------------------------------------


def _source(index: Index, shard: Shard, start: int, length: int) -> Source:
    place = shard.place(start)
    first, *copies = index.files(place.digest)
    before, after = shard.around(start, start + length, MARGIN)
    return Source(
        file=first.path,
        offset=place.offset,
        line=place.line,
        licence=first.licence,
        compressed=first.compressed,
        copies=[copy.path for copy in copies[:10]],
        copies_count=len(copies),
        before=before.decode("utf-8", "ignore"),
        text=shard.text[start : start + min(length, SHOWN)].tobytes().decode("utf-8", "replace"),
        after=after.decode("utf-8", "ignore"),
    )


def _covered(size: int, findings: list[Span] | list[NearDuplicate]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    covered = np.zeros(size, np.bool_)
    for one in findings:
        covered[one.start : one.start + one.length] = True
    return covered


def _inside(near: NearDuplicate, spans: list[Span]) -> bool:
    """Does one span say all of it, and exactly?"""
    return any(one.start <= near.start and near.start + near.length <= one.start + one.length for one in spans)
