"""Practises the loss of each provider over the user's own configuration, without a byte to a real one.

Every upstream is replaced by a fault server on loopback that speaks its dialect; keys, routes and budgets stay out of it.
For each fault each upstream in turn is asked first, has the fault, and real requests, streamed and whole, must be
answered all the same: by the core or by the other upstreams. The engine, the relay and the breakers are the real ones.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from freehold.errors import FreeholdError, SettingError
from freehold.gateway.backends import Backend
from freehold.gateway.backends.keys import Key
from freehold.gateway.backends.local import LocalBackend
from freehold.gateway.backends.providers import known
from freehold.gateway.backends.upstreams import upstream_backend
from freehold.gateway.conversation import Failed, Finished, Request, Sampling, TextDelta, TextPart, Turn
from freehold.gateway.faults import BEFORE_BREAK, FAULTS, PIECES, FaultServer
from freehold.gateway.policy import CORE, Policy
from freehold.gateway.service import Gateway
from freehold.progress import Progress
from freehold.settings import RouterSettings, RouteSettings, Settings, UpstreamSettings

EXAMPLE = (
    UpstreamSettings(name="openai", base_url="https://api.openai.com/v1", model="gpt-4o-mini", dialect="openai"),
    UpstreamSettings(
        name="anthropic", base_url="https://api.anthropic.com/v1", model="claude-sonnet-4-5", dialect="anthropic"
    ),
)
"""The standbys of the drill without a settings file; their addresses are replaced like anybody's."""

PROMPT = "Why should one keep a second provider? Answer in one sentence."
MAX_TOKENS = 48  # more than a broken stream has said, in any tokenizer: somebody must have to go on
MODEL = "drill"
BASELINE_RUNS = 3


@dataclass(slots=True)
class Row:
    """One fault. `added` in seconds, one for each answered request."""

    fault: str
    requests: int = 0
    answered_by: Counter[str] = field(default_factory=Counter)
    added: list[float] = field(default_factory=list)

    @property
    def answered(self) -> int:
        """Requests that got a whole, unbroken answer."""
        return sum(self.answered_by.values())

    def report(self) -> dict[str, Any]:
        """The row as it is published."""
        result = "pass" if self.answered == self.requests else "partial" if self.answered else "fail"
        return {
            "fault": self.fault,
            "requests": self.requests,
            "answered": self.answered,
            "answered_by": dict(sorted(self.answered_by.items())),
            "added_ms_p95": round(p95(self.added) * 1000, 1) if self.added else None,
            "result": result,
        }


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request's: who said its last word, after how many seconds."""

    by: str
    seconds: float


async def drill(
    settings: Settings, core: LocalBackend, *, faults: Sequence[str] = FAULTS, progress: Progress | None = None
) -> dict[str, Any]:
    """Runs every fault and reports.

    Args:
        settings: whose upstreams, guards and breaker are drilled.
        core: the engine, not yet started.

    Returns:
        `{"faults": [{"fault", "requests", "answered", "answered_by", "added_ms_p95", "result"}], "lost"}`

    Raises:
        SettingError: there is no upstream to lose.
        FreeholdError: the core can't be started.
    """
    if not settings.upstreams:
        hint = "add an [[upstream]], or drill the built-in example by leaving --config out"
        raise SettingError("nothing to drill: the settings name no upstream", hint=hint)
    await core.start()
    try:
        usual = await _usual(settings, core)
        rows: list[Row] = []
        for fault in faults:
            if progress is not None:
                progress(len(rows), len(faults), "drill, by fault")  # one name, so that it is one bar
            rows.append(await _fault(settings, core, fault, usual))
    finally:
        await core.close()
    reports = [row.report() for row in rows]
    return {"faults": reports, "lost": sum(r["requests"] - r["answered"] for r in reports)}


async def _fault(settings: Settings, core: LocalBackend, fault: str, usual: dict[tuple[str, bool], float]) -> Row:
    """One fault at each upstream in turn; each time with fresh breakers."""
    row = Row(fault)
    for upstream in settings.upstreams:
        async with _gateway(settings, core, upstream.name, fault) as gateway:
            for stream in (True, False):
                row.requests += 1
                outcome = await _ask(gateway, stream, fault)
                if outcome is not None:
                    row.answered_by[outcome.by] += 1
                    row.added.append(max(0.0, outcome.seconds - usual.get((outcome.by, stream), 0.0)))
    return row


async def _usual(settings: Settings, core: LocalBackend) -> dict[tuple[str, bool], float]:
    """Seconds each backend takes for such a request when all is well: the best of a few, so nothing added is hidden."""
    times: dict[tuple[str, bool], float] = {}
    for name in (core.name, *(upstream.name for upstream in settings.upstreams)):
        async with _gateway(settings, core, name, None) as gateway:
            for stream in (True, False):
                outcomes = [await _ask(gateway, stream, None) for _ in range(BASELINE_RUNS)]
                good = [outcome.seconds for outcome in outcomes if outcome is not None and outcome.by == name]
                if good:
                    times[name, stream] = min(good)
    return times


@asynccontextmanager
async def _gateway(
    settings: Settings, core: LocalBackend, first: str, fault: str | None
) -> AsyncGenerator[Gateway, None]:
    """A gateway that asks `first` before the others, and in which every upstream is one of ours; only `first` has a fault."""
    servers = [FaultServer(_shape(upstream)) for upstream in settings.upstreams]
    standbys: list[Backend] = []
    try:
        for upstream, server in zip(settings.upstreams, servers, strict=True):
            await server.start()
            await server.turn(fault if upstream.name == first else None)
            standbys.append(_stand_in(upstream, server, settings))
        names = [core.name, *(upstream.name for upstream in settings.upstreams)]
        line = [first, *(name for name in names if name != first)]
        targets = tuple(name if name == CORE else f"{name}.{MODEL}" for name in line)
        policy = Policy(RouterSettings(), (RouteSettings(MODEL, targets),))
        gateway = Gateway(core, standbys, settings.guards, policy=policy, breaker=settings.breaker)
        yield gateway
        await gateway.watch.close()
    finally:
        for standby in standbys:
            await standby.close()
        for server in servers:
            await server.close()


def _stand_in(upstream: UpstreamSettings, server: FaultServer, settings: Settings) -> Backend:
    """The upstream as configured, at our address and without its key."""
    ours = replace(known(upstream)[0], base_url=server.url, key_env="", key_file="", provider="")
    return upstream_backend(ours, settings.guards, key=Key(""))


def _shape(upstream: UpstreamSettings) -> Any:
    return "anthropic" if known(upstream)[0].dialect == "anthropic" else "openai"


async def _ask(gateway: Gateway, stream: bool, fault: str | None) -> Outcome | None:
    """One request; None when it was lost, broken, or not what a client may expect."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    request = Request(
        id=f"drill-{fault}", model=MODEL, turns=(Turn("user", (TextPart(PROMPT),)),),
        max_tokens=MAX_TOKENS, stream=stream, sampling=Sampling(temperature=0.0),
    )  # fmt: skip
    try:
        answer = await gateway.answer(request)
        async with aclosing(answer.events) as events:
            seen = [event async for event in events]
    except FreeholdError:
        return None
    text = "".join(event.text for event in seen if isinstance(event, TextDelta))
    finishes = sum(isinstance(event, Finished) for event in seen)
    broken = stream and fault in ("mid-stream cut", "mid-stream stall")
    said = "".join(PIECES[:BEFORE_BREAK]) if broken else ""
    if finishes != 1 or any(isinstance(event, Failed) for event in seen) or not text or not text.startswith(said):
        return None
    return Outcome((answer.record.continued or [answer.record.backend])[-1], loop.time() - began)


def p95(values: Sequence[float]) -> float:
    """The smallest value that 95% of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * 95 // 100) - 1)]
