"""Providers that answer in order to harm: bounded memory, a clear transport failure, nothing of theirs in the log's shape."""

from __future__ import annotations

import asyncio
import gzip
import json
import tracemalloc
from collections.abc import Callable

import pytest

from freehold.errors import UpstreamError
from freehold.gateway.backends import upstream
from freehold.gateway.backends.anthropic import AnthropicBackend
from freehold.gateway.backends.openai import OpenAIBackend
from freehold.gateway.backends.sse import MAX_EVENT, EventReader
from freehold.gateway.backends.upstream import UpstreamBackend
from freehold.gateway.conversation import EmbeddingRequest, Event, Request, Started, TextPart, Turn
from freehold.settings import GuardSettings, UpstreamSettings
from tests.gateway.fakes import provider, response

ASK = Request(id="r", model="m", turns=(Turn("user", (TextPart("hi"),)),), stream=True)
MIB = 1 << 20
BACKENDS: dict[str, Callable[[UpstreamSettings, GuardSettings], UpstreamBackend]] = {
    "openai": OpenAIBackend,
    "anthropic": AnthropicBackend,
}


def ask(kind: str, *pieces: bytes) -> tuple[UpstreamError, int]:
    """The failure, and the most memory it took."""
    with provider(pieces) as found:

        async def run() -> None:
            settings = UpstreamSettings(name="evil", base_url=found.url, model="m", dialect=kind)
            backend = BACKENDS[kind](settings, GuardSettings())
            try:
                async with asyncio.timeout(60):
                    async for _ in backend.stream(ASK):
                        continue
            finally:
                await backend.close()

        tracemalloc.start()
        try:
            with pytest.raises(UpstreamError) as caught:
                asyncio.run(run())
            return caught.value, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("kind", BACKENDS)
def test_a_line_without_end_is_cut_off_at_the_limit(kind: str) -> None:
    error, peak = ask(kind, response(b"data: "), *[b"x" * MIB] * 64)
    assert error.kind == "transport" and f"{MAX_EVENT} bytes" in error.message
    assert peak < 10 * MAX_EVENT


@pytest.mark.parametrize("kind", BACKENDS)
def test_an_event_of_endless_lines_is_cut_off_too(kind: str) -> None:
    error, peak = ask(kind, response(b""), *[b"data: xxxxxxxxxxxx\n" * 50_000] * 20)
    assert error.kind == "transport" and f"{MAX_EVENT} bytes" in error.message
    assert peak < 25 * MAX_EVENT


@pytest.mark.parametrize("kind", BACKENDS)
def test_a_decompression_bomb_is_not_unpacked(kind: str) -> None:
    bomb = gzip.compress(b"\n" * (200 * MIB), 9)
    for encoding in ("gzip", "deflate", "br", "zstd", "gzip, gzip"):
        error, peak = ask(kind, response(bomb, extra=f"content-encoding: {encoding}\r\n"))
        assert error.kind == "transport" and "content encoding" in error.message
        assert peak < 8 * MIB


def test_a_bomb_in_an_error_is_unpacked_to_its_first_bytes_only() -> None:
    bomb = gzip.compress(b'{"error":{"message":"' + b"a" * (200 * MIB) + b'"}}', 9)
    head = "content-encoding: gzip\r\n"
    error, peak = ask("openai", response(bomb, "400 Bad Request", "application/json", head))
    assert error.kind == "invalid" and len(error.message) < 1000
    assert peak < 8 * MIB


def test_an_error_without_end_is_read_to_its_first_bytes_only() -> None:
    error, peak = ask("openai", response(b"", "500 Oops", "text/plain"), *[b"x" * MIB] * 64)
    assert error.kind == "transport" and len(error.message) < 1000
    assert peak < 8 * MIB


def test_an_answer_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "MAX_ANSWER", 100_000)
    chunk = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
    error, _ = ask("openai", response(b""), *[chunk * 100] * 100)
    assert error.kind == "transport" and "without end" in error.message


def test_embeddings_without_end_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("freehold.gateway.backends.openai.MAX_EMBEDDINGS", 100_000)
    with provider([response(b"[", content_type="application/json"), *[b"1," * 5000] * 100]) as found:

        async def run() -> None:
            backend = OpenAIBackend(UpstreamSettings(name="evil", base_url=found.url, model="m"), GuardSettings())
            try:
                await backend.embed(EmbeddingRequest(id="r", model="m", inputs=("x",)))
            finally:
                await backend.close()

        with pytest.raises(UpstreamError, match="100000 bytes"):
            asyncio.run(run())


def test_a_long_line_in_small_pieces_costs_no_more_than_its_length() -> None:
    """Joining the line anew for every piece would copy some 260 GB here."""
    reader, line = EventReader(), b"data: " + b"x" * (2 * MIB) + b"\n"
    assert [event for i in range(0, len(line), 8) for event in reader.push(line[i : i + 8])] == []
    assert [len(event.data) for event in reader.push(b"\n")] == [2 * MIB]


@pytest.mark.parametrize("kind", BACKENDS)
@pytest.mark.parametrize("bad", [b"\xff\xfe", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\x80"])
def test_bytes_that_are_not_utf8_are_a_transport_failure(kind: str, bad: bytes) -> None:
    error, _ = ask(kind, response(b'data: {"type":"' + bad + b'"}\n\n'))
    assert error.kind == "transport" and "UTF-8" in error.message


@pytest.mark.parametrize("kind", BACKENDS)
@pytest.mark.parametrize("nested", [b"[" * 100_000, b'{"a":' * 100_000, b'{"choices":' + b"[" * 100_000])
def test_deep_json_is_a_transport_failure(kind: str, nested: bytes) -> None:
    assert ask(kind, response(b"data: " + nested + b"\n\n"))[0].kind == "transport"


def test_a_million_tool_calls_are_refused() -> None:
    call = '{"index":%d,"id":"c%d","function":{"name":"f","arguments":""}}'
    calls = ",".join(call % (i, i) for i in range(5000))
    raw = f'data: {{"choices":[{{"index":0,"delta":{{"tool_calls":[{calls}]}}}}]}}\n\n'
    error, _ = ask("openai", response(raw.encode()))
    assert error.kind == "transport" and "tool calls" in error.message


@pytest.mark.parametrize("index", [-1, 1 << 62, "0", 1.5])
def test_an_index_that_is_none_is_refused(index: object) -> None:
    delta = {"tool_calls": [{"index": index, "id": "c", "function": {"name": "f"}}]}
    raw = "data: " + json.dumps({"choices": [{"index": 0, "delta": delta}]}) + "\n\n"
    assert ask("openai", response(raw.encode()))[0].kind == "transport"


HEADERS = [
    "x-a: b\r\n c: folded\r\n",
    "x: \x00\r\n",
    "content-length: 5\r\ncontent-length: 6\r\n",
    "transfer-encoding: chunked\r\ncontent-length: 5\r\n",
    "x-long: " + "y" * 200_000 + "\r\n",
    "".join(f"x-{i}: {'z' * 100}\r\n" for i in range(2000)),
]


@pytest.mark.parametrize("extra", HEADERS, ids=range(len(HEADERS)))
def test_headers_that_smuggle_or_flood_end_in_a_failure_and_not_in_ours(extra: str) -> None:
    error, peak = ask("openai", response(b"data: [DONE]\n\n", extra=extra))
    assert error.kind == "transport" and peak < 8 * MIB


def test_a_providers_words_cannot_forge_a_log_line_or_move_the_cursor() -> None:
    words = 'x\r\nWARNING freehold: all is well\x1b[2J\x00\u2028\u202e{"a":1}'
    for answer in (
        response(json.dumps({"error": {"message": words}}).encode(), "500 Oops", "application/json"),
        response(b"data: " + json.dumps({"error": {"message": words}}).encode() + b"\n\n"),
        response(b"x", content_type="text/\x1b[31mplain"),
    ):
        error, _ = ask("openai", answer)
        assert error.message.isprintable()


def test_a_model_that_the_provider_names_is_data_and_nothing_else() -> None:
    choice = {"index": 0, "delta": {"content": "x"}, "finish_reason": "stop"}
    named = {"model": "gpt\r\nx-evil: 1" + "y" * 10_000, "system_fingerprint": "\x1b[2J", "choices": [choice]}
    raw = f"data: {json.dumps(named)}\n\n"
    with provider([response(raw.encode())]) as found:

        async def run() -> list[Event]:
            backend = OpenAIBackend(UpstreamSettings(name="evil", base_url=found.url, model="m"), GuardSettings())
            try:
                return [event async for event in backend.stream(ASK)]
            finally:
                await backend.close()

        events = asyncio.run(run())
    assert isinstance(events[0], Started)
    assert events[0].model.isprintable() and len(events[0].model) <= 256
    assert events[0].fingerprint is not None and events[0].fingerprint.isprintable()
