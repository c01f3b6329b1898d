"""Half an hour of traffic while a provider fails at random: what grows, what leaks, what is lost.

    python bench/soak.py [--minutes 30] [--rate 50] [--seed 1] [--fault-seconds 3] [--json] [--check]

The gateway runs in a process of its own, with a database, a script in place of the engine (what is measured is the
gateway's memory; the script continues broken answers as the engine would), and two providers on loopback: every few
seconds the first takes another of the drill's faults and is well again, the second stays well. Requests come at a fixed rate
whatever becomes of them, every second one streamed. Reported: answers and losses, growth of the gateway's memory over the
last two thirds of the run, sockets it holds when all is over, and whether each request has its row of usage and each answer the
record in the ledger that its header names.

`--check` exits 1 when a request was lost or is not accounted for, memory grew by more than 1 MiB, or a socket leaked.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2

from freehold.engine.request import EngineStats
from freehold.gateway.conversation import Event, Finished, Request, Started, TextDelta, Usage
from freehold.gateway.faults import ADDRESS_FAULTS, FAULTS, SENTENCE, FaultServer

MAX_GROWTH_MIB = 1.0
TURNS = tuple(fault for fault in FAULTS if fault not in ADDRESS_FAULTS)
"""What becomes of the first provider."""


@dataclass
class Tally:
    """What became of the requests."""

    answered: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    by: Counter[str] = field(default_factory=Counter)
    ids: set[str] = field(default_factory=set)
    records: set[str] = field(default_factory=set)  # in the ledger, as the answers named them
    milliseconds: list[float] = field(default_factory=list)
    rss: list[tuple[float, int]] = field(default_factory=list)  # seconds since the start, bytes


class ScriptedCore:
    """Stands where the engine would: knows the sentence, and goes on with it wherever an answer broke."""

    name, model, state, continues = "local", "scripted", "ready", True

    def __init__(self) -> None:
        self.engine = SimpleNamespace(stats=EngineStats(), state="ready", facts=None)

    def check(self, request: Request) -> None:
        """Takes everything."""

    async def start(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do."""

    async def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        rest = SENTENCE.removeprefix(request.continue_from)
        yield Started(self.model)
        for i, word in enumerate(rest.split(" ")):
            yield TextDelta(word if i == 0 else " " + word)
        yield Finished("stop")
        yield Usage(5, len(rest.split()))


def serve(directory: str, first: str, second: str) -> None:
    """The gateway's process: says its port, ends at SIGTERM."""
    from freehold.database import Database
    from freehold.gateway.backends.openai import OpenAIBackend
    from freehold.gateway.budget import Budget
    from freehold.gateway.policy import Policy
    from freehold.gateway.quarantine import QuarantineStore
    from freehold.gateway.server import bind, serve_on
    from freehold.gateway.service import Gateway
    from freehold.provenance.ledger import Ledger
    from freehold.settings import (
        BreakerSettings,
        GuardSettings,
        ProvenanceSettings,
        RouteSettings,
        ServerSettings,
        Settings,
        UpstreamSettings,
    )

    guards = GuardSettings(ttft_seconds=0.5, idle_seconds=0.5, total_seconds=10)
    upstreams = tuple(UpstreamSettings(name=n, base_url=u, model=n) for n, u in (("first", first), ("second", second)))
    breaker = BreakerSettings(
        quarantine_seconds=1.0, longest_wait_seconds=2.0
    )  # so that faults are met again and again
    settings = Settings(server=ServerSettings(port=0), guards=guards, upstreams=upstreams, breaker=breaker)
    database = Database(f"sqlite:///{directory}/usage.db")
    gateway = Gateway(
        ScriptedCore(),  # type: ignore[arg-type]
        [OpenAIBackend(upstream, guards) for upstream in upstreams],
        guards,
        policy=Policy(routes=(RouteSettings("default", ("first", "second", "local")),)),
        upstreams=upstreams,
        breaker=breaker,
        store=QuarantineStore(Path(directory)),
        budget=Budget(database, upstreams=upstreams),
        ledger=Ledger(database, ProvenanceSettings(journal_dir=f"{directory}/journal"), directory=Path(directory)),
    )
    with bind(settings.server) as listener:
        port = listener.getsockname()[1]
        asyncio.run(serve_on(listener, settings, gateway, lambda line: print(port, flush=True)))


async def one(client: httpx2.AsyncClient, url: str, stream: bool, tally: Tally) -> None:
    """One request; whatever goes wrong is counted."""
    body = {"model": "default", "messages": [{"role": "user", "content": "hi"}], "stream": stream, "max_tokens": 100}
    began = time.perf_counter()
    try:
        answer = await client.post(url, json=body)
        tally.ids.add(answer.headers.get("x-request-id", ""))
        tally.records.add(answer.headers.get("x-freehold-provenance", ""))
        wrong = _wrong(answer, stream)
    except httpx2.HTTPError as error:
        wrong = type(error).__name__
    if wrong:
        tally.lost[wrong] += 1
    else:
        tally.answered += 1
        tally.by[answer.headers["x-freehold-backend"]] += 1
    tally.milliseconds.append((time.perf_counter() - began) * 1e3)


def _wrong(answer: httpx2.Response, stream: bool) -> str | None:
    """What is wrong with an answer; the text must be there whole, once."""
    if answer.status_code != 200:
        return f"status {answer.status_code}"
    if not stream:
        return None if answer.json()["choices"][0]["message"]["content"] == SENTENCE else "another text"
    lines = [line[6:] for line in answer.text.split("\n\n") if line.startswith("data: ")]
    if not lines or lines[-1] != "[DONE]":
        return "a stream without its end"
    chunks = [json.loads(line) for line in lines[:-1]]
    text = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])
    return None if text == SENTENCE else "another text in a stream"


async def _fail(server: FaultServer, seconds: float, chance: random.Random) -> None:
    while True:
        await server.turn(chance.choice(TURNS))
        await asyncio.sleep(seconds)
        await server.turn(None)
        await asyncio.sleep(seconds)


async def _watch(pid: int, began: float, tally: Tally) -> None:
    while True:
        tally.rss.append((time.monotonic() - began, rss(pid)))
        await asyncio.sleep(0.25)


async def _traffic(url: str, pid: int, given: argparse.Namespace, tally: Tally, first: FaultServer) -> None:
    """Requests at a fixed rate; returns when all have come back."""
    began, seconds = time.monotonic(), given.minutes * 60
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=20)
    beside = [
        asyncio.create_task(_fail(first, given.fault_seconds, random.Random(given.seed))),
        asyncio.create_task(_watch(pid, began, tally)),
    ]
    async with httpx2.AsyncClient(timeout=30, limits=limits) as client, asyncio.TaskGroup() as group:
        for i in range(int(seconds * given.rate)):
            await asyncio.sleep(max(0.0, began + i / given.rate - time.monotonic()))
            group.create_task(one(client, url, bool(i % 2), tally))
    for task in beside:
        task.cancel()
    await asyncio.wait(beside)


async def run(given: argparse.Namespace) -> dict[str, Any]:
    """The whole soak."""
    tally, first, second = Tally(), FaultServer(), FaultServer()
    await first.start()
    await second.start()
    with tempfile.TemporaryDirectory() as directory:
        words = (sys.executable, __file__, "--serve", directory, first.url, second.url)
        process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
        try:
            assert process.stdout
            port = int(await process.stdout.readline())
            base = f"http://127.0.0.1:{port}"
            async with httpx2.AsyncClient() as client:  # one answer first: what is loaded only once is loaded
                await one(client, base + "/v1/chat/completions", False, tally)
            await first.turn(None)
            idle = sockets(process.pid)
            await _traffic(base + "/v1/chat/completions", process.pid, given, tally, first)
            await first.turn(None)
            left = await _settled(process.pid, idle)
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
                await process.wait()
            await first.close()
            await second.close()
        rows = accounted(directory)
    return report(tally, idle, left, *rows)


async def _settled(pid: int, idle: int, seconds: float = 45) -> int:
    """Sockets once connections that are kept for the next request have ended (30 s at most), less those at the start."""
    until = time.monotonic() + seconds
    while (now := sockets(pid)) > idle and time.monotonic() < until:  # noqa: ASYNC110  (another process's)
        await asyncio.sleep(0.5)
    return now - idle


def rss(pid: int) -> int:
    """Bytes in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def sockets(pid: int) -> int:
    """Open sockets of a process."""
    count = 0
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            count += str(link.readlink()).startswith("socket:")
        except FileNotFoundError:  # closed meanwhile
            continue
    return count


def accounted(directory: str) -> tuple[set[str], set[str]]:
    """Requests that have a row of usage, and records of the ledger."""
    from freehold.cost import usage
    from freehold.database import Database
    from freehold.provenance.reading import newest

    with Database(f"sqlite:///{directory}/usage.db") as database:
        return {row.request_id for row in usage.read(database)}, {record.id for record in newest(database)}


def growth(samples: list[tuple[float, int]]) -> float:
    """MiB gained over the last two thirds: the median of their last tenth less that of their first."""
    late = [size for seconds, size in samples if seconds >= samples[-1][0] / 3]
    tenth = max(1, len(late) // 10)
    return (statistics.median(late[-tenth:]) - statistics.median(late[:tenth])) / 2**20


def report(tally: Tally, idle: int, left: int, rows: set[str], records: set[str]) -> dict[str, Any]:
    """What was found."""
    return {
        "requests": len(tally.milliseconds),
        "answered": tally.answered,
        "lost": dict(tally.lost),
        "answered_by": dict(tally.by),
        "p50_ms": round(statistics.median(tally.milliseconds), 1),
        "p99_ms": round(statistics.quantiles(tally.milliseconds, n=100)[98], 1),
        "rss_mib": round(tally.rss[-1][1] / 2**20, 1),
        "rss_growth_mib": round(growth(tally.rss), 2),
        "sockets_idle": idle,
        "sockets_left": left,
        "not_accounted": len(tally.ids - rows),
        "not_recorded": len(tally.records - records),
    }


def short(found: dict[str, Any]) -> list[str]:
    """In what it fell short."""
    problems = [f"{count} requests lost: {what}" for what, count in found["lost"].items()]
    if found["not_accounted"]:
        problems.append(f"{found['not_accounted']} requests have no row of usage")
    if found["not_recorded"]:
        problems.append(f"{found['not_recorded']} answers have no record in the ledger")
    if found["rss_growth_mib"] > MAX_GROWTH_MIB:
        problems.append(f"memory grew by {found['rss_growth_mib']} MiB")
    if found["sockets_left"] > 0:
        problems.append(f"{found['sockets_left']} sockets leaked")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate", type=float, default=50, help="requests per second")
    parser.add_argument("--seed", type=int, default=1, help="of the faults' order")
    parser.add_argument("--fault-seconds", type=float, default=3, help="how long each fault lasts")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(*given.serve)
        return 0
    found = asyncio.run(run(given))
    problems = short(found)
    if given.json:
        print(json.dumps(found | {"problems": problems}, indent=2))
    else:
        print("\n".join(f"{name:16}{value}" for name, value in found.items()))
        print("\n".join(problems) or "nothing lost, nothing leaked")
    return int(given.check and bool(problems))


if __name__ == "__main__":
    sys.exit(main())
