"""`freehold trace` as a person runs it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]

SENTENCE = "Every record becomes a leaf, and the head of the tree is signed with the operator's key."
OTHER = (
    "An auditor compares what the ledger says with the invoices of the provider, the logs of the proxy and her notes."
)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    found = tmp_path / "corpus"
    found.mkdir()
    (found / "ledger.md").write_text(f"# Ledger\n\n{SENTENCE}\n\n{OTHER}\n")
    (found / "LICENSE").write_text("Apache License")
    (found / "logo.png").write_bytes(b"\x89PNG\0\0")
    return found


def test_a_text_is_traced_to_file_byte_line_and_licence_and_the_corpus_indexed_first(
    freehold: Run, corpus: Path
) -> None:
    done = freehold("trace", f"They say: {SENTENCE} Do they?", "--corpus", str(corpus))
    assert done.returncode == 0, done.stderr
    assert f"\u27e6{SENTENCE}\u27e7[1]" in done.stdout
    assert "ledger.md:3 (byte 10; licence file LICENSE)" in done.stdout
    assert "indexed 2 files" in done.stderr
    again = freehold("trace", SENTENCE, "--corpus", str(corpus))
    assert again.returncode == 0 and again.stderr == ""


def test_json_reports_spans_and_near_duplicates(freehold: Run, corpus: Path) -> None:
    edited = OTHER.replace("her notes", "notes")
    done = freehold(
        "trace", "-", "--corpus", str(corpus), "--json", "--similar", "0.7", input=f"{SENTENCE}\n\n{edited}"
    )
    report = json.loads(done.stdout)
    assert report["spans"][0]["sources"][0]["file"] == "ledger.md"
    (near,) = report["near_duplicates"]
    assert near["similar"][0]["source"]["line"] == 5
    assert 0.7 <= near["similar"][0]["jaccard"] < 1


def test_a_page_is_written_and_a_file_traced(freehold: Run, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "answer.txt").write_text(SENTENCE)
    done = freehold("trace", "--file", "answer.txt", "--corpus", str(corpus), "--html", "report.html")
    assert done.returncode == 0 and "report: report.html" in done.stderr
    assert "ledger.md" in (tmp_path / "report.html").read_text()


def test_build_says_what_was_indexed_and_skipped_by_name(freehold: Run, corpus: Path) -> None:
    done = freehold("trace", "--build", "--corpus", str(corpus), "--index", "ix", "--skipped")
    assert done.returncode == 0
    assert "skipped logo.png: binary" in done.stdout
    again = json.loads(freehold("trace", "--build", "--corpus", str(corpus), "--index", "ix", "--json").stdout)
    assert again["built"]["shards_built"] == 0
    assert again["skipped"] == [{"path": "logo.png", "reason": "binary"}]


def test_a_corpus_that_changed_is_warned_of_and_build_helps(freehold: Run, corpus: Path) -> None:
    freehold("trace", "--build", "--corpus", str(corpus))
    (corpus / "new.md").write_text(f"Again: {SENTENCE}")
    done = freehold("trace", SENTENCE, "--corpus", str(corpus))
    assert "warning: 1 files changed" in done.stderr and "new.md" in done.stderr
    done = freehold("trace", SENTENCE, "--corpus", str(corpus), "--build")
    assert "new.md:1" in done.stdout and "warning" not in done.stderr


def test_damage_is_found_by_check(freehold: Run, corpus: Path, tmp_path: Path) -> None:
    freehold("trace", "--build", "--corpus", str(corpus), "--index", "ix")
    assert freehold("trace", "--check", "--index", "ix").returncode == 0
    (path,) = (tmp_path / "ix" / "shards").glob("*/text.bin")
    path.write_bytes(path.read_bytes().replace(b"leaf", b"loaf"))
    done = freehold("trace", "--check", "--index", "ix")
    assert done.returncode == 3 and "text.bin" in done.stderr and "hint:" in done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["text"], "no corpus named"),
        (["--corpus", "corpus"], "nothing to trace"),
        (["text", "--file", "x", "--corpus", "corpus"], "both"),
        (["--file", "nowhere", "--corpus", "corpus"], "can't read nowhere"),
        ([" \n", "--corpus", "corpus"], "found nothing but white space"),
        (["--file", "corpus/logo.png", "--corpus", "corpus"], "found a zero byte at 4"),
        (["text", "--corpus", "nowhere"], "no corpus at"),
        (["text", "--index", "nowhere"], "no index at"),
        (["--build", "--index", "ix"], "--build needs the corpus"),
        (["text", "--corpus", "corpus", "--similar", "2"], "--similar"),
    ],
)
def test_wrong_use_is_explained(freehold: Run, corpus: Path, words: list[str], expected: str) -> None:
    done = freehold("trace", *words)
    assert done.returncode == 2
    assert expected in done.stderr


def test_texts_cannot_drive_the_terminal(freehold: Run, corpus: Path) -> None:
    evil = f"\x1b]0;owned\x07\x1b[2J {SENTENCE} \u202e[bold red]markup[/]"
    (corpus / "evil.md").write_text(evil)
    done = freehold("trace", evil, "--corpus", str(corpus))
    assert done.returncode == 0
    assert not {"\x1b", "\x07", "\u202e"} & set(done.stdout)
    assert "[bold red]markup[/]" in done.stdout
