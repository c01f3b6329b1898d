"""One outage of a provider under traffic: calls that reached it while it was dead, and how soon it was back in use.

    python bench/outage.py [--seconds 60] [--rate 2] [--fault all] [--json] [--check]

A provider on loopback that is asked first, a second one as standby, and a script in place of the engine, which goes on with
answers that break. The provider answers, fails for `--seconds` in the way `--fault` names (those of `freehold drill`; all
of them run side by side, each with a gateway of its own), and answers again. A call is a request for an answer; pings (GET
/models: no prompt, no tokens) are counted apart. Bans, bills and regions are no outages: who is quarantined is not asked.

`--check` exits 1 when more than 6 calls a minute reached it, when it took more than 5 seconds to be back, or when a request
was lost.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
from contextlib import aclosing
from typing import Any

from freehold.gateway.backends.keys import Key
from freehold.gateway.backends.upstreams import upstream_backend
from freehold.gateway.conversation import Failed, Finished, Request, TextPart, Turn
from freehold.gateway.faults import ADDRESS_FAULTS, FAULTS, FaultServer
from freehold.gateway.policy import Policy
from freehold.gateway.service import Gateway
from freehold.settings import BreakerSettings, GuardSettings, RouterSettings, RouteSettings, UpstreamSettings
from soak import ScriptedCore

CALLS_A_MINUTE, BACK_SECONDS = 6, 5.0
OUTAGES = tuple(name for name in FAULTS if name not in ADDRESS_FAULTS and name[:3] not in ("402", "ban"))


class Traffic:
    """Requests at a steady rate, and who answered each."""

    def __init__(self, gateway: Gateway, rate: float) -> None:
        self._gateway = gateway
        self._rate = rate
        self.answers: list[tuple[float, str]] = []  # when and by whom
        self.lost = 0
        self._running: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        number = 0
        while True:
            number += 1
            task = asyncio.create_task(self._ask(number))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
            await asyncio.sleep(1 / self._rate)

    async def drain(self) -> None:
        await asyncio.gather(*self._running)

    async def _ask(self, number: int) -> None:
        turns = (Turn("user", (TextPart("Are you there?"),)),)
        request = Request(id=f"outage-{number}", model="outage", turns=turns, stream=number % 2 == 0, max_tokens=64)
        try:
            answer = await self._gateway.answer(request)
            async with aclosing(answer.events) as events:
                seen = [event async for event in events]
        except Exception as error:
            print(f"request {number} was lost: {error}", file=sys.stderr)
            self.lost += 1
            return
        whole = any(isinstance(e, Finished) for e in seen) and not any(isinstance(e, Failed) for e in seen)
        self.lost += not whole
        self.answers.append((asyncio.get_running_loop().time(), answer.record.backend))


async def outage(seconds: float, rate: float, fault: str) -> dict[str, Any]:
    dead, well = FaultServer(), FaultServer()
    await dead.start()
    await well.start()
    guards = GuardSettings()
    names = (("first", dead), ("second", well))
    standbys = [
        upstream_backend(UpstreamSettings(name=name, base_url=server.url, model="m"), guards, key=Key(""))
        for name, server in names
    ]
    policy = Policy(RouterSettings(), (RouteSettings("outage", ("first", "second", "local")),))
    gateway = Gateway(ScriptedCore(), standbys, guards, policy=policy, breaker=BreakerSettings())
    traffic = Traffic(gateway, rate)
    running = asyncio.create_task(traffic.run())
    loop = asyncio.get_running_loop()
    try:
        await asyncio.sleep(2)
        before, pings = dead.calls, dead.pings
        await dead.turn(fault)
        await asyncio.sleep(seconds)
        calls, pinged = dead.calls - before, dead.pings - pings
        await dead.turn(None)
        recovered = loop.time()
        while not any(at > recovered and by == "first" for at, by in traffic.answers):
            if loop.time() - recovered > 120:
                break
            await asyncio.sleep(0.01)
        back = next((at - recovered for at, by in traffic.answers if at > recovered and by == "first"), None)
    finally:
        running.cancel()
        await asyncio.wait([running])
        await traffic.drain()
        await gateway.close()
        await dead.close()
        await well.close()
    return {
        "fault": fault, "outage_seconds": seconds, "requests": len(traffic.answers) + traffic.lost, "lost": traffic.lost,
        "calls_to_the_dead": calls, "pings_to_the_dead": pinged,
        "back_after_seconds": None if back is None else round(back, 2),
    }  # fmt: skip


def kept(report: dict[str, Any]) -> bool:
    """Whether an outage cost no more than it may."""
    allowed = CALLS_A_MINUTE * max(1.0, report["outage_seconds"] / 60)
    back = report["back_after_seconds"]
    return report["calls_to_the_dead"] <= allowed and report["lost"] == 0 and back is not None and back <= BACK_SECONDS


def table(reports: list[dict[str, Any]]) -> str:
    """A line for each fault."""
    names = list(reports[0])
    lines = ["  ".join(name.replace("_", " ") for name in names)]
    for report in reports:
        cells = "  ".join(str(report[name]).ljust(len(name)) for name in names)
        lines.append(f"{cells}  {'' if kept(report) else 'MISSED'}".rstrip())
    return "\n".join(lines)


async def _all(faults: tuple[str, ...], seconds: float, rate: float) -> list[dict[str, Any]]:
    return list(await asyncio.gather(*[outage(seconds, rate, fault) for fault in faults]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the outage")
    parser.add_argument("--rate", type=float, default=2.0, help="requests per second")
    parser.add_argument("--fault", default="all", choices=["all", *OUTAGES])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true", help="exit 1 when a bound is missed")
    given = parser.parse_args()
    logging.getLogger("freehold").setLevel(logging.CRITICAL)
    faults = OUTAGES if given.fault == "all" else (given.fault,)
    reports = asyncio.run(_all(faults, given.seconds, given.rate))
    print(json.dumps(reports) if given.json else table(reports))
    return int(given.check and not all(map(kept, reports)))


if __name__ == "__main__":
    sys.exit(main())
