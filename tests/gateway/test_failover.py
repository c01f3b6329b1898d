"""One request, many backends: the client sees an answer while any of them can give one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from tests.gateway import fakes
from tests.gateway.fakes import Live, Provider, provider, recorded, response

from freehold.errors import ContextLengthError, EngineError, SettingError
from freehold.gateway.backends.openai import OpenAIBackend
from freehold.gateway.router import Router
from freehold.gateway.service import Gateway
from freehold.settings import GuardSettings, UpstreamSettings

ASK: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}
SEEN: list[Any] = [{"role": "user", "content": [{"type": "text", "text": "Where is this?"}, IMAGE]}]
PARIS = "The capital of France is Paris."
GOOD = response(recorded("openai_chat_stream.txt"))
BEGINNING = b"\n\n".join(recorded("openai_chat_stream.txt").split(b"\n\n")[:3]) + b"\n\n"


def down(directory: Path) -> Any:
    """A core whose engine has died."""
    core = fakes.core(directory)

    async def start() -> None:
        core.engine.state = "restarting"

    core.start = start  # type: ignore[method-assign]
    return core


@contextmanager
def served(
    core: Any, *scripts: list[bytes | None], **guards: float
) -> Iterator[tuple[Live, list[Provider], openai.OpenAI]]:
    """A gateway with a core and one standby (`one`, `two`, ...) for each script."""
    with ExitStack() as stack:
        providers = [stack.enter_context(provider(script)) for script in scripts]
        standbys = [
            fakes.upstream(found.url, name, f"model-{name}")
            for found, name in zip(providers, ("one", "two", "three"), strict=False)
        ]
        live = stack.enter_context(fakes.live(Gateway(core, standbys, GuardSettings(**guards))))
        client = stack.enter_context(openai.OpenAI(base_url=live.url + "/v1", api_key="none", max_retries=0))
        yield live, providers, client


def ask(client: openai.OpenAI, stream: bool = False, **given: Any) -> tuple[str, str, dict[str, str]]:
    """Text, finish reason and headers of an answer, streamed or not."""
    raw = client.chat.completions.with_raw_response.create(model="tiny", messages=ASK, stream=stream, **given)
    headers = dict(raw.headers)
    if not stream:
        choice = raw.parse().choices[0]
        return choice.message.content or "", choice.finish_reason, headers
    chunks = [c.choices[0] for c in raw.parse() if c.choices]  # type: ignore[union-attr]
    finishes = [c.finish_reason for c in chunks if c.finish_reason]
    assert len(finishes) == 1 and chunks[0].delta.role == "assistant"
    return "".join(c.delta.content or "" for c in chunks), finishes[0], headers


def refusal(name: str, status: str) -> list[bytes | None]:
    return [response(recorded(name), status, "application/json")]


FAULTS: dict[str, list[bytes | None]] = {
    "closed": [b""],
    "500": refusal("openai_500.json", "500 Internal Server Error"),
    "502 html": [response(recorded("proxy_502.html"), "502 Bad Gateway", "text/html")],
    "503": refusal("openai_500.json", "503 Service Unavailable"),
    "529": refusal("anthropic_529_overloaded.json", "529 Overloaded"),
    "429": refusal("openai_429_rate_limit.json", "429 Too Many Requests"),
    "402": refusal("deepseek_402_balance.json", "402 Payment Required"),
    "ban 400": refusal("anthropic_400_disabled.json", "400 Bad Request"),
    "ban 401": refusal("openai_401_account_deactivated.json", "401 Unauthorized"),
    "ban 403": refusal("openai_403_region.json", "403 Forbidden"),
    "silent 200": [response(b"")],
    "html 200": [response(b"<html></html>", content_type="text/html")],
    "error in stream": [response(recorded("openai_in_stream_error.txt"))],
    "silence before headers": [None],
    "silence after the role": [response(BEGINNING.split(b"\n\n")[0] + b"\n\n"), None],
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_before_the_first_token_is_never_seen(directory: Path, fault: str, stream: bool) -> None:
    with served(down(directory), FAULTS[fault], [GOOD], ttft_seconds=0.3) as (live, providers, client):
        text, finish, headers = ask(client, stream)
        assert (text, finish) == (PARIS, "stop")
        assert headers["x-freehold-backend"] == "two"
        assert headers["x-freehold-reason"].startswith("standby after local: engine_down, one: ")
        assert [len(found.requests) for found in providers] == [1, 1]
        metrics = httpx2.get(live.url + "/metrics").text
        assert 'freehold:failovers_total{backend="local",reason="engine_down"} 1.0' in metrics


def test_a_refused_connection_is_passed_over(directory: Path) -> None:
    with provider([b""]) as closed:
        pass
    with served(down(directory), [GOOD]) as (live, _, client):
        live.gateway.router.standbys = (fakes.upstream(closed.url, "dead"), *live.gateway.router.standbys)
        assert ask(client)[0] == PARIS


def test_a_whole_answer_survives_a_cut_in_the_middle(directory: Path) -> None:
    with served(down(directory), [response(BEGINNING)], [GOOD]) as (_, _, client):
        assert ask(client)[0] == PARIS


def test_a_whole_answer_survives_silence_in_the_middle(directory: Path) -> None:
    with served(down(directory), [response(BEGINNING), None], [GOOD], idle_seconds=0.3) as (_, _, client):
        assert ask(client)[0] == PARIS


@pytest.mark.parametrize("rest", [[], [None]], ids=["cut", "silence"])
def test_a_stream_that_breaks_after_its_first_token_ends_with_an_error_in_its_frame(
    directory: Path, rest: list[bytes | None]
) -> None:
    with served(down(directory), [response(BEGINNING), *rest], idle_seconds=0.3) as (_, _, client):
        stream = client.chat.completions.create(model="tiny", messages=ASK, stream=True)
        texts = []
        with pytest.raises(openai.APIError, match="one: "):
            for chunk in stream:
                texts.append(chunk.choices[0].delta.content)
        assert "".join(text or "" for text in texts) == "The capital"


def test_standbys_are_asked_in_order_with_their_own_model_and_only_what_is_portable(directory: Path) -> None:
    with served(down(directory), [GOOD], [GOOD]) as (_, providers, client):
        _, _, headers = ask(client, temperature=0.5, logit_bias={"5": 1}, extra_body={"top_k": 4, "min_p": 0.1})
        sent = json.loads(providers[0].requests[0][1])
        assert (sent["model"], sent["temperature"]) == ("model-one", 0.5)
        assert not {"top_k", "min_p", "logit_bias"} & set(sent)
        assert headers["x-freehold-dropped"] == "top_k,min_p,logit_bias"
        assert providers[1].requests == []


def test_a_provider_addressed_by_name_answers_alone_and_gets_everything(directory: Path) -> None:
    with served(fakes.core(directory), [GOOD]) as (_, providers, client):
        raw = client.chat.completions.with_raw_response.create(
            model="one.other-model", messages=ASK, extra_body={"top_k": 4}
        )
        assert raw.headers["x-freehold-reason"] == "addressed by name"
        sent = json.loads(providers[0].requests[0][1])
        assert (sent["model"], sent["top_k"]) == ("other-model", 4)
        raw = client.chat.completions.with_raw_response.create(model="model-one", messages=ASK)
        assert raw.headers["x-freehold-reason"] == "addressed by model"
        assert [m.id for m in client.models.list()] == ["tiny", "one.model-one"]


def test_a_refusal_by_a_provider_addressed_by_name_is_passed_on(directory: Path) -> None:
    with (
        served(fakes.core(directory), refusal("openai_429_rate_limit.json", "429 Too Many Requests")) as (_, _, client),
        pytest.raises(openai.RateLimitError, match="Rate limit reached"),
    ):
        client.chat.completions.create(model="one.m", messages=ASK)
    with (
        served(fakes.core(directory), refusal("openai_401_invalid_api_key.json", "401 Unauthorized")) as (_, _, client),
        pytest.raises(openai.InternalServerError) as caught,  # the provider's key is ours, so 401 would mislead
    ):
        client.chat.completions.create(model="one.m", messages=ASK)
    assert caught.value.status_code == 502 and caught.value.code == "upstream_auth"


def test_without_a_standby_a_dead_engine_is_a_clear_503(directory: Path) -> None:
    with served(down(directory)) as (live, _, client):
        with pytest.raises(openai.InternalServerError, match="Hint: ") as caught:
            ask(client)
        assert (caught.value.status_code, caught.value.code) == (503, "engine_down")
        assert int(caught.value.response.headers["retry-after"]) >= 1
        assert httpx2.get(live.url + "/health").status_code == 503


def test_when_all_fail_the_client_learns_what_each_said(directory: Path) -> None:
    with (
        served(down(directory), FAULTS["500"], FAULTS["402"]) as (_, _, client),
        pytest.raises(openai.InternalServerError) as caught,
    ):
        ask(client)
    assert (caught.value.status_code, caught.value.code) == (503, "backend_unavailable")
    for words in ("local: the local engine is restarting", "one: status 500", "two: status 402", "Hint: "):
        assert words in caught.value.message


def test_what_the_core_can_not_do_a_standby_may(directory: Path) -> None:
    with served(fakes.core(directory), [response(recorded("openai_chat_tools_stream.txt"))]) as (_, providers, client):
        tools: list[Any] = [{"type": "function", "function": {"name": "get_current_weather"}}]
        answer = client.chat.completions.create(model="tiny", messages=SEEN, tools=tools)
        call = answer.choices[0].message.tool_calls[0]  # type: ignore[index]
        assert (call.id, call.function.name, answer.choices[0].finish_reason) == (  # type: ignore[union-attr]
            "call_abc123", "get_current_weather", "tool_calls",
        )  # fmt: skip
        assert json.loads(providers[0].requests[0][1])["tools"] == tools


def test_an_over_long_context_goes_to_a_standby_and_is_400_when_nobody_can(directory: Path) -> None:
    def short() -> Any:
        core = fakes.core(directory)
        core.engine.error = ContextLengthError("12 tokens do not fit 10", limit=10, requested=12)  # type: ignore[attr-defined]
        return core

    with served(short(), [GOOD]) as (_, _, client):
        assert ask(client)[0] == PARIS
    with served(short(), FAULTS["500"]) as (_, _, client), pytest.raises(openai.BadRequestError) as caught:
        ask(client)
    assert caught.value.code == "context_length_exceeded"


def test_a_refusal_on_content_is_not_routed_around(directory: Path) -> None:
    body = b'{"error": {"message": "flagged", "code": "content_filter", "type": "invalid_request_error"}}'
    refused: list[bytes | None] = [response(body, "400 Bad Request", "application/json")]
    with served(down(directory), refused, [GOOD]) as (_, providers, client):
        with pytest.raises(openai.BadRequestError, match="flagged"):
            ask(client)
        assert providers[1].requests == []


def test_a_wrong_request_is_not_tried_elsewhere(directory: Path) -> None:
    with served(fakes.core(directory), [GOOD]) as (_, providers, client):
        with pytest.raises(openai.BadRequestError):
            ask(client, temperature=7)
        assert providers[0].requests == []


def test_a_slow_core_is_left_for_a_standby_but_not_when_it_is_the_last_hope(directory: Path) -> None:
    slow = fakes.core(directory, held=True)
    # The engine gives its first token at once, so a whole answer has begun; only the idle guard may end the wait.
    with served(slow, [GOOD], idle_seconds=0.3) as (_, _, client):
        assert ask(client)[0] == PARIS
    with served(down(directory), [None, GOOD], ttft_seconds=0.1, total_seconds=0.5) as (_, providers, client):
        with pytest.raises(openai.InternalServerError, match="fell silent"):
            ask(client)
        assert len(providers[0].requests) == 1


def test_a_client_that_leaves_stops_the_engine(directory: Path) -> None:
    core = fakes.core(directory, "a long answer", held=True)
    engine = core.engine
    assert isinstance(engine, fakes.FakeEngine)
    with fakes.live(Gateway(core)) as live, openai.OpenAI(base_url=live.url + "/v1", api_key="none") as client:
        stream = client.chat.completions.create(model="tiny", messages=ASK, stream=True)
        next(iter(stream))
        stream.close()
        live.until(lambda: len(engine.left) == 1)
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.3, max_retries=0).chat.completions.create(model="tiny", messages=ASK)
        live.until(lambda: len(engine.left) == 2)


def test_streams_that_the_engine_leaves_behind_end_at_once(directory: Path) -> None:
    core = fakes.core(directory, "a long answer", held=True)
    engine = core.engine
    assert isinstance(engine, fakes.FakeEngine)
    with fakes.live(Gateway(core, guards=GuardSettings(idle_seconds=0.2))) as live:  # it never comes back

        async def run() -> list[Any]:
            async with openai.AsyncOpenAI(base_url=live.url + "/v1", api_key="none", max_retries=0) as client:
                streams = [
                    await client.chat.completions.create(model="tiny", messages=ASK, stream=True) for _ in range(8)
                ]
                live.loop.soon(engine.kill)

                async def drain(stream: Any) -> None:
                    async for _ in stream:
                        pass

                async with asyncio.timeout(10):
                    return await asyncio.gather(*map(drain, streams), return_exceptions=True)

        errors = asyncio.run(run())
        assert [type(error) for error in errors] == [openai.APIError] * 8
        assert all("the engine process is not running" in error.message for error in errors)


def plan(router: Router) -> list[str]:
    from freehold.gateway.conversation import Request, TextPart, Turn

    request = Request(id="r", model="local", turns=(Turn("user", (TextPart("hi"),)),))
    return [candidate.backend.name for candidate in router.plan(request)]


def standby(name: str, model: str = "m") -> OpenAIBackend:
    return OpenAIBackend(UpstreamSettings(name=name, base_url="http://127.0.0.1:1/v1", model=model), GuardSettings())


def test_two_upstreams_of_one_name_are_refused() -> None:
    for names in (["a", "a"], ["local"]):
        core = standby("local") if names == ["local"] else None
        with pytest.raises(SettingError, match="twice"):
            Router(core, [standby(name) for name in names])


def test_a_standby_without_a_model_is_reached_by_name_only() -> None:
    from freehold.gateway.failures import RequestError

    router = Router(None, [standby("one", model="")])
    with pytest.raises(RequestError) as caught:
        plan(router)
    assert caught.value.status == 404


def test_token_ids_stay_at_the_core(directory: Path) -> None:
    with served(down(directory), [GOOD]) as (_, providers, client):
        with pytest.raises(openai.InternalServerError) as caught:
            client.completions.create(model="tiny", prompt=[1, 2, 3])
        assert (caught.value.status_code, caught.value.code) == (503, "engine_down")
        assert providers[0].requests == []


def test_a_raw_completion_may_go_to_a_standby(directory: Path) -> None:
    with served(down(directory), [response(recorded("openai_completions_stream.txt"))]) as (_, providers, client):
        answer = client.completions.create(model="tiny", prompt="Say", max_tokens=5, logprobs=2, echo=True)
        assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("This is a test.", "stop")
        sent = json.loads(providers[0].requests[0][1])
        assert (sent["prompt"], sent["max_tokens"], sent["logprobs"], sent["echo"]) == ("Say", 5, 2, True)


def test_tool_calls_are_streamed_as_they_come(directory: Path) -> None:
    with served(fakes.core(directory), [response(recorded("openai_chat_tools_stream.txt"))]) as (_, _, client):
        tools: list[Any] = [{"type": "function", "function": {"name": "get_current_weather"}}]
        chunks = list(client.chat.completions.create(model="tiny", messages=SEEN, tools=tools, stream=True))
    calls = [call for c in chunks if c.choices for call in c.choices[0].delta.tool_calls or ()]
    assert (calls[0].id, calls[0].function.name) == ("call_abc123", "get_current_weather")  # type: ignore[union-attr]
    assert all(call.id is None and call.index == 0 for call in calls[1:])
    arguments = "".join(call.function.arguments or "" for call in calls if call.function)
    assert json.loads(arguments) == {"location": "Boston, MA"}
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_visible_thinking_is_kept_apart_from_the_answer(directory: Path) -> None:
    def chunk(delta: dict[str, str], finish: str | None = None) -> bytes:
        return (
            b"data: "
            + json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}).encode()
            + b"\n\n"
        )

    body = chunk({"reasoning_content": "hm, "}) + chunk({"reasoning": "Paris"}) + chunk({"content": "Paris"}, "stop")
    with served(down(directory), [response(body)]) as (_, _, client):
        whole = client.chat.completions.create(model="tiny", messages=ASK).choices[0].message
        chunks = list(client.chat.completions.create(model="tiny", messages=ASK, stream=True))
    assert (whole.content, getattr(whole, "reasoning_content", None)) == ("Paris", "hm, Paris")
    assert "".join(getattr(c.choices[0].delta, "reasoning_content", "") for c in chunks) == "hm, Paris"
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "Paris"


def test_a_choice_that_fails_takes_the_others_with_it(directory: Path) -> None:
    """Half of the choices would be an answer that nobody asked for."""

    def reply(prompt: str, request: Any) -> str:
        if request.sampling.seed == 8:
            raise EngineError("the engine failed: out of luck")
        return "a long answer"

    core = fakes.core(directory, reply, held=True)
    core.continues = False  # what can be mended is another test's matter
    with served(core) as (live, _, client):
        with pytest.raises(openai.APIError, match="out of luck"):
            list(client.chat.completions.create(model="tiny", messages=ASK, n=3, seed=7, stream=True))
        live.until(lambda: len(core.engine.left) == 2)  # those of seeds 7 and 9
    with served(fakes.core(directory, reply), [GOOD]) as (_, _, client), pytest.raises(openai.APIError):
        ask(client, n=3, seed=7)  # the standby answers one choice only, which is no answer to this
