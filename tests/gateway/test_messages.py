"""Anthropic Messages over HTTP through the official SDK: every typed event parses, every field arrives."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import pytest
from tests.gateway import fakes
from tests.gateway import stage as stages
from tests.gateway.fakes import Live
from tests.gateway.stage import Stage

from freehold.engine.request import GenerateRequest
from freehold.errors import OverloadedError, UpstreamError
from freehold.gateway.conversation import (
    Event,
    Finished,
    ImagePart,
    Reasoning,
    ReasoningDelta,
    Started,
    TextDelta,
    TextPart,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from freehold.gateway.service import Gateway

ASK: list[Any] = [{"role": "user", "content": "hi"}]
WEATHER: dict[str, Any] = {
    "name": "weather",
    "description": "tells the weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
TOOL_ANSWER: list[Event] = [
    Started("play", prompt_tokens=7),
    ReasoningDelta("Let me "),
    ReasoningDelta("look.", signature="sealed"),
    ReasoningDelta("", redacted="opaque"),
    TextDelta("I look "),
    TextDelta("it up."),
    ToolCallDelta(0, "toolu_1", "weather", '{"city": '),
    ToolCallDelta(0, arguments='"Köln"}'),
    ToolCallDelta(1, "toolu_2", "weather", '{"city": "Ulm"}'),
    Finished("tool_calls"),
    Usage(7, 9, cached_tokens=3),
]


def reply(prompt: str, request: GenerateRequest) -> str:
    """Repeats the last user's words."""
    return prompt.rsplit("<|user|>", 1)[-1].split("<|end|>")[0]


@pytest.fixture(scope="module")
def served(directory: Path) -> Iterator[Live]:
    with fakes.live(Gateway(fakes.core(directory, reply))) as found:
        yield found


@pytest.fixture
def client(served: Live) -> Iterator[anthropic.Anthropic]:
    with stages.anthropic_client(served) as found:
        yield found


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with stages.messages(TOOL_ANSWER) as found:
        yield found


def test_a_message_is_answered_whole(client: anthropic.Anthropic) -> None:
    answer = client.messages.create(model="tiny", max_tokens=20, messages=ASK, system="be kind")
    assert answer.content[0].type == "text" and answer.content[0].text == "hi"
    assert (answer.type, answer.role, answer.model) == ("message", "assistant", "tiny")
    assert (answer.stop_reason, answer.stop_sequence) == ("end_turn", None)
    assert answer.id.startswith("msg_") and (answer.usage.input_tokens, answer.usage.output_tokens) == (14, 3)


def test_a_stream_has_every_event_once_and_in_order_and_says_the_prompts_size_first(
    client: anthropic.Anthropic,
) -> None:
    events = list(client.messages.create(model="tiny", max_tokens=20, messages=ASK, stream=True))
    kinds = [event.type for event in events]
    assert kinds == ["message_start", "content_block_start", "content_block_delta", "content_block_delta",
                     "content_block_stop", "message_delta", "message_stop"]  # fmt: skip
    assert events[0].type == "message_start" and events[0].message.usage.input_tokens == 5


def test_the_stream_helper_gathers_thinking_text_and_parallel_calls(stage: Stage) -> None:
    stage.backend.script = TOOL_ANSWER
    with stage.client.messages.stream(
        model="stage.play",
        max_tokens=50,
        messages=ASK,
        tools=[WEATHER],  # type: ignore[list-item]
    ) as stream:
        events = list(stream)
        final = stream.get_final_message()
    assert [block.type for block in final.content] == [
        "thinking", "redacted_thinking", "text", "tool_use", "tool_use",
    ]  # fmt: skip
    thinking, redacted, text, first, second = (block.model_dump() for block in final.content)
    assert (thinking["thinking"], thinking["signature"]) == ("Let me look.", "sealed")
    assert redacted["data"] == "opaque" and text["text"] == "I look it up."
    assert (first["id"], first["name"], first["input"]) == ("toolu_1", "weather", {"city": "Köln"})
    assert second["input"] == {"city": "Ulm"}
    assert final.stop_reason == "tool_use"
    assert (final.usage.input_tokens, final.usage.output_tokens) == (7, 9)
    opened = [e.index for e in events if e.type == "content_block_start"]
    closed = [e.index for e in events if e.type == "content_block_stop"]
    assert opened == closed == [0, 1, 2, 3, 4]


def test_a_whole_answer_is_the_streamed_one(stage: Stage) -> None:
    whole = stage.ask()
    with stage.client.messages.stream(model="stage.play", max_tokens=50, messages=ASK) as stream:
        final = stream.get_final_message()
    kept = ("content", "stop_reason", "stop_sequence", "role", "model")
    assert whole.model_dump(include=set(kept)) == {k: v for k, v in final.model_dump().items() if k in kept}
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_instructions_between_turns_as_claude_code_sends_them_are_system_turns(stage: Stage) -> None:
    told: Any = [*ASK, {"role": "system", "content": "now in French"}, {"role": "assistant", "content": "ok"}, *ASK]
    stage.ask(messages=told, system="be kind")
    roles = [(turn.role, turn.text) for turn in stage.backend.last.turns]
    assert roles == [
        ("system", "be kind"), ("user", "hi"), ("system", "now in French"), ("assistant", "ok"), ("user", "hi"),
    ]  # fmt: skip
    block = {"type": "tool_result", "tool_use_id": "t", "content": "x"}
    reply = stage.post(messages=[*ASK, {"role": "system", "content": [block]}])
    assert reply.status_code == 400 and "belongs to the user" in reply.text


def test_tools_choice_results_images_and_thinking_reach_the_backend(stage: Stage) -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QUJD"}}
    stage.ask(
        system=[{"type": "text", "text": "be "}, {"type": "text", "text": "kind"}],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "look"}, image]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "hm", "signature": "sig"},
                {"type": "redacted_thinking", "data": "xyz"},
                {"type": "text", "text": "calling"},
                {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Ulm"}},
                {"type": "tool_use", "id": "t2", "name": "weather", "input": {}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": "sunny"},
                {"type": "tool_result", "tool_use_id": "t2", "is_error": True,
                 "content": [{"type": "text", "text": "no city"}]},
                {"type": "text", "text": "go on"},
            ]},
        ],
        tools=[WEATHER],
        tool_choice={"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
        stop_sequences=["END"], metadata={"user_id": "u"}, extra_body={"temperature": 0.5, "top_p": 0.25, "top_k": 3},
        max_tokens=2000, thinking={"type": "enabled", "budget_tokens": 1500},
    )  # fmt: skip
    asked = stage.backend.last
    assert [turn.role for turn in asked.turns] == ["system", "user", "assistant", "tool", "tool", "user"]
    system, look, calling, sunny, failed, go_on = asked.turns
    assert system.text == "be kind" and go_on.text == "go on"
    assert look.parts == (TextPart("look"), ImagePart("data:image/png;base64,QUJD"))
    assert calling.reasoning == (Reasoning("hm", "sig"), Reasoning(redacted="xyz"))
    assert calling.tool_calls == (ToolCall("t1", "weather", '{"city":"Ulm"}'), ToolCall("t2", "weather", "{}"))
    assert (sunny.tool_call_id, sunny.text, sunny.failed) == ("t1", "sunny", False)
    assert (failed.tool_call_id, failed.text, failed.failed) == ("t2", "no city", True)
    assert asked.tools[0].parameters == WEATHER["input_schema"]
    assert asked.tool_choice == {"type": "function", "function": {"name": "weather"}}
    assert asked.parallel_tool_calls is False and asked.stop == ("END",) and asked.user == "u"
    assert (asked.max_tokens, asked.reasoning_budget) == (2000, 1500)
    assert (asked.sampling.temperature, asked.sampling.top_p) == (0.5, 0.25)
    assert asked.dialect == "anthropic_messages" and b'"budget_tokens"' in asked.body


@pytest.mark.parametrize(
    ("given", "expected"), [("auto", "auto"), ("any", "required"), ("none", "none")]
)  # fmt: skip
def test_choices_have_their_neutral_names(stage: Stage, given: str, expected: str) -> None:
    stage.ask(tools=[WEATHER], tool_choice={"type": given})
    assert stage.backend.last.tool_choice == expected


def test_structured_output_is_asked_for(stage: Stage) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    stage.ask(output_config={"format": {"type": "json_schema", "schema": schema}, "effort": "low"})
    asked = stage.backend.last
    assert asked.response_format == {
        "type": "json_schema",
        "json_schema": {"name": "output", "schema": schema, "strict": True},
    }
    assert asked.reasoning_effort == "low"


@pytest.mark.parametrize(
    ("finish", "reason", "sequence"),
    [
        (Finished("stop"), "end_turn", None),
        (Finished("stop", stop_sequence="END"), "stop_sequence", "END"),
        (Finished("length"), "max_tokens", None),
        (Finished("content_filter"), "refusal", None),
    ],
)
def test_every_end_has_its_reason(stage: Stage, finish: Finished, reason: str, sequence: str | None) -> None:
    script = [Started("play"), TextDelta("x"), finish, Usage(5, 1)]
    whole = stage.ask(script)
    assert (whole.stop_reason, whole.stop_sequence) == (reason, sequence)
    with stage.client.messages.stream(model="stage.play", max_tokens=5, messages=ASK) as stream:
        final = stream.get_final_message()
    assert (final.stop_reason, final.stop_sequence) == (reason, sequence)


def test_arguments_cut_by_a_limit_keep_what_was_whole(stage: Stage) -> None:
    cut = ToolCallDelta(0, "t", "weather", '{"city": "Ulm", "days": [1, 2, 3], "why": "beca')
    answer = stage.ask([Started("play"), cut, Finished("length"), Usage(1, 1)])
    assert answer.content[0].input == {"city": "Ulm", "days": [1, 2, 3]} and answer.stop_reason == "max_tokens"


def test_calls_whose_pieces_are_mixed_become_blocks_one_after_the_other(stage: Stage) -> None:
    script = [
        Started("play"),
        ToolCallDelta(0, "a", "f", '{"x":'),
        ToolCallDelta(1, "b", "g", '{"y"'),
        ToolCallDelta(0, arguments=" 1}"),
        ToolCallDelta(1, arguments=": 2}"),
        TextDelta("done"),
        Finished("tool_calls"),
        Usage(1, 1),
    ]
    stage.backend.script = script
    with stage.client.messages.stream(model="stage.play", max_tokens=5, messages=ASK) as stream:
        events = list(stream)
        final = stream.get_final_message().model_dump()
    assert [block.get("input", block.get("text")) for block in final["content"]] == [{"x": 1}, {"y": 2}, "done"]
    marks = [e.index for e in events if e.type in ("content_block_start", "content_block_stop")]
    assert marks == [0, 0, 1, 1, 2, 2]


def test_a_count_is_the_usage_of_the_same_request(client: anthropic.Anthropic) -> None:
    given: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "count me"}], "system": "s"}
    count = client.messages.count_tokens(**given)
    answer = client.messages.create(max_tokens=5, **given)
    again = client.messages.create(max_tokens=5, **given)  # from the prefix cache, and yet the same
    assert count.input_tokens == answer.usage.input_tokens == again.usage.input_tokens > 0


def test_cached_tokens_are_counted_apart_for_those_who_ask_for_caching(stage: Stage) -> None:
    marked = [{"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]}]
    usage = stage.ask(messages=marked).usage
    assert (usage.input_tokens, usage.cache_read_input_tokens) == (4, 3)
    usage = stage.ask().usage
    assert (usage.input_tokens, usage.cache_read_input_tokens) == (7, 0)


def test_what_cannot_be_carried_is_named(stage: Stage) -> None:
    raw = stage.client.messages.with_raw_response.create(
        model="stage.play",
        max_tokens=5,
        messages=[{"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]}],
        tools=[{"type": "web_search_20250305", "name": "web_search"}],
        service_tier="auto",
        extra_body={"weird\r\nname": 1},
    )
    dropped = raw.headers["x-freehold-dropped"].split(",")
    assert set(dropped) >= {"messages[].content[].cache_control", "service_tier", "tools.web_search_20250305"}
    assert "weird??name" in dropped and stage.backend.last.tools == ()


def test_a_last_turn_of_the_assistant_begins_the_answer(stage: Stage) -> None:
    stage.ask(messages=[*ASK, {"role": "assistant", "content": "The answer is"}])
    asked = stage.backend.last
    assert (asked.continue_from, [turn.role for turn in asked.turns]) == ("The answer is", ["user"])


def post(stage: Stage, **changes: Any) -> httpx2.Response:
    body = {"model": "stage.play", "max_tokens": 5, "messages": ASK} | changes
    body = {name: value for name, value in body.items() if value is not ...}
    return httpx2.post(stage.live.url + "/v1/messages", json=body, trust_env=False)


TEXT = {"type": "text", "text": "x"}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"max_tokens": ...}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": []}]}, "messages"),
        ({"messages": [{"role": "boss", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_result", "tool_use_id": "t"}]}]},
         "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": []}]}]},
         "messages[0].content[0].input"),
        ({"temperature": 1.5}, "temperature"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tool_choice": {"type": "tool", "name": "g"}, "tools": [WEATHER]}, "tool_choice.name"),
        ({"tool_choice": {"type": "tool"}, "tools": [WEATHER]}, "tool_choice.name"),
        ({"thinking": {"type": "enabled", "budget_tokens": 10}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, "max_tokens"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_wrong_field_is_named_in_anthropics_envelope(stage: Stage, changes: dict[str, Any], named: str) -> None:
    answer = post(stage, **changes)
    found = answer.json()
    assert answer.status_code == 400 and set(found) == {"type", "error", "request_id"}
    assert (found["type"], found["error"]["type"]) == ("error", "invalid_request_error")
    assert named in found["error"]["message"]


def failing(stage: Stage, error: Exception) -> None:
    stage.backend.script = []
    stage.backend.error = error
    try:
        stage.client.messages.create(model="stage.play", max_tokens=5, messages=ASK)
    finally:
        stage.backend.error = None
        stage.live.gateway.router.breaker.succeeded(stage.backend.name)


def test_the_sdk_raises_its_own_classes(stage: Stage) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        stage.ask(model="nothing")
    assert missing.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
    with pytest.raises(anthropic.RateLimitError) as rate:
        failing(stage, UpstreamError("slow down", kind="rate"))
    assert rate.value.body["error"]["type"] == "rate_limit_error"  # type: ignore[index]
    with pytest.raises(anthropic.APIStatusError) as full:
        failing(stage, OverloadedError("the queue is full"))
    assert (full.value.status_code, full.value.body["error"]["type"]) == (529, "overloaded_error")  # type: ignore[index]
    with pytest.raises(anthropic.InternalServerError) as bug:
        failing(stage, RuntimeError("secret detail"))
    assert bug.value.body["error"]["type"] == "api_error" and "secret" not in str(bug.value)  # type: ignore[index]


def test_keys_are_taken_and_refused_as_anthropic_does(directory: Path) -> None:
    with fakes.live(Gateway(fakes.core(directory, reply)), api_key="sk-own") as found:
        for given, right in (
            ({"api_key": "sk-own"}, True),
            ({"auth_token": "sk-own"}, True),
            ({"api_key": "no"}, False),
        ):
            with anthropic.Anthropic(base_url=found.url, max_retries=0, **given) as client:  # type: ignore[arg-type]
                if right:
                    raw = client.messages.with_raw_response.create(model="tiny", max_tokens=5, messages=ASK)
                    assert raw.headers["request-id"] == raw.parse().id.removeprefix("msg_")
                    continue
                with pytest.raises(anthropic.AuthenticationError) as caught:
                    client.messages.create(model="tiny", max_tokens=5, messages=ASK)
                assert caught.value.body["error"]["type"] == "authentication_error"  # type: ignore[index]
                assert caught.value.request_id and "sk-" not in str(caught.value)


def test_a_break_inside_a_stream_is_an_error_event(stage: Stage) -> None:
    stage.backend.script = [Started("play"), TextDelta("half")]
    stage.backend.error = OverloadedError("the engine is full")
    try:
        with (
            pytest.raises(anthropic.APIStatusError) as caught,
            stage.client.messages.stream(model="stage.play", max_tokens=5, messages=ASK) as stream,
        ):
            list(stream)
    finally:
        stage.backend.error = None
        stage.live.gateway.router.breaker.succeeded(stage.backend.name)
    assert caught.value.body["error"]["type"] == "overloaded_error"  # type: ignore[index]


def test_asynchronous_clients_stream_too(stage: Stage) -> None:
    stage.backend.script = TOOL_ANSWER

    async def run() -> str:
        async with (
            anthropic.AsyncAnthropic(base_url=stage.live.url, api_key="none", max_retries=0) as client,
            client.messages.stream(model="stage.play", max_tokens=5, messages=ASK) as stream,
        ):
            return "".join([text async for text in stream.text_stream])

    assert asyncio.run(run()) == "I look it up."


def test_models_are_listed_in_anthropics_shape_when_its_client_asks(client: anthropic.Anthropic, stage: Stage) -> None:
    assert [(m.id, m.type) for m in client.models.list()] == [("tiny", "model")]
    assert stage.client.models.retrieve("stage.play").display_name == "stage.play"
    with pytest.raises(anthropic.NotFoundError):
        client.models.retrieve("nothing")
    with pytest.raises(anthropic.BadRequestError):
        client.models.list(limit=0)
