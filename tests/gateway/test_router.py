"""Who is asked, in which order and why: policies, room, abilities, conversations, confidence."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from freehold.engine.request import EngineStats
from freehold.errors import EngineDownError, SettingError, UpstreamError
from freehold.gateway.breaker import Breaker
from freehold.gateway.conversation import (
    Event,
    Finished,
    ImagePart,
    Request,
    Started,
    TextDelta,
    TextPart,
    TokenLogprob,
    Tool,
    Turn,
    Usage,
)
from freehold.gateway.exchange import Answer
from freehold.gateway.failures import CapabilityError, RequestError, UnavailableError
from freehold.gateway.measures import FRESH_SECONDS, MOST_CONVERSATIONS
from freehold.gateway.policy import Policy, PolicyFile
from freehold.gateway.router import Router
from freehold.gateway.service import Gateway
from freehold.settings import BreakerSettings, GuardSettings, RouterSettings, RouteSettings, UpstreamSettings
from freehold.settings_file import load


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Scripted:
    """A backend that says one thing, with one log probability for each word."""

    def __init__(self, name: str, model: str = "m", text: str = "", logprobs: tuple[float, ...] = ()) -> None:
        self.name, self.model, self.state = name, model, "ready"
        self.text, self.logprobs = text or f"{name} says so", logprobs
        self.error: Exception | None = None
        self.asked: list[Request] = []

    def check(self, request: Request) -> None:
        if self.name == "local" and request.wants_tools:
            raise CapabilityError("no tools here", param="tools")

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        self.asked.append(request)
        if self.error is not None:
            raise self.error
        yield Started(self.model)
        for i, word in enumerate(self.text.split()):
            given = (TokenLogprob(word.encode(), self.logprobs[i]),) if i < len(self.logprobs) else ()
            yield TextDelta(("" if i == 0 else " ") + word, given if request.logprobs is not None else ())
        known = self.logprobs if request.logprobs is not None else ()
        yield Finished("stop", mean_logprob=sum(known) / len(known) if known else None)
        yield Usage(1, 3)


def request(model: str = "local", text: str = "hi", **given: Any) -> Request:
    return Request(id="r", model=model, turns=(Turn("user", (TextPart(text),)),), **given)


def router(*names: str, **given: Any) -> Router:
    backends: list[Any] = [Scripted(name, "tiny" if name == "local" else f"model-{name}") for name in names]
    core = backends.pop(0) if names[0] == "local" else None
    given.setdefault("clock", Clock())
    return Router(core, backends, **given)


def order(found: Router, asked: Request) -> list[str]:
    return [candidate.backend.name for candidate in found.plan(asked)]


def reasons(found: Router, asked: Request) -> list[str]:
    return [candidate.reason for candidate in found.plan(asked)]


def rules(**given: Any) -> Policy:
    return Policy(RouterSettings(**given))


def test_the_core_is_first_unless_told_otherwise() -> None:
    found = router("local", "one", "two")
    assert order(found, request()) == ["local", "one", "two"]
    assert reasons(found, request()) == ["core", "standby", "standby"]


def test_the_cheapest_is_first_and_an_unknown_price_is_last() -> None:
    def prices(backend: str, model: str, prompt: int, completion: int) -> float | None:
        per_token = {"one": 3.0, "two": 1.0}.get(backend)
        return None if per_token is None else per_token * (prompt + completion) / 1e6

    found = router("local", "one", "two", policy=rules(policy="cheapest"), prices=prices)
    assert order(found, request(max_tokens=99)) == ["two", "one", "local"]
    assert reasons(found, request(max_tokens=99)) == [
        "cheapest: about $0.000100", "cheapest: about $0.000300", "cheapest: price unknown",
    ]  # fmt: skip


def test_the_price_of_a_long_prompt_weighs_more_than_that_of_the_answer() -> None:
    """A backend that is dear by input and cheap by output loses with a long prompt and wins with a short one."""

    def prices(backend: str, model: str, prompt: int, completion: int) -> float:
        return {"one": 10 * prompt + completion, "two": prompt + 10 * completion}[backend] / 1e6

    found = router("one", "two", policy=rules(policy="cheapest"), prices=prices)
    assert order(found, request(text="x" * 8000, max_tokens=10)) == ["two", "one"]
    assert order(found, request(text="x" * 8, max_tokens=1000)) == ["one", "two"]


def test_the_fastest_is_measured_and_those_not_measured_are_tried() -> None:
    clock = Clock()
    found = router("local", "one", "two", policy=rules(policy="fastest"), clock=clock)
    found.measures.note("local", ttft=0.1, seconds=10.1, tokens=101)  # 10 tokens a second
    found.measures.note("one", ttft=0.5, seconds=1.5, tokens=101)  # 100 tokens a second
    assert order(found, request(max_tokens=100)) == ["two", "one", "local"]
    found.measures.note("two", ttft=5.0, seconds=5.1, tokens=101)
    assert order(found, request(max_tokens=100)) == ["one", "two", "local"]
    assert order(found, request(max_tokens=1)) == ["local", "one", "two"]  # now the first token counts
    assert reasons(found, request(max_tokens=100))[0] == "fastest: about 1.5 s"
    clock.now += FRESH_SECONDS + 1  # long ago: each may have changed
    assert order(found, request(max_tokens=100)) == ["local", "one", "two"]


def test_a_measurement_moves_towards_what_is_new() -> None:
    found = router("one").measures
    found.note("one", ttft=1.0, seconds=2.0, tokens=11)
    for _ in range(30):
        found.note("one", ttft=0.1, seconds=0.2, tokens=11)
    speed = found.of("one")
    assert speed is not None and 0.1 < speed.ttft < 0.11 and speed.rate is not None and 99 < speed.rate < 100


@pytest.mark.parametrize(
    ("limits", "stats", "told"),
    [
        ({"max_waiting": 3}, {"waiting": 3}, "3 waiting, limit 3"),
        ({"max_kv_usage": 0.9}, {"kv_pages_used": 9}, "KV cache 90% full, limit 90%"),
        ({"max_wait_seconds": 5.0}, {"waiting": 3, "running": 2}, "6 s to wait, limit 5"),
    ],
)
def test_a_full_engine_is_asked_after_the_standbys(limits: Any, stats: Any, told: str) -> None:
    base: dict[str, Any] = {"kv_pages_total": 10}
    now = EngineStats(**base)
    found = router("local", "one", policy=rules(**limits), load=lambda: now)
    found.measures.note("local", ttft=1.0, seconds=4.0, tokens=10)
    assert order(found, request()) == ["local", "one"]
    now = EngineStats(**base | stats)
    assert order(found, request()) == ["one", "local"]
    assert reasons(found, request()) == [f"standby (local: {told})", f"core, last: {told}"]
    alone = router("local", policy=rules(**limits), load=lambda: now)
    assert reasons(alone, request()) == ["core"]  # a full engine is better than none


@pytest.mark.parametrize(
    ("needs", "word"),
    [
        ({"tools": (Tool("f"),)}, "tools"),
        ({"response_format": {"type": "json_object"}}, "json"),
        ({"turns": (Turn("user", (ImagePart("http://x/y.png"),)),)}, "vision"),
    ],
)
def test_whoever_is_declared_unable_is_not_asked(needs: dict[str, Any], word: str) -> None:
    others = tuple({"tools", "vision", "json"} - {word})
    declared = [UpstreamSettings("one", abilities=others), UpstreamSettings("two", abilities=(word,))]
    found = router("one", "two", "three", upstreams=declared)
    wanting = replace(request(), **needs)
    assert order(found, wanting) == ["two", "three"]  # the third declares nothing: its provider decides
    assert order(found, request()) == ["one", "two", "three"]
    assert found.decide(wanting).refusals[0][0] == "one"
    with pytest.raises(CapabilityError, match=f"declared without '{word}'"):
        router("one", upstreams=declared).plan(wanting)


def test_a_context_that_is_probably_too_small_goes_last_but_not_away() -> None:
    found = router("one", "two", upstreams=[UpstreamSettings("one", context=1000)])
    long = request(text="x" * 4000, max_tokens=1)  # about 1001 tokens
    assert order(found, long) == ["two", "one"]
    assert "its context is 1000" in reasons(found, long)[1]
    assert order(found, request(text="x" * 3000)) == ["one", "two"]


@pytest.mark.parametrize("by", ["prefix", "user", "header"])
def test_a_conversation_stays_where_its_prefix_is_cached(by: str) -> None:
    clock = Clock()
    found = router("local", "one", policy=rules(sticky=by, sticky_seconds=60.0), clock=clock)
    first = request(user="ann", session="s1")
    found.answered(first, "one")
    following = replace(first, turns=(*first.turns, Turn("assistant", (TextPart("yes"),)), *first.turns))
    assert order(found, following) == ["one", "local"]
    assert reasons(found, following)[0].startswith("answered this ")
    for other in (
        request(text="else", user="bob", session="s2"),
        replace(first, key_id="another client's"),
    ):
        assert order(found, other) == ["local", "one"]
    clock.now += 61
    assert order(found, following) == ["local", "one"]


def test_a_session_is_not_kept_with_one_who_fails_or_is_full() -> None:
    now = EngineStats(waiting=9)
    found = router("local", "one", "two", policy=rules(sticky="user", max_waiting=5), load=lambda: now)
    found.answered(request(user="ann"), "local")
    assert order(found, request(user="ann"))[0] == "one"
    found.answered(request(user="ann"), "two")
    assert order(found, request(user="ann"))[0] == "two"
    found.breaker.failed("two", "transport")
    assert order(found, request(user="ann"))[0] == "one"


def test_while_a_call_goes_unanswered_for_unusually_long_others_are_asked_first() -> None:
    clock = Clock()
    found = router("one", "two", clock=clock, policy=Policy(routes=(RouteSettings("any", ("one", "two")),)))
    call = found.measures.waits("one")
    clock.now += 60
    assert order(found, request("any")) == ["one", "two"]  # nobody knows what is usual
    found.measures.got("one", call)
    found.measures.note("one", ttft=0.5, seconds=1.0, tokens=9)
    first, second = found.measures.waits("one"), found.measures.waits("one")
    clock.now += 1.4
    assert order(found, request("any")) == ["one", "two"]
    clock.now += 0.1
    assert order(found, request("any")) == ["two", "one"]
    assert reasons(found, request("any"))[0] == "route 'any' (one: silent for 1.5 s)"
    found.measures.waits("two")
    found.measures.note("two", ttft=0.1, seconds=1.0, tokens=9)
    clock.now += 9
    assert order(found, request("any")) == ["one", "two"]  # who is silent like all others is no worse than they
    found.measures.got("one", first)
    assert order(found, request("any")) == ["one", "two"]
    found.measures.got("one", second)
    assert order(found, request("any")) == ["one", "two"] and found.measures.silent("one") is None


def test_a_first_token_ends_a_silence_and_so_does_hanging_up() -> None:
    async def run() -> None:
        clock, release = Clock(), asyncio.Event()
        one = Scripted("one")

        async def stream(asked: Request) -> AsyncGenerator[Event, None]:
            await release.wait()
            yield Started("m")
            yield TextDelta("at last")
            yield Finished("stop")

        one.stream = stream  # type: ignore[method-assign, assignment]
        policy = Policy(routes=(RouteSettings("any", ("one", "two")),))
        gateway = Gateway(None, [one, Scripted("two")], clock=clock, policy=policy)
        gateway.router.measures.note("one", 0.1, 0.2, 5)
        waiting = [asyncio.create_task(gateway.answer(request("any"))) for _ in range(2)]
        await asyncio.sleep(0)
        clock.now += 1
        diverted = await gateway.answer(request("any"))
        assert diverted.record.backend == "two" and "silent for 1 s" in diverted.record.reason
        waiting[0].cancel()
        await asyncio.wait([waiting[0]])
        assert gateway.router.measures.silent("one") == 1.0
        release.set()
        assert (await waiting[1]).record.backend == "one"
        assert gateway.router.measures.silent("one") is None
        assert (await gateway.answer(request("any"))).record.backend == "one"

    asyncio.run(run())


def test_who_tries_whether_a_backend_is_back_waits_as_long_as_is_usual_there(monkeypatch: pytest.MonkeyPatch) -> None:
    from freehold.gateway import attempt

    monkeypatch.setattr(attempt, "LEAST_TRIAL_SECONDS", 0.01)

    async def run() -> None:
        one = Scripted("one")

        async def stream(asked: Request) -> AsyncGenerator[Event, None]:
            await asyncio.Event().wait()
            yield Started("m")

        one.stream = stream  # type: ignore[method-assign, assignment]
        policy = Policy(routes=(RouteSettings("any", ("one", "two")),))
        breaker = BreakerSettings(first_wait_seconds=0.01)
        clock = Clock()
        gateway = Gateway(None, [one, Scripted("two")], GuardSettings(600), clock, policy=policy, breaker=breaker)
        gateway.router.measures.note("one", 0.001, 0.2, 5)
        gateway.router.breaker.failed("one", "transport")
        clock.now += 1  # half-open
        async with asyncio.timeout(30):  # its guard would wait for ten minutes
            answer = await gateway.answer(request("any"))
        assert answer.record.backend == "two" and "one: transport" in answer.record.reason

    asyncio.run(run())


def test_a_whole_answer_that_broke_in_the_middle_shows_that_a_first_token_proves_nothing() -> None:
    async def run() -> None:
        one, clock = Scripted("one"), Clock()

        async def stream(asked: Request) -> AsyncGenerator[Event, None]:
            yield TextDelta("Once upon")
            raise UpstreamError("cut", kind="transport")

        one.stream = stream  # type: ignore[method-assign, assignment]
        policy = Policy(routes=(RouteSettings("any", ("one", "two")),))
        gateway = Gateway(None, [one, Scripted("two")], clock=clock, policy=policy)
        assert (await gateway.answer(request("any", stream=False))).record.backend == "two"
        clock.now += 5
        breaker = gateway.router.breaker
        assert breaker.state("one") == "half-open" and breaker.probe("one")
        breaker.heard("one")
        assert breaker.failing("one") == "transport"
        breaker.succeeded("one")
        assert breaker.state("one") == "closed"

    asyncio.run(run())


def test_conversations_are_forgotten_before_they_fill_the_memory() -> None:
    found = router("local", "one", policy=rules(sticky="user"))
    for i in range(MOST_CONVERSATIONS + 10):
        found.answered(request(user=str(i)), "one")
    assert len(found._conversations._last) == MOST_CONVERSATIONS
    assert order(found, request(user="0"))[0] == "local"
    assert order(found, request(user=str(MOST_CONVERSATIONS)))[0] == "one"


def test_a_route_gives_a_model_other_backends_and_other_rules() -> None:
    policy = Policy(
        RouterSettings(),
        (
            RouteSettings("fast", ("two.mini-1.5", "local")),
            RouteSettings("gpt-*", (), RouterSettings(policy="fastest")),
        ),
    )
    found = router("local", "one", "two", policy=policy)
    line = found.plan(request("fast"))
    assert [(c.backend.name, c.request.model) for c in line] == [("two", "mini-1.5"), ("local", "fast")]
    assert line[0].reason == "route 'fast'" and line[1].reason == "core, route 'fast'"
    assert reasons(found, request("gpt-4o"))[0].startswith("fastest: ")
    assert order(found, request("gpt-4o")) == ["local", "one", "two"]
    assert order(found, request("one.gpt-4o")) == ["one"]
    with pytest.raises(RequestError) as caught:
        found.plan(request("claude"))
    assert caught.value.status == 404
    assert ("fast", "freehold") in found.models() and "gpt-*" not in dict(found.models())


def test_a_standby_by_route_gets_only_what_is_portable() -> None:
    found = router("local", "one", policy=Policy(routes=(RouteSettings("*", ("one", "local")),)))
    asked = request()
    line = found.plan(replace(asked, sampling=replace(asked.sampling, top_k=5, temperature=0.5)))
    assert line[0].request.sampling.top_k is None and line[0].request.sampling.temperature == 0.5
    assert line[0].dropped == ("top_k",) and line[1].request.sampling.top_k == 5


@pytest.mark.parametrize(("target", "words"), [("four", "no backend"), ("three", "no model to ask for")])
def test_a_route_that_leads_nowhere_is_refused_and_the_old_one_stays(target: str, words: str) -> None:
    found = Router(None, [Scripted("one"), Scripted("three", "")])
    old = found.policy
    with pytest.raises(SettingError, match=words):
        found.use(Policy(routes=(RouteSettings("x", (target,)),)))
    assert found.policy is old


def test_whoever_failed_is_asked_last_then_tried_again_and_a_banned_one_not_at_all() -> None:
    clock = Clock()
    breaker = Breaker(BreakerSettings(first_wait_seconds=5.0), clock=clock, wall=clock)
    found = router("one", "two", breaker=breaker, clock=clock)
    breaker.failed("one", "transport")
    assert order(found, request()) == ["two", "one"]
    assert reasons(found, request())[1] == "standby, open (transport), next try in 5 s"
    clock.now += 5
    assert order(found, request()) == ["one", "two"]
    breaker.succeeded("one")
    breaker.failed("one", "invalid")  # the request's own fault
    assert order(found, request()) == ["one", "two"]
    breaker.failed("one", "banned")
    assert order(found, request()) == ["two"]
    assert found.decide(request()).left_alone[0][0] == "one"
    breaker.failed("two", "billing")
    with pytest.raises(UnavailableError, match=r"one: quarantined .*two: quarantined") as caught:
        found.plan(request())
    assert caught.value.retry_after == 1800


def judged(core: Scripted, *standbys: Scripted, **given: Any) -> Gateway:
    policy = rules(**({"escalate_below": -1.0} | given))
    return Gateway(core, standbys, policy=policy)  # type: ignore[arg-type]


async def answered(gateway: Gateway, asked: Request) -> tuple[Answer, str, list[Event]]:
    answer = await gateway.answer(asked)
    events = [event async for event in answer.events]
    return answer, "".join(event.text for event in events if isinstance(event, TextDelta)), events


def scripted_core(*logprobs: float, text: str = "perhaps it is") -> Scripted:
    core: Any = Scripted("local", "tiny", text, logprobs)
    core.engine = type("Engine", (), {"stats": EngineStats()})()
    return core  # type: ignore[no-any-return]


@pytest.mark.parametrize("stream", [False, True])
def test_a_sure_answer_is_given_and_nobody_else_is_asked(stream: bool) -> None:
    core, standby = scripted_core(-0.1, -0.2, -0.3), Scripted("one")
    answer, text, events = asyncio.run(answered(judged(core, standby, escalate_streams=True), request(stream=stream)))
    assert text == "perhaps it is" and standby.asked == []
    assert all(not event.logprobs for event in events if isinstance(event, TextDelta))  # nobody asked for them
    assert answer.record.draft is not None and answer.record.draft.confidence == pytest.approx(-0.2)


@pytest.mark.parametrize("stream", [False, True])
def test_a_doubtful_answer_is_asked_elsewhere_and_its_draft_is_kept(stream: bool) -> None:
    core, standby = scripted_core(-1.0, -2.0, -3.0), Scripted("one")
    gateway = judged(core, standby, escalate_streams=True)
    answer, text, _ = asyncio.run(answered(gateway, request(stream=stream)))
    assert text == "one says so"
    record = answer.record
    assert (record.backend, record.reason) == ("one", "standby after local: low_confidence")
    assert record.draft is not None and record.draft.text == "perhaps it is" and record.draft.confidence == -2.0
    assert gateway.router.cooling(core) is None


def test_a_doubtful_answer_is_better_than_none() -> None:
    core, standby = scripted_core(-1.0, -2.0, -3.0), Scripted("one")
    standby.error = UpstreamError("one: gone", kind="transport")
    answer, text, events = asyncio.run(answered(judged(core, standby), request(logprobs=0)))
    assert text == "perhaps it is" and isinstance(events[-1], Usage)
    assert [len(event.logprobs) for event in events if isinstance(event, TextDelta)] == [1, 1, 1]
    assert answer.record.reason == "draft of the core after local: low_confidence, one: transport"


def test_a_core_that_fails_leaves_no_draft_to_fall_back_to() -> None:
    core, standby = scripted_core(-1.0), Scripted("one")
    core.error, standby.error = EngineDownError("the engine is down"), UpstreamError("one: gone", kind="transport")
    with pytest.raises(UnavailableError, match="the engine is down"):
        asyncio.run(answered(judged(core, standby), request()))


def test_a_streamed_answer_is_not_judged_unless_the_route_holds_it() -> None:
    core, standby = scripted_core(-9.0, -9.0), Scripted("one")
    answer, text, _ = asyncio.run(answered(judged(core, standby), request(stream=True)))
    assert text == "perhaps it is" and answer.record.reason == "core, streamed: not judged"
    assert core.asked[0].logprobs is None and answer.record.draft is None


def test_the_least_certain_choice_decides() -> None:
    from freehold.gateway.confidence import Draft

    draft = Draft("local")
    assert draft.confidence is None
    draft.note(Finished("stop", 0, mean_logprob=-0.2), show=True)
    draft.note(Finished("stop", 1, mean_logprob=-4.0), show=True)
    draft.note(Finished("tool_calls", 2), show=True)
    assert draft.confidence == -4.0


def test_without_anybody_to_escalate_to_nothing_is_judged() -> None:
    core = scripted_core(-9.0)
    answer, _, _ = asyncio.run(answered(judged(core), request()))
    assert answer.record.reason == "core" and core.asked[0].logprobs is None


ROUTES = '[router]\npolicy = "{}"\n[[route]]\nmodel = "fast"\nto = ["{}"]\n'


def rewrite(file: Path, text: str, tick: int) -> None:
    file.write_text(text)
    os.utime(file, ns=(tick, tick))


def test_a_changed_file_changes_the_routes_and_a_broken_one_does_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "config.toml"
    rewrite(file, ROUTES.format("core", "one"), 1)
    found = router("local", "one", policy=Policy.of(load(file, environment={})))
    problems: list[str | None] = []
    watched = PolicyFile(file, lambda settings: found.use(Policy.of(settings)), problems.append)
    watched.look()
    assert problems == []  # nothing has changed
    rewrite(file, ROUTES.format("fastest", "local"), 2)
    watched.look()
    assert problems == [None] and order(found, request("fast")) == ["local"]
    assert found.policy.default.policy == "fastest"
    for i, broken in enumerate(("[router", ROUTES.format("best", "one"), ROUTES.format("core", "nobody")), 3):
        rewrite(file, broken, i)
        watched.look()
        assert problems[-1] is not None and str(tmp_path) not in problems[-1]
        assert order(found, request("fast")) == ["local"]
    assert "routes stay as they were" in caplog.text and "nobody" in caplog.text
    told = len(problems)
    watched.look()
    file.unlink()
    watched.look()  # an editor between removing and writing
    assert len(problems) == told
    rewrite(file, ROUTES.format("core", "one"), 9)
    watched.look()
    assert problems[-1] is None and order(found, request("fast")) == ["one"]
