"""A stream that breaks goes on elsewhere: one id, one finish, one usage, no character lost or repeated."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from freehold.errors import EngineDownError, UpstreamError
from freehold.gateway.conversation import (
    Event,
    Failed,
    Finished,
    ReasoningDelta,
    Request,
    Sampling,
    Started,
    TextDelta,
    TextPart,
    Tool,
    ToolCallDelta,
    Turn,
    Usage,
)
from freehold.gateway.failures import CapabilityError
from freehold.gateway.relay import Exchange, Relay
from freehold.gateway.router import Router
from freehold.settings import GuardSettings

STORY = "Once upon a time there was an END of the wörld, and 你好 it went on 🙂 for much longer than that."
CUT = UpstreamError("cut", kind="transport")


@dataclass
class Scripted:
    """A backend that says one text, a character at a time, and breaks where it is told to.

    Args:
        cut: characters after which it raises; None = never.
        continues: whether it goes on from exact text, as the engine does.
    """

    name: str
    text: str = STORY
    cut: int | None = None
    continues: bool = False
    error: Exception = CUT
    model: str = "m"
    state: str = "ready"
    events: Sequence[Event] | None = None
    asked: list[Request] = field(default_factory=list)
    closed: int = 0

    def check(self, request: Request) -> None:
        if request.continue_from and not self.continues:
            raise CapabilityError("can't")

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    def tokens_of(self, text: str) -> int:
        return len(text)

    async def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        self.asked.append(request)
        try:
            yield Started(self.model)
            if self.events is not None:
                for event in self.events:
                    yield event
                raise self.error
            for i in range(request.n):
                async for event in self._say(request, i):
                    yield event
            said = sum(len(self._text(request)) for _ in range(request.n))
            yield Usage(10 + len(request.continue_from), said)
        finally:
            self.closed += 1

    def _text(self, request: Request) -> str:
        assert self.text.startswith(request.continue_from)
        rest = self.text.removeprefix(request.continue_from)
        for stop in request.stop:
            rest = rest.split(stop)[0]
        return rest[: request.max_tokens]

    async def _say(self, request: Request, index: int) -> AsyncGenerator[Event, None]:
        text = self._text(request)
        for n, character in enumerate(text):
            if n == self.cut:
                raise self.error
            yield TextDelta(character, index=index)
        if self.cut is not None and len(text) == self.cut:
            raise self.error
        whole = self.text.removeprefix(request.continue_from)
        yield Finished("length" if len(text) == request.max_tokens and text != whole else "stop", index)


def ask(**given: Any) -> Request:
    return Request(**({"id": "r", "model": "m", "turns": (Turn("user", (TextPart("hi"),)),), "stream": True} | given))


def relay(*backends: Any, core: Any = None, **guards: float) -> Relay:
    async def no_wait() -> None: ...

    return Relay(Router(core, backends), GuardSettings(**({"idle_seconds": 5.0} | guards)))


async def collect(exchange: Exchange) -> list[Event]:
    return [event async for event in exchange.events]


def run(found: Relay, request: Request) -> tuple[Exchange, list[Event]]:
    async def work() -> tuple[Exchange, list[Event]]:
        async with asyncio.timeout(20):
            exchange = await found.open(request)
            return exchange, await collect(exchange)

    return asyncio.run(work())


def text_of(events: Sequence[Event], index: int = 0) -> str:
    return "".join(e.text for e in events if isinstance(e, TextDelta) and e.index == index)


def shape(events: Sequence[Event]) -> list[str]:
    """What kinds of events came, runs of text as one."""
    names = [type(event).__name__ for event in events]
    return [name for i, name in enumerate(names) if i == 0 or name != "TextDelta" or names[i - 1] != "TextDelta"]


def pair(first: Any, second: Any) -> Relay:
    """A line of two, as `default` plans it without a core."""
    return relay(first, second)


LOCAL: dict[str, Any] = {"model": "default"}


@pytest.mark.parametrize("cut", range(1, 61))
def test_a_cut_stream_continues_without_losing_a_character(cut: int) -> None:
    first, second = Scripted("one", cut=cut), Scripted("two", continues=True)
    exchange, events = run(pair(first, second), ask(**LOCAL, max_tokens=80))
    assert text_of(events) == STORY[:80]
    assert shape(events) == ["Started", "TextDelta", "Finished", "Usage"]
    assert events[-1] == Usage(10, 80)
    assert events[-2] == Finished("length")
    assert (exchange.backend, exchange.continued) == ("one", ["two"])
    (asked,) = second.asked
    assert (asked.continue_from, asked.max_tokens, asked.body) == (STORY[:cut], 80 - cut, b"")
    assert first.closed == second.closed == 1


@pytest.mark.parametrize("cut", range(25, 40))
def test_a_stop_string_that_spans_the_cut_still_holds(cut: int) -> None:
    class Ignores(Scripted):
        """Knows nothing of stop strings, and leaks their beginnings."""

        def _text(self, request: Request) -> str:
            return self.text.removeprefix(request.continue_from)

    first, second = Ignores("one", cut=cut), Ignores("two", continues=True)
    _, events = run(pair(first, second), ask(**LOCAL, stop=("END of",)))
    at = STORY.index("END of")
    # What had been sent is sent, but nothing may follow.
    assert text_of(events) == (STORY[:at] if cut <= at else STORY[:cut])
    assert [e for e in events if isinstance(e, Finished)] == [Finished("stop", stop_sequence="END of")]
    assert len(second.asked) == (1 if cut < at + len("END of") else 0)


@pytest.mark.parametrize("cut", range(29, 36))
def test_what_only_began_like_a_stop_string_is_neither_lost_nor_repeated(cut: int) -> None:
    first, second = Scripted("one", cut=cut), Scripted("two", continues=True)
    _, events = run(pair(first, second), ask(**LOCAL, stop=("END of time",)))
    assert text_of(events) == STORY and len(second.asked) == 1


def test_several_breaks_are_mended_one_after_the_other() -> None:
    first, second = Scripted("one", cut=5), Scripted("two", cut=7, continues=True)
    third = Scripted("three", continues=True)
    exchange, events = run(relay(first, second, third), ask(**LOCAL))
    assert text_of(events) == STORY and exchange.continued == ["two", "three"]
    assert third.asked[0].continue_from == STORY[:12]
    assert events[-1] == Usage(10, len(STORY))


def test_a_backend_that_always_breaks_is_given_up_in_the_end() -> None:
    class Tired(Scripted):
        async def _say(self, request: Request, index: int) -> AsyncGenerator[Event, None]:
            yield TextDelta(self._text(request)[0], index=index)
            raise EngineDownError("died again")

    core = Tired("local", continues=True)
    _, events = run(relay(core=core), ask(**LOCAL))
    assert isinstance(events[-1], Failed) and 2 < len(core.asked) < 20
    assert text_of(events) == STORY[: len(core.asked)]


def test_nobody_who_can_continue_means_an_error_in_the_frame() -> None:
    first, second = Scripted("one", cut=5), Scripted("two")
    _, events = run(pair(first, second), ask(**LOCAL))
    assert shape(events) == ["Started", "TextDelta", "Failed"] and second.asked == []


def test_a_refusal_on_content_in_the_stream_is_not_routed_around() -> None:
    first = Scripted("one", cut=5, error=UpstreamError("no", kind="content_policy"))
    second = Scripted("two", continues=True)
    _, events = run(pair(first, second), ask(**LOCAL))
    assert isinstance(events[-1], Failed) and second.asked == []


CALL = (ToolCallDelta(0, "call_1", "f", ""), ToolCallDelta(0, arguments='{"a": '), ToolCallDelta(0, arguments="1}"))


@pytest.mark.parametrize("said", [0, 1, 2, 3])
@pytest.mark.parametrize("before", ["", "Let me see. "])
def test_an_incomplete_tool_call_restarts_and_never_splices(said: int, before: str) -> None:
    lead: list[Event] = [TextDelta(before)] if before else [ToolCallDelta(0, "call_0", "f", "")]
    first = Scripted("one", events=[*lead, *CALL[:said]])

    class Calls(Scripted):
        async def _say(self, request: Request, index: int) -> AsyncGenerator[Event, None]:
            yield ToolCallDelta(0, "call_2", "f", "", index)
            yield ToolCallDelta(0, arguments='{"a": 2}', index=index)
            yield Finished("tool_calls", index)

    second = Calls("two", text=before, continues=bool(before))
    _, events = run(pair(first, second), ask(**LOCAL, tools=(Tool("f"),)))
    calls = [e for e in events if isinstance(e, ToolCallDelta)]
    assert [(c.id, c.arguments) for c in calls] == [("call_2", ""), (None, '{"a": 2}')]
    assert text_of(events) == before and [e for e in events if isinstance(e, Finished)] == [Finished("tool_calls")]
    assert second.asked[0].continue_from == before


def test_tool_calls_are_not_held_back_when_nobody_could_take_over() -> None:
    only = Scripted("one", events=CALL)
    _, events = run(relay(only), ask(**LOCAL, tools=(Tool("f"),)))
    assert [e for e in events if isinstance(e, ToolCallDelta)] == list(CALL)


def test_thinking_that_was_shown_is_not_shown_again() -> None:
    first = Scripted("one", events=[ReasoningDelta("hm, ")])
    second = Scripted("two", events=None, continues=True)

    class Thinks(Scripted):
        async def _say(self, request: Request, index: int) -> AsyncGenerator[Event, None]:
            yield ReasoningDelta("hm, hm", index)
            yield TextDelta("so!", index=index)
            yield Finished("stop", index)

    second = Thinks("two", text="so!")
    _, events = run(pair(first, second), ask(**LOCAL))
    assert [e.text for e in events if isinstance(e, ReasoningDelta)] == ["hm, "]
    assert text_of(events) == "so!"


def test_each_choice_is_continued_on_its_own() -> None:
    story: list[Event] = [TextDelta(STORY[:9], index=0), TextDelta(STORY[:4], index=1), TextDelta(STORY, index=2)]
    first = Scripted("one", events=[*story, Finished("stop", 2), TextDelta(STORY[4:6], index=1)])
    second = Scripted("two", continues=True)
    _, events = run(pair(first, second), ask(**LOCAL, n=3, sampling=Sampling(seed=7)))
    assert [text_of(events, i) for i in range(3)] == [STORY] * 3
    assert sorted(e.index for e in events if isinstance(e, Finished)) == [0, 1, 2]
    assert [(r.continue_from, r.n, r.sampling.seed) for r in second.asked] == [
        (STORY[:9], 1, 7),
        (STORY[:6], 1, 8),
    ]
    assert events[-1] == Usage(10, 3 * len(STORY))
    assert len({r.id for r in second.asked}) == 2


def test_a_break_between_the_last_word_and_the_usage_costs_nothing() -> None:
    first = Scripted("one", events=[TextDelta("All said."), Finished("stop")])
    second = Scripted("two", continues=True)
    _, events = run(pair(first, second), ask(**LOCAL))
    assert (
        shape(events) == ["Started", "TextDelta", "Finished"] and second.asked == []
    )  # nobody knows the prompt's size
    first.events = [Started("m", prompt_tokens=12), TextDelta("All said."), Finished("stop")]

    class Told(Scripted):
        async def stream(self, request: Request) -> AsyncGenerator[Event, None]:
            for event in first.events or ():
                yield event
            raise CUT

    _, events = run(pair(Told("one"), second), ask(**LOCAL))
    assert events[-1] == Usage(12, len("All said."))


def test_an_answer_that_had_its_length_needs_nobody() -> None:
    first = Scripted("one", cut=10)
    second = Scripted("two", continues=True)
    _, events = run(pair(first, second), ask(**LOCAL, max_tokens=10))
    assert events[-1] == Finished("length") and second.asked == []


def test_an_echoed_prompt_is_no_part_of_what_is_continued() -> None:
    first = Scripted("one", events=[TextDelta("Hello"), TextDelta(STORY[:3])])
    second = Scripted("two", continues=True)
    _, events = run(pair(first, second), ask(**LOCAL, turns=(), prompts=("Hello",), echo=True))
    assert text_of(events) == "Hello" + STORY
    assert (second.asked[0].continue_from, second.asked[0].echo) == (STORY[:3], False)


def test_an_engine_that_crashed_is_waited_for_when_nobody_else_can_continue() -> None:
    class Engine(Scripted):
        async def _say(self, request: Request, index: int) -> AsyncGenerator[Event, None]:
            if not request.continue_from:
                for character in self._text(request)[:7]:
                    yield TextDelta(character, index=index)
                self.state = "restarting"
                asyncio.get_running_loop().call_later(0.05, setattr, self, "state", "ready")
                raise EngineDownError("it died")
            assert self.state == "ready"
            async for event in Scripted._say(self, request, index):
                yield event

    core, deaf = Engine("local", continues=True), Scripted("two")
    exchange, events = run(relay(deaf, core=core), ask(**LOCAL))
    assert text_of(events) == STORY and exchange.continued == ["local"] and deaf.asked == []


def test_a_stall_after_the_first_token_is_continued_when_the_idle_guard_says_so() -> None:
    class Stalls(Scripted):
        async def _say(self, request: Request, index: int) -> AsyncGenerator[Event, None]:
            yield TextDelta(STORY[:6], index=index)
            await asyncio.Event().wait()

    stalled = Stalls("one")
    exchange, events = run(relay(stalled, Scripted("two", continues=True), idle_seconds=0.05), ask(**LOCAL))
    assert text_of(events) == STORY and exchange.continued == ["two"] and stalled.closed == 1


@pytest.mark.parametrize("heir", [True, False])
def test_a_slow_engine_is_left_in_mid_stream_only_for_somebody_who_can_go_on(heir: bool) -> None:
    class Slow(Scripted):
        async def _say(self, request: Request, index: int) -> AsyncGenerator[Event, None]:
            yield TextDelta(STORY[:6], index=index)
            await asyncio.sleep(0.3)  # six times the guard
            yield TextDelta(STORY[6:], index=index)
            yield Finished("stop", index)

    standby = Scripted("two", continues=heir)
    exchange, events = run(relay(standby, core=Slow("local"), idle_seconds=0.05), ask(**LOCAL))
    assert text_of(events) == STORY
    assert exchange.continued == (["two"] if heir else [])


def test_a_backend_is_held_to_guards_of_its_own() -> None:
    class Slow(Scripted):
        guards = GuardSettings(ttft_seconds=0.05)

        async def stream(self, request: Request) -> AsyncGenerator[Event, None]:
            await asyncio.Event().wait()
            yield Started("never")

    exchange, _ = run(relay(Slow("one"), Scripted("two")), ask(**LOCAL))
    assert exchange.backend == "two"


@pytest.mark.parametrize("stream", [True, False])
def test_a_whole_call_ends_within_its_total_whatever_everybody_does(stream: bool) -> None:
    class Drips(Scripted):
        async def _say(self, request: Request, index: int) -> AsyncGenerator[Event, None]:
            while True:
                yield TextDelta(".", index=index)
                await asyncio.sleep(0.01)

    async def work() -> float:
        loop = asyncio.get_running_loop()
        began = loop.time()
        found = relay(Drips("one"), Drips("two", text="." * 10**6, continues=True), total_seconds=0.5)
        try:
            assert isinstance((await collect(await found.open(ask(**LOCAL, stream=stream))))[-1], Failed)
        except UpstreamError:
            assert not stream
        return loop.time() - began

    assert asyncio.run(work()) <= 0.55


def test_a_client_that_leaves_ends_the_continuation_too() -> None:
    class Endless(Scripted):
        async def _say(self, request: Request, index: int) -> AsyncGenerator[Event, None]:
            while True:
                yield TextDelta("x", index=index)

    first, second = Scripted("one", cut=3), Endless("two", continues=True)

    async def work() -> None:
        exchange = await pair(first, second).open(ask(**LOCAL))
        async for _ in exchange.events:
            if exchange.continued:
                break
        await exchange.events.aclose()
        assert first.closed == second.closed == 1

    asyncio.run(work())


def test_the_breaker_is_told_of_late_breaks_and_half_open_trials() -> None:
    first, second = Scripted("one", cut=3), Scripted("two", continues=True)
    found = pair(first, second)
    run(found, ask(**LOCAL))
    assert found.context.router.breaker.state("one") == "open" and found.context.router.breaker.state("two") == "closed"
    exchange, _ = run(found, ask(**LOCAL))
    assert exchange.backend == "two" and len(first.asked) == 1  # left alone
