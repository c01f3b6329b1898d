"""How much a model agrees with itself, and what follows when it does not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.gateway import fakes

from freehold.engine.request import EngineStats, GenerateRequest
from freehold.errors import EngineDownError
from freehold.gateway.agreement import Said, agreement, alike, f1
from freehold.gateway.conversation import (
    Event,
    Finished,
    Request,
    Sampling,
    Started,
    TextDelta,
    TextPart,
    ToolCallDelta,
    Turn,
    Usage,
)
from freehold.gateway.exchange import Answer
from freehold.gateway.policy import Policy
from freehold.gateway.service import Gateway
from freehold.settings import RouterSettings


@given(st.text(), st.text())
def test_likeness_is_symmetric_bounded_and_complete_with_oneself(one: str, other: str) -> None:
    assert f1(one, other) == f1(other, one) and 0 <= f1(one, other) <= 1 and f1(one, one) == 1


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("Paris.", "paris", 1.0),
        ("Paris", "London", 0.0),
        ("It is Paris", "It is London", 2 / 3),
        ('{"a": 1, "b": 2}', '{"b":2,"a":1}', 1.0),
        ('{"a": 1}', '{"a": 2}', 0.0),
        ('{"a": 1}', "a 1", 0.0),
        ("", "", 1.0),
        ("...", "", 0.0),
    ],
)
def test_texts_are_as_alike_as_their_words_and_json_is_the_same_or_not(one: str, other: str, expected: float) -> None:
    assert alike(Said(one), Said(other)) == pytest.approx(expected)


def test_calls_are_the_same_when_name_and_arguments_are() -> None:
    def said(*arguments: str) -> Said:
        found = Said()
        for i, text in enumerate(arguments):
            found.note(ToolCallDelta(i, "id", "f"))
            for character in text:
                found.note(ToolCallDelta(i, arguments=character))
        return found

    assert alike(said('{"a": 1}'), said('{"a":1}')) == 1
    assert alike(said('{"a": 1}'), said('{"a": 2}')) == alike(said("{}"), said("{}", "{}")) == 0
    assert alike(said("{}"), Said("text")) == 0
    assert agreement(Said("a"), []) is None and agreement(Said("a"), [Said("a"), Said("b")]) == 0.5


class Core:
    """Says `first` when it is asked, then `others` in turn."""

    name, model, state, continues = "local", "tiny", "ready", True

    def __init__(self, first: str, *others: str | Exception, logprob: float = -0.1) -> None:
        self.engine = type("Engine", (), {"stats": EngineStats()})()
        self.asked: list[Request] = []
        self.waits: asyncio.Event | None = None
        self.left = 0
        self._said = {"r": first} | {f"r-second-{i}": other for i, other in enumerate(others)}
        self._logprob = logprob

    def check(self, request: Request) -> None:
        return

    async def start(self) -> None:
        return

    async def close(self) -> None:
        return

    async def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        self.asked.append(request)
        said = self._said[request.id]
        if isinstance(said, Exception):
            raise said
        if self.waits is not None and request.id != "r":
            try:
                await self.waits.wait()
            finally:
                self.left += 1
        await asyncio.sleep(0)  # the others begin
        yield Started("tiny")
        yield TextDelta(said)
        yield Finished("stop", mean_logprob=None if request.logprobs is None else self._logprob)
        yield Usage(1, 2)


class Standby(Core):
    name, model = "one", "big"


def ask(core: Core, asked: Request, **rules: Any) -> tuple[Answer, str]:
    policy = Policy(RouterSettings(**({"escalate_agreement": 0.6} | rules)))
    gateway = Gateway(core, [Standby("standby says so")], policy=policy)  # type: ignore[arg-type, list-item]

    async def run() -> tuple[Answer, str]:
        async with asyncio.timeout(20):
            answer = await gateway.answer(asked)
            text = "".join([event.text async for event in answer.events if isinstance(event, TextDelta)])
            return answer, text

    return asyncio.run(run())


def request(**fields: Any) -> Request:
    return Request(id="r", model="tiny", turns=(Turn("user", (TextPart("capital?"),)),), **fields)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_the_core_gives_again_is_the_answer(stream: bool) -> None:
    core = Core("Paris", "paris.", "It is Paris")
    asked = request(stream=stream, sampling=Sampling(temperature=0.0, seed=5))
    answer, text = ask(core, asked, escalate_streams=True)
    assert (text, answer.record.backend) == ("Paris", "local")
    assert answer.record.draft is not None and answer.record.draft.agreement == pytest.approx(0.75)
    draft, *seconds = core.asked
    assert (draft.sampling.temperature, draft.logprobs) == (0.0, None)
    assert [(s.sampling.temperature, s.sampling.seed, s.stream) for s in seconds] == [(0.7, 6, False), (0.7, 7, False)]


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_at_odds_with_second_ones_is_asked_elsewhere_and_its_draft_is_kept(stream: bool) -> None:
    core = Core("Paris", "London", "Rome")
    answer, text = ask(core, request(stream=stream), escalate_streams=True)
    assert (text, answer.record.reason) == ("standby says so", "standby after local: low_confidence")
    draft = answer.record.draft
    assert draft is not None and (draft.text, draft.agreement, draft.rejected) == ("Paris", 0.0, True)


def test_a_second_answer_that_fails_is_no_disagreement() -> None:
    down = EngineDownError("down")
    answer, text = ask(Core("Paris", down, "Paris"), request())
    assert text == "Paris" and answer.record.draft is not None and answer.record.draft.agreement == 1.0
    answer, text = ask(Core("Paris", down, down), request())
    assert text == "Paris" and answer.record.draft is not None and answer.record.draft.agreement is None


def test_an_improbable_draft_is_not_kept_waiting_for_second_answers() -> None:
    core = Core("Paris", "Paris", "Paris", logprob=-3.0)
    core.waits = asyncio.Event()  # never set
    answer, text = ask(core, request(), escalate_below=-1.0)
    assert text == "standby says so" and core.left == 2  # and they were given up
    assert answer.record.draft is not None and answer.record.draft.confidence == -3.0


def test_the_real_backend_answers_a_question_several_times_at_once(directory: Path) -> None:
    said = iter(["Paris", "Rome", "Madrid", "Oslo"])

    def reply(prompt: str, given: GenerateRequest) -> str:
        return next(said)

    core = fakes.core(directory, reply)
    core.engine.state = "ready"  # type: ignore[misc]
    gateway = Gateway(
        core, [Standby("standby says so")], policy=Policy(RouterSettings(escalate_agreement=0.5, escalate_samples=3))
    )  # type: ignore[list-item]

    async def run() -> Answer:
        answer = await gateway.answer(request(max_tokens=50))
        assert [event async for event in answer.events]
        return answer

    answer = asyncio.run(run())
    assert answer.record.backend == "one" and answer.record.draft is not None
    assert answer.record.draft.agreement == 0.0
    assert len(core.engine.requests) == 4  # type: ignore[attr-defined]
