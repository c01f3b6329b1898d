"""The real model on a real server: 32 streams together as one by one, and `kill -9` of the engine in the middle of 8.

    python bench/crash.py [--model smollm2-int4] [--tokens 48] [--json] [--check]

`freehold serve` runs as a process, asked with OpenAI's own client; the standby is a provider on loopback. Reported: whether
32 concurrent greedy streams say what they say alone, and the seconds both take; after the kill, who answers the next
requests and how soon, when the engine is back, and what became of the 8 streams; and what a server without a standby says.
Before that, a provider cuts streams in the middle: how long the client waits until the engine goes on with them, beside the
engine's own time to first token for the same question.

`--check` exits 1 when a text differs, the standby takes a second or more, the engine ten, a stream breaks, there is no hint, or
the gap of a cut stream is more than the engine's first token and 250 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai

from freehold.gateway.faults import BEFORE_BREAK, PIECES, FaultServer

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from first_run import base_url_of  # noqa: E402

SUBJECTS = ("France", "tea", "the sea", "iron", "winter", "music", "a bridge", "Mars", "bees", "paper", "glass", "salt",
            "a river", "bread", "the moon", "chess", "gold", "a forest", "wool", "fire", "a clock", "rain", "a ship", "silk",
            "stone", "a cat", "wind", "coal", "a lens", "honey", "snow", "a map")  # fmt: skip
STREAMS = 8
CUTS = 20
MOST_GAP = 0.25


class Served:
    """`freehold serve` in a process of its own; `said` is its log, once it has ended."""

    def __init__(self, process: subprocess.Popen[str], url: str, model: str) -> None:
        self.process, self.url, self.model, self.said = process, url, model, ""
        self.client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=300)

    def ask(self, text: str, tokens: int, **given: Any) -> dict[str, Any]:
        """What a greedy request says."""
        messages = [{"role": "user", "content": text}]
        return {"model": self.model, "messages": messages, "max_tokens": tokens, "temperature": 0} | given

    async def stream(self, text: str, tokens: int, begun: asyncio.Event | None = None, **given: Any) -> str:
        """The text of a streamed answer."""
        said = ""
        async for chunk in await self.client.chat.completions.create(stream=True, **self.ask(text, tokens, **given)):
            said += "".join(choice.delta.content or "" for choice in chunk.choices)
            if begun is not None and said:
                begun.set()
        return said

    def engine(self) -> int:
        """The engine's process."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        found = [int(pid) for pid in children if "engine" in Path(f"/proc/{pid}/cmdline").read_text()]
        if len(found) != 1:
            raise SystemExit(f"expected one engine among the server's children, found {len(found)}")
        return found[0]

    async def ready_after(self, began: float) -> float:
        """Seconds until the engine is ready again."""
        async with httpx2.AsyncClient() as http:
            while time.monotonic() - began < 60:
                states = (await http.get(self.url.removesuffix("/v1") + "/health")).json()["backends"]
                if states[0]["state"] == "ready":
                    return time.monotonic() - began
                await asyncio.sleep(0.02)
        raise SystemExit("the engine was not back after a minute")


def _config(directory: str, upstream: str | None) -> Path:
    """A settings file that touches nothing of the user's."""
    standby = f'[[upstream]]\nname = "standby"\nbase_url = "{upstream}"\nmodel = "m"\n' if upstream else ""
    standby += '[[route]]\nmodel = "cut"\nto = ["standby", "local"]\n' if upstream else ""
    path = Path(directory, "config.toml")
    path.write_text(
        f'[database]\nurl = "sqlite:///{directory}/db"\n[breaker]\nstate_dir = "{directory}"\n'
        f"open_after = 1000\n{standby}"
    )
    return path


@asynccontextmanager
async def served(model: str, upstream: str | None, *flags: str) -> AsyncGenerator[Served, None]:
    """A server with one standby, or none; flags are more of `freehold serve`'s."""
    with tempfile.TemporaryDirectory() as directory:
        config = _config(directory, upstream)
        command = [
            str(Path(sys.executable).parent / "freehold"),
            "serve",
            "--config",
            str(config),
            "-m",
            model,
            "--port",
            "0",
            *flags,
        ]
        process = await asyncio.to_thread(subprocess.Popen, command, stderr=subprocess.PIPE, text=True)
        try:
            url = await asyncio.to_thread(base_url_of, process)
            draining = asyncio.create_task(asyncio.to_thread(process.stderr.read))  # type: ignore[union-attr]
            found = Served(process, url, model)
            async with found.client:
                yield found
        finally:
            process.terminate()
            await asyncio.to_thread(process.wait, 60)
        found.said = await draining


async def together(server: Served, tokens: int) -> dict[str, Any]:
    """32 streams one by one, then at once."""
    prompts = [f"Tell me about {subject}." for subject in SUBJECTS]
    began = time.monotonic()
    alone = [await server.stream(prompt, tokens) for prompt in prompts]
    between = time.monotonic()
    at_once = await asyncio.gather(*[server.stream(prompt, tokens) for prompt in prompts])
    ended = time.monotonic()
    same = sum(one == other and bool(one) for one, other in zip(alone, at_once, strict=True))
    return {"streams": len(prompts), "same_text": same, "alone_s": between - began, "together_s": ended - between}


async def arrivals(server: Served, model: str, text: str) -> list[tuple[float, str]]:
    """Seconds since the question was sent, and the piece that came then."""
    began, seen = time.monotonic(), []
    async for chunk in await server.client.chat.completions.create(stream=True, **server.ask(text, 80, model=model)):
        said = "".join(choice.delta.content or "" for choice in chunk.choices)
        seen += [(time.monotonic() - began, said)] if said else []
    return seen


async def cut(server: Served, provider: FaultServer) -> dict[str, Any]:
    """A provider breaks off in mid-sentence, and the engine goes on."""
    await provider.turn("mid-stream cut")
    gaps, firsts, whole = [], [], 0
    for i in range(CUTS):
        question = f"Tell me about {SUBJECTS[i]}."
        firsts.append((await arrivals(server, server.model, question))[0][0])
        seen = await arrivals(server, "cut", question)
        gaps.append(seen[BEFORE_BREAK][0] - seen[BEFORE_BREAK - 1][0])
        whole += "".join(said for _, said in seen[:BEFORE_BREAK]) == "".join(PIECES[:BEFORE_BREAK])
    await provider.turn(None)
    return {
        "cuts": CUTS, "nothing_lost": whole, "gap_p50_s": statistics.median(gaps), "gap_max_s": max(gaps),
        "engine_first_token_p50_s": statistics.median(firsts),
    }  # fmt: skip


async def running(server: Served) -> list[asyncio.Task[str]]:
    """Eight streams, all of which have begun."""
    begun = [asyncio.Event() for _ in range(STREAMS)]
    bias = {"ignore_eos": True}  # long enough to be met in the middle
    tasks = [
        asyncio.create_task(server.stream(f"Tell me a long story about {SUBJECTS[i]}.", 400, begun[i], extra_body=bias))
        for i in range(STREAMS)
    ]
    await asyncio.gather(*[event.wait() for event in begun])
    return tasks


async def with_standby(server: Served) -> dict[str, Any]:
    """Kills the engine while a standby is there."""
    tasks = await running(server)
    os.kill(server.engine(), signal.SIGKILL)
    killed = time.monotonic()

    async def next_request() -> tuple[str, float]:
        raw = await server.client.chat.completions.with_raw_response.create(**server.ask("Are you there?", 16))
        return raw.headers["x-freehold-backend"], time.monotonic() - killed

    answers = await asyncio.gather(*[next_request() for _ in range(4)])
    back = await server.ready_after(killed)
    texts = await asyncio.gather(*tasks, return_exceptions=True)
    return {
        "answered_by": sorted({who for who, _ in answers}), "slowest_s": max(seconds for _, seconds in answers),
        "engine_back_s": back, "streams_completed": sum(isinstance(text, str) and bool(text) for text in texts),
    }  # fmt: skip


async def without_standby(server: Served) -> dict[str, Any]:
    """Kills the engine while there is nobody else."""
    os.kill(server.engine(), signal.SIGKILL)
    killed = time.monotonic()
    try:
        await server.client.chat.completions.create(**server.ask("Are you there?", 16))
    except openai.APIStatusError as error:
        seconds, status, code, text = time.monotonic() - killed, error.status_code, error.code, error.message
    else:
        seconds, status, code, text = time.monotonic() - killed, 200, None, "the engine was back already"
    return {
        "status": status,
        "code": code,
        "message": text,
        "seconds": seconds,
        "engine_back_s": await server.ready_after(killed),
    }


async def run(model: str, tokens: int) -> dict[str, Any]:
    """All three."""
    provider = FaultServer()
    await provider.start()
    try:
        async with served(model, provider.url) as server:
            found = {"together": await together(server, tokens), "cut": await cut(server, provider)}
            found["with_standby"] = await with_standby(server)
        async with served(model, None) as server:
            return found | {"without_standby": await without_standby(server)}
    finally:
        await provider.close()


def kept(found: dict[str, Any]) -> bool:
    """Whether everything is as it should be."""
    same, cuts, after, alone = (found[name] for name in ("together", "cut", "with_standby", "without_standby"))
    return (
        cuts["nothing_lost"] == cuts["cuts"]
        and cuts["gap_p50_s"] <= cuts["engine_first_token_p50_s"] + MOST_GAP
        and same["same_text"] == same["streams"]
        and after["answered_by"] == ["standby"]
        and after["slowest_s"] < 1
        and max(after["engine_back_s"], alone["engine_back_s"]) < 10
        and after["streams_completed"] == STREAMS
        and (alone["status"], alone["code"]) == (503, "engine_down")
        and "Hint: " in alone["message"]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-int4")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    found = asyncio.run(run(given.model, given.tokens))
    if given.json:
        print(json.dumps(found))
    else:
        for part, values in found.items():
            print(part.replace("_", " "))
            for name, value in values.items():
                print(f"  {name.replace('_', ' '):20} {f'{value:.2f}' if isinstance(value, float) else value}")
    return int(given.check and not kept(found))


if __name__ == "__main__":
    sys.exit(main())
