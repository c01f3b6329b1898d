"""An OpenAI-compatible upstream, played by a small real server from recorded bodies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.gateway import fakes
from tests.gateway.fakes import provider, recorded, response

from freehold.errors import SettingError, UpstreamError
from freehold.gateway.backends.keys import Key, read_key
from freehold.gateway.backends.openai import OpenAIBackend
from freehold.gateway.classify import classify
from freehold.gateway.conversation import (
    Event,
    Finished,
    ImagePart,
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
from freehold.settings import GuardSettings, UpstreamSettings

ASK = Request(id="r", model="gpt-4o-mini", turns=(Turn("user", (TextPart("hi"),)),), stream=True)


def collect(backend: OpenAIBackend, request: Request = ASK) -> list[Event]:
    async def run() -> list[Event]:
        try:
            return [event async for event in backend.stream(request)]
        finally:
            await backend.close()

    return bounded(run)


def bounded(run: Callable[[], Awaitable[Any]]) -> Any:
    async def limited() -> Any:
        async with asyncio.timeout(30):
            return await run()

    return asyncio.run(limited())


def failure(*pieces: bytes | None, request: Request = ASK) -> UpstreamError:
    with provider(pieces) as found, pytest.raises(UpstreamError) as caught:
        collect(fakes.upstream(found.url), request)
    return caught.value


def chunked(pieces: Sequence[bytes]) -> list[bytes]:
    """A chunked response that keeps the connection alive."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
    return [head, *[f"{len(piece):x}\r\n".encode() + piece + b"\r\n" for piece in pieces], b"0\r\n\r\n"]


def test_a_recorded_chat_becomes_events() -> None:
    with provider([response(recorded("openai_chat_stream.txt"))]) as found:
        events = collect(fakes.upstream(found.url))
    assert events[0] == Started(
        "gpt-4o-mini-2024-07-18", "fp_06737a9306", upstream_id="chatcmpl-B9MHDbslfkBeAs8l4bebGdFOJ6PeG"
    )
    assert "".join(e.text for e in events if isinstance(e, TextDelta)) == "The capital of France is Paris."
    assert events[-2:] == [Finished("stop"), Usage(19, 7)]


def test_a_recorded_chat_is_the_same_in_chunks_of_any_size() -> None:
    raw = recorded("openai_chat_stream.txt")
    with provider([response(raw)]) as found:
        whole = collect(fakes.upstream(found.url))
    for size in (1, 7, 400):
        pieces = [raw[i : i + size] for i in range(0, len(raw), size)]
        with provider(chunked(pieces)) as found:
            assert collect(fakes.upstream(found.url)) == whole


def test_recorded_logprobs_tools_and_completions_become_events() -> None:
    with provider([response(recorded("openai_chat_logprobs_stream.txt"))]) as found:
        tokens = [t for e in collect(fakes.upstream(found.url)) if isinstance(e, TextDelta) for t in e.logprobs]
    assert [(t.text, t.logprob, [a.text for a in t.top]) for t in tokens] == [
        ("Hello", -0.31725305, ["Hello", "Hi"]), ("!", -0.02380986, ["!", " there"]),
    ]  # fmt: skip
    with provider([response(recorded("openai_chat_tools_stream.txt"))]) as found:
        calls = [e for e in collect(fakes.upstream(found.url)) if isinstance(e, ToolCallDelta)]
    assert (calls[0].id, calls[0].name) == ("call_abc123", "get_current_weather")
    assert json.loads("".join(c.arguments for c in calls)) == {"location": "Boston, MA"}
    with provider([response(recorded("openai_completions_stream.txt"))]) as found:
        events = collect(fakes.upstream(found.url), Request(id="r", model="m", prompts=("Say",), stream=True))
        assert found.requests[0][0].startswith(b"POST /v1/completions ")
    assert "".join(e.text for e in events if isinstance(e, TextDelta)) == "This is a test."
    assert events[-1] == Usage(5, 5)


def test_the_body_carries_what_was_asked_for_and_nothing_else() -> None:
    with provider([response(recorded("openai_chat_stream.txt"))]) as found:
        collect(fakes.upstream(found.url))
        head, sent = found.requests[0]
    assert head.startswith(b"POST /v1/chat/completions ") and b"authorization" not in head.lower()
    assert json.loads(sent) == {
        "model": "gpt-4o-mini", "stream": True, "stream_options": {"include_usage": True},
        "messages": [{"role": "user", "content": "hi"}],
    }  # fmt: skip


def test_everything_the_neutral_request_can_say_is_carried() -> None:
    request = replace(
        ASK,
        turns=(
            Turn("system", (TextPart("s"),)),
            Turn("user", (TextPart("see"), ImagePart("data:image/png;base64,AA", "low")), name="Ann"),
            Turn("assistant", (), tool_calls=(ToolCall("c1", "f", '{"a":1}'),)),
            Turn("tool", (TextPart("42"),), tool_call_id="c1"),
        ),
        sampling=Sampling(temperature=0.5, top_p=0.9, seed=4, presence_penalty=1.0, logit_bias={7: -1.0}),
        stop=("x", "y"), n=1, logprobs=2, max_tokens=9, tools=(Tool("f", "does f", {"type": "object"}),),
        tool_choice="auto", parallel_tool_calls=False, response_format={"type": "json_object"}, user="u",
    )  # fmt: skip
    with provider([response(recorded("openai_chat_stream.txt"))]) as found:
        collect(fakes.upstream(found.url), request)
        sent = json.loads(found.requests[0][1])
    assert sent["messages"] == [
        {"role": "system", "content": "s"},
        {"role": "user", "name": "Ann", "content": [
            {"type": "text", "text": "see"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA", "detail": "low"}}]},
        {"role": "assistant", "content": "", "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}]},
        {"role": "tool", "content": "42", "tool_call_id": "c1"},
    ]  # fmt: skip
    assert sent["tools"] == [
        {"type": "function", "function": {"name": "f", "description": "does f", "parameters": {"type": "object"}}}
    ]
    expected = {
        "temperature": 0.5, "top_p": 0.9, "seed": 4, "presence_penalty": 1.0, "logit_bias": {"7": -1.0}, "stop": ["x", "y"],
        "logprobs": True, "top_logprobs": 2, "max_tokens": 9, "tool_choice": "auto", "parallel_tool_calls": False,
        "response_format": {"type": "json_object"}, "user": "u",
    }  # fmt: skip
    assert {name: sent[name] for name in expected} == expected


REFUSALS = [
    (401, "openai_401_invalid_api_key.json", "auth"),
    (401, "openai_401_account_deactivated.json", "banned"),
    (403, "openai_403_region.json", "region"),
    (429, "openai_429_insufficient_quota.json", "billing"),
    (429, "openai_429_rate_limit.json", "rate"),
    (400, "openai_400_context.json", "context"),
    (500, "openai_500.json", "overload"),
    (502, "proxy_502.html", "transport"),
    (400, "anthropic_400_disabled.json", "banned"),
    (400, "anthropic_400_credit.json", "billing"),
    (529, "anthropic_529_overloaded.json", "overload"),
    (402, "deepseek_402_balance.json", "billing"),
    (400, "groq_400_restricted.json", "banned"),
    (400, "gemini_400_key.json", "auth"),
]


@pytest.mark.parametrize(("status", "name", "kind"), REFUSALS, ids=[name for _, name, _ in REFUSALS])
def test_a_refusal_is_understood_whatever_its_status(status: int, name: str, kind: str) -> None:
    assert classify(status, recorded(name))[0] == kind
    error = failure(response(recorded(name), f"{status} Refused", "application/json", "retry-after: 7\r\n"))
    assert (error.kind, error.status) == (kind, status)
    assert isinstance(error, UpstreamError) and error.retry_after == 7


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"null", b"5", b'{"error": null}', b'{"error": [1]}', b'{"error":{"code":{}}}', b"[" * 100_000]
)
def test_a_refusal_without_sense_is_still_one(body: bytes) -> None:
    assert classify(418, body)[0] == "invalid"
    assert classify(503, body)[0] == "overload"


def test_every_way_to_break_a_stream_is_a_transport_failure() -> None:
    stream = recorded("openai_chat_stream.txt")
    half = stream[: len(stream) // 2]
    for pieces in (
        [response(half)],  # cut between the lines
        [response(b"")],  # empty 200
        [response(b"data: [DONE]\n\n")],  # done without having begun
        [response(b"<html>", content_type="text/html")],
        [response(b"{}", content_type="application/json")],
        [response(b"data: {nonsense}\n\n")],
        [response(b'data: {"choices": 5}\n\n')],
        [response(b'data: {"choices": [{"index": 7, "delta": {"content": "x"}}]}\n\n')],
        [response(b"data: \xff\n\n")],
        [b"garbage\r\n\r\n"],
        [b""],  # closed without a word
        chunked([half])[:-1],  # cut inside the chunked encoding
    ):
        assert failure(*pieces).kind == "transport", pieces


def test_an_error_inside_the_stream_is_noticed() -> None:
    error = failure(response(recorded("openai_in_stream_error.txt")))
    assert error.kind == "overload" and "The server had an error" in error.message


def test_a_refused_connection_is_a_transport_failure() -> None:
    with provider([b""]) as found:
        url = found.url
    with pytest.raises(UpstreamError) as caught:
        collect(fakes.upstream(url))
    assert caught.value.kind == "transport"


def test_a_connection_is_used_again() -> None:
    pieces = chunked([recorded("openai_chat_stream.txt")])
    connections = 0
    hung_up = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
                writer.writelines(pieces)
        except asyncio.IncompleteReadError:
            writer.close()
            await writer.wait_closed()
            hung_up.set()

    async def run() -> None:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            backend = fakes.upstream(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
            for _ in range(3):
                assert [e async for e in backend.stream(ASK)][-1] == Usage(19, 7)
            await backend.close()
            await hung_up.wait()

    bounded(run)
    assert connections == 1


def test_leaving_early_closes_the_connection_to_the_provider() -> None:
    first = recorded("openai_chat_stream.txt").split(b"\n\n")[:2]
    with provider([response(b"\n\n".join(first) + b"\n\n"), None]) as found:

        async def run() -> None:
            backend = fakes.upstream(found.url)
            stream = backend.stream(ASK)
            assert isinstance(await anext(stream), Started)
            await stream.aclose()
            while not found.gone:  # noqa: ASYNC110  (counted in the server's thread)
                await asyncio.sleep(0.002)
            await backend.close()

        bounded(run)


SECRET = "sk-verysecret-0123456789"


def test_a_key_is_sent_to_the_provider_and_shown_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    told = f'{{"error": {{"message": "Incorrect API key provided: {SECRET}. Bearer {SECRET}", "code": "invalid_api_key"}}}}'
    with provider([response(told.encode(), "401 Unauthorized", "application/json")]) as found:
        settings = UpstreamSettings(name="openai", base_url=found.url, model="m")
        backend = OpenAIBackend(settings, GuardSettings(), key=Key(SECRET))
        with pytest.raises(UpstreamError) as caught:
            collect(backend)
        assert f"authorization: Bearer {SECRET}".lower() in found.requests[0][0].decode().lower()
    error = caught.value
    for text in (
        error.message,
        str(error.hint),
        repr(error),
        repr(backend),
        repr(vars(backend)),
        caplog.text,
    ):
        assert SECRET not in text
    assert "[key]" in error.message


@pytest.mark.parametrize("inside", [False, True])
def test_no_part_of_a_key_is_left_where_long_words_are_cut_short(inside: bool) -> None:
    secret = "0123456789abcdef" * 3  # nothing but the key itself says that it is one
    for before in range(430, 500, 7):
        told = f'{{"error": {{"message": "{"x" * before} {secret} {"y" * 500}"}}}}'
        reply = response(f"data: {told}\n\n".encode()) if inside else response(told.encode(), "500 Oops", "text/json")
        with provider([reply]) as found, pytest.raises(UpstreamError) as caught:
            settings = UpstreamSettings(name="openai", base_url=found.url, model="m")
            collect(OpenAIBackend(settings, GuardSettings(), key=Key(secret)))
        assert "01" not in caught.value.message and len(caught.value.message) < 600


def test_a_key_that_does_not_look_like_one_is_hidden_all_the_same() -> None:
    key = Key("correct-horse")
    assert key.redact("no such key: correct-horse!") == "no such key: [key]!" and "horse" not in repr(key)


def test_a_masked_key_in_a_providers_words_is_hidden_too() -> None:
    error = failure(response(recorded("openai_401_invalid_api_key.json"), "401 Unauthorized", "application/json"))
    assert "sk-abcde" not in error.message


def test_keys_come_from_the_environment_or_a_private_file(tmp_path: Path) -> None:
    settings = UpstreamSettings(name="openai", base_url="https://x/v1", key_env="THE_KEY")
    assert read_key(settings, {"THE_KEY": "abc\n"}).reveal() == "abc"
    with pytest.raises(SettingError, match="THE_KEY is not set"):
        read_key(settings, {})
    for bad in ("a b", "a\nb", "ä", "\n"):
        with pytest.raises(SettingError, match="printable ASCII") as caught:
            read_key(settings, {"THE_KEY": bad})
        assert bad.strip() == "" or bad not in caught.value.message
    file = tmp_path / "key"
    file.write_text("from-file\n")
    file.chmod(0o600)
    settings = replace(settings, key_env="", key_file=str(file))
    assert read_key(settings, {}).reveal() == "from-file"
    file.chmod(0o640)
    with pytest.raises(SettingError, match="0640") as caught:
        read_key(settings, {})
    assert caught.value.hint == f"chmod 600 {file}"
    file.unlink()
    with pytest.raises(SettingError, match="can't read key_file"):
        read_key(settings, {})
    with pytest.raises(SettingError, match="found both"):
        read_key(replace(settings, key_env="THE_KEY"), {})
    assert not read_key(replace(settings, key_file=""), {})


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://x/v1", "http"),
        ("nonsense", "http"),
        ("https://user:pass@x/v1", "neither credentials"),
        ("https://x/v1?key=abc", "neither credentials"),
        ("http://example.org/v1", "https"),
    ],
)
def test_a_base_url_that_would_leak_or_fail_is_refused_at_start(url: str, words: str) -> None:
    with pytest.raises(SettingError, match=words) as caught:
        OpenAIBackend(UpstreamSettings(name="openai", base_url=url), GuardSettings(), key=Key(SECRET))
    assert "pass" not in caught.value.message and "abc" not in caught.value.message
