"""The drill: every fault at every upstream, nothing lost, and not a byte to a real provider."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import pytest
from tests.gateway import fakes
from tests.gateway.fakes import provider

from freehold.errors import SettingError, UpstreamError
from freehold.gateway.backends.http import HttpClient
from freehold.gateway.backends.keys import Key
from freehold.gateway.backends.upstreams import upstream_backend
from freehold.gateway.conversation import Request, TextDelta, TextPart, Turn, Usage
from freehold.gateway.drill import EXAMPLE, Row, drill, p95
from freehold.gateway.failures import kind_of
from freehold.gateway.faults import BEFORE_BREAK, FAULTS, PIECES, SENTENCE, FaultServer
from freehold.settings import GuardSettings, Settings, UpstreamSettings

QUICK = GuardSettings(ttft_seconds=0.3, idle_seconds=0.3, total_seconds=20)
PREFIX = "".join(PIECES[:BEFORE_BREAK])

KINDS = {
    "refused": "transport", "reset": "transport", "dns": "transport", "tls": "transport", "500": "transport|overload",
    "502 html": "transport", "503": "overload", "529": "overload", "429": "rate", "429 retry-after": "rate",
    "402": "billing", "ban 400": "banned", "ban 401": "banned|auth", "ban 403": "region|auth", "silent 200": "transport",
    "mid-stream cut": "transport", "in-stream error": "overload|transport",
}  # fmt: skip


def ask() -> Request:
    return Request(id="r", model="m", turns=(Turn("user", (TextPart("hi"),)),), stream=True)


async def answers(server: FaultServer, seconds: float = 5.0) -> list[Any]:
    """What a backend makes of the server; the error comes last."""
    settings = UpstreamSettings(name="one", base_url=server.url, model="m", dialect=server.shape)
    backend = upstream_backend(settings, QUICK, key=Key(""))
    seen: list[Any] = []
    try:
        async with asyncio.timeout(seconds):
            async for event in backend.stream(ask()):
                seen.append(event)
    except (UpstreamError, TimeoutError) as error:
        seen.append(error)
    finally:
        await backend.close()
    return seen


@pytest.mark.parametrize("shape", ["openai", "anthropic"])
def test_a_fault_server_that_is_well_answers_as_its_provider_does(shape: Any) -> None:
    async def run() -> tuple[list[Any], FaultServer]:
        server = FaultServer(shape)
        await server.start()
        try:
            return await answers(server), server
        finally:
            await server.close()

    seen, server = asyncio.run(run())
    assert "".join(e.text for e in seen if isinstance(e, TextDelta)) == SENTENCE
    assert [e for e in seen if isinstance(e, Usage)] and server.calls == 1


@pytest.mark.parametrize("shape", ["openai", "anthropic"])
@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_looks_on_the_wire_like_what_it_is_named_for(fault: str, shape: Any) -> None:
    async def run() -> tuple[list[Any], int]:
        server = FaultServer(shape)
        await server.start()
        await server.turn(fault)
        try:
            return await answers(server, 0.3 if "stall" in fault else 5.0), server.calls
        finally:
            await server.close()

    seen, calls = asyncio.run(run())
    text = "".join(e.text for e in seen if isinstance(e, TextDelta))
    assert text == (PREFIX if fault.startswith("mid-stream") else "")
    if "stall" in fault:
        assert isinstance(seen[-1], TimeoutError)
    else:
        assert kind_of(seen[-1]) in KINDS[fault].split("|"), seen[-1]
    assert calls == (0 if fault in ("refused", "dns", "tls") else 1)
    if fault == "429 retry-after":
        assert seen[-1].retry_after == 20


def test_a_ping_finds_a_server_that_is_back() -> None:
    async def run() -> None:
        server = FaultServer()
        await server.start()
        backend = upstream_backend(UpstreamSettings(name="one", base_url=server.url, model="m"), QUICK, key=Key(""))
        try:
            for fault in ("503", "refused", "reset", "ban 401", "429"):
                await server.turn(fault)
                with pytest.raises(UpstreamError):
                    await backend.ping()
            await server.turn(None)
            await backend.ping()
            assert server.calls == 0 and server.pings > 0
        finally:
            await backend.close()
            await server.close()

    asyncio.run(run())


def test_no_fault_loses_a_request_and_not_a_byte_reaches_a_real_provider(
    directory: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    asked: list[SplitResult] = []
    stream = HttpClient.stream

    def noted(self: HttpClient, method: str, url: str, *given: Any) -> Any:
        asked.append(urlsplit(url))
        return stream(self, method, url, *given)

    monkeypatch.setattr(HttpClient, "stream", noted)
    with provider([b""]) as real:
        upstreams = (
            UpstreamSettings(name="one", base_url=real.url, model="gpt", key_env="NO_SUCH_KEY"),
            UpstreamSettings(name="two", base_url=real.url, dialect="anthropic"),
        )
        settings = Settings(guards=QUICK, upstreams=upstreams)
        core = fakes.core(directory, SENTENCE + " And so on.")
        report = asyncio.run(drill(settings, core))
        assert real.requests == [] and real.gone == 0
    assert {url.hostname for url in asked} == {"127.0.0.1", "drill.invalid"}
    assert real.url.split(":")[2].split("/")[0] not in {str(url.port) for url in asked}
    assert [row["fault"] for row in report["faults"]] == list(FAULTS) and report["lost"] == 0
    for row in report["faults"]:
        assert set(row) == {"fault", "requests", "answered", "answered_by", "added_ms_p95", "result"}
        assert (row["requests"], row["answered"], row["result"]) == (4, 4, "pass"), row
        assert row["answered_by"] == {"local": 4} and row["added_ms_p95"] >= 0, row
    stalls = {row["fault"]: row["added_ms_p95"] for row in report["faults"] if "stall" in row["fault"]}
    assert all(200 < added < 5000 for added in stalls.values()), stalls
    assert list(tmp_path.iterdir()) == []  # a drill quarantines nobody
    json.dumps(report)


def test_a_core_that_can_not_answer_leaves_it_to_the_other_upstream(directory: Path) -> None:
    core = fakes.core(directory)

    async def start() -> None:
        core.engine.state = "restarting"  # type: ignore[misc]

    core.start = start  # type: ignore[method-assign, assignment]
    settings = Settings(upstreams=EXAMPLE)  # patient: nothing here stalls
    report = asyncio.run(drill(settings, core, faults=("503", "mid-stream cut")))
    by_fault = {row["fault"]: row for row in report["faults"]}
    assert by_fault["503"]["answered_by"] == {"anthropic": 2, "openai": 2}
    cut = by_fault["mid-stream cut"]
    assert cut["result"] in ("partial", "pass") and cut["answered"] >= 2
    assert report["lost"] == 4 - cut["answered"]


def test_a_request_that_nobody_answers_is_reported_as_lost(directory: Path) -> None:
    core = fakes.core(directory)
    core.engine.error = UpstreamError("out of order", kind="transport")  # type: ignore[attr-defined]
    settings = Settings(guards=QUICK, upstreams=EXAMPLE[:1])
    report = asyncio.run(drill(settings, core, faults=("500",)))
    assert report == {
        "faults": [
            {"fault": "500", "requests": 2, "answered": 0, "answered_by": {}, "added_ms_p95": None, "result": "fail"}
        ],
        "lost": 2,
    }


def test_without_an_upstream_there_is_nothing_to_drill(directory: Path) -> None:
    with pytest.raises(SettingError, match="nothing to drill"):
        asyncio.run(drill(Settings(), fakes.core(directory)))


def test_the_95th_percentile_is_one_of_the_values() -> None:
    assert p95([3.0]) == 3.0
    assert p95([float(n) for n in range(1, 101)]) == 95.0
    row = Row("x", requests=2)
    row.answered_by["a"] = 1
    row.added = [0.25]
    assert row.report()["result"] == "partial" and row.report()["added_ms_p95"] == 250.0
