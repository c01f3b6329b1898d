"""For any legal events, in every dialect: the stream adds up to the whole answer, and every typed event is valid.

Streams are put together by the official SDKs' own code where they have it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import anthropic.types
import openai.types.chat
import openai.types.responses
import pydantic
from anthropic.lib.streaming._messages import accumulate_event
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState

from freehold.gateway.conversation import (
    Event,
    Finished,
    FinishReason,
    ReasoningDelta,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from freehold.gateway.dialects import Encoder, anthropic_messages, openai_chat, openai_responses
from freehold.gateway.dialects.openai_responses import Memory
from freehold.gateway.dialects.responses_encoder import Kept

RAW_MESSAGE = pydantic.TypeAdapter[Any](anthropic.types.RawMessageStreamEvent)
RESPONSE_EVENT = pydantic.TypeAdapter[Any](openai.types.responses.ResponseStreamEvent)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
ARGUMENTS = st.dictionaries(TEXT, st.one_of(st.integers(-9, 9), TEXT, st.lists(st.booleans(), max_size=2)), max_size=2)


def cut(text: str, draw: st.DrawFn) -> list[str]:
    """The text in pieces."""
    places = sorted(draw(st.sets(st.integers(1, max(1, len(text) - 1)), max_size=3))) if len(text) > 1 else []
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


@st.composite
def thoughts(draw: st.DrawFn) -> list[Event]:
    if draw(st.booleans()) and draw(st.booleans()):
        return [ReasoningDelta("", redacted=draw(TEXT))]
    pieces: list[Event] = [ReasoningDelta(text) for text in cut(draw(TEXT), draw)]
    return [*pieces, ReasoningDelta("", signature=draw(TEXT))] if draw(st.booleans()) else pieces


@st.composite
def texts(draw: st.DrawFn) -> list[Event]:
    return [
        TextDelta(text, tuple(TokenLogprob(c.encode(), -0.5, (TokenLogprob(b"x", -1.0),)) for c in text))
        for text in cut(draw(TEXT), draw)
    ]


@st.composite
def calls(draw: st.DrawFn) -> list[Event]:
    """Parallel calls, their pieces mixed."""
    queues: list[list[Event]] = []
    for number in range(draw(st.integers(0, 3))):
        spaces = draw(st.sampled_from(["", " ", "\n"]))
        text = json.dumps(draw(ARGUMENTS), ensure_ascii=draw(st.booleans())) + spaces
        pieces = cut(text, draw)
        first = ToolCallDelta(number, f"call_{number}", draw(st.sampled_from(["f", "weather"])), pieces[0])
        queues.append([first, *(ToolCallDelta(number, arguments=piece) for piece in pieces[1:])])
    mixed: list[Event] = []
    opened = 0
    while any(queues):
        open_queues = [queue for queue in queues[:opened] if queue]
        if not open_queues or (opened < len(queues) and draw(st.booleans())):
            opened += 1
            mixed.append(queues[opened - 1].pop(0))
        else:
            mixed.append(draw(st.sampled_from(open_queues)).pop(0))
    return mixed


@st.composite
def answers(draw: st.DrawFn) -> list[Event]:
    """Any events a backend may send for one choice."""
    blocks = draw(st.lists(st.one_of(thoughts(), texts()), max_size=4))
    body = [event for block in blocks for event in block]
    called = draw(calls())
    reason: FinishReason = "tool_calls" if called else draw(st.sampled_from(["stop", "length", "content_filter"]))
    stop = draw(st.sampled_from([None, "END"])) if reason == "stop" else None
    late = draw(texts()) if draw(st.booleans()) and draw(st.booleans()) else []
    usage = Usage(draw(st.integers(1, 99)), draw(st.integers(0, 99)), draw(st.integers(0, 1)))
    start = Started("play", prompt_tokens=draw(st.integers(0, 9)))
    return [start, *body, *called, *late, Finished(reason, stop_sequence=stop), usage]


def streamed(encoder: Encoder, events: Sequence[Event]) -> list[dict[str, Any]]:
    """The payloads of the stream."""
    raw = b"".join([*map(encoder.chunk, events), encoder.end()])
    found = []
    for block in raw.decode().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n") if line)
        if lines and lines["data"] != "[DONE]":
            payload = json.loads(lines["data"])
            assert "event" not in lines or lines["event"] == payload["type"]
            found.append(payload)
    return found


def messages_encoder() -> Encoder:
    body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
    return anthropic_messages.decode(json.dumps(body).encode(), "id")[1]


@settings(max_examples=100, deadline=None)
@given(answers())
def test_a_message_stream_adds_up_to_the_whole_message(events: list[Event]) -> None:
    whole = json.loads(messages_encoder().whole(events))
    snapshot: Any = None
    buffers: dict[int, bytes] = {}
    open_block, next_block = None, 0
    for payload in streamed(messages_encoder(), events):
        if payload["type"] == "ping":
            continue
        match payload["type"]:
            case "content_block_start":
                assert open_block is None and payload["index"] == next_block
                open_block, next_block = payload["index"], next_block + 1
            case "content_block_delta":
                assert payload["index"] == open_block
            case "content_block_stop":
                assert payload["index"] == open_block
                open_block = None
        event = RAW_MESSAGE.validate_python(payload)
        snapshot = accumulate_event(
            event=event, current_snapshot=snapshot, json_bufs=buffers, output_format=anthropic.NOT_GIVEN
        )
    final = snapshot.to_dict()
    assert final["content"] == whole["content"] and open_block is None
    assert (final["stop_reason"], final.get("stop_sequence")) == (whole["stop_reason"], whole["stop_sequence"])
    assert final["usage"] == whole["usage"]
    anthropic.types.Message.model_validate(whole)


def responses_encoder(kept: list[Kept]) -> Encoder:
    memory = Memory(lambda id: [], lambda id: None, kept.append)
    body = {"model": "m", "input": "hi", "include": ["message.output_text.logprobs"]}
    return openai_responses.decode(memory, json.dumps(body).encode(), "id")[1]


@settings(max_examples=100, deadline=None)
@given(answers())
def test_a_response_stream_adds_up_to_the_whole_response(events: list[Event]) -> None:
    kept: list[Kept] = []
    whole = json.loads(responses_encoder(kept).whole(events))
    deltas: dict[tuple[int, str], str] = defaultdict(str)
    logprobs: dict[int, list[Any]] = defaultdict(list)
    payloads = streamed(responses_encoder(kept), events)
    assert [payload["sequence_number"] for payload in payloads] == list(range(len(payloads)))
    for payload in payloads:
        RESPONSE_EVENT.validate_python(payload)
        kind = payload["type"]
        if kind.endswith(".delta"):
            deltas[payload["output_index"], kind.removesuffix(".delta")] += payload["delta"]
            logprobs[payload["output_index"]] += payload.get("logprobs", [])
        elif "text" in payload:
            assert deltas[payload["output_index"], kind.removesuffix(".done")] == payload["text"]
        elif kind == "response.function_call_arguments.done":
            assert deltas[payload["output_index"], kind.removesuffix(".done")] == payload["arguments"]
        elif kind == "response.output_item.done":
            assert payload["item"] == whole["output"][payload["output_index"]]
    for index, item in enumerate(whole["output"]):
        for part in item.get("content", []) if item["type"] == "message" else []:
            assert part["logprobs"] == logprobs[index]
    final = payloads[-1]
    assert final["type"] == f"response.{whole['status']}"
    for response in (final["response"], whole):
        response.pop("completed_at"), response.pop("created_at")
    assert final["response"] == whole
    assert len(kept) == 2 and kept[0].response["output"] == whole["output"]


def chat_encoder() -> Encoder:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "logprobs": True, "stream": True,
            "stream_options": {"include_usage": True}}  # fmt: skip
    return openai_chat.decode(json.dumps(body).encode(), "id")[1]


@settings(max_examples=100, deadline=None)
@given(answers())
def test_a_chat_stream_adds_up_to_the_whole_completion(events: list[Event]) -> None:
    whole = json.loads(chat_encoder().whole(events))
    state: Any = ChatCompletionStreamState()
    for payload in streamed(chat_encoder(), events):
        state.handle_chunk(openai.types.chat.ChatCompletionChunk.model_validate(payload))
    final = state.current_completion_snapshot.to_dict()
    (mine,), (theirs,) = whole["choices"], final["choices"]
    for call in theirs["message"].get("tool_calls") or []:
        call.pop("index"), call["function"].pop("parsed_arguments", None)
    for name in ("reasoning_content", "reasoning_details", "tool_calls"):
        assert mine["message"].get(name) == theirs["message"].get(name)
    assert (mine["message"]["content"] or "") == theirs["message"]["content"]
    assert mine["finish_reason"] == theirs["finish_reason"] and final["usage"] == whole["usage"]
    assert ((theirs.get("logprobs") or {}).get("content") or []) == mine["logprobs"]["content"]


@settings(max_examples=100, deadline=None)
@given(answers())
def test_no_dialect_loses_a_character(events: list[Event]) -> None:
    text = "".join(event.text for event in events if isinstance(event, TextDelta))
    thought = "".join(event.text for event in events if isinstance(event, ReasoningDelta))
    arguments: dict[int, str] = defaultdict(str)
    for event in events:
        if isinstance(event, ToolCallDelta):
            arguments[event.call] += event.arguments
    parsed = [json.loads(arguments[call]) for call in sorted(arguments)]

    blocks = json.loads(messages_encoder().whole(events))["content"]
    assert "".join(block.get("text", "") for block in blocks) == text
    assert "".join(block.get("thinking", "") for block in blocks) == thought
    assert [block["input"] for block in blocks if block["type"] == "tool_use"] == parsed

    items = json.loads(responses_encoder([]).whole(events))["output"]
    parts = [(item["type"], part["text"]) for item in items for part in item.get("content", [])]
    assert "".join(text for kind, text in parts if kind == "message") == text
    assert "".join(text for kind, text in parts if kind == "reasoning") == thought
    given = [item["arguments"] for item in items if item["type"] == "function_call"]
    assert [json.loads(one) for one in given] == parsed

    message = json.loads(chat_encoder().whole(events))["choices"][0]["message"]
    assert (message["content"] or "") == text and message.get("reasoning_content", "") == thought
    assert [json.loads(call["function"]["arguments"]) for call in message.get("tool_calls", [])] == parsed
