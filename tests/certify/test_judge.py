"""Levels and statuses: what may be skipped, and what a skip can never give."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

from freehold.certify import selftest
from freehold.certify.evidence import CHECKS, Evidence, Registered
from freehold.certify.judge import judge
from freehold.certify.reference import ReferenceServer
from freehold.certify.reference.faulty import Fault
from freehold.certify.reference.http import Incoming
from freehold.certify.reference.model import Prompt, Reply, tokenize
from freehold.certify.requirements import load
from freehold.certify.runner import Plan, Run, run
from freehold.certify.transcript import Exchange
from freehold.certify.wire import Endpoint


def level(evidence: Evidence, upto: int = 3) -> int:
    return judge(evidence, load(), upto).level


def test_the_reference_server_reaches_the_third_level_and_the_fourth_against_itself(well: Run) -> None:
    assert level(well.evidence()) == 3 and level(well.evidence(), 4) == 3
    assert level(replace(well.evidence(), reference=well.evidence()), 4) == 4


def test_a_server_with_canned_answers_fails_the_first_level() -> None:
    def canned(incoming: Incoming, prompt: Prompt, reply: Reply) -> None:
        reply.tokens, reply.calls, reply.finish = tokenize("Of course! Here is the answer you asked for."), [], "stop"

    found = asyncio.run(selftest.observe(Fault("canned", "CC.3", "answer", canned), level=1))
    judgement = judge(found.evidence(), load(), 1)
    assert judgement.level == 0
    assert {"CC.3", "CC.4", "CC.5", "RS.16", "AM.17", "AM.18"} <= set(judgement.blocking)


def test_an_exchange_that_was_not_made_is_untestable_and_takes_the_level(well: Run) -> None:
    evidence = well.evidence()
    kept = {key: x for key, x in evidence.exchanges.items() if not key.startswith("chat.limits/")}
    judgement = judge(replace(evidence, exchanges=kept), load(), 3)
    statuses = {verdict.id: verdict.status for verdict in judgement.verdicts}
    assert statuses["CC.7"] == "UNTESTABLE" and judgement.level == 0 and "CC.7" in judgement.blocking


def test_a_level_can_not_be_had_by_declaring_less_than_it_needs(well: Run) -> None:
    evidence = well.evidence()
    without_tools = replace(evidence, declared=evidence.declared.without(("tools",)))
    judgement = judge(without_tools, load(), 3)
    assert judgement.level == 1 and "capability tools" in judgement.blocking
    one_dialect = replace(evidence, declared=evidence.declared.speaking(("chat",)))
    judgement = judge(one_dialect, load(), 3)
    assert judgement.level == 2 and {"XP.1", "XP.2", "XP.3", "XP.4"} <= set(judgement.blocking)


def test_what_is_optional_may_be_left_undeclared_and_is_listed(well: Run) -> None:
    evidence = well.evidence()
    judgement = judge(replace(evidence, declared=evidence.declared.without(("logprobs", "agentic"))), load(), 3)
    missing = {verdict.id for verdict in judgement.verdicts if verdict.status == "NOT_DECLARED"}
    assert judgement.level == 3 and missing == {"LP.1", "LP.2", "LP.3", "LP.4", "LP.5", "TL.1", "TL.2"}


def test_a_fault_of_the_suite_voids_the_run(well: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(evidence: Evidence) -> None:
        raise KeyError("a bug")

    monkeypatch.setitem(CHECKS, "CC.2", Registered(broken, None))  # type: ignore[arg-type]
    judgement = judge(well.evidence(), load(), 3)
    assert judgement.void and judgement.level == 0
    assert next(verdict for verdict in judgement.verdicts if verdict.id == "CC.2").status == "HARNESS_ERROR"
    monkeypatch.undo()
    assert judge(well.evidence(), load(), 3, {"chat.echo": "KeyError"}).void


def test_no_answer_whatever_makes_a_check_raise(well: Run) -> None:
    """Hostile answers make checks fail, never the harness: each body in turn is replaced by each of these."""
    evidence = well.evidence()
    for body in (
        b"",
        b"null",
        b"[]",
        b'{"choices": null}',
        b'{"choices": [null], "output": [1], "content": 7, "usage": []}',
    ):
        replaced = {
            key: Exchange(key, x.call, replace(x.answer, portions=((1, body),)))
            for key, x in evidence.exchanges.items()
        }
        judgement = judge(replace(evidence, exchanges=replaced, reference=evidence), load(), 4)
        assert [verdict for verdict in judgement.verdicts if verdict.status == "HARNESS_ERROR"] == []
        assert judgement.level == 0
        events = b"data: " + (body or b"{}") + b"\n\n"
        streams = {
            key: Exchange(key, x.call, replace(x.answer, portions=((1, events),)))
            for key, x in evidence.exchanges.items()
        }
        judgement = judge(replace(evidence, exchanges=streams, reference=evidence), load(), 4)
        assert [verdict for verdict in judgement.verdicts if verdict.status == "HARNESS_ERROR"] == []


def test_the_order_and_the_words_of_the_probes_come_from_the_seed() -> None:
    orders = []
    for seed in ("aa" * 32, "bb" * 32, "aa" * 32):
        found = asyncio.run(selftest.observe(None, seed=seed, level=1))
        assert judge(found.evidence(), load(), 1).level == 1
        orders.append((list(found.exchanges), json.dumps([x.call.record() for x in found.exchanges.values()])))
    assert orders[0] == orders[2] and orders[0][0] != orders[1][0]


def test_a_run_that_is_out_of_time_ends_and_reaches_nothing() -> None:
    async def late() -> Run:
        async with ReferenceServer().running() as url:
            return await run(Endpoint(url, selftest.KEYS), Plan(selftest.SEED, 1, selftest.DECLARED, seconds=0))

    found = asyncio.run(late())
    judgement = judge(found.evidence(), load(), 1)
    assert found.late and judgement.level == 0
    assert {verdict.status for verdict in judgement.verdicts} <= {"UNTESTABLE", "WARN"}
