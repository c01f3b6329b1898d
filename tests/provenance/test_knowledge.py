"""The knowledge base: its schema, its citations, and terms by date."""

from __future__ import annotations

import datetime as dt
import re
from importlib import resources
from pathlib import Path

import pytest

from freehold.errors import FormatError
from freehold.provenance.artefact.ancestry import dataset_of, family_of
from freehold.provenance.knowledge import FILES, knowledge, load, read
from freehold.provenance.provider_terms import provider_of, terms_in_force, versions

BASE = knowledge()


@pytest.fixture
def texts() -> dict[str, str]:
    folder = resources.files("freehold.provenance.knowledge")
    return {name: folder.joinpath(f"{name}.yaml").read_text() for name in FILES}


# --- entries --------------------------------------------------------------------------------------------------------------


def test_every_entry_cites_a_document_with_its_address_and_date():
    entries = [*BASE.licences.values(), *BASE.families, *BASE.datasets]
    for entry in entries:
        assert entry.cite.document
        assert entry.cite.url.startswith("https://"), entry
        assert dt.date(1980, 1, 1) < entry.cite.date < dt.date(2026, 12, 31)


def test_every_trait_and_every_duty_cites_a_clause():
    for licence in BASE.licences.values():
        assert all(licence.traits.values()), licence.id
        assert all(duty.clause and duty.text for duty in licence.duties), licence.id


def test_every_rule_from_1_to_12_is_there_and_cites_something():
    assert [rule.id for rule in BASE.rules] == [f"R{number}" for number in range(1, 13)]
    assert all(rule.cite for rule in BASE.rules)


def test_every_trait_that_a_rule_tests_is_one_that_something_has():
    tested = {trait for rule in BASE.rules for case in rule.cases for trait in (*case.when.trait, *case.when.without)}
    given = {trait for licence in BASE.licences.values() for trait in licence.traits}
    given |= {trait for provider in BASE.providers for version in provider.terms for trait in version.traits}
    assert tested <= given | {"unknown", "unread"}


def test_every_kind_of_duty_belongs_to_one_rule():
    kinds = [kind for rule in BASE.rules for kind in rule.duties]
    assert len(kinds) == len(set(kinds))
    assert {duty.kind for licence in BASE.licences.values() for duty in licence.duties} <= set(kinds)


@pytest.mark.parametrize(
    ("name", "licence"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "LicenseRef-Llama-3.1"),
        ("meta-llama/Meta-Llama-3-8B", "LicenseRef-Llama-3"),
        ("meta-llama/Llama-2-7b-chat-hf", "LicenseRef-Llama-2"),
        ("google/gemma-3-270m", "LicenseRef-Gemma"),
        ("google/gemma-3n-E2B-it", "LicenseRef-Gemma"),
        ("Qwen/Qwen2.5-7B-Instruct", "Apache-2.0"),
        ("Qwen/Qwen2.5-3B-Instruct", "LicenseRef-Qwen-Research"),
        ("Qwen/Qwen2.5-72B-Instruct", "LicenseRef-Qwen-2024"),
        ("Qwen/Qwen1.5-7B", "LicenseRef-Tongyi-Qianwen"),
        ("deepseek-ai/DeepSeek-R1", "MIT"),
        ("deepseek-ai/DeepSeek-V3", "LicenseRef-DeepSeek-1.0"),
        ("deepseek-ai/DeepSeek-V3-0324", "MIT"),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "MIT"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "Apache-2.0"),
        ("openai-community/gpt2", "MIT"),
    ],
)
def test_models_are_known_by_their_names(name, licence):
    family = family_of(name)
    assert family is not None
    assert family.licence == licence


@pytest.mark.parametrize("name", ["my-llama", "org/qwen-like", "gemmafied", "google/gemmate"])
def test_a_likeness_in_the_name_is_no_family(name):
    assert family_of(name) is None


def test_data_sets_are_known_by_their_names():
    alpaca = dataset_of("tatsu-lab/alpaca")
    assert alpaca is not None
    assert (alpaca.licence, alpaca.generated_by) == ("CC-BY-NC-4.0", "openai")
    assert dataset_of("somebody/something") is None


# --- schema ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("licences", "class: permissive", "class: generous", "expected one of"),
        ("licences", 'clause: "4(a)"', 'cause: "4(a)"', "cause"),
        ("licences", "- id: MIT\n", "- id: Apache-2.0\n", "twice"),
        ("licences", "for: [commercial, redistribute]", "for: [profit]", "purpose|expected one of"),
        ("licences", 'labels: ["odc-by', 'labels: ["(odc-by', "no regular expression"),
        ("families", "licence: MIT", "licence: NoSuch", "no NoSuch"),
        ("providers", "until: 2023-11-13", "until: 2023-11-14", "still in force"),
        ("providers", "from: 2023-03-14", "from: never", "date"),
        ("rules", "verdict: escalate", "verdict: perhaps", "perhaps"),
        ("rules", "reach: [trained]", "reach: [smelled]", "smelled"),
    ],
)
def test_a_broken_entry_is_refused_with_its_place(texts, file, old, new, message):
    assert old in texts[file]
    with pytest.raises(FormatError, match=message):
        read(texts | {file: texts[file].replace(old, new, 1)})


def test_a_knowledge_base_can_come_from_a_directory(texts, tmp_path):
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    assert load(tmp_path).licences.keys() == BASE.licences.keys()
    (tmp_path / "rules.yaml").unlink()
    with pytest.raises(FormatError, match=r"rules\.yaml"):
        load(tmp_path)


def test_the_contributors_guide_names_every_field():
    guide = (Path(__file__).parent.parent.parent / "docs/licences.md").read_text()
    for cls in ("Licence", "Duty", "Version", "Family", "DataSet", "When"):
        import freehold.provenance.knowledge as module

        for field in getattr(module, cls).__struct_encode_fields__:
            assert re.search(rf"`{re.escape(field)}`", guide), f"{cls}.{field}"


# --- terms by date --------------------------------------------------------------------------------------------------------


def test_the_version_in_force_on_the_day_is_found_at_both_of_its_ends():
    assert terms_in_force("openai", dt.date(2023, 3, 13)) is None
    assert terms_in_force("openai", dt.date(2023, 3, 14)).id == "openai-terms-of-use-2023-03-14"
    assert terms_in_force("openai", dt.date(2023, 11, 13)).id == "openai-terms-of-use-2023-03-14"
    assert terms_in_force("openai", dt.date(2023, 11, 14)).id == "openai-business-terms-2023-11-14"


def test_a_datetime_counts_by_its_day_in_utc():
    east = dt.timezone(dt.timedelta(hours=8))
    before = dt.datetime(2025, 1, 20, 7, 59, tzinfo=east)
    after = dt.datetime(2025, 1, 20, 8, 0, tzinfo=east)
    assert terms_in_force("deepseek", before).trains == "contested"
    assert terms_in_force("deepseek", after).trains == "free"


def test_models_of_a_provider_are_its_name_too():
    assert provider_of("gpt-4o-mini").provider == "openai"
    assert provider_of("claude-sonnet-4-5").provider == "anthropic"
    assert provider_of("gemini-2.0-flash").provider == "google"
    assert provider_of("deepseek-chat").provider == "deepseek"
    assert provider_of("gpt2") is None
    assert provider_of("acme") is None


def test_the_digest_names_a_version_and_changes_with_it():
    first, again = (terms_in_force("anthropic", dt.date(2024, month, 1)) for month in (2, 3))
    later = terms_in_force("anthropic", dt.date(2025, 7, 1))
    assert first.digest == again.digest != later.digest
    assert re.fullmatch(r"[0-9a-f]{64}", first.digest)


def test_terms_asked_for_after_they_were_checked_are_marked():
    assert terms_in_force("openai", dt.date(2026, 1, 1)).stale
    assert not terms_in_force("openai", dt.date(2024, 1, 1)).stale


def test_versions_come_oldest_first():
    days = [version.since for version in versions("google")]
    assert days == sorted(days)
    assert len(days) == 3
