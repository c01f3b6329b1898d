"""`audit` on a directory of files: licences in places that no name points to, and bounds that are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from freehold.errors import FormatError, ModelNotFoundError
from freehold.provenance import texts
from freehold.provenance.artefact import scan, survey
from freehold.provenance.audit import audit
from tests.provenance.shapes import BSD2, LICENCES, MIT, gguf_file, model

APACHE = LICENCES.read_text()
GNU = """/* This program is free software: you can redistribute it and/or modify
 * it under the terms of the GNU Affero General Public License as
 * published by the Free Software Foundation, either version 3 of the
 * License, or (at your option) any later version. */
"""


def folder(path: Path, **files: str) -> Path:
    """A directory of files; "__" is a slash and "_DOT_" a dot."""
    for name, text in files.items():
        file = path / name.replace("__", "/").replace("_DOT_", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return path


def found(path: Path) -> set[tuple[str, str, str]]:
    return {(item.licence, item.how, item.file) for item in audit(str(path)).detected}


def test_a_tag_in_a_source_stands_against_the_licence_file(tmp_path):
    path = folder(tmp_path / "p", LICENSE=APACHE, a_DOT_py="# SPDX-License-Identifier: AGPL-3.0-only\nprint(1)\n")
    report = audit(str(path))
    assert (report.verdict, report.path[0].licence) == ("escalate", "AGPL-3.0-only")
    assert ("AGPL-3.0-only", "tag", "a.py") in found(path)


def test_the_notice_that_gnu_licences_ask_for_is_read_in_sources(tmp_path):
    path = folder(tmp_path / "p", LICENSE=APACHE, src__a_DOT_c=GNU + "int main(void) { return 0; }\n")
    report = audit(str(path))
    assert (report.verdict, report.path[0].licence) == ("escalate", "AGPL-3.0-or-later")


def test_a_gnu_notice_without_later_versions_is_that_version_only():
    text = (
        "# under the terms of version 2 of the GNU General Public License as published by the Free Software Foundation."
    )
    assert [match.licence for match in texts.gnu_notices(text)] == ["GPL-2.0-only"]


@pytest.mark.parametrize("name", ["BSD", "vendored", "third__part_DOT_1", "COPYING_DOT_LESSER"])
def test_a_licence_text_is_found_under_any_name(tmp_path, name):
    path = folder(tmp_path / "p", LICENSE=APACHE, **{name: BSD2})
    assert ("BSD-2-Clause", "text") in {(licence, how) for licence, how, _ in found(path)}


def test_a_licence_text_beside_the_only_gguf_file_of_a_directory_is_found(tmp_path):
    path = folder(tmp_path / "m", code__a_DOT_py="# SPDX-License-Identifier: GPL-3.0-only\n")
    gguf_file(path / "m.gguf", license="mit")
    assert audit(str(path)).verdict == "escalate"


@pytest.mark.parametrize(
    "text",
    ['print("SPDX-License-Identifier: GPL-3.0-only")\n', "x = 1  # says SPDX-License-Identifier: GPL-3.0-only\n"],
)
def test_a_string_or_a_sentence_about_a_tag_is_none(tmp_path, text):
    assert found(folder(tmp_path / "p", a_DOT_py=text)) == set()


@pytest.mark.parametrize(
    ("name", "label", "text"),
    [
        ("pyproject.toml", "project.license", '[project]\nname = "x"\nlicense = "MIT"\n'),
        ("pyproject.toml", "project.license", '[project]\nname = "x"\nlicense = {text = "MIT"}\n'),
        ("setup.cfg", "metadata.license", "[metadata]\nlicense = MIT\n"),
        ("package.json", "license", '{"name": "x", "license": "MIT"}'),
        ("Cargo.toml", "package.license", '[package]\nname = "x"\nlicense = "MIT"\n'),
    ],
)
def test_a_projects_own_metadata_declare(tmp_path, name, label, text):
    (tmp_path / name).write_text(text)
    report = audit(str(tmp_path))
    assert [(item.licence, item.where) for item in report.declared] == [("MIT", f"{name}: {label}")]
    assert (report.verdict, report.kind) == ("allow", "software")


def test_what_a_card_says_is_not_hidden_by_a_manifest(tmp_path):
    card = "---\nlicense: cc-by-nc-4.0\n---\n"
    path = folder(tmp_path / "p", pyproject_DOT_toml='[project]\nlicense = "MIT"\n', README_DOT_md=card)
    assert audit(str(path)).verdict == "deny"


def test_metadata_that_can_not_be_read_are_for_a_person(tmp_path):
    report = audit(str(folder(tmp_path / "p", LICENSE=APACHE, pyproject_DOT_toml="[project\n")))
    assert report.verdict == "escalate"
    assert "pyproject.toml can't be read" in report.path[0].because


def test_data_among_a_projects_tests_do_not_declare_for_it(tmp_path):
    record = '{"text": "a", "license": "cc-by-nc-4.0"}\n'
    path = folder(tmp_path / "p", package_DOT_json='{"license": "MIT"}', tests__data_DOT_jsonl=record)
    assert audit(str(path)).verdict == "allow"


@pytest.mark.parametrize(
    ("name", "legal"),
    [
        ("LICENSE", True),
        ("vendor/LICENCE-MIT.txt", True),
        ("COPYING.LESSER", True),
        ("UNLICENSE", True),
        ("NOTICE.md", True),
        ("data/GEMMA_TERMS.html", True),
        ("MIT-LICENSE.txt", True),
        ("third-party-notices.txt", True),
        ("docs/licences.md", False),
        ("licences.md", False),
        ("docs/license-guide.md", False),
        ("knowledge/open_licences.txt", False),
        ("top_level.txt", False),
    ],
)
def test_a_legal_file_is_one_by_the_stem_of_its_name(name, legal):
    assert survey.named_legal(name) is legal


def test_a_licence_that_a_page_mentions_is_no_duty(tmp_path):
    page = "Models under CC BY-NC 4.0 and the Gemma Terms of Use, ai.google.dev/gemma/terms, are denied.\n" * 9
    report = audit(str(folder(tmp_path / "p", LICENSE=APACHE, docs__licences_DOT_md=page)))
    assert (report.verdict, {duty.licence for duty in report.duties}) == ("allow", {"Apache-2.0"})


@pytest.mark.parametrize("name", [".git", ".venv", "venv", "node_modules", "__pycache__", "build"])
def test_directories_of_tools_and_of_installed_packages_are_not_entered(tmp_path, name):
    path = folder(tmp_path / "p", LICENSE=APACHE, **{f"{name}__a_DOT_py": "# SPDX-License-Identifier: GPL-3.0-only\n"})
    (path / name).mkdir(exist_ok=True, parents=True)
    (path / name / "a.py").write_text("# SPDX-License-Identifier: GPL-3.0-only\n")
    report = audit(str(path))
    assert report.verdict == "allow"
    told = any(note == f"not entered: {name}" for note in report.notes)
    assert told is (name not in (".git", "__pycache__"))


def test_how_many_files_were_read_is_told(tmp_path):
    path = folder(tmp_path / "p", LICENSE=APACHE, a_DOT_py="1\n", b_DOT_csv="1,2\n")
    assert "2 of 3 files were read for licences: weights, data and pictures are not searched" in audit(str(path)).notes


def test_files_that_a_bound_left_unread_are_for_a_person(tmp_path, monkeypatch):
    path = folder(tmp_path / "p", LICENSE=APACHE, a_DOT_py="1\n", b_DOT_py="1\n")
    assert audit(str(path)).verdict == "allow"
    monkeypatch.setattr(scan, "MAX_SCANNED", 1)
    report = audit(str(path))
    assert (report.verdict, "1 files that may hold licences" in report.path[0].because) == ("escalate", True)


def test_directories_nested_too_deep_are_for_a_person(tmp_path):
    path = folder(tmp_path / "p", LICENSE=APACHE, **{"__".join(["d"] * 14) + "__a_DOT_py": "1\n"})
    report = audit(str(path))
    assert (report.verdict, "nested too deep" in report.path[0].because) == ("escalate", True)


def test_texts_that_a_bound_left_uncompared_are_for_a_person(tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "MAX_TEXTS", 0)
    path = folder(tmp_path / "p", LICENSE=APACHE, vendored=MIT.format(year=1, holder="x"))
    assert audit(str(path)).verdict == "escalate"


def test_a_model_directory_with_weights_is_not_kept_from_an_allow(tmp_path):
    path = model(tmp_path / "m", "license: mit")
    (path / "model.safetensors").write_bytes(bytes(200_000))
    (path / "vocab.txt").write_text("licence\n" * 20_000)
    assert audit(str(path)).verdict == "allow"


@pytest.mark.parametrize("text", ["{", "[]", "\0"])
def test_a_config_that_is_no_object_is_an_error(tmp_path, text):
    path = model(tmp_path / "m", "license: mit")
    (path / "config.json").write_text(text)
    with pytest.raises(FormatError, match="expected a JSON object") as caught:
        audit(str(path))
    assert caught.value.hint


def test_a_broken_parquet_file_is_an_error_by_itself_and_in_a_data_set(tmp_path):
    path = folder(tmp_path / "d", README_DOT_md="---\nlicense: mit\n---\n", a_DOT_parquet="PAR1 no footer")
    for reference in (path, path / "a.parquet"):
        with pytest.raises(FormatError, match=r"a\.parquet") as caught:
            audit(str(reference))
        assert caught.value.hint


def test_an_installed_package_may_be_named_plainly():
    assert audit("msgspec").name == audit("pypi:msgspec").name == "msgspec"


def test_a_name_that_is_nothing_tells_what_can_be_audited():
    with pytest.raises(ModelNotFoundError) as caught:
        audit("nothing-of-that-name")
    assert all(word in str(caught.value.hint) for word in ("pypi:NAME", ".whl", "data set"))
