"""The suite tested: the reference server passes everything, and each fault turns exactly its requirement red.

matrix = one run against the well server, one for each fault, each judged in full
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import multiprocessing
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from freehold.certify.declaration import CAPABILITIES, Declaration
from freehold.certify.evidence import Evidence
from freehold.certify.judge import judge
from freehold.certify.reference import faults
from freehold.certify.reference import model as lm
from freehold.certify.reference import server as reference
from freehold.certify.reference.faulty import FAULTS, Fault
from freehold.certify.requirements import load
from freehold.certify.runner import Plan, Run, run
from freehold.certify.wire import Endpoint
from freehold.progress import Progress, silent

SEED = "5e" * 32
KEYS = {"good": reference.KEY, "limited": reference.LIMITED_KEY}
DECLARED = Declaration(
    model=lm.MODEL, capabilities=tuple(CAPABILITIES), context=lm.CONTEXT, max_body=reference.MAX_BODY,
    requests_per_minute=reference.LIMIT, anthropic_version="required", broken_model=lm.BROKEN, thinker=lm.THINKER,
    prompt_tokens=tuple((text, len(lm.tokenize(text))) for text in ("Hello there.", "The quick brown fox jumps over it.")),
)  # fmt: skip
"""What the reference server can do: everything."""


@dataclass(frozen=True, slots=True)
class Row:
    """What one fault did.

    Args:
        red: ids that were not passed.
    """

    fault: str
    turns: str
    red: tuple[str, ...]
    stated: tuple[str, ...]

    @property
    def caught(self) -> bool:
        """Whether its requirement went red."""
        return self.turns in self.red

    @property
    def collateral(self) -> tuple[str, ...]:
        """What else went red without a stated reason."""
        return tuple(id for id in self.red if id != self.turns and id not in self.stated)


async def observe(
    fault: Fault | None,
    *,
    seed: str = SEED,
    level: int = 3,
    declared: Declaration = DECLARED,
    compared: Evidence | None = None,
) -> Run:
    """A run against the reference server with one fault, or none."""
    async with reference.ReferenceServer(fault).running() as url:
        return await run(Endpoint(url, KEYS, seconds=20), Plan(seed, level, declared, reference=compared))


def row(name: str) -> Row:
    """The fault of that name against the whole suite."""
    fault = FAULTS[name]
    if fault.turns.startswith("DF."):
        found = asyncio.run(observe(fault, level=4, compared=well().evidence()))
    else:
        found = asyncio.run(observe(fault))
    judgement = judge(found.evidence(), load(), found.plan.level, found.errors)
    red = tuple(verdict.id for verdict in judgement.verdicts if verdict.bad)
    return Row(name, fault.turns, red, tuple(fault.collateral))


@cache
def well() -> Run:
    """The reference server as it should be."""
    return asyncio.run(observe(None, level=4))


def self_test(progress: Progress = silent, *, processes: int = 2) -> dict[str, Any]:
    """The whole matrix.

    Returns:
        requirements, reference_passed, mutations (counts); uncaught: requirements that no fault turns red;
        collateral: faults that turn others red without a stated reason; digest; rows.
    """
    again = asyncio.run(observe(None, level=4, compared=well().evidence()))
    judgement = judge(again.evidence(), load(), 4, again.errors)
    context = multiprocessing.get_context("spawn")
    rows: list[Row] = []
    with context.Pool(processes) as pool:
        for done, one in enumerate(pool.imap(row, sorted(FAULTS)), 1):
            rows.append(one)
            progress(done, len(FAULTS), one.fault)
    caught = {one.turns for one in rows if one.caught}
    return {
        "revision": load().name,
        "requirements": len(judgement.verdicts),
        "reference_passed": sum(verdict.status == "PASS" for verdict in judgement.verdicts),
        "not_passed": [verdict.record() for verdict in judgement.verdicts if verdict.status != "PASS"],
        "mutations": len(rows),
        "uncaught": [verdict.id for verdict in judgement.verdicts if verdict.id not in caught],
        "collateral": {one.fault: list(one.collateral) for one in rows if one.collateral},
        "stated": {one.fault: FAULTS[one.fault].collateral for one in rows if one.stated},
        "digest": matrix_digest(),
        "rows": [{"fault": one.fault, "turns": one.turns, "red": list(one.red)} for one in rows],
    }


def matrix() -> Iterable[dict[str, Any]]:
    """The faults as data: what each is called, and what it turns red."""
    for name in sorted(FAULTS):
        yield {"fault": name, "turns": FAULTS[name].turns, "collateral": FAULTS[name].collateral}


def matrix_digest() -> str:
    """SHA-256 over the matrix; it is in every certificate."""
    assert faults is not None  # noqa: S101  (imported for what it registers)
    return hashlib.sha256(json.dumps(list(matrix()), sort_keys=True).encode()).hexdigest()
