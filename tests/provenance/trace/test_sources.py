"""Which files of a directory are read, as what, under which licence; hostile directories included."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from freehold.errors import UsageError
from freehold.provenance.trace import sources
from freehold.provenance.trace.sources import HTML, JSON, TEXT, NotTextError, Skipped, is_licence, pieces, scan
from tests.provenance.trace.corpus import write


def test_files_are_found_by_path_with_their_kind(tmp_path: Path):
    names = ["b.txt", "a/x.JSONL", "a/y.html.gz", "a/z.py", "c.json", "no_suffix", "a.b/plain"]
    files, skipped = scan(write(tmp_path, dict.fromkeys(names, "text")))
    assert [(one.path, one.kind, one.compressed) for one in files] == [
        ("a.b/plain", TEXT, False),
        ("a/x.JSONL", JSON, False),
        ("a/y.html.gz", HTML, True),
        ("a/z.py", TEXT, False),
        ("b.txt", TEXT, False),
        ("c.json", JSON, False),
        ("no_suffix", TEXT, False),
    ]
    assert skipped == []


def test_one_file_can_be_a_corpus(tmp_path: Path):
    write(tmp_path, {"one.md": "text"})
    (file,), _ = scan(tmp_path / "one.md")
    assert list(pieces(tmp_path / "one.md", file)) == [b"text"]


def test_a_corpus_that_is_not_there_is_said_to_be(tmp_path: Path):
    with pytest.raises(UsageError, match="no corpus at"):
        scan(tmp_path / "nowhere")


def test_links_that_loop_pipes_and_version_control_are_left_out_and_named(tmp_path: Path):
    write(tmp_path, {"a/one.txt": "text", ".git/config": "no", "a/__pycache__/x.txt": "no"})
    (tmp_path / "a" / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "a" / "self").symlink_to("self")
    (tmp_path / "outside").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "pipe")
    files, skipped = scan(tmp_path)
    assert [one.path for one in files] == ["a/one.txt"]
    reasons = {one.path: one.reason for one in skipped}
    assert reasons == dict.fromkeys(["a/loop", "a/self", "outside"], "a symbolic link") | {"pipe": "not a regular file"}


def test_a_file_that_became_a_link_after_the_scan_is_not_followed(tmp_path: Path):
    (file,), _ = scan(write(tmp_path, {"one.txt": "text"}))
    (tmp_path / "one.txt").unlink()
    (tmp_path / "one.txt").symlink_to("/etc/passwd")
    with pytest.raises(NotTextError):
        list(pieces(tmp_path, file))


def test_a_name_that_is_no_utf8_is_named_escaped(tmp_path: Path):
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text("text")
    files, skipped = scan(tmp_path)
    assert files == []
    assert skipped == [Skipped("caf\\xe9.txt", "its name is not valid UTF-8")]


def reason(root: Path, name: str, content: bytes) -> str | None:
    write(root, {name: content})
    (file,), _ = scan(root)
    try:
        assert b"".join(pieces(root, file)) == (gzip.decompress(content) if file.compressed else content)
    except NotTextError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.bin", b"\x7fELF\x00\x01", "binary"),
        ("late.txt", b"text" * 5000 + b"\0", "binary"),
        ("controls.txt", bytes(range(1, 9)) * 100, "binary"),
        ("utf16.txt", "text".encode("utf-16"), "UTF-16"),
        ("table.parquet", b"PAR1\0\0PAR1", "Parquet"),
        ("latin1.txt", b"caf\xe9 au lait", None),
        ("bad.txt", b"\xff\xfe\x80 later"[2:], None),
        ("cut.gz", gzip.compress(b"text" * 1000)[:-10], "can't be read"),
        ("no.gz", b"this is not gzip", "can't be read"),
        ("inner.gz", gzip.compress(b"\0\1\2"), "binary"),
        ("good.gz", gzip.compress(b"text"), None),
        ("empty.txt", b"", None),
    ],
)
def test_what_is_no_text_is_skipped_with_its_reason(tmp_path: Path, name: str, content: bytes, expected: str | None):
    found = reason(tmp_path, name, content)
    assert (found is None) == (expected is None)
    assert expected is None or found is None or found.startswith(expected)


def test_a_file_that_expands_without_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sources, "EXPANDED_LIMIT", 1 << 20)
    assert reason(tmp_path, "bomb.gz", gzip.compress(b"a" * (1 << 20))) is None
    found = reason(tmp_path, "bomb.gz", gzip.compress(b"a" * (1 << 22)))
    assert found is not None and found.startswith("expands to more than")


@pytest.mark.parametrize("name", ["long.txt", "long.txt.gz"])
def test_a_long_file_comes_in_pieces_that_end_with_a_line_or_are_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.setattr(sources, "PIECE", 100)
    content = (b"x" * 59 + b"\n") * 3 + b"y" * 250 + b"\nend"
    write(tmp_path, {name: gzip.compress(content) if name.endswith("gz") else content})
    (file,), _ = scan(tmp_path)
    found = list(pieces(tmp_path, file))
    assert b"".join(found) == content
    assert [len(piece) for piece in found] == [60, 60, 60, 100, 100, 54]


def test_html_is_one_piece_or_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sources, "PIECE", 100)
    monkeypatch.setattr(sources, "HTML_LIMIT", 1000)
    assert reason(tmp_path, "a.html", b"<p>text\n" * 125) is None
    (file,), _ = scan(tmp_path)
    assert len(list(pieces(tmp_path, file))) == 1
    found = reason(tmp_path, "a.html", b"<p>text\n" * 126)
    assert found is not None and found.startswith("HTML of more than")


def test_the_nearest_licence_file_above_holds(tmp_path: Path):
    names = ["LICENSE", "top.txt", "a/COPYING", "a/NOTICE", "a/one.txt", "a/b/two.txt", "c/license.py", "c/three.txt"]
    files, _ = scan(write(tmp_path, dict.fromkeys(names, "text")))
    licences = {one.path: one.licence for one in files if one.path.endswith(".txt")}
    assert licences == {
        "top.txt": "LICENSE",
        "a/one.txt": "a/COPYING",
        "a/b/two.txt": "a/COPYING",
        "c/three.txt": "LICENSE",
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("LICENSE", True), ("licence.txt", True), ("LICENSE-MIT", True), ("LICENSES.md", True), ("COPYING.LESSER", True),
        ("copyright", True), ("UNLICENSE", True), ("NOTICE", True), ("license.py", False), ("licensing.txt", False),
        ("noticeboard.md", False), ("README", False), ("copyright.js", False),
    ],
)  # fmt: skip
def test_licence_files_are_known_by_name(name: str, expected: bool):
    assert is_licence(name) is expected
