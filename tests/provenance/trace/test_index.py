"""Indexes: what did not change is not built again, an interrupted build goes on, damage is named."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

from freehold.errors import FormatError, StoreError, UsageError
from freehold.provenance.trace import Index, build_index, index, plan, sources, trace
from tests.provenance.trace.corpus import indexed, write


def texts(count: int) -> dict[str, bytes]:
    """Files of about 2 kB of random words."""
    generator = random.Random(count)
    return {
        f"{n // 10}/{n:03d}.txt": b" ".join(bytes(generator.choices(b"abcdefgh", k=6)) for _ in range(300))
        for n in range(count)
    }


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "SMALLEST", 8_000)
    monkeypatch.setattr(plan, "LARGEST", 30_000)
    monkeypatch.setattr(plan, "ENDS_AT", 4)


def shard_files(root: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in (root / "index" / "shards").rglob("*.bin")}


@pytest.mark.usefixtures("small_shards")
def test_an_unchanged_corpus_is_not_indexed_again(tmp_path: Path):
    write(tmp_path / "corpus", texts(60))
    first = build_index(tmp_path / "corpus", tmp_path / "index", jobs=1)
    before = shard_files(tmp_path)
    again = build_index(tmp_path / "corpus", tmp_path / "index", jobs=1)
    assert first.shards == first.shards_built > 3
    assert (again.shards, again.shards_built) == (first.shards, 0)
    assert shard_files(tmp_path) == before


@pytest.mark.usefixtures("small_shards")
def test_a_change_builds_the_shards_around_it_only_and_renaming_none(tmp_path: Path):
    corpus = write(tmp_path / "corpus", texts(100))
    shards = build_index(corpus, tmp_path / "index", jobs=1).shards
    write(corpus, {"5/055.txt": "something new " * 50})
    changed = build_index(corpus, tmp_path / "index", jobs=1)
    assert 1 <= changed.shards_built <= 3 < shards
    (corpus / "9").rename(corpus / "95")
    renamed = build_index(corpus, tmp_path / "index", jobs=1)
    assert renamed.shards_built == 0
    with Index(tmp_path / "index") as opened:
        sought = (corpus / "95" / "099.txt").read_bytes()
        assert [one.file for one in trace(opened, sought).spans[0].sources] == ["95/099.txt"]


@pytest.mark.usefixtures("small_shards")
def test_an_interrupted_build_goes_on_from_its_last_whole_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    corpus = write(tmp_path / "corpus", texts(60))
    real, calls = index.build_shard, []

    def interrupted(*given: object) -> None:
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(index, "build_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_index(corpus, tmp_path / "index", jobs=1)
    with pytest.raises(UsageError, match="no index at"):
        Index(tmp_path / "index")
    (tmp_path / "index" / "shards" / "left.123.partial").mkdir()
    monkeypatch.setattr(index, "build_shard", real)
    built = build_index(corpus, tmp_path / "index", jobs=1)
    assert built.shards_built == built.shards - 2
    assert not list((tmp_path / "index" / "shards").glob("*.partial"))


@pytest.mark.usefixtures("small_shards")
def test_processes_build_what_one_would(tmp_path: Path):
    corpus = write(tmp_path / "corpus", texts(40))
    seen: list[tuple[int, int | None, str]] = []
    build_index(corpus, tmp_path / "index", jobs=2, progress=lambda *given: seen.append(given))
    build_index(corpus, tmp_path / "other", jobs=1)
    for path in (tmp_path / "other" / "shards").rglob("*"):
        if path.is_file():
            assert (tmp_path / "index" / path.relative_to(tmp_path / "other")).read_bytes() == path.read_bytes()
    assert {what for _, _, what in seen} == {"reading", "indexing"}
    assert all(done <= (total or 0) for done, total, _ in seen)


def test_a_file_that_changes_while_it_is_indexed_is_an_error_and_leaves_nothing(tmp_path: Path):
    corpus = write(tmp_path / "corpus", {"a.txt": "before"})
    real = index._build_missing

    def change(*given: object) -> int:
        write(corpus, {"a.txt": "after"})
        return real(*given)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch, pytest.raises(StoreError, match=r"a\.txt changed while"):
        patch.setattr(index, "_build_missing", change)
        build_index(corpus, tmp_path / "index", jobs=1)
    assert list((tmp_path / "index" / "shards").iterdir()) == []


def test_files_cut_into_pieces_are_found_by_their_own_offsets_and_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sources, "PIECE", 1000)
    monkeypatch.setattr(plan, "LARGEST", 3000)
    lines = [f"line number {n} says {n * n} and {n * 7919} to whoever reads it aloud" for n in range(500)]
    long = "\n".join(lines)
    records = "\n".join(json.dumps({"text": line}) for line in lines)
    with indexed(tmp_path, {"long.txt": long, "long.jsonl": records}) as opened:
        assert len(opened.shards) > 5
        for n in (0, 17, 250, 499):
            (span,) = trace(opened, lines[n]).spans
            found = {one.file: (one.offset, one.line) for one in span.sources}
            assert found == {
                "long.txt": (long.index(lines[n]), n + 1),
                "long.jsonl": (records.index(lines[n]), n + 1),
            }


def test_the_index_may_lie_inside_the_corpus_and_is_no_part_of_it(tmp_path: Path):
    corpus = write(tmp_path, {"a.txt": "some text to find"})
    for _ in range(2):
        built = build_index(corpus, corpus / "index", jobs=1)
        assert built.files == 1
    with Index(corpus / "index") as opened:
        assert opened.changed(corpus) == []


def test_a_directory_of_something_else_is_not_taken_for_an_index(tmp_path: Path):
    write(tmp_path, {"corpus/a.txt": "text", "home/thesis.tex": "precious"})
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        build_index(tmp_path / "corpus", tmp_path / "home", jobs=1)
    assert (tmp_path / "home" / "thesis.tex").read_text() == "precious"


def test_a_corpus_without_text_is_said_to_be_one(tmp_path: Path):
    write(tmp_path / "corpus", {"a.bin": b"\0\0", "empty.txt": b""})
    with pytest.raises(UsageError, match=r"no text in .*: 2 files"):
        build_index(tmp_path / "corpus", tmp_path / "index", jobs=1)


def test_changes_of_the_corpus_are_noticed(tmp_path: Path):
    corpus = write(tmp_path / "corpus", {"a.txt": "one", "b.txt": "two", "c.bin": b"\0"})
    build_index(corpus, tmp_path / "index", jobs=1)
    with Index(tmp_path / "index") as opened:
        assert opened.changed(corpus) == []
        write(corpus, {"a.txt": "changed", "d.txt": "new"})
        (corpus / "b.txt").unlink()
        assert opened.changed(corpus) == ["a.txt", "b.txt", "d.txt"]


# -- damage ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A directory with `corpus`, `index` and the path of its one shard as the result."""
    write(tmp_path / "corpus", texts(5))
    build_index(tmp_path / "corpus", tmp_path / "index", jobs=1)
    (shard,) = (tmp_path / "index" / "shards").iterdir()
    return shard


@pytest.mark.parametrize("name", ["text.bin", "suffixes.bin", "segments.bin", "passages.bin", "keys.bin", "units.bin"])
def test_a_truncated_file_is_named_with_what_was_expected_and_build_repairs_it(whole: Path, name: str):
    path = whole / name
    path.write_bytes(path.read_bytes()[:-4])
    root = whole.parents[2]
    with pytest.raises(FormatError, match=rf"{name}: expected \d+ bytes, found \d+") as caught:
        Index(root / "index")
    assert caught.value.hint and "--build" in caught.value.hint
    assert build_index(root / "corpus", root / "index", jobs=1).shards_built == 1
    with Index(root / "index") as opened:
        assert opened.check() == []


@pytest.mark.parametrize("name", ["text.bin", "suffixes.bin", "segments.bin", "passages.bin", "keys.bin", "units.bin"])
def test_a_missing_file_is_named(whole: Path, name: str):
    (whole / name).unlink()
    with pytest.raises(FormatError, match=name):
        Index(whole.parents[1])


@pytest.mark.parametrize("name", ["text.bin", "suffixes.bin", "segments.bin", "passages.bin", "keys.bin", "units.bin"])
def test_one_changed_byte_is_found_by_check(whole: Path, name: str):
    path = whole / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with Index(whole.parents[1]) as opened:
        assert opened.check() == [str(path)]


@pytest.mark.parametrize("name", ["suffixes.bin", "segments.bin", "passages.bin", "keys.bin", "units.bin"])
@pytest.mark.parametrize("fill", [0x00, 0xFF, 0x7F])
def test_tampered_positions_are_an_error_or_nothing_but_never_a_crash(whole: Path, name: str, fill: int):
    path = whole / name
    path.write_bytes(bytes([fill]) * path.stat().st_size)
    query = (whole.parents[2] / "corpus" / "0" / "003.txt").read_bytes()
    edited = query.replace(b" ", b" new ", 3) + b"\n\n" + query
    with Index(whole.parents[1]) as opened:
        try:
            report = trace(opened, edited)
        except FormatError as error:
            assert "index" in str(error.hint)
        else:
            assert report.query_bytes == len(edited)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "expected the manifest"),
        (b"{}", "expected the manifest"),
        (b'{"format": 1}', "expected the manifest"),
        (b"\xff\xfe", "expected the manifest"),
    ],
)
def test_a_manifest_that_is_none_is_refused(whole: Path, content: bytes, expected: str):
    (whole.parents[1] / "manifest.json").write_bytes(content)
    with pytest.raises(FormatError, match=expected):
        Index(whole.parents[1])


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("format", "freehold-trace-99", "expected format"),
        ("algorithm", "other", "expected format"),
        ("shards", ["../../../etc"], "names of shards"),
        ("shards", ["0123456789abcdef"], r"can't read .*shard\.json"),
        ("files", [], "no file for content"),
    ],
)
def test_a_manifest_that_lies_is_refused(whole: Path, field: str, value: object, expected: str):
    path = whole.parents[1] / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    query = (whole.parents[2] / "corpus" / "0" / "003.txt").read_bytes()
    with pytest.raises(FormatError, match=expected), Index(whole.parents[1]) as opened:
        trace(opened, query)


def test_a_shard_in_place_of_another_is_refused(whole: Path):
    other = whole.with_name("0" * 32)
    shutil.copytree(whole, other)
    path = whole.parents[1] / "manifest.json"
    path.write_text(path.read_text().replace(whole.name, other.name))
    with pytest.raises(FormatError, match="expected shard 0000"):
        Index(whole.parents[1])


@pytest.mark.parametrize("name", ["suffixes.bin", "segments.bin", "passages.bin", "keys.bin", "units.bin"])
def test_a_shard_whose_description_agrees_with_an_impossible_size_is_refused(whole: Path, name: str):
    data = (whole / name).read_bytes()[:-1]
    (whole / name).write_bytes(data)
    meta = json.loads((whole / "shard.json").read_text())
    meta["files"][name]["size"] = len(data)
    (whole / "shard.json").write_text(json.dumps(meta))
    with pytest.raises(FormatError, match="impossible size"):
        Index(whole.parents[1])


def test_a_shard_that_names_files_elsewhere_is_refused(whole: Path):
    meta = json.loads((whole / "shard.json").read_text())
    meta["files"]["../../../secret"] = meta["files"]["text.bin"]
    (whole / "shard.json").write_text(json.dumps(meta))
    with pytest.raises(FormatError, match="names of files"):
        Index(whole.parents[1])
