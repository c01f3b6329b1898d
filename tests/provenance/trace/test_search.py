"""What is found is what a plain search finds, at the right place; near-duplicates come with their similarity."""

from __future__ import annotations

import gzip
import json
import random
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.errors import UsageError
from freehold.provenance.trace import Index, Limits, build_index, plan, trace
from freehold.provenance.trace.search import maximal_spans
from tests.provenance.trace.corpus import indexed, write

ALL = Limits(minimum_bytes=4, minimum_words=0, threshold=0.8, sources=100)
Found = set[tuple[int, int, frozenset[tuple[int, int]]]]


def plain_search(documents: list[bytes], query: bytes, minimum: int) -> Found:
    """The definition: the longest match from each position over all documents, without those that lie in another."""
    found: Found = set()
    end = -1
    for start in range(len(query)):
        length = 0
        while start + length < len(query) and any(query[start : start + length + 1] in one for one in documents):
            length += 1
        if length >= minimum and start + length > end:
            end = start + length
            piece = query[start:end]
            places = {(n, i) for n, one in enumerate(documents) for i in range(len(one)) if one.startswith(piece, i)}
            found.add((start, length, frozenset(places)))
    return found


pieces = st.lists(st.sampled_from([b"ab", b"ba", b"aab", b"\xc3\xa9", b"\n", b"\xe4\xbd\xa0", b"x"]), max_size=15).map(
    b"".join
)


@settings(max_examples=60, deadline=None)  # each writes files
@given(st.lists(pieces.filter(bool), min_size=1, max_size=6, unique=True), pieces, st.integers(1, 6), st.booleans())
def test_spans_equal_those_of_a_plain_search_over_every_file(
    documents: list[bytes], query: bytes, minimum: int, many_shards: bool
):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        if many_shards:
            patch.setattr(plan, "LARGEST", 20)
        root = Path(folder)
        with indexed(root, {f"{n}.txt": one for n, one in enumerate(documents)}) as index:
            found: Found = set()
            for (start, length), occurrences in maximal_spans(index, query, minimum).items():
                places = [
                    one.shard.place(int(at)) for one in occurrences for at in one.shard.suffixes[one.low : one.high]
                ]
                files = [(index.files(place.digest)[0].path, place.offset) for place in places]
                found.add((start, length, frozenset((int(path.removesuffix(".txt")), at) for path, at in files)))
            assert found == plain_search(documents, query, minimum)


def words(generator: random.Random, count: int) -> list[str]:
    return ["".join(generator.choices("abcdefghijklmnop", k=generator.randint(2, 10))) for _ in range(count)]


PLANTED = " ".join(words(random.Random(1), 50))


def test_a_planted_span_is_found_at_its_file_byte_and_line_in_every_format(tmp_path: Path):
    noise = "\n".join(" ".join(words(random.Random(n), 12)) for n in range(20))
    plain = f"{noise}\nbefore {PLANTED} after\n{noise}"
    line = json.dumps({"id": 1, "text": f'quo"ted\n\u00e9 {PLANTED} after'})
    files = {
        "plain.md": plain,
        "records.jsonl": json.dumps({"text": noise}) + "\n" + line + "\n",
        "page.html": f"<html><p>x</p>\n<p>caf&eacute; <b>{PLANTED}</b></p></html>",
        "packed.txt.gz": gzip.compress(("first\n" + plain).encode()),
        "LICENSE": "some licence",
    }
    with indexed(tmp_path, files) as index:
        report = trace(index, f'An answer: "{PLANTED}" The end.')
    (span,) = report.spans
    assert span.text == PLANTED
    assert span.count == 4
    expected = {}
    for name in files:
        raw = gzip.decompress(files[name]) if name.endswith(".gz") else files[name].encode()  # type: ignore[arg-type, union-attr]
        at = raw.find(PLANTED.encode())
        if at >= 0:
            expected[name] = (at, raw.count(b"\n", 0, at) + 1, name.endswith(".gz"), "LICENSE")
    assert {one.file: (one.offset, one.line, one.compressed, one.licence) for one in span.sources} == expected
    assert all(one.text == PLANTED for one in span.sources)


def test_spans_do_not_reach_from_one_document_into_the_next(tmp_path: Path):
    with indexed(tmp_path, {"a.txt": "the end of one", "b.txt": "the start of another"}) as index:
        found = trace(index, b"the end of one\xffthe start of another", ALL).spans
        glued = trace(index, "the end of onethe start of another", ALL).spans
    assert [span.text for span in found] == [span.text for span in glued] == ["the end of one", "the start of another"]


def test_equal_files_are_one_source_with_copies(tmp_path: Path):
    with indexed(tmp_path, {"b/x.txt": PLANTED, "a/x.txt": PLANTED, "c.txt": PLANTED + " more"}) as index:
        (span,) = trace(index, PLANTED).spans
    assert span.count == 2
    assert [(one.file, one.copies, one.copies_count) for one in span.sources] == [
        ("a/x.txt", ["b/x.txt"], 1),
        ("c.txt", [], 0),
    ]


def test_short_spans_and_spans_of_few_words_are_not_reported(tmp_path: Path):
    rule = "-" * 80
    with indexed(tmp_path, {"a.txt": f"{rule}\nsix words stand in this line"}) as index:
        assert trace(index, f"{rule}\n").spans == []
        assert trace(index, "six words stand in this line", Limits(minimum_bytes=20, minimum_words=7)).spans == []
        assert len(trace(index, "six words stand in this line", Limits(minimum_bytes=20, minimum_words=6)).spans) == 1


def test_spans_begin_and_end_with_whole_characters(tmp_path: Path):
    # é is C3 A9, è is C3 A8, © is C2 A9: bytes in common at both ends.
    with indexed(tmp_path, {"a.txt": "\u00a9 the same words \u00e8"}) as index:
        (span,) = trace(index, "\u00e9 the same words \u00e9", ALL).spans
    assert span.text == " the same words "
    assert (span.start, span.length) == (2, 16)
    assert (span.sources[0].offset, span.sources[0].text) == (2, " the same words ")


def test_a_query_of_invalid_utf8_and_an_empty_one_are_traced(tmp_path: Path):
    with indexed(tmp_path, {"a.txt": b"caf\xe9 au lait, s'il vous pla\xeet"}) as index:
        (span,) = trace(index, b"\x80caf\xe9 au lait, s'il vous pla\xeet\xff", ALL).spans
        assert (span.start, span.sources[0].offset) == (1, 0)
        empty = trace(index, "")
    assert (empty.spans, empty.covered) == ([], 0.0)


def test_covered_counts_every_byte_once(tmp_path: Path):
    with indexed(tmp_path, {"a.txt": "one two three four", "b.txt": "three four five six"}) as index:
        report = trace(index, "one two three four five six!", ALL)
    assert [span.text for span in report.spans] == ["one two three four", "three four five six"]
    assert report.covered_bytes == report.query_bytes - 1


def test_a_query_without_end_is_refused(tmp_path: Path):
    with indexed(tmp_path, {"a.txt": "text"}) as index, pytest.raises(UsageError, match="at most"):
        trace(index, b"a" * (17 << 20))


@pytest.mark.parametrize(
    "limits", [Limits(minimum_bytes=0), Limits(sources=0), Limits(threshold=0), Limits(threshold=2)]
)
def test_limits_that_make_no_sense_are_refused(tmp_path: Path, limits: Limits):
    with indexed(tmp_path, {"a.txt": "text"}) as index, pytest.raises(UsageError, match="expected"):
        trace(index, "text", limits)


# -- near-duplicates ------------------------------------------------------------------------------------------------------


def edited(generator: random.Random, text: str, edits: int) -> str:
    found = text.split()
    for _ in range(edits):
        found[generator.randrange(len(found))] = generator.choice(["Zebra,", "quartz", "vex: zig"])
    return "\n".join(" ".join(found[i : i + 9]) for i in range(0, len(found), 9))


def plain_jaccard(one: str, other: str) -> float:
    sets = []
    for text in (one, other):
        found = re.findall(r"\w+", text.lower())
        sets.append(set(zip(found, found[1:], found[2:], strict=False)))
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_edited_paragraphs_are_found_at_their_place_with_their_similarity(tmp_path: Path):
    generator = random.Random(5)
    paragraphs = [" ".join(words(generator, generator.randint(60, 150))) for _ in range(120)]
    files = {f"{n}.txt": "\n\n".join(paragraphs[n : n + 4]) + "\n" for n in range(0, 120, 4)}
    wanted = found = 0
    with indexed(tmp_path, files) as index:
        for number, paragraph in enumerate(paragraphs):
            changed = edited(generator, paragraph, generator.randint(1, 4))
            alike = plain_jaccard(paragraph, changed)
            report = trace(index, f"Something else first.\n\n{changed}\n\nand then the rest of it")
            places = [
                (one.source.file, one.source.offset, one.jaccard)
                for near in report.near_duplicates
                for one in near.similar
            ]
            name = f"{number // 4 * 4}.txt"
            if alike >= 0.8:
                wanted += 1
                found += (name, files[name].index(paragraph), round(alike, 4)) in places
            else:
                assert places == []
    assert wanted > 60
    assert found / wanted >= 0.98


def test_a_paragraph_that_one_span_says_exactly_is_no_near_duplicate(tmp_path: Path):
    with indexed(tmp_path, {"a.txt": PLANTED, "b.txt": edited(random.Random(1), PLANTED, 1)}) as index:
        report = trace(index, PLANTED)
    assert (len(report.spans), report.near_duplicates, report.similar_bytes) == (1, [], 0)


def test_a_paragraph_that_stands_everywhere_is_counted_and_its_sources_are_few(tmp_path: Path):
    notice = " ".join(words(random.Random(6), 60))
    files = {f"{n}.txt": f"{notice}\n\n{' '.join(words(random.Random(n), 30))}" for n in range(300)}
    changed = edited(random.Random(7), notice, 1)
    with indexed(tmp_path, files) as index:
        (near,) = trace(index, changed).near_duplicates
    assert [one.count for one in near.similar] == [300]


def test_a_corpus_without_any_passage_still_has_spans(tmp_path: Path):
    with indexed(tmp_path, {"a.txt": "few words"}) as index:
        report = trace(index, PLANTED + " few words", ALL)
    assert [span.text for span in report.spans] == [" few words"] or [span.text for span in report.spans] == [
        "few words"
    ]


def test_a_huge_line_is_indexed_and_found(tmp_path: Path):
    generator = random.Random(8)
    line = " ".join(words(generator, 150_000))
    write(tmp_path / "corpus", {"huge.txt": line})
    build_index(tmp_path / "corpus", tmp_path / "index", jobs=1)
    with Index(tmp_path / "index") as index:
        (span,) = trace(index, line[500_000:500_600]).spans
    assert (span.sources[0].offset, span.sources[0].line) == (500_000, 1)
