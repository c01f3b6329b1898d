"""The gateway on the real engine: a tiny random model in a process of its own, over HTTP."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from tests.gateway import byte_model, fakes
from tests.gateway.byte_model import BYTES
from tests.gateway.fakes import Live, provider, recorded, response

from freehold.engine.process import Backoff, EngineProcess
from freehold.errors import SettingError
from freehold.gateway.backends.local import LocalBackend, load_text_side
from freehold.gateway.service import Gateway, public_name
from freehold.settings import EngineSettings, Settings, UpstreamSettings

ENGINE = EngineSettings(threads=1, kv_memory_mb=64)
SLOW = EngineSettings(threads=1, kv_memory_mb=64, isa="reference")
"""At a real model's pace: a tiny one on native kernels is further ahead than its client can read."""
GOOD = response(recorded("openai_chat_stream.txt"))
PARIS = "The capital of France is Paris."
ENDLESS: dict[str, Any] = {"max_tokens": 100_000, "logit_bias": {str(len(BYTES)): -100}}  # the mark that ends a turn
"""An answer that is still running when the test does something to it."""


def gateway(directory: Path, *standbys: Any, engine: EngineSettings = ENGINE) -> Gateway:
    tokenizer, template = load_text_side(directory)
    return Gateway(LocalBackend(EngineProcess(directory, engine), tokenizer, template, "tiny"), standbys)


@pytest.fixture(scope="module")
def served(directory: Path) -> Iterator[Live]:
    with fakes.live(gateway(directory)) as found:
        yield found


def ask(i: int, **given: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"prompt number {i} " * (1 + i % 5)}]
    return {"model": "tiny", "messages": messages, "max_tokens": 24, "temperature": 0.0} | given


async def streamed(client: openai.AsyncOpenAI, given: dict[str, Any]) -> str:
    stream = await client.chat.completions.create(stream=True, **given)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


def asynchronous(live: Live) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=live.url + "/v1", api_key="none", max_retries=0)


def test_32_streams_at_once_equal_the_same_requests_one_by_one(served: Live) -> None:
    async def run() -> tuple[list[str], list[str]]:
        async with asynchronous(served) as client:
            alone = [await streamed(client, ask(i)) for i in range(32)]
            return alone, await asyncio.gather(*[streamed(client, ask(i)) for i in range(32)])

    alone, together = asyncio.run(run())
    assert together == alone
    assert len(set(alone)) > 16  # they really are different prompts with different answers


def test_a_whole_answer_equals_the_stream_and_a_seed_repeats(served: Live) -> None:
    with openai.OpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0) as client:
        for given in (ask(1), ask(2, temperature=1.0, seed=5)):
            whole = client.chat.completions.create(**given).choices[0].message.content
            pieces = [c.choices[0].delta.content or "" for c in client.chat.completions.create(stream=True, **given)]
            assert "".join(pieces) == whole and whole


def test_logprobs_of_the_real_engine_add_up(served: Live) -> None:
    import math

    with openai.OpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0) as client:
        answer = client.chat.completions.create(**ask(3, logprobs=True, top_logprobs=3))
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content and answer.usage is not None
    for token in logprobs.content:
        top = [t.logprob for t in token.top_logprobs]
        assert len(top) == 3 and top == sorted(top, reverse=True)
        assert token.logprob == top[0]  # greedy takes the likeliest
        assert 0 < sum(map(math.exp, top)) <= 1 + 1e-5
    text = b"".join(bytes(t.bytes or []) for t in logprobs.content).decode("utf-8", "replace")
    assert text == answer.choices[0].message.content


def test_an_over_long_prompt_is_refused_with_the_contexts_length(served: Live) -> None:
    with (
        openai.OpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0) as client,
        pytest.raises(openai.BadRequestError) as caught,
    ):
        client.chat.completions.create(**ask(0) | {"messages": [{"role": "user", "content": "x" * 5000}]})
    assert caught.value.code == "context_length_exceeded" and "4096" in caught.value.message.replace(",", "")


def test_metrics_and_health_tell_what_happened(served: Live) -> None:
    with openai.OpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0) as client:
        before = numbers(served)
        usage = client.chat.completions.create(**ask(4, max_tokens=5)).usage
        after = numbers(served)
    assert usage is not None

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0.0)

    label = '{backend="local"}'
    assert grown("freehold:prompt_tokens_total" + label) == usage.prompt_tokens
    assert grown("freehold:generation_tokens_total" + label) == usage.completion_tokens
    for name in ("time_to_first_token_seconds", "e2e_request_latency_seconds"):
        assert grown(f"freehold:{name}_count{label}") == 1
        assert 0 < grown(f"freehold:{name}_sum{label}") < 60
    assert after["freehold:kv_cache_usage_perc"] <= 1 and after["freehold:engine_restarts_total"] == 0
    assert {"freehold:num_requests_running", "freehold:num_requests_waiting"} <= set(after)
    health = httpx2.get(served.url + "/health")
    assert health.status_code == 200
    assert health.json() == {
        "status": "ok", "backends": [{"name": "local", "model": "tiny", "state": "ready", "cooling": None}],
    }  # fmt: skip


def numbers(live: Live) -> dict[str, float]:
    lines = httpx2.get(live.url + "/metrics").text.splitlines()
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}


@pytest.fixture
def patient(tmp_path: Path) -> Path:
    """A model whose context outlasts any client: its engine must not be done before the test has killed it."""
    return byte_model.write(tmp_path, context=200_000)


@pytest.fixture
def slow_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model is back before anybody could notice; this one takes as long as a real one."""
    monkeypatch.setattr(Backoff, "FIRST", 2.0)


def signal_core(live: Live, what: signal.Signals) -> None:
    core = live.gateway.core
    assert core is not None and core.engine.facts is not None
    os.kill(core.engine.facts.pid, what)


def kill(live: Live) -> None:
    signal_core(live, signal.SIGKILL)


async def ready(live: Live) -> None:
    while live.gateway.core.state != "ready":  # type: ignore[union-attr]  # noqa: ASYNC110  (it lives in another loop)
        await asyncio.sleep(0.02)


async def eight_streams(live: Live, client: openai.AsyncOpenAI) -> tuple[list[Any], list[Any]]:
    """Begins 8 streams, kills the engine, then asks twice; the streams and the answers."""
    begun = asyncio.Event()
    first: set[int] = set()

    async def one(i: int) -> str:
        text = ""
        async for chunk in await client.chat.completions.create(stream=True, **ask(i, **ENDLESS)):
            text += chunk.choices[0].delta.content or ""
            first.add(i)
            if len(first) == 8:
                begun.set()
        return text

    running = [asyncio.create_task(one(i)) for i in range(8)]
    await begun.wait()
    kill(live)
    answers = await asyncio.gather(
        *[client.chat.completions.with_raw_response.create(**ask(i)) for i in range(2)], return_exceptions=True
    )
    return running, answers


async def left(running: list[Any]) -> list[BaseException | None]:
    """Leaves streams; what those that had ended by then ended with."""
    ended = [task.exception() if task.done() else None for task in running]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    return ended


@pytest.mark.usefixtures("slow_restart")
def test_kill_9_during_8_streams_with_a_standby_costs_no_request_and_the_core_is_back_for_the_next(
    patient: Path,
) -> None:
    with provider([GOOD]) as found, fakes.live(gateway(patient, fakes.upstream(found.url), engine=SLOW)) as live:

        async def run() -> None:
            async with asyncio.timeout(60), asynchronous(live) as client:
                running, answers = await eight_streams(live, client)
                for raw in answers:
                    assert raw.headers["x-freehold-backend"] == "openai"
                    assert raw.parse().choices[0].message.content == PARIS
                await ready(live)
                raw = await client.chat.completions.with_raw_response.create(**ask(0))
                assert (raw.headers["x-freehold-backend"], raw.headers["x-freehold-reason"]) == ("local", "core")
                assert await left(running) == [None] * 8  # none had failed: they go on where they were

        asyncio.run(run())
        assert numbers(live)["freehold:engine_restarts_total"] == 1


@pytest.mark.usefixtures("slow_restart")
def test_kill_9_without_a_standby_is_a_clear_503_with_a_hint_and_the_engine_comes_back(patient: Path) -> None:
    with fakes.live(gateway(patient, engine=SLOW)) as live:

        async def run() -> None:
            async with asyncio.timeout(60), asynchronous(live) as client:
                running, answers = await eight_streams(live, client)
                for error in answers:
                    assert isinstance(error, openai.InternalServerError) and error.status_code == 503
                    assert error.code == "engine_down" and "Hint: " in error.message
                await ready(live)
                assert (await client.chat.completions.create(**ask(0))).choices[0].message.content
                assert await left(running) == [None] * 8

        asyncio.run(run())


@pytest.mark.usefixtures("slow_restart")
def test_an_engine_that_hangs_is_replaced_its_stream_goes_on_and_others_are_answered_by_the_standby(
    patient: Path,
) -> None:
    hanging = replace(SLOW, stall_seconds=1.0)
    asked = ask(0, max_tokens=200, logit_bias=ENDLESS["logit_bias"])
    with provider([GOOD]) as found, fakes.live(gateway(patient, fakes.upstream(found.url), engine=hanging)) as live:

        async def run() -> None:
            async with asyncio.timeout(60), asynchronous(live) as client:
                whole = await streamed(client, asked)
                text, pieces = "", 0
                async for chunk in await client.chat.completions.create(stream=True, **asked):
                    text, pieces = text + (chunk.choices[0].delta.content or ""), pieces + 1
                    if pieces == 20:
                        signal_core(live, signal.SIGSTOP)
                        raw = await client.chat.completions.with_raw_response.create(**ask(1))
                        assert raw.headers["x-freehold-backend"] == "openai"
                        assert raw.headers["x-freehold-reason"].endswith("after local: engine_down")
                assert text == whole

        asyncio.run(run())
        assert numbers(live)["freehold:engine_restarts_total"] == 1


def test_requests_are_answered_by_the_standby_while_the_model_loads(directory: Path) -> None:
    with provider([GOOD]) as found:
        waiting = gateway(directory, fakes.upstream(found.url))
        assert waiting.core is not None
        start, loaded = waiting.core.engine.start, asyncio.Event()

        async def slowly() -> Any:
            await loaded.wait()
            return await start()

        waiting.core.engine.start = slowly  # type: ignore[method-assign]
        with (
            fakes.live(waiting, ready=False) as live,
            openai.OpenAI(base_url=live.url + "/v1", api_key="none", max_retries=0) as client,
        ):
            raw = client.chat.completions.with_raw_response.create(**ask(0))
            assert raw.headers["x-freehold-backend"] == "openai"
            assert httpx2.get(live.url + "/health").json()["status"] == "degraded"
            assert live.lines == []
            live.loop.soon(loaded.set)
            live.until(lambda: len(live.lines) == 4)
            assert live.lines[0].startswith("ready")
            assert live.lines[1] == f"export OPENAI_BASE_URL={live.url}/v1"


@pytest.fixture
def broken(directory: Path, tmp_path: Path) -> Path:
    """A model whose weights end early."""
    copy = shutil.copytree(directory, tmp_path / "broken")
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    return copy


def test_a_model_that_can_not_be_loaded_leaves_the_answers_to_the_standby(broken: Path) -> None:
    with provider([GOOD]) as found, fakes.live(gateway(broken, fakes.upstream(found.url))) as live:
        with openai.OpenAI(base_url=live.url + "/v1", api_key="none", max_retries=0) as client:
            raw = client.chat.completions.with_raw_response.create(**ask(0))
        assert raw.headers["x-freehold-backend"] == "openai"
        health = httpx2.get(live.url + "/health").json()
        assert health["status"] == "degraded" and health["backends"][0]["state"] == "down"


def test_a_model_that_can_not_be_loaded_ends_the_server_with_its_reason(broken: Path) -> None:
    from freehold.errors import FreeholdError

    with pytest.raises(FreeholdError, match="safetensors"), fakes.live(gateway(broken)):
        pytest.fail("it should not have become ready")


def test_paths_on_this_machine_are_not_shown_to_clients(directory: Path) -> None:
    assert public_name(str(directory)) == directory.name
    assert public_name("org/model:variant") == "org/model:variant"
    assert public_name("smollm2") == "smollm2"


def test_a_gateway_is_built_from_settings_and_answers_without_http(directory: Path) -> None:
    from freehold.gateway.conversation import Request, TextDelta, TextPart, Turn

    settings = Settings(
        engine=replace(ENGINE, model=str(directory)), upstreams=(UpstreamSettings("one", "http://127.0.0.1:1/v1"),)
    )

    async def run() -> None:
        async with Gateway.build(settings) as built:
            assert [backend.name for backend in built.router.backends] == ["local", "one"]
            request = Request(
                id="r", model="local", turns=(Turn("user", (TextPart("hi"),)),), max_tokens=4, stream=True
            )
            answer = await built.answer(request)
            text = "".join([event.text async for event in answer.events if isinstance(event, TextDelta)])
            record = answer.record
            assert text and record.backend == "local" and record.model == directory.name and record.failure is None
            assert record.completion_tokens == 4 and record.prompt_tokens == 5 and record.finished == ["length"]
            assert record.ttft is not None and record.seconds is not None and 0 < record.ttft <= record.seconds
        assert built.core is not None and built.core.state == "down"

    asyncio.run(run())


def test_an_upstream_without_its_key_is_an_error_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, directory: Path
) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    upstreams = (UpstreamSettings("one", "https://example.org/v1", key_env="NO_SUCH_KEY"),)
    with pytest.raises(SettingError, match="NO_SUCH_KEY is not set"):
        Gateway.build(Settings(engine=replace(ENGINE, model=str(directory)), upstreams=upstreams))


@pytest.mark.usefixtures("slow_restart")
def test_streams_cut_by_kill_9_go_on_byte_for_byte_when_the_engine_is_back(patient: Path) -> None:
    long: dict[str, Any] = ENDLESS | {"max_tokens": 400}
    with fakes.live(gateway(patient, engine=SLOW)) as live:

        async def run() -> None:
            async with asyncio.timeout(90), asynchronous(live) as client:
                undisturbed = await asyncio.gather(*[streamed(client, ask(i, **long)) for i in range(2)])
                begun = asyncio.Event()

                async def one(i: int) -> tuple[str, list[str], int]:
                    text, finishes, completion = "", [], 0
                    given = ask(i, **long) | {"stream_options": {"include_usage": True}}
                    async for chunk in await client.chat.completions.create(stream=True, **given):
                        completion = chunk.usage.completion_tokens if chunk.usage else completion
                        for choice in chunk.choices:
                            text += choice.delta.content or ""
                            finishes += [choice.finish_reason] if choice.finish_reason else []
                        if len(text) > 40:
                            begun.set()
                    return text, finishes, completion

                running = [asyncio.create_task(one(i)) for i in range(2)]
                await begun.wait()
                assert not any(task.done() for task in running)
                kill(live)
                ended = await asyncio.gather(*running)
                assert [text for text, _, _ in ended] == undisturbed
                assert [finishes for _, finishes, _ in ended] == [["length"]] * 2
                assert all(abs(tokens - 400) <= 40 for _, _, tokens in ended)

        asyncio.run(run())
        assert numbers(live)["freehold:engine_restarts_total"] == 1
