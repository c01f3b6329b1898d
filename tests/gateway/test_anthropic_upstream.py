"""An Anthropic upstream, played by a small real server from recorded bodies."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from tests.gateway.fakes import provider, recorded, response

from freehold.errors import UpstreamError
from freehold.gateway.backends.anthropic import AnthropicBackend
from freehold.gateway.backends.keys import Key
from freehold.gateway.conversation import (
    Event,
    Finished,
    ImagePart,
    Reasoning,
    ReasoningDelta,
    Request,
    Sampling,
    Started,
    TextDelta,
    TextPart,
    Tool,
    ToolCall,
    ToolCallDelta,
    Turn,
    Usage,
)
from freehold.gateway.failures import CapabilityError
from freehold.settings import GuardSettings, UpstreamSettings


def user(text: str) -> Turn:
    return Turn("user", (TextPart(text),))


ASK = Request(id="r", model="claude-opus-4-6", turns=(user("hi"),), stream=True)
SECRET = "sk-ant-verysecret-0123456789"


def backend(url: str = "http://127.0.0.1:1/v1", **settings: Any) -> AnthropicBackend:
    upstream = UpstreamSettings(
        name="anthropic", base_url=url, model="claude-opus-4-6", dialect="anthropic", **settings
    )
    return AnthropicBackend(upstream, GuardSettings(), key=Key(SECRET))


def collect(url: str, request: Request = ASK) -> list[Event]:
    async def run() -> list[Event]:
        found = backend(url)
        try:
            async with asyncio.timeout(30):
                return [event async for event in found.stream(request)]
        finally:
            await found.close()

    return asyncio.run(run())


def played(name: str, request: Request = ASK) -> list[Event]:
    with provider([response(recorded(name))]) as found:
        return collect(found.url, request)


def sent(request: Request, **settings: Any) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(backend(**settings).wire.body(request))
    return body


def test_a_recorded_message_becomes_events_and_cached_tokens_are_part_of_the_prompt() -> None:
    assert played("anthropic_messages_stream.txt") == [
        Started("claude-opus-4-6", prompt_tokens=1925, upstream_id="msg_01EcyWo6m4hyW8KHs2y2pei5"),
        TextDelta("Hello"), TextDelta("!"), Finished("stop"),
        Usage(1925, 15, cached_tokens=1800, cache_write_tokens=100),
    ]  # fmt: skip


def test_recorded_tool_calls_keep_their_order_and_a_call_without_arguments_has_empty_ones() -> None:
    events = played("anthropic_tools_stream.txt")
    calls = [event for event in events if isinstance(event, ToolCallDelta)]
    assert [(c.call, c.id, c.name) for c in calls if c.id] == [
        (0, "toolu_01T1x1fJ34qAmk2tNTrN7Up6", "get_weather"),
        (1, "toolu_02", "get_time"),
    ]
    written = ["".join(c.arguments for c in calls if c.call == number) for number in (0, 1)]
    assert written == ['{"location": "San Francisco, CA", "unit": "fahrenheit"}', "{}"]
    assert events[-2:] == [Finished("tool_calls"), Usage(25, 89)]


def test_recorded_thinking_keeps_its_seal_and_the_stop_sequence_its_name() -> None:
    events = played("anthropic_thinking_stream.txt")
    thoughts = [event for event in events if isinstance(event, ReasoningDelta)]
    assert "".join(t.text for t in thoughts) == "I need the GCD of 1071 and 462.\n1071 = 2 × 462 + 147"
    assert [t.signature for t in thoughts if t.signature] == ["EqQBCgIYAhIM1gbcDa9GJwZA2b3hGgxBdjrkzLoky3dl1pk"]
    assert [t.redacted for t in thoughts if t.redacted] == ["EmwKAhgBEgy3va3pzix"]
    assert events[-2] == Finished("stop", stop_sequence="END")


@pytest.mark.parametrize(
    "name", ["anthropic_messages_stream.txt", "anthropic_tools_stream.txt", "anthropic_thinking_stream.txt"]
)
def test_a_stream_cut_anywhere_is_a_failure_and_never_a_success(name: str) -> None:
    raw = recorded(name)
    events = raw.split(b"\n\n")[:-1]
    cuts = [b"\n\n".join(events[:count]) + b"\n\n" for count in range(1, len(events))]
    with provider(*[[response(cut)] for cut in [*cuts, raw[:-2]]]) as found:
        for cut in [*cuts, raw[:-2]]:
            with pytest.raises(UpstreamError) as caught:
                collect(found.url)
            assert caught.value.kind == "transport", cut


def test_an_error_inside_the_stream_after_200_is_noticed() -> None:
    with pytest.raises(UpstreamError) as caught:
        played("anthropic_in_stream_error.txt")
    assert caught.value.kind == "overload" and "Overloaded" in caught.value.message


START = '{"type":"message_start","message":{"model":"m","usage":{"input_tokens":1}}}'
TEXT = '{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}'
END = '{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":1}}'
STOP = '{"type":"message_stop"}'


@pytest.mark.parametrize(
    "events",
    [
        [STOP],
        [TEXT],
        [START, START],
        [START, STOP],
        [START, TEXT, TEXT],
        [START, TEXT, END, STOP],
        [START, '{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"x"}}'],
        [START, '{"type":"content_block_stop","index":0}'],
        [START, '{"type":"content_block_start","index":0}'],
        [START, '{"type":"message_delta","delta":{"stop_reason":5}}'],
        [START.replace(":1}", ":-1}")],
        [START.replace(":1}", ":1.5}")],
        ["[]"],
        ["nonsense"],
        ["[" * 5000],
    ],
)
def test_events_that_make_no_sense_are_transport_failures(events: list[str]) -> None:
    raw = "".join(f"data: {event}\n\n" for event in events)
    with provider([response(raw.encode())]) as found, pytest.raises(UpstreamError) as caught:
        collect(found.url)
    assert caught.value.kind == "transport" and caught.value.message


def test_what_later_versions_may_add_is_skipped() -> None:
    new = ['{"type":"news","x":1}', '{"type":"ping"}']
    block = [
        '{"type":"content_block_start","index":3,"content_block":{"type":"hologram"}}',
        '{"type":"content_block_delta","index":3,"delta":{"type":"hologram_delta","light":"x"}}',
        '{"type":"content_block_stop","index":3}',
    ]
    raw = "".join(f"data: {event}\n\n" for event in [START, *new, *block, END, STOP])
    with provider([response(raw.encode())]) as found:
        assert collect(found.url) == [Started("m", prompt_tokens=1), Finished("stop"), Usage(1, 1)]


@pytest.mark.parametrize(
    ("reason", "neutral"),
    [("end_turn", "stop"), ("max_tokens", "length"), ("tool_use", "tool_calls"), ("refusal", "content_filter"),
     ("pause_turn", "stop"), ("model_context_window_exceeded", "length"), ("something_new", "stop")],
)  # fmt: skip
def test_stop_reasons_are_translated(reason: str, neutral: str) -> None:
    raw = f"data: {START}\n\ndata: {END.replace('end_turn', reason)}\n\ndata: {STOP}\n\n"
    with provider([response(raw.encode())]) as found:
        assert collect(found.url)[-2] == Finished(neutral)  # type: ignore[arg-type]


def test_the_key_and_the_version_travel_in_headers_and_a_refusal_does_not_show_the_key() -> None:
    told = f'{{"type":"error","error":{{"type":"authentication_error","message":"invalid x-api-key {SECRET}"}}}}'
    with provider([response(told.encode(), "401 Unauthorized", "application/json")]) as found:
        with pytest.raises(UpstreamError) as caught:
            collect(found.url)
        head = found.requests[0][0].lower()
    assert head.startswith(b"post /v1/messages ") and b"x-api-key: " + SECRET.encode() in head
    assert b"anthropic-version: 2023-06-01" in head and b"authorization" not in head
    assert caught.value.kind == "auth" and SECRET not in caught.value.message


def test_a_plain_question_is_asked_with_nothing_but_what_anthropic_demands() -> None:
    assert sent(ASK) == {
        "model": "claude-opus-4-6", "max_tokens": 4096, "stream": True, "messages": [{"role": "user", "content": "hi"}],
    }  # fmt: skip
    assert sent(ASK, max_tokens=9000)["max_tokens"] == 9000
    assert sent(replace(ASK, max_tokens=7), max_tokens=9000)["max_tokens"] == 7


CONVERSATION = (
    Turn("system", (TextPart("Be brief."),)),
    Turn("user", (TextPart("look"), ImagePart("https://example.org/a.png"), ImagePart("data:image/png;base64,AAAA"))),
    Turn("system", (TextPart("Be kind."),)),
    Turn("assistant", (TextPart("I call"),), tool_calls=(ToolCall("c.1", "f", '{"a": 1.0}'), ToolCall("c2", "g", "")),
         reasoning=(Reasoning("hm", "seal"), Reasoning(redacted="dark"), Reasoning("unsealed"))),
    Turn("tool", (TextPart("42"),), tool_call_id="c.1"),
    Turn("tool", (TextPart("no"), ImagePart("data:image/gif,GIF")), tool_call_id="c2", failed=True),
    Turn("user", (TextPart("and"), TextPart(""))),
    user("now?"),
)  # fmt: skip


def test_a_conversation_becomes_alternating_messages_with_everything_in_it() -> None:
    body = sent(replace(ASK, turns=CONVERSATION))
    assert body["system"] == "Be brief.\n\nBe kind."
    first, second, third = body["messages"]
    assert first == {"role": "user", "content": [
        {"type": "text", "text": "look"},
        {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}]}  # fmt: skip
    id_ = second["content"][3]["id"]
    assert second == {"role": "assistant", "content": [
        {"type": "thinking", "thinking": "hm", "signature": "seal"},
        {"type": "redacted_thinking", "data": "dark"},
        {"type": "text", "text": "I call"},
        {"type": "tool_use", "id": id_, "name": "f", "input": {"a": 1.0}},
        {"type": "tool_use", "id": "c2", "name": "g", "input": {}}]}  # fmt: skip
    assert third == {"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": id_, "content": "42"},
        {"type": "tool_result", "tool_use_id": "c2", "is_error": True, "content": [
            {"type": "text", "text": "no"},
            {"type": "image", "source": {"type": "base64", "media_type": "image/gif", "data": "R0lG"}}]},
        {"type": "text", "text": "and"}, {"type": "text", "text": "now?"}]}  # fmt: skip
    assert id_ != "c.1" and id_.replace("_", "").isalnum()
    assert '"input":{"a": 1.0}' in backend().wire.body(replace(ASK, turns=CONVERSATION)).decode()
    assert backend().dropped(replace(ASK, turns=CONVERSATION)) == ("thinking",)


def test_ids_that_anthropic_refuses_stay_apart_from_each_other() -> None:
    calls = tuple(ToolCall(id_, "f", "{}") for id_ in ("a.b", "a:b", "a_b", "x" * 200, "x" * 201))
    body = sent(replace(ASK, turns=(user("go"), Turn("assistant", tool_calls=calls))))
    ids = [block["id"] for block in body["messages"][1]["content"]]
    assert len(set(ids)) == 5 and all(len(id_) <= 64 and id_.replace("_", "").isalnum() for id_ in ids)


TOOLS = (Tool("f", "does f", {"type": "object", "properties": {}}, True), Tool("g"))


def test_tools_and_choices_are_translated() -> None:
    body = sent(replace(ASK, tools=TOOLS))
    assert body["tools"] == [
        {"name": "f", "description": "does f", "strict": True, "input_schema": {"type": "object", "properties": {}}},
        {"name": "g", "input_schema": {"type": "object"}},
    ]
    assert "tool_choice" not in body
    one = {"type": "function", "function": {"name": "f"}}
    for given, parallel, wanted in (
        ("auto", None, {"type": "auto"}),
        ("required", True, {"type": "any"}),
        ("none", False, {"type": "none"}),
        (one, None, {"type": "tool", "name": "f"}),
        (None, False, {"type": "auto", "disable_parallel_tool_use": True}),
        (one, False, {"type": "tool", "name": "f", "disable_parallel_tool_use": True}),
    ):
        request = replace(ASK, tools=TOOLS, tool_choice=given, parallel_tool_calls=parallel)
        assert sent(request)["tool_choice"] == wanted
        assert backend().dropped(request) == ()


def test_what_anthropic_can_be_told_is_told_and_the_rest_is_named() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": False}
    request = replace(
        ASK, stop=("END", "\n"), user="u1", logprobs=2, reasoning_effort="high", truncate=True,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        sampling=Sampling(temperature=1.5, top_p=0.9, top_k=5, min_p=0.1, seed=4, logit_bias={1: 2.0}, presence_penalty=1.0,
                          frequency_penalty=1.0, repetition_penalty=1.1),
    )  # fmt: skip
    body = sent(request)
    assert body["stop_sequences"] == ["END"] and body["metadata"] == {"user_id": "u1"}
    assert body["output_config"] == {"format": {"type": "json_schema", "schema": schema}}
    assert (body["temperature"], body["top_k"]) == (1.0, 5) and "top_p" not in body
    assert sorted(backend().dropped(request)) == sorted(
        ["stop", "logprobs", "reasoning_effort", "temperature", "top_p", "min_p", "seed", "logit_bias",
         "presence_penalty", "frequency_penalty", "repetition_penalty"]
    )  # fmt: skip
    assert backend().dropped(replace(ASK, response_format={"type": "json_object"})) == ("response_format",)


def test_thinking_is_asked_for_only_where_anthropic_allows_it() -> None:
    request = replace(ASK, reasoning_budget=2000, sampling=Sampling(temperature=0.5))
    body = sent(request)
    assert body["thinking"] == {"type": "enabled", "budget_tokens": 2000} and body["max_tokens"] == 6096
    assert "temperature" not in body and backend().dropped(request) == ("temperature",)
    loop = (user("go"), Turn("assistant", tool_calls=(ToolCall("c", "f", "{}"),)), Turn("tool", tool_call_id="c"))
    for refused in (
        replace(request, reasoning_budget=500),
        replace(request, max_tokens=2000),
        replace(request, tools=TOOLS, tool_choice="required"),
        replace(request, tools=TOOLS, turns=loop),
        replace(request, continue_from="It is"),
    ):
        assert "thinking" not in sent(refused), refused
        assert "thinking.budget_tokens" in backend().dropped(refused)
    sealed = replace(loop[1], reasoning=(Reasoning("hm", "seal"),))
    assert "thinking" in sent(replace(request, tools=TOOLS, turns=(loop[0], sealed, loop[2])))


def test_an_answer_can_be_continued_behind_its_last_character_but_not_behind_white_space() -> None:
    assert sent(replace(ASK, continue_from="It is"))["messages"][-1] == {"role": "assistant", "content": "It is"}
    with pytest.raises(CapabilityError):
        backend().check(replace(ASK, continue_from="It is "))


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (replace(ASK, turns=(), prompts=("raw",)), "prompt"),
        (replace(ASK, n=2), "n"),
        (replace(ASK, turns=(Turn("system", (TextPart("x"),)),)), "messages"),
        (replace(ASK, turns=(Turn("user", (ImagePart("ftp://x/a.png"),)),)), "image_url.url"),
        (replace(ASK, turns=(Turn("user", (ImagePart("data:,x"),)),)), "image_url.url"),
        (replace(ASK, model=""), "model"),
    ],
)
def test_what_anthropic_cannot_be_asked_is_refused_before_it_is_sent(request_: Request, param: str) -> None:
    with pytest.raises(CapabilityError) as caught:
        backend().check(request_)
    assert caught.value.param == param
