"""The run: scenarios in a drawn order, politely, against the network; or again against a transcript.

run     = discover -> scenarios (bounded, within a deadline) -> exchanges
replay  = the same, with the recorded answers, and every request compared with the recorded one
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from freehold.certify.declaration import Declaration
from freehold.certify.draw import Draw
from freehold.certify.evidence import SCENARIOS, Ask, Evidence, Scenario, Send
from freehold.certify.transcript import Answer, Call, Exchange, Untestable
from freehold.certify.wire import Endpoint
from freehold.errors import FormatError, UpstreamError, UsageError
from freehold.progress import Progress, silent

DISCOVER = "discover/models"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run.

    Args:
        seed: hexadecimal; everything drawn comes from it.
        level: the highest level asked for.
        concurrency: scenarios under way at the same time.
        seconds: for the whole run.
        reference: what the server is compared with at L4; made with the same seed.
    """

    seed: str
    level: int
    declared: Declaration
    concurrency: int = 1
    seconds: float = 1800.0
    reference: Evidence | None = None

    def scenarios(self) -> list[Scenario]:
        """Those that the declaration and the level call for, in the drawn order; the ones that run alone come last."""
        wanted = [s for s in SCENARIOS.values() if s.level <= self.level and _declared(s, self.declared)]
        return sorted(Draw(self.seed, "plan").shuffled("order", wanted), key=lambda s: s.alone)


def _declared(scenario: Scenario, declared: Declaration) -> bool:
    if scenario.capability and not declared.has(scenario.capability):
        return False
    return not scenario.dialect or scenario.dialect in declared.dialects


@dataclass
class Run:
    """What came of it: the exchanges by key, and the scenarios that failed by our own fault."""

    plan: Plan
    model: str = ""
    exchanges: dict[str, Exchange] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    late: bool = False

    def evidence(self) -> Evidence:
        """For the judge."""
        return Evidence(self.plan.seed, self.model, self.plan.declared, self.exchanges, self.plan.reference)


async def run(endpoint: Endpoint, plan: Plan, progress: Progress = silent) -> Run:
    """Ask a live server.

    Raises:
        UpstreamError: nobody listens there.
        UsageError: no model is declared and none is listed.
    """
    found = Run(plan)
    found.exchanges[DISCOVER] = Exchange(DISCOVER, DISCOVERY, await endpoint.send(DISCOVERY))

    async def send(key: str, call: Call) -> Answer:
        try:
            answer = await endpoint.send(call)
        except UpstreamError:
            answer = Answer()
        found.exchanges[key] = Exchange(key, call, answer)
        return answer

    found.model = chosen_model(plan.declared, found.exchanges[DISCOVER])
    try:
        async with asyncio.timeout(plan.seconds):
            await _scenarios(found, send, progress)
    except TimeoutError:
        found.late = True
    return found


DISCOVERY = Call("GET", "/models")


def chosen_model(declared: Declaration, discovery: Exchange) -> str:
    """The declared model, or the first that is listed.

    Raises:
        UsageError: neither.
    """
    if declared.model:
        return declared.model
    try:
        name = discovery.good["data"][0]["id"]
    except (Untestable, KeyError, IndexError, TypeError):
        hint = "name one with --model"
        raise UsageError(f"no model is named and GET /models lists none: {discovery.describe()}", hint=hint) from None
    return str(name)


async def _scenarios(found: Run, send: Send, progress: Progress) -> None:
    wanted = found.plan.scenarios()
    gate = asyncio.Semaphore(found.plan.concurrency)
    done = 0

    async def one(scenario: Scenario) -> None:
        nonlocal done
        async with gate:
            progress(done, len(wanted), scenario.name)
            await _scenario(found, scenario, send)
            done += 1
            progress(done, len(wanted), scenario.name)

    async with asyncio.TaskGroup() as group:
        for scenario in wanted:
            if not scenario.alone:
                group.create_task(one(scenario))
    for scenario in wanted:
        if scenario.alone:
            await one(scenario)


async def _scenario(found: Run, scenario: Scenario, send: Send) -> None:
    """One scenario; it ends early where the server gave it nothing to go on with."""
    try:
        await scenario.run(
            Ask(scenario.name, found.plan.seed, found.model, found.plan.declared, send, found.plan.reference)
        )
    except Untestable:
        return
    except (Departed, asyncio.CancelledError):
        raise
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        found.errors[scenario.name] = f"{type(error).__name__}: {error} ({where.name}:{where.lineno})"


class Departed(FormatError):
    """A recorded request is not the one that the seed gives."""


async def replay(recorded: list[Mapping[str, Any]], plan: Plan) -> Run:
    """Run the scenarios again over recorded answers.

    Raises:
        FormatError: the transcript is broken, has exchanges that no scenario makes, or a request differs.
    """
    try:
        records = {str(record["key"]): record for record in recorded}
        first = Exchange(DISCOVER, DISCOVERY, Answer.read(records[DISCOVER]["response"]))
    except (KeyError, TypeError):
        raise FormatError("the transcript has no discovery, or is none") from None
    made: dict[str, Exchange] = {DISCOVER: first}

    async def send(key: str, call: Call) -> Answer:
        if key not in records:
            raise Untestable(key, "this exchange was not made")
        if records[key]["request"] != call.record():
            raise Departed(f"{key}: the recorded request is not the one that the seed gives")
        made[key] = Exchange(key, call, Answer.read(records[key]["response"]))
        return made[key].answer

    again = Run(plan, chosen_model(plan.declared, first))
    try:
        await _scenarios(again, send, silent)
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
    if made.keys() != records.keys() or len(records) != len(recorded):
        raise FormatError(
            f"the transcript has exchanges that the seed does not give: {sorted(records.keys() - made)[:3]}"
        )
    again.exchanges = {key: made[key] for key in records}
    return again
