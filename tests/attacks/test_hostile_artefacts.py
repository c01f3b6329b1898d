"""Wheels, cards, data files and knowledge that mean harm: a clear error or a note, bounded work, nothing run or unpacked."""

from __future__ import annotations

import io
import json
import os
import stat
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.errors import FormatError, FreeholdError
from freehold.provenance import texts
from freehold.provenance.artefact import card, dataset, parquet
from freehold.provenance.artefact.tree import MAX_TEXT, Folder, Zip
from freehold.provenance.audit import audit
from freehold.provenance.bom import mof
from tests.provenance.shapes import gguf_file, model, wheel

PLAIN = "License: MIT\n\n"


def test_a_member_that_inflates_without_end_is_read_to_its_bound_only(tmp_path):
    path = tmp_path / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("thing-1.0.dist-info/METADATA", f"Name: thing\nVersion: 1.0\n{PLAIN}")
        with archive.open("thing/LICENSE", "w") as member:
            for _ in range(60):
                member.write(bytes(1 << 20))
        with archive.open("README.md", "w") as member:
            for _ in range(60):
                member.write(bytes(1 << 20))
    tracemalloc.start()
    report = audit(str(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (report.verdict, "thing/LICENSE: too large" in report.path[0].because) == ("escalate", True)
    assert peak < 30 << 20


def test_a_member_larger_than_it_declares_is_cut(tmp_path):
    path = wheel(tmp_path, PLAIN, {"thing/LICENSE": b"x" * (2 * MAX_TEXT)})
    with Zip(path) as tree:
        assert len(tree.read("thing/LICENSE")) == MAX_TEXT


@pytest.mark.parametrize(
    "name", ["../LICENSE", "/etc/LICENSE", "a/../../LICENSE", "a\\..\\LICENSE", "LICENSE\x1b[2J", "x" * 2000]
)
def test_members_with_names_that_lead_out_are_left_alone(tmp_path, name):
    path = wheel(tmp_path, PLAIN, {name: b"SPDX-License-Identifier: GPL-3.0-only"})
    report = audit(str(path))
    assert (report.verdict, report.detected) == ("allow", ())


def test_links_and_encrypted_members_are_left_alone(tmp_path):
    path = wheel(tmp_path, PLAIN, {})
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("thing/LICENSE")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    with Zip(path) as tree:
        assert "thing/LICENSE" not in {file.name for file in tree.files()}


@pytest.mark.parametrize("cut", [10, 100, 300])
def test_truncated_wheels_are_one_clear_error(tmp_path, cut):
    path = wheel(tmp_path, PLAIN, {"thing/LICENSE": b"MIT"})
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(FormatError):
        audit(str(path))


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_damaged_wheels_never_break_anything(tmp_path_factory, data):
    raw = bytearray(wheel(tmp_path_factory.mktemp("w"), PLAIN, {"thing/LICENSE": b"MIT License " * 50}).read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("d") / "thing-1.0-py3-none-any.whl"
    path.write_bytes(bytes(raw))
    try:
        audit(str(path))
    except FreeholdError as error:
        assert error.message


@pytest.mark.parametrize("weights", [b"", b"GGUF", b"GGUF\x03\0\0\0" + b"\xff" * 64, b"MZ" * 100])
def test_weights_in_a_package_that_are_none_are_noted(tmp_path, weights):
    report = audit(str(wheel(tmp_path, PLAIN, {"thing/w.gguf": weights})))
    assert report.verdict == "allow"
    assert any("thing/w.gguf: its metadata could not be read" in note for note in report.notes)


def test_no_code_of_a_package_runs(tmp_path):
    mark = tmp_path / "ran"
    code = f"open({str(mark)!r}, 'w')".encode()
    files = {"thing/__init__.py": code, "setup.py": code, "thing.pth": b"import thing"}
    audit(str(wheel(tmp_path, PLAIN, files)))
    assert not mark.exists()


def test_a_yaml_bomb_in_a_card_is_no_card():
    bomb = "---\na: &a [x, x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(12)
    )
    fields = card.head(bomb + "license: [*b, *c]\n---\n")
    assert card.values(fields, "license") == []
    merged = "---\na: &a {x: 1}\nb: &b {<<: [*a, *a]}\n---\n"
    assert card.head(merged) == {}


@pytest.mark.parametrize(
    "head",
    [
        "[" * 5000,
        "{" * 5000,
        "- " * 5000,
        "license: !!python/object/apply:os.system ['true']",
        "license: \0",
        "? " * 3000,
        "\t",
    ],
)
def test_heads_that_are_no_yaml_are_no_card(head):
    assert card.values(card.head(f"---\n{head}\n---\n"), "license") == []


def test_a_card_with_absurd_values_is_cut(tmp_path):
    names = "\n".join(f"- org/model-{index}" for index in range(2000))
    folder = model(tmp_path / "m", f"license: {'x' * 5000}\nbase_model:\n{names}")
    report = audit(str(folder))
    assert len(report.declared[0].label) <= 300
    assert len(report.path) < 500


def test_markup_in_names_does_not_drive_the_terminal(tmp_path):
    from freehold.cli.output import printable

    folder = model(tmp_path / "m", 'license: mit\nbase_model: "org/\\e[2Jname"')
    report = audit(str(folder))
    assert all("\x1b" not in printable(item.path) for item in report.path)


def test_links_out_of_a_directory_are_not_followed(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("SPDX-License-Identifier: GPL-3.0-only")
    folder = model(tmp_path / "m", "license: mit")
    (folder / "LICENSE").symlink_to(secret)
    (folder / "loop").symlink_to(folder)
    (folder / "NOTICE").symlink_to("NOTICE")
    os.mkfifo(folder / "COPYING")
    assert audit(str(folder)).detected == ()
    assert {file.name for file in Folder(folder).files()} == {"README.md", "config.json"}


@pytest.mark.parametrize("content", [b"PAR1", b"PAR1" + bytes(8), b"PAR1\xff\xff\xff\x7fPAR1", b"no" * 10, b""])
def test_files_that_are_no_parquet_are_one_clear_error(tmp_path, content):
    path = tmp_path / "x.parquet"
    path.write_bytes(content)
    with pytest.raises(FormatError):
        parquet.read_footer(path)


@given(st.binary(max_size=400))
@settings(max_examples=300, deadline=None)
def test_no_parquet_footer_breaks_anything(tmp_path_factory, footer):
    path = tmp_path_factory.mktemp("p") / "x.parquet"
    path.write_bytes(b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    try:
        parquet.read_footer(path)
    except FormatError as error:
        assert "x.parquet" in error.message


def test_broken_and_nested_lines_of_a_data_file_are_noted_and_left_out(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"license": "MIT"}\n{"license":\n' + "[" * 100_000 + '\n"text"\n')
    report = audit(str(path))
    assert any("are no JSON" in note for note in report.notes)
    assert report.verdict == "allow"


def test_a_croissant_file_of_nested_lists_is_refused(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"@context": {}, "@type": "Dataset", "license": ' + "[" * 50_000 + "]" * 50_000 + "}")
    with pytest.raises(FormatError):
        audit(str(path))


@pytest.mark.parametrize(
    "text", ["<" * 300_000, "<script>" * 40_000, "\n" * 500_000, "(c) " * 30_000, "&" * 300_000, "a" * 300_000]
)
def test_texts_made_to_be_slow_are_read_in_linear_work(text):
    """Each of these took minutes with a pattern that backtracks."""
    assert all(match.how != "text" for match in texts.find(text))


def test_a_release_file_that_is_a_bomb_is_refused(tmp_path):
    path = tmp_path / "x.yml"
    path.write_text("[" * 3_000)
    with pytest.raises(FormatError):
        mof.read_release(path)


def test_a_wheel_of_very_many_members_is_refused(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for index in range(50_001):
            archive.writestr(f"f{index}", b"")
    path = tmp_path / "thing-1.0-py3-none-any.whl"
    path.write_bytes(buffer.getvalue())
    with pytest.raises(FormatError, match="50001 members"):
        audit(str(path))


def test_metadata_of_an_other_shape_is_an_error_and_no_guess(tmp_path: Path):
    path = tmp_path / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a-1.dist-info/METADATA", "Name: a\n\n")
        archive.writestr("b-1.dist-info/METADATA", "Name: b\n\n")
    with pytest.raises(FormatError, match="found 2"):
        audit(str(path))


def test_a_report_of_compress_that_lies_about_its_types_breaks_nothing(tmp_path):
    folder = model(tmp_path / "m", "license: mit")
    (folder / "freehold-report.json").write_text(
        json.dumps({"source_name": [1], "source_licence": {"a": 1}, "source_base": 3})
    )
    assert audit(str(folder)).kind == "model"


def test_links_beside_a_gguf_file_are_not_followed_out_and_pipes_not_opened(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("SPDX-License-Identifier: GPL-3.0-only")
    folder = tmp_path / "m"
    folder.mkdir()
    path = gguf_file(folder / "m.gguf", license="mit")
    (folder / "LICENSE").symlink_to(secret)
    os.mkfifo(folder / "README.md")
    assert audit(str(path)).detected == ()


def test_numbers_too_long_to_print_are_no_value_of_a_card():
    digits = "0x" + "f" * 9000
    assert card.values(card.head(f"---\nlicense: {digits}\n---\n"), "license") == []
    assert card.head(f"---\n{digits}: mit\n---\n") == {}


def test_a_json_file_is_not_read_beyond_what_a_croissant_description_may_have(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "MAX_CROISSANT", 20)
    path = tmp_path / "data.json"
    path.write_text('{"@context": {}, "@type": "sc:Dataset", "license": "mit"}')
    with pytest.raises(FormatError, match="no Croissant description"):
        audit(str(path))


@pytest.mark.parametrize("value", ["2026-99-99", "1" * 5000])
def test_a_release_file_with_values_that_are_none_is_refused(tmp_path, value):
    path = tmp_path / "release.yml"
    path.write_text(f"release:\n  date: {value}\n  components: []\n")
    with pytest.raises(FormatError, match="is no YAML"):
        mof.read_release(path)
