"""Which turns leave a conversation that does not fit, and which never do."""

from __future__ import annotations

from dataclasses import replace

from freehold.errors import ContextLengthError, UpstreamError
from freehold.gateway.conversation import Request, Role, TextPart, ToolCall, Turn
from freehold.gateway.truncate import DROPPED, without_oldest


def say(role: Role, text: str) -> Turn:
    return Turn(role, (TextPart(text),))


def call(name: str) -> list[Turn]:
    """A call and its result."""
    return [
        Turn("assistant", tool_calls=(ToolCall(name, "f", '{"a": "some value"}'),)),
        Turn("tool", (), tool_call_id=name),
    ]


def asked(*turns: Turn) -> Request:
    return Request(id="r", model="m", turns=turns, body=b"{}")


SLIGHT = ContextLengthError("too long", limit=99, requested=100)  # a turn is more than enough
SYSTEM, QUESTION = say("system", "be kind"), say("user", "the question")


def left(request: Request, error: Exception) -> list[Turn]:
    shorter = without_oldest(request, error)
    assert shorter is not None and shorter.body == b"" and DROPPED in shorter.dropped
    return list(shorter.turns)


def test_the_oldest_turn_leaves_first_and_the_system_stays() -> None:
    turns = [SYSTEM, say("user", "some old words"), say("assistant", "some answer"), QUESTION]
    assert left(asked(*turns), SLIGHT) == [SYSTEM, *turns[2:]]


def test_the_last_question_stays_however_long_its_tool_loop_is() -> None:
    turns = [SYSTEM, QUESTION, *call("a"), *call("b"), *call("c")]
    request = asked(*turns)
    shorter = without_oldest(request, SLIGHT)
    assert shorter is not None and list(shorter.turns) == [SYSTEM, QUESTION, *call("b"), *call("c")]
    shorter = without_oldest(shorter, SLIGHT)
    assert shorter is not None and list(shorter.turns) == [SYSTEM, QUESTION, *call("c")]
    assert shorter.dropped == (DROPPED,)  # named once
    assert without_oldest(shorter, SLIGHT) is None


def test_a_result_never_stays_without_its_call() -> None:
    request = asked(say("user", "some old words"), *call("a"), QUESTION)
    once = without_oldest(request, SLIGHT)
    assert once is not None and [turn.role for turn in once.turns] == ["assistant", "tool", "user"]
    assert left(once, SLIGHT) == [QUESTION]


def test_far_too_much_leaves_at_once() -> None:
    turns = [say("user", "x" * 100) for _ in range(40)]
    error = ContextLengthError("too long", limit=100, requested=400)
    assert 5 <= len(left(asked(*turns), error)) <= 10
    unknown = UpstreamError("too long", kind="context")  # a provider that gives no numbers: one at a time
    assert len(left(asked(*turns), unknown)) == 39


def test_nothing_but_a_question_can_not_be_shortened() -> None:
    assert without_oldest(asked(SYSTEM, QUESTION), SLIGHT) is None
    assert without_oldest(replace(asked(SYSTEM), turns=(SYSTEM,)), SLIGHT) is None
