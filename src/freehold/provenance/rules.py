"""The engine of R1 to R12: a lineage, a purpose and the rules as data give duties, conflicts and a verdict with its path.

For every path from the subject to a licensed thing each rule's cases are held against the licence's traits, the reach,
and labels of the situation. Duties are the union over the paths (R1). Knows no files and no artefacts.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from msgspec.structs import replace

from freehold.provenance.knowledge import FREE_CLASSES, Case, Knowledge, Licence, Rule, When, knowledge
from freehold.provenance.licences import UNKNOWN, alternatives, compatible, identifiers, lookup
from freehold.provenance.lineage import MAX_PATHS, Lineage, Link, Thing, reach_of, words
from freehold.provenance.provider_terms import provider_of, terms_before, terms_in_force, versions

VERDICTS = ("allow", "escalate", "deny")


@dataclass(frozen=True, slots=True)
class Finding:
    """A case that held.

    Attributes:
        rule: "R1" to "R12".
        verdict: "allow", "escalate" or "deny".
        because: in words.
        licence, clause: what it rests on.
        path: from the subject to the licensed thing, and the licence.
        evidence: where the licence was read.
    """

    rule: str
    verdict: str
    because: str
    licence: str
    clause: str
    path: str
    evidence: str


@dataclass(frozen=True, slots=True)
class Obligation:
    """A duty on a path; `when` are the purposes that bring it, `now` says whether the one asked for does."""

    rule: str
    kind: str
    text: str
    licence: str
    clause: str
    path: str
    when: tuple[str, ...]
    now: bool


@dataclass(frozen=True, slots=True)
class Judgement:
    """What follows for a purpose.

    Attributes:
        verdict: the strictest of the findings.
        findings: every case that held, strictest first.
        duties: their union over all paths, those of the purpose first.
        terms: digest of each provider's terms that were looked at, by their id.
        notes: what a reader should know of the licences and terms that were applied.
    """

    purpose: str
    verdict: str
    findings: tuple[Finding, ...]
    duties: tuple[Obligation, ...]
    terms: dict[str, str]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Claim:
    """A licence that reaches the subject over a path, and labels of the situation."""

    licence: Licence
    thing: Thing
    path: tuple[Link, ...]
    reach: str
    labels: frozenset[str]
    declared: str = ""


@dataclass(frozen=True, slots=True)
class Basis:
    """A signed agreement with a provider or licensor that lifts R7: whose, until when, and its document's SHA-256."""

    party: str
    document: str
    until: dt.date | None = None


def judge(
    lineage: Lineage,
    purpose: str,
    *,
    found: dict[str, tuple[str, ...]] | None = None,
    bases: tuple[Basis, ...] = (),
    today: dt.date | None = None,
    base: Knowledge | None = None,
) -> Judgement:
    """Judge a subject for a purpose.

    Args:
        lineage: what it is made from.
        purpose: one of the knowledge base's PURPOSES.
        found: licences that were found in things although they don't declare them, by thing.
        bases: signed agreements.
        today: the day on which a basis must still hold; the present one by default.
        base: another knowledge base than the one that comes with this version (its rules are used).
    """
    rules = (base or knowledge()).rules
    question = _Question(rules, purpose, bases, today or dt.datetime.now(dt.UTC).date(), lineage.subject)
    terms: dict[str, str] = {}
    findings: list[Finding] = []
    duties: dict[tuple[str, ...], Obligation] = {}
    claims: list[Claim] = []
    paths = list(lineage.paths())
    if len(paths) == MAX_PATHS:
        because = f"more than {MAX_PATHS} ways lead from it to what it is made from: the rest was not followed"
        findings.append(Finding("R10", "escalate", because, UNKNOWN, "", lineage.subject, ""))
    for path in paths:
        thing = lineage.things[path[-1].parent if path else lineage.subject]
        claims += _best(_options(lineage, thing, path, (found or {}).get(thing.id, ()), terms), question)
    for claim in claims:
        findings += list(_findings(claim, question)) or [_permitted(claim, lineage.subject)]
        for duty in _duties(claim, question):
            duties.setdefault((duty.kind, duty.licence, duty.clause, duty.path), duty)
    findings += _merged(claims, question)
    findings = list(dict.fromkeys(sorted(findings, key=lambda finding: -VERDICTS.index(finding.verdict))))
    return Judgement(purpose, findings[0].verdict, tuple(findings), _ordered(duties.values()), terms, _notes(claims))


@dataclass(frozen=True, slots=True)
class _Question:
    """What is asked of every claim."""

    rules: tuple[Rule, ...]
    purpose: str
    bases: tuple[Basis, ...]
    today: dt.date
    subject: str


def _options(
    lineage: Lineage, thing: Thing, path: tuple[Link, ...], found: tuple[str, ...], terms: dict[str, str]
) -> list[list[Claim]]:
    """The choices a thing's licence leaves, each a list of claims that hold together."""
    reach = reach_of(path)
    if thing.kind == "provider":
        return [[claim] for claim in _provider_claims(thing, path, reach, terms)][:1]
    labels = {"contested"} if thing.doubt else set()
    declared = lineage.things[lineage.subject].licence or ""
    differs = frozenset({"differs"})
    extra = [Claim(lookup(key), thing, path, reach, differs, declared or "nothing") for key in found]
    choices: list[tuple[str, ...]] = alternatives(thing.licence) if thing.licence else [(UNKNOWN,)]
    if not thing.licence and found:
        choices = [()]
    return [
        [_claim(lineage, lookup(key), thing, path, reach, labels, declared) for key in choice] + extra
        for choice in choices
    ]


def _claim(
    lineage: Lineage,
    licence: Licence,
    thing: Thing,
    path: tuple[Link, ...],
    reach: str,
    labels: set[str],
    declared: str,
) -> Claim:
    """A claim with the labels that depend on the subject's own name and label."""
    labels = set(labels)
    if reach == "adapted" and declared:
        mine = identifiers(declared)
        if licence.cls not in FREE_CLASSES and licence.cls != "unknown" and licence.id not in mine:
            models = lineage.things[lineage.subject].kind == "model" and thing.kind == "model"
            labels |= {"overruled"} if models else set()
        if not any(compatible(licence.id, key) for key in mine):
            labels.add("incompatible")
    if reach == "trained-on-output" and licence.successors and _kin(lineage, licence.successors):
        licence = replace(licence, traits={k: v for k, v in licence.traits.items() if k != "outputs-barred"})
    if thing.outputs:
        licence = replace(licence, traits=licence.traits | {"outputs-free": thing.outputs})
    name = lineage.subject.rsplit("/", 1)[-1]
    if licence.prefix and not name.lower().replace("-", " ").startswith(licence.prefix.lower().replace("-", " ")):
        labels.add("misnamed")
    return Claim(licence, thing, path, reach, frozenset(labels), declared)


def _kin(lineage: Lineage, pattern: str) -> bool:
    """Whether the subject, or a model it is made from, is of the family that outputs may improve."""
    made = [path[-1].parent for path in lineage.paths() if path and reach_of(path) == "adapted"]
    return any(re.fullmatch(pattern, name.lower().rsplit("/", 1)[-1]) for name in (lineage.subject, *made))


def _provider_claims(thing: Thing, path: tuple[Link, ...], reach: str, terms: dict[str, str]) -> list[Claim]:
    """The terms in force at the time (R11); without a time, those of the strictest version, marked as undated."""
    known = provider_of(thing.provider or thing.id)
    if known is None:
        return [Claim(lookup(UNKNOWN), thing, path, reach, frozenset())]
    if thing.at is not None:
        found = terms_in_force(known.provider, thing.at) or terms_before(known.provider, thing.at)
        if found is None:
            return [Claim(lookup(UNKNOWN), thing, path, reach, frozenset())]
        terms[found.id] = found.digest
        return [Claim(found.as_licence(), thing, path, reach, frozenset({"stale"} if found.stale else ()))]
    order = ("outputs-barred", "outputs-contested", "outputs-free")
    dated = [terms_in_force(known.provider, version.since) for version in versions(known.provider)]
    dated_terms = [item for item in dated if item is not None]
    strictest = min(
        dated_terms, key=lambda item: min((order.index(t) for t in item.version.traits if t in order), default=9)
    )
    same = len({item.trains for item in dated_terms}) == 1
    return [Claim(strictest.as_licence(), thing, path, reach, frozenset() if same else frozenset({"undated"}))]


def _best(options: list[list[Claim]], question: _Question) -> list[Claim]:
    """Of the choices an OR leaves, the one with the mildest verdict; the first of equals."""

    def severity(claims: list[Claim]) -> int:
        found = [finding for claim in claims for finding in _findings(claim, question)]
        return max((VERDICTS.index(finding.verdict) for finding in found), default=0)

    return options[0] if len(options) == 1 else min(options, key=severity)


def _findings(claim: Claim, question: _Question) -> Iterator[Finding]:
    basis = _has_basis(claim, question)
    for rule in question.rules:
        for case in rule.cases:
            if case.with_ is None and _holds(case.when, claim, question.purpose, basis):
                yield _finding(rule, case, claim, question.subject)


def _holds(when: When, claim: Claim, purpose: str, basis: bool) -> bool:
    traits = claim.licence.traits
    return (
        (not when.purpose or purpose in when.purpose)
        and (not when.trait or any(trait in traits for trait in when.trait))
        and not any(trait in traits for trait in when.without)
        and (not when.reach or claim.reach in when.reach)
        and (not when.label or any(label in claim.labels for label in when.label))
        and (not when.relation or any(link.relation in when.relation for link in claim.path))
        and (when.basis is None or when.basis == basis)
    )


def _has_basis(claim: Claim, question: _Question) -> bool:
    """Whether somebody signed something that still holds."""
    names = {claim.thing.id.lower(), claim.licence.id.lower(), claim.licence.name.lower()}
    if (known := provider_of(claim.thing.provider or claim.thing.id)) is not None and claim.thing.kind == "provider":
        names.add(known.provider)
    return any(
        item.party.lower() in names and (item.until is None or question.today <= item.until) for item in question.bases
    )


def _permitted(claim: Claim, subject: str) -> Finding:
    """No case held: the licence permits it, and its duties are all there is (R1)."""
    path = f"{words(subject, claim.path)} > {claim.licence.id}"
    because = f"{claim.licence.name}: nothing known stands against this purpose"
    return Finding("R1", "allow", because, claim.licence.id, "", path, claim.thing.evidence)


def _finding(rule: Rule, case: Case, claim: Claim, subject: str, other: Claim | None = None) -> Finding:
    traits = claim.licence.traits
    clause = next((traits[trait] for trait in case.when.trait if trait in traits), "")
    because = case.because.format(
        licence=claim.licence.name,
        clause=clause,
        thing=claim.thing.id,
        doubt=claim.thing.doubt,
        prefix=claim.licence.prefix,
        declared=claim.declared,
        other=other.licence.name if other else "",
    )
    path = f"{words(subject, claim.path)} > {claim.licence.id}"
    if other is not None:
        path += f" | {words(subject, other.path)} > {other.licence.id}"
    return Finding(rule.id, case.verdict, because, claim.licence.id, clause, path, claim.thing.evidence)


def _duties(claim: Claim, question: _Question) -> Iterator[Obligation]:
    names = {kind: rule.id for rule in question.rules for kind in rule.duties}
    path = f"{words(question.subject, claim.path)} > {claim.licence.id}"
    for duty in claim.licence.duties:
        if claim.reach in duty.reach:
            rule, licence, now = names.get(duty.kind, "R1"), claim.licence.id, question.purpose in duty.on
            yield Obligation(rule, duty.kind, duty.text, licence, duty.clause, path, duty.on, now)


def _notes(claims: list[Claim]) -> tuple[str, ...]:
    """Notes of the licences, and terms that may have changed since somebody looked."""
    notes = [f"{claim.licence.name}: {claim.licence.note}" for claim in claims if claim.licence.note]
    notes += [
        f"{claim.licence.name} ({claim.licence.id.removeprefix('LicenseRef-')}): the last version known here; "
        f"whether another was in force on {claim.thing.at} has to be looked up"
        for claim in claims
        if "stale" in claim.labels
    ]
    return tuple(dict.fromkeys(notes))


def _ordered(duties: Iterable[Obligation]) -> tuple[Obligation, ...]:
    return tuple(sorted(duties, key=lambda duty: not duty.now))


def _merged(claims: list[Claim], question: _Question) -> Iterator[Finding]:
    """R3: pairs of licences whose things were merged into one work; what a collection only contains is kept apart."""
    merged: dict[tuple[str, str], Claim] = {}
    for claim in claims:
        if any(link.relation in ("merged_from", "adapted_from") for link in claim.path):
            merged.setdefault((claim.licence.id, claim.thing.id), claim)  # one path is enough to tell a conflict
    for rule in question.rules:
        for case in (case for case in rule.cases if case.with_ is not None):
            for first in merged.values():
                for second in merged.values():
                    if _conflict(case, first, second, question.purpose):
                        yield _finding(rule, case, first, question.subject, second)


def _conflict(case: Case, first: Claim, second: Claim, purpose: str) -> bool:
    if first is second or case.with_ is None or not (first.reach == second.reach == "adapted"):
        return False
    if not _holds(case.when, first, purpose, False) or not _holds(case.with_, second, purpose, False):
        return False
    return not compatible(first.licence.id, second.licence.id) and not compatible(second.licence.id, first.licence.id)
