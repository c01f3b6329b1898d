"""The judgement: pure functions from evidence to verdicts, and from verdicts to a level. No clock, no network, no chance."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from freehold.certify import suite as suite
from freehold.certify.declaration import Declaration
from freehold.certify.evidence import CHECKS, Evidence
from freehold.certify.requirements import Requirement, Revision
from freehold.certify.suite.common import malformed
from freehold.certify.transcript import Untestable
from freehold.certify.verdict import Status, Trial, Verdict, weigh


@dataclass(frozen=True, slots=True)
class Judgement:
    """All verdicts, in the order of the requirements, and the level they reach (0 = none).

    Args:
        void: a fault of the suite itself, which voids the run.
    """

    verdicts: tuple[Verdict, ...]
    level: int
    void: bool
    blocking: tuple[str, ...]


def judge(evidence: Evidence, revision: Revision, level: int, errors: Mapping[str, str] | None = None) -> Judgement:
    """Judge every requirement up to a level.

    Args:
        errors: scenarios that failed by our own fault.
    """
    asked = [requirement for requirement in revision.requirements if requirement.level <= level]
    verdicts = tuple(_verdict(requirement, evidence) for requirement in asked)
    void = bool(errors) or any(verdict.status == "HARNESS_ERROR" for verdict in verdicts)
    reached = 0 if void else _reached(asked, verdicts, evidence.declared, revision, level)
    blocking = _blocking(asked, verdicts, min(reached + 1, 4), evidence.declared, revision)
    return Judgement(verdicts, reached, void, tuple(blocking))


def _verdict(requirement: Requirement, evidence: Evidence) -> Verdict:
    missing = _undeclared(requirement, evidence)
    if missing:
        return Verdict(requirement.id, "NOT_DECLARED", note=missing)
    registered = CHECKS[requirement.id]
    evidence = replace(evidence, touched=[])
    try:
        trials = list(registered.check(evidence))
    except Untestable as reason:
        status: Status = "UNTESTABLE" if requirement.must else "WARN"
        trial = Trial(False, reason.exchange, "$", "an answer that can be judged", reason.reason)
        return Verdict(requirement.id, status, trials=(trial,), note=reason.reason)
    except Exception as error:
        return _unread(requirement, evidence, error)
    return weigh(requirement.id, trials, must=requirement.must, chance=registered.chance)


def _unread(requirement: Requirement, evidence: Evidence, error: Exception) -> Verdict:
    """A check that stumbled: over an answer that has not the dialect's shape, or else by a fault of ours."""
    seen = evidence.touched + (evidence.reference.touched if evidence.reference is not None else [])
    for x in reversed(seen):
        problem = malformed(x)
        if problem is not None:
            return Verdict(requirement.id, "UNTESTABLE" if requirement.must else "WARN", trials=(problem,))
    where = traceback.extract_tb(error.__traceback__)[-1]
    note = f"{type(error).__name__}: {error} ({where.name}:{where.lineno})"
    return Verdict(requirement.id, "HARNESS_ERROR", note=note)


def _undeclared(requirement: Requirement, evidence: Evidence) -> str:
    """What would have to be declared for the requirement to count; "" = nothing."""
    declared = evidence.declared
    if requirement.capability and not declared.has(requirement.capability):
        return f"capability {requirement.capability}"
    match requirement.dialect:
        case "cross":
            return "" if len(declared.dialects) > 1 else "a second dialect"
        case "reference":
            return _incomparable(requirement, evidence)
        case "any":
            return ""
    return "" if requirement.dialect in declared.dialects else f"dialect {requirement.dialect}"


def _incomparable(requirement: Requirement, evidence: Evidence) -> str:
    """Why there is nothing to compare with: no reference, or one that does not declare it can do this."""
    if evidence.reference is None:
        return "a reference"
    other = evidence.reference.declared
    known = not requirement.capability or other.has(requirement.capability)
    return "" if known else f"capability {requirement.capability} of the reference"


def _reached(
    asked: list[Requirement], verdicts: Iterable[Verdict], declared: Declaration, revision: Revision, level: int
) -> int:
    reached = 0
    for step in range(1, level + 1):
        if _blocking(asked, verdicts, step, declared, revision):
            break
        if not any(v.status == "PASS" for r, v in zip(asked, verdicts, strict=True) if r.level == step and r.must):
            break
        reached = step
    return reached


def _blocking(
    asked: list[Requirement], verdicts: Iterable[Verdict], level: int, declared: Declaration, revision: Revision
) -> list[str]:
    """What stands between the server and this level: MUSTs not passed, and capabilities it can't do without."""
    found = [f"capability {name}" for name in revision.needs.get(level, ()) if not declared.has(name)]
    for requirement, verdict in zip(asked, verdicts, strict=True):
        if requirement.level != level or not requirement.must or verdict.status == "PASS":
            continue
        if verdict.status != "NOT_DECLARED" or verdict.note in ("a second dialect", "a reference"):
            found.append(requirement.id)
    return found
