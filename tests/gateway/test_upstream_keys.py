"""Several keys of one provider, the rates it tells, and providers known by name."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from tests.gateway.fakes import Provider, provider, recorded, response

from freehold.errors import SettingError, UpstreamError
from freehold.gateway.backends import keyring, providers
from freehold.gateway.backends.anthropic import AnthropicBackend
from freehold.gateway.backends.keyring import KeyRing
from freehold.gateway.backends.keys import Key, read_keys
from freehold.gateway.backends.openai import OpenAIBackend
from freehold.gateway.backends.upstream import UpstreamBackend
from freehold.gateway.backends.upstreams import upstream_backend
from freehold.gateway.conversation import Event, Finished, Request, TextPart, Turn
from freehold.gateway.failures import CapabilityError
from freehold.settings import PROVIDERS, UPSTREAM_DIALECTS, GuardSettings, UpstreamSettings

ASK = Request(id="r", model="m", turns=(Turn("user", (TextPart("hi"),)),), stream=True)
GOOD = response(recorded("openai_chat_stream.txt"))
WALL = 1_795_435_200.0  # 2026-11-23T12:00:00Z


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def ring(count: int = 2) -> tuple[KeyRing, Clock]:
    clock = Clock()
    return KeyRing([Key(f"k{i}") for i in range(count)], clock, lambda: WALL + clock.now - 1000.0), clock


def order(keys: KeyRing) -> list[int]:
    return [state.number for state in keys.order()]


def test_a_refused_key_rests_and_comes_back_after_its_time() -> None:
    for kind, seconds in keyring.REST_SECONDS.items():
        keys, clock = ring()
        assert keys.refused(keys.states[0], kind, None)
        assert order(keys) == [2]
        clock.now += seconds - 0.01
        assert order(keys) == [2]
        clock.now += 0.01
        assert order(keys) == [1, 2]


@pytest.mark.parametrize("kind", ["region", "overload", "transport", "invalid", "context", "content_policy"])
def test_a_failure_that_is_not_the_keys_fault_lets_it_stay_first(kind: str) -> None:
    keys, _ = ring()
    assert not keys.refused(keys.states[0], kind, None)
    assert order(keys) == [1, 2]


def test_when_every_key_rests_the_one_that_is_ready_first_is_asked_alone() -> None:
    keys, _ = ring(3)
    keys.refused(keys.states[0], "auth", None)
    keys.refused(keys.states[1], "rate", 9.0)
    keys.refused(keys.states[2], "rate", 20.0)
    assert order(keys) == [2]
    keys.worked(keys.states[0])
    assert order(keys) == [1]


def test_the_limit_holds_only_when_every_key_is_told_to_wait() -> None:
    keys, clock = ring()
    exhausted = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "30s"}
    keys.heard(keys.states[0], exhausted)
    assert keys.limited_until() is None and order(keys) == [2]
    keys.refused(keys.states[1], "rate", 12.0)
    assert keys.limited_until() == 1012.0
    clock.now += 12.0
    assert keys.limited_until() is None and order(keys) == [2]
    assert keys.rates[0].remaining == 0 and keys.rates[1].remaining is None


def test_a_ban_is_no_rate_limit() -> None:
    keys, _ = ring(1)
    keys.refused(keys.states[0], "banned", None)
    assert keys.limited_until() is None


def test_a_reset_that_is_a_date_is_put_on_the_monotonic_clock() -> None:
    keys, _ = ring(1)
    keys.heard(keys.states[0], {"anthropic-ratelimit-requests-remaining": "0",
                                "anthropic-ratelimit-requests-reset": "2026-11-23T12:00:30Z"})  # fmt: skip
    assert keys.limited_until() == 1030.0


def collect(found: Provider, count: int = 1, *, requests: int = 1) -> tuple[list[list[Event]], UpstreamBackend]:
    environment = {f"KEY_{i}": f"secret-number-{i}" for i in range(count)}
    settings = UpstreamSettings(name="openai", base_url=found.url, model="m", key_env=",".join(environment))

    async def run() -> tuple[list[list[Event]], UpstreamBackend]:
        backend = OpenAIBackend(settings, GuardSettings())
        try:
            async with asyncio.timeout(30):
                return [[event async for event in backend.stream(ASK)] for _ in range(requests)], backend
        finally:
            await backend.close()

    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        return asyncio.run(run())


def used(found: Provider) -> list[str]:
    return [head.lower().split(b"bearer secret-number-")[1][:1].decode() for head, _ in found.requests]


def refusal(status: str, body: str, extra: str = "") -> list[bytes]:
    return [response(body.encode(), status, "application/json", extra)]


BANNED = refusal("401 Unauthorized", '{"error":{"message":"x","code":"account_deactivated"}}')
BROKE = refusal("429 Too Many", '{"error":{"message":"x","type":"insufficient_quota"}}')
HURRIED = refusal("429 Too Many", '{"error":{"message":"x","code":"rate_limit_exceeded"}}', "retry-after: 60\r\n")


@pytest.mark.parametrize("refused", [BANNED, BROKE, HURRIED])
def test_the_client_does_not_see_that_one_key_was_refused_and_the_key_is_left_alone(
    refused: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    with provider(refused, [GOOD]) as found:
        answers, _ = collect(found, 2, requests=3)
    assert all(Finished("stop") in answer for answer in answers)
    assert used(found) == ["0", "1", "1", "1"]
    assert "key 1 of 2 was refused" in caplog.text and "secret-number" not in caplog.text


def test_a_failure_of_the_provider_is_not_tried_again_with_another_key() -> None:
    with provider(refusal("503 Busy", "{}"), [GOOD]) as found, pytest.raises(UpstreamError) as caught:
        collect(found, 2)
    assert caught.value.kind == "overload" and used(found) == ["0"]


def test_the_last_keys_refusal_is_the_answer_and_no_key_is_in_it() -> None:
    told = '{"error":{"message":"bad secret-number-0 secret-number-1","code":"invalid_api_key"}}'
    with provider(BROKE, refusal("401 No", told)) as found:
        with pytest.raises(UpstreamError) as caught:
            collect(found, 2)
        assert used(found) == ["0", "1"]
    assert caught.value.kind == "auth" and "secret-number" not in caught.value.message


def test_a_backend_tells_until_when_its_provider_wants_no_more() -> None:
    exhausted = "x-ratelimit-remaining-requests: 0\r\nx-ratelimit-reset-requests: 6m0s\r\n"
    with provider([response(recorded("openai_chat_stream.txt"), extra=exhausted)]) as found:
        _, backend = collect(found)
    until = backend.limited_until()
    assert until is not None and backend.rates[0].remaining == 0
    with provider([GOOD]) as found:
        _, backend = collect(found)
    assert backend.limited_until() is None


def test_several_keys_come_from_several_variables() -> None:
    settings = UpstreamSettings(name="openai", base_url="https://x/v1", key_env="A, B")
    assert [key.reveal() for key in read_keys(settings, {"A": "first", "B": "second"})] == ["first", "second"]
    with pytest.raises(SettingError, match="B is not set"):
        read_keys(settings, {"A": "first"})
    with pytest.raises(SettingError, match="found one twice") as caught:
        read_keys(settings, {"A": "same-key", "B": "same-key"})
    assert "same-key" not in caught.value.message
    assert [bool(key) for key in read_keys(replace(settings, key_env=""), {})] == [False]


def test_the_settings_and_the_table_name_the_same_providers_and_dialects() -> None:
    assert tuple(providers.PROVIDERS) == PROVIDERS
    assert {provider.dialect for provider in providers.PROVIDERS.values()} == set(UPSTREAM_DIALECTS)


@pytest.mark.parametrize("name", [name for name in PROVIDERS if name != "azure"])
def test_a_provider_by_name_needs_nothing_but_its_key(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = providers.PROVIDERS[name]
    if known.key_env:
        with pytest.raises(SettingError, match=known.key_env):
            upstream_backend(UpstreamSettings(name="x", provider=name), GuardSettings())
        monkeypatch.setenv(known.key_env, "abc")
    backend = upstream_backend(UpstreamSettings(name="x", provider=name, model="m"), GuardSettings())
    assert isinstance(backend, AnthropicBackend if name == "anthropic" else OpenAIBackend)


def test_what_the_settings_say_wins_over_the_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", "abc")
    settings = UpstreamSettings(name="x", provider="deepseek", base_url="https://proxy.example/v1", key_env="MINE")
    filled, provider_ = providers.known(settings)
    assert (filled.base_url, filled.key_env, provider_.thinking) == ("https://proxy.example/v1", "MINE", True)


def azure(**settings: Any) -> UpstreamBackend:
    given = {
        "name": "azure",
        "base_url": "https://me.openai.azure.com",
        "dialect": "azure",
        "api_version": "2024-10-21",
    }
    return OpenAIBackend(UpstreamSettings(**(given | settings)), GuardSettings(), key=Key("azure-key-0123"))


def test_azure_has_the_deployment_in_the_url_and_a_header_of_its_own() -> None:
    backend = azure()
    assert backend.wire.path(ASK) == "/openai/deployments/m/chat/completions?api-version=2024-10-21"
    assert backend.wire.path(replace(ASK, turns=(), prompts=("x",))).startswith("/openai/deployments/m/completions?")
    assert backend.wire.headers("abc") == {"api-key": "abc"}
    assert b'"max_completion_tokens":5' in backend.wire.body(replace(ASK, max_tokens=5))


@pytest.mark.parametrize(
    "model", ["..", "../x", "a/b", "a?b=c", "a#b", "a b", "a%2fb", ".", "é", "x" * 200, "a\r\nx: y"]
)
def test_a_models_name_cannot_lead_elsewhere(model: str) -> None:
    with pytest.raises(CapabilityError):
        azure().check(replace(ASK, model=model))


@pytest.mark.parametrize(
    "settings", [{"base_url": ""}, {"api_version": ""}, {"api_version": "1&x=y"}, {"provider": "acme"}]
)
def test_half_an_azure_or_an_unknown_provider_is_refused_at_start(settings: dict[str, str]) -> None:
    with pytest.raises(SettingError):
        azure(**settings)


def test_a_url_that_cannot_be_parsed_is_a_setting_error() -> None:
    with pytest.raises(SettingError, match="base_url"):
        upstream_backend(UpstreamSettings(name="x", base_url="https://[::1"), GuardSettings())
