"""Time limits: `[guards]` for everybody, and an upstream's own in their place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.gateway import fakes
from tests.gateway.fakes import provider, recorded, response

from freehold.errors import SettingError
from freehold.gateway.attempt import Attempt, Context, Run
from freehold.gateway.backends.upstreams import upstream_backend
from freehold.gateway.conversation import Event, Request, TextPart, Turn
from freehold.gateway.ranking import Candidate
from freehold.gateway.router import Router
from freehold.gateway.service import Gateway
from freehold.settings import GuardSettings, UpstreamSettings
from freehold.settings_file import load

ASK: Any = [{"role": "user", "content": "hi"}]
NEVER = GuardSettings(ttft_seconds=0, idle_seconds=0, total_seconds=0)
ANSWER = response(recorded("openai_chat_stream.txt"))


class Silent:
    """A backend that never says anything."""

    model = "m"
    state = "ready"

    def __init__(self, name: str, guards: GuardSettings | None = None) -> None:
        self.name = name
        self.guards = guards

    def check(self, request: Request) -> None:
        return

    async def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        await asyncio.Event().wait()
        yield  # type: ignore[misc]

    async def start(self) -> None:
        return

    async def close(self) -> None:
        return


def standby(url: str, name: str, **own: Any) -> UpstreamSettings:
    return UpstreamSettings(name=name, base_url=url, model=f"model-{name}", **own)


@pytest.mark.parametrize("limit", ["ttft_seconds", "total_seconds"])
def test_an_upstream_that_is_silent_for_longer_than_its_own_limit_is_left(limit: str) -> None:
    with provider([None]) as one, provider([ANSWER]) as two:
        upstreams = [standby(one.url, "one", **{limit: 0.05}), standby(two.url, "two")]
        gateway = Gateway(None, [upstream_backend(u, NEVER) for u in upstreams], NEVER, upstreams=upstreams)
        with fakes.live(gateway) as live, openai.OpenAI(base_url=live.url + "/v1", api_key="none") as client:
            raw = client.chat.completions.with_raw_response.create(model="default", messages=ASK, timeout=30)
        assert raw.headers["x-freehold-backend"] == "two" and "one: transport" in raw.headers["x-freehold-reason"]


def test_each_is_held_to_its_own_limits_and_the_request_to_the_longest() -> None:
    patient = Silent("patient", GuardSettings(ttft_seconds=0, idle_seconds=100, total_seconds=2000))
    usual = Silent("usual")
    request = Request(id="r", model="m", turns=(Turn("user", (TextPart("hi"),)),), stream=True)
    candidates = [Candidate(backend, request, "test") for backend in (patient, usual)]

    async def look() -> dict[str, list[float]]:
        context = Context(Router(None, [patient, usual]), GuardSettings(10, 15, 600))
        run, now = Run(request, candidates, context.deadline(candidates)), asyncio.get_running_loop().time()
        found = {"request": [run.deadline - now]}
        for candidate in candidates:
            attempt = Attempt(context, run, candidate)
            found[candidate.backend.name] = [attempt.patience() - now, attempt.idle() - now]
        return found

    found = asyncio.run(look())
    assert found["request"] == [pytest.approx(2000, abs=5)]
    assert found["patient"] == pytest.approx([2000, 100], abs=5)
    assert found["usual"] == pytest.approx([10, 15], abs=5)


def test_a_limit_that_is_left_out_is_that_of_the_section(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(
        '[guards]\nttft_seconds = 3\n[[upstream]]\nname = "slow"\nprovider = "openai"\nkey_env = "K"\n'
        "idle_seconds = 90\ntotal_seconds = 0\n"
    )
    found = load(file, environment={})
    assert found.upstreams[0].guards(found.guards) == GuardSettings(3.0, 90.0, 0.0)


@pytest.mark.parametrize(("value", "expected"), [("-1", "at least 0"), ('"long"', "float"), ("true", "float")])
def test_a_limit_that_is_none_is_refused(tmp_path: Path, value: str, expected: str) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(f'[[upstream]]\nname = "s"\nprovider = "openai"\nttft_seconds = {value}\n')
    with pytest.raises(SettingError, match=f"ttft_seconds from .*expected {expected}"):
        load(file, environment={})
