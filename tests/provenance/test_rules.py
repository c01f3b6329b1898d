"""The engine: union of duties, dates, bases, and no idle case of the rules."""

from __future__ import annotations

import datetime as dt

import pytest
from msgspec.structs import replace

from freehold.provenance.knowledge import knowledge
from freehold.provenance.lineage import MAX_DEPTH, Lineage, Thing, reach_of
from freehold.provenance.rules import Basis, judge
from tests.provenance.golden import cases, full_path, lineage_of

GOLDEN = cases()
BASE = knowledge()
RULE_CASES = [
    (rule.id, index)
    for rule in BASE.rules
    for index, case in enumerate(rule.cases)
    if case.when.basis is not True  # a signed basis has tests of its own
]


def right(case, base) -> bool:
    lineage, found = case.lineage()
    judgement = judge(lineage, case.purpose, found=found, base=base)
    deciding = {(item.rule, item.path) for item in judgement.findings if item.verdict == case.verdict}
    path = " | ".join(full_path(part) for part in case.path.split(";"))
    return judgement.verdict == case.verdict and (case.rule, path) in deciding


@pytest.mark.parametrize(("rule", "index"), RULE_CASES)
def test_without_any_one_case_of_the_rules_the_golden_table_fails(rule, index):
    cut = [
        replace(item, cases=item.cases[:index] + item.cases[index + 1 :]) if item.id == rule else item
        for item in BASE.rules
    ]
    assert not all(right(case, replace(BASE, rules=tuple(cut))) for case in GOLDEN if case.rule == rule)


def test_duties_are_the_union_over_all_paths_each_with_its_own():
    lineage, _ = lineage_of(
        "m:m[MIT] a:m[Apache-2.0] b:m[Gemma] d:d[CC-BY-4.0] m>merged_from>a m>merged_from>b a>trained_on>d"
    )
    found = {(duty.licence, duty.path) for duty in judge(lineage, "redistribute").duties}
    assert ("MIT", "m > MIT") in found
    assert ("Apache-2.0", "m > merged_from > a > Apache-2.0") in found
    assert ("LicenseRef-Gemma", "m > merged_from > b > LicenseRef-Gemma") in found
    assert not any(licence == "CC-BY-4.0" for licence, _ in found), (
        "attribution of training data is no duty of the licence"
    )


def test_a_thing_reached_over_two_paths_brings_its_duties_twice():
    lineage, _ = lineage_of("m:m[MIT] a:m[MIT] b:m[Gemma] m>merged_from>a m>merged_from>b a>fine_tuned_from>b")
    paths = {duty.path for duty in judge(lineage, "redistribute").duties if duty.licence == "LicenseRef-Gemma"}
    assert paths == {
        "m > merged_from > b > LicenseRef-Gemma",
        "m > merged_from > a > fine_tuned_from > b > LicenseRef-Gemma",
    }


def test_duties_of_other_purposes_are_told_and_marked():
    lineage, _ = lineage_of("d:d[CC-BY-SA-4.0]")
    duty = next(duty for duty in judge(lineage, "commercial").duties if duty.kind == "share-alike")
    assert (duty.now, duty.when, duty.rule) == (False, ("redistribute",), "R2")


@pytest.mark.parametrize(
    ("provider", "days", "verdicts"),
    [
        ("deepseek", ("2025-01-19", "2025-01-20"), ("escalate", "allow")),
        ("openai", ("2023-03-13", "2023-03-14"), ("deny", "deny")),
    ],
)
def test_terms_that_changed_flip_the_verdict_by_date_alone(provider, days, verdicts):
    found = []
    for day in days:
        lineage, _ = lineage_of(f"d:d[MIT] p[{provider}@{day}] d>generated_by>p")
        judgement = judge(lineage, "train")
        found.append((judgement.verdict, judgement.findings[0].licence))
    assert tuple(verdict for verdict, _ in found) == verdicts
    assert found[0][1] != found[1][1], "another version decided"


def test_the_terms_that_were_looked_at_are_named_by_digest():
    lineage, _ = lineage_of("d:d[MIT] p[openai@2024-05-01] d>generated_by>p")
    assert list(judge(lineage, "train").terms) == ["openai-business-terms-2023-11-14"]


def test_a_basis_lifts_the_bar_of_its_party_until_its_last_day():
    lineage, _ = lineage_of("d:d[MIT] p[openai@2024-05-01] d>generated_by>p")
    until = Basis("openai", "0" * 64, dt.date(2026, 6, 30))
    assert judge(lineage, "train", bases=(until,), today=dt.date(2026, 6, 30)).verdict == "allow"
    assert judge(lineage, "train", bases=(until,), today=dt.date(2026, 7, 1)).verdict == "deny"
    other = Basis("anthropic", "0" * 64)
    assert judge(lineage, "train", bases=(other,), today=dt.date(2026, 6, 30)).verdict == "deny"


def test_a_licence_bar_is_lifted_by_a_basis_of_its_licensor():
    lineage, _ = lineage_of("m:m[Llama-2]")
    assert judge(lineage, "train", bases=(Basis("LicenseRef-Llama-2", "0" * 64),)).verdict == "allow"


def test_a_circle_in_the_lineage_ends():
    lineage, _ = lineage_of("a:m[MIT] b:m[MIT] a>fine_tuned_from>b b>fine_tuned_from>a")
    assert judge(lineage, "commercial").verdict == "allow"


def test_a_wide_and_deep_lineage_stays_bounded():
    lineage = Lineage("m0")
    for index in range(40):
        lineage.add(Thing(f"m{index}", "model", "MIT"))
    for child in range(40):
        for parent in range(child + 1, min(child + 6, 40)):
            lineage.link(f"m{child}", "merged_from", f"m{parent}")
    paths = list(lineage.paths())
    assert len(paths) <= 2000
    assert max(map(len, paths)) <= MAX_DEPTH
    judgement = judge(lineage, "commercial")
    assert judgement.verdict == "escalate", "what was not followed is not known"
    assert "not followed" in judgement.findings[0].because


def test_the_empty_path_is_the_thing_itself():
    assert reach_of(()) == "own"


def test_an_unknown_relation_is_an_error():
    with pytest.raises(KeyError):
        Lineage("a").link("a", "looks_like", "b")
