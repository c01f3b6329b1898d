"""What OpenAI-compatible providers do beyond the documentation, and embeddings."""

from __future__ import annotations

import asyncio
import gzip
import json
from dataclasses import replace
from typing import Any

import pytest
from tests.gateway import fakes
from tests.gateway.fakes import provider, response

from freehold.errors import UpstreamError
from freehold.gateway.backends.openai import OpenAIBackend
from freehold.gateway.backends.openai_wire import OpenAIWire, encode
from freehold.gateway.backends.providers import OPENAI, PROVIDERS, Provider
from freehold.gateway.conversation import (
    EmbeddingRequest,
    Embeddings,
    Event,
    Finished,
    ImagePart,
    Reasoning,
    ReasoningDelta,
    Request,
    Sampling,
    TextDelta,
    TextPart,
    ToolCall,
    ToolCallDelta,
    Turn,
    Usage,
)
from freehold.gateway.failures import CapabilityError
from freehold.settings import GuardSettings, UpstreamSettings

ASK = Request(id="r", model="m", turns=(Turn("user", (TextPart("hi"),)),), stream=True)


def collect(*lines: str, request: Request = ASK) -> list[Event]:
    raw = "".join(line if line.startswith(":") else f"data: {line}\n\n" for line in lines).encode()
    with provider([response(raw)]) as found:

        async def run() -> list[Event]:
            backend = fakes.upstream(found.url)
            try:
                async with asyncio.timeout(30):
                    return [event async for event in backend.stream(request)]
            finally:
                await backend.close()

        return asyncio.run(run())


def chunk(finish: str | None = None, **delta: Any) -> str:
    return json.dumps({"model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


def usage(**counts: Any) -> str:
    return json.dumps({"choices": [], "usage": counts})


def test_keep_alives_of_a_queue_are_no_content() -> None:
    events = collect(": keep-alive\n\n", ":\n", ": keep-alive\n\n\n\n", "", chunk(content="x"), chunk("stop"), "[DONE]")
    assert events[1:] == [TextDelta("x"), Finished("stop")]


def test_thinking_comes_under_either_name_and_with_its_seal() -> None:
    sealed = [
        {"type": "reasoning.text", "text": "b", "signature": "seal"},
        {"type": "reasoning.encrypted", "data": "dark"},
    ]
    events = collect(
        chunk(reasoning_content="a"), chunk(reasoning="b", reasoning_details=sealed), chunk("stop"), "[DONE]"
    )
    assert events[1:-1] == [
        ReasoningDelta("a"), ReasoningDelta("b"), ReasoningDelta("", signature="seal"), ReasoningDelta("", redacted="dark"),
    ]  # fmt: skip


def test_parallel_calls_that_all_have_the_same_index_or_none_are_told_apart_by_their_ids() -> None:
    def call(id_: str, **index: int) -> dict[str, Any]:
        return index | {"id": id_, "function": {"name": id_, "arguments": "{}"}}

    for index in ({}, {"index": 0}):
        events = collect(chunk(tool_calls=[call("a", **index), call("b", **index)]), chunk(tool_calls=[call("c", **index)]),
                         chunk("tool_calls"), "[DONE]")  # fmt: skip
        assert [(e.call, e.id) for e in events if isinstance(e, ToolCallDelta)] == [(0, "a"), (1, "b"), (2, "c")]


def test_a_providers_repeated_id_is_still_one_call() -> None:
    pieces = [{"index": 0, "id": "a", "function": {"name": "f", "arguments": part}} for part in ('{"x"', ":1}")]
    events = collect(*[chunk(tool_calls=[piece]) for piece in pieces], chunk("tool_calls"), "[DONE]")
    assert [e.call for e in events if isinstance(e, ToolCallDelta)] == [0, 0]


def test_a_function_call_of_the_old_kind_is_a_tool_call() -> None:
    events = collect(chunk(function_call={"name": "f", "arguments": "{}"}), chunk("function_call"), "[DONE]")
    assert ToolCallDelta(0, None, "f", "{}") in events and events[-1] == Finished("tool_calls")


@pytest.mark.parametrize(
    ("counts", "neutral"),
    [
        ({"prompt_tokens": 9, "completion_tokens": 2}, Usage(9, 2)),
        ({"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 0},
          "completion_tokens_details": {"reasoning_tokens": 1}}, Usage(9, 2, 4, 1)),
        ({"prompt_tokens": 9, "completion_tokens": 2, "prompt_cache_hit_tokens": 5}, Usage(9, 2, 5)),
        ({"prompt_tokens": None, "completion_tokens": 2, "prompt_tokens_details": None}, Usage(0, 2)),
    ],
)  # fmt: skip
def test_usage_is_read_with_its_details(counts: dict[str, Any], neutral: Usage) -> None:
    assert collect(chunk("stop", content="x"), usage(**counts), "[DONE]")[-1] == neutral


@pytest.mark.parametrize("counts", [{"prompt_tokens": -1}, {"completion_tokens": 1 << 60}, {"prompt_tokens": "5"}])
def test_counts_that_would_spoil_the_bill_are_refused(counts: dict[str, Any]) -> None:
    with pytest.raises(UpstreamError) as caught:
        collect(chunk("stop", content="x"), usage(**counts), "[DONE]")
    assert caught.value.kind == "transport"


@pytest.mark.parametrize(("reason", "kind"), [("insufficient_system_resource", "overload"), ("error", "transport")])
def test_an_answer_that_the_provider_gave_up_is_no_success(reason: str, kind: str) -> None:
    with pytest.raises(UpstreamError) as caught:
        collect(chunk(content="x"), chunk(reason), "[DONE]")
    assert caught.value.kind == kind


def test_images_that_a_tool_returned_follow_in_a_users_message() -> None:
    turns = (
        Turn("assistant", tool_calls=(ToolCall("a", "f", "{}"), ToolCall("b", "f", "{}"))),
        Turn("tool", (TextPart("1"), ImagePart("https://x/1.png")), tool_call_id="a"),
        Turn("tool", (TextPart("2"),), tool_call_id="b"),
        Turn("user", (TextPart("so?"),)),
    )
    sent = json.loads(encode(replace(ASK, turns=turns), OPENAI))["messages"]
    assert [message["role"] for message in sent] == ["assistant", "tool", "tool", "user", "user"]
    assert sent[3]["content"] == [{"type": "image_url", "image_url": {"url": "https://x/1.png"}}]
    assert sent[1]["content"] == "1"


def test_deepseek_gets_its_thinking_back_and_others_do_not() -> None:
    turn = Turn("assistant", (TextPart("a"),), reasoning=(Reasoning("hm"),))
    request = replace(ASK, turns=(*ASK.turns, turn, *ASK.turns))
    deepseek = PROVIDERS["deepseek"]
    assert json.loads(encode(request, deepseek))["messages"][1]["reasoning_content"] == "hm"
    assert OpenAIWire("x", deepseek).dropped(request) == ()
    assert b"hm" not in encode(request, Provider()) and OpenAIWire("x", Provider()).dropped(request) == ("thinking",)


def test_more_stops_than_the_provider_takes_are_named() -> None:
    request = replace(ASK, stop=("a", "b", "c", "d", "e"), sampling=Sampling(top_k=4))
    assert json.loads(encode(request, OPENAI))["stop"] == ["a", "b", "c", "d"]
    assert OpenAIWire("x", OPENAI).dropped(request) == ("top_k", "stop[4:]")


def test_a_beginning_cannot_be_continued_by_chat() -> None:
    with pytest.raises(CapabilityError):
        fakes.upstream("http://127.0.0.1:1/v1").check(replace(ASK, continue_from="It is"))


def test_a_ban_is_seen_even_when_its_body_is_compressed() -> None:
    body = gzip.compress(b'{"error":{"message":"This organization has been disabled."}}')
    answer = response(body, "400 Bad Request", "application/json", "content-encoding: gzip\r\n")
    with provider([answer]) as found, pytest.raises(UpstreamError) as caught:
        backend = fakes.upstream(found.url)
        asyncio.run(_first(backend))
    assert caught.value.kind == "banned"


async def _first(backend: OpenAIBackend) -> None:
    try:
        async with asyncio.timeout(30):
            async for _ in backend.stream(ASK):
                continue
    finally:
        await backend.close()


TEXTS = EmbeddingRequest(id="r", model="text-embedding-3-small", inputs=("a", "b"), dimensions=2, user="u")


def embed(
    body: bytes, request: EmbeddingRequest = TEXTS, content_type: str = "application/json"
) -> tuple[Embeddings, Any]:
    with provider([response(body, content_type=content_type)]) as found:

        async def run() -> Embeddings:
            settings = UpstreamSettings(name="openai", base_url=found.url, model="m")
            backend = OpenAIBackend(settings, GuardSettings())
            try:
                async with asyncio.timeout(30):
                    return await backend.embed(request)
            finally:
                await backend.close()

        answer = asyncio.run(run())
        return answer, found.requests[0]


def vectors(*items: tuple[int, Any], **more: Any) -> bytes:
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in items]
    return json.dumps(
        {"data": data, "model": "theirs", "usage": {"prompt_tokens": 7, "total_tokens": 7}} | more
    ).encode()


def test_embeddings_come_in_the_order_of_the_inputs_whatever_order_they_are_sent_in() -> None:
    answer, (head, sent) = embed(vectors((1, [0.5, 2]), (0, [1.0, -1.0])))
    assert answer == Embeddings("theirs", ((1.0, -1.0), (0.5, 2.0)), 7)
    assert head.startswith(b"POST /v1/embeddings ")
    assert json.loads(sent) == {"model": "text-embedding-3-small", "input": ["a", "b"], "dimensions": 2, "user": "u",
                                "encoding_format": "float"}  # fmt: skip


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{}", b"[]", vectors((0, [1, 2])), vectors((0, [1, 2]), (0, [1, 2])), vectors((0, [1, 2]), (2, [1, 2])),
        vectors((0, [1, 2]), (1, [1])), vectors((0, [1]), (1, [1])), vectors((0, []), (1, [])),
        vectors((0, "AAAA"), (1, "AAAA")),
        vectors((0, [1, 2]), (1, [1, None])), vectors((0, [1, 2]), (-1, [1, 2])), b"[" * 100_000,
        vectors((0, [1, 2]), (1, [1, 2])).replace(b"[1, 2]", b"[1, 1e999]"),
        vectors((0, [1, 2]), (1, [1, 2]), usage={"prompt_tokens": -5}),
    ],
)  # fmt: skip
def test_embeddings_that_are_not_as_asked_for_are_a_transport_failure(body: bytes) -> None:
    with pytest.raises(UpstreamError) as caught:
        embed(body)
    assert caught.value.kind == "transport"


def test_embeddings_of_another_content_type_are_none() -> None:
    with pytest.raises(UpstreamError, match="text/html"):
        embed(b"<html>", content_type="text/html")
