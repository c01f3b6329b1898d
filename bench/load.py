"""Half an hour of mixed load on a real server: what gets stuck, what leaks, how long clients wait.

    python bench/load.py [--model smollm2-int4] [--minutes 30] [--clients 32] [--kv-memory-mb 128] [--seed 1] [--json] [--check]

`freehold serve` runs as a process with a KV cache that is too small for all clients at once, so that pages are evicted
and requests preempted. Each client sends one request after another, of a kind drawn by its own generator: prompts of 1
token to an eighth of the context, 1 to 200 tokens of output, chat and completions, streamed and whole, sampled, greedy, or
held to JSON; streams left in the middle and whole answers left before they come; prompts and outputs that are longer than
the context, which must be refused with status 400 and `context_length_exceeded`; and questions whose greedy answer is known
from before the load, which must be answered with the same text. Guards wait long, as there is nobody to take over.

Reported: requests by kind, what was lost and how, time to first token and time per output token of streams that ended,
preemptions, what the engine still held when all clients were gone, and how much the memory of server and engine grew over
the last two thirds of the run. `--check` exits 1 when anything was lost or stuck, a page is still held, or memory grew by
1% or more.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx2

from crash import Served, served
from soak import rss

LONGEST_OUTPUT = 200
WAIT = 180.0
"""Seconds of silence after which a client counts its request as stuck."""
SETTLE = 30.0
"""Seconds in which the engine must be rid of what clients left."""
MAX_GROWTH = 0.01
LOG_LINES = 40
"""Of the server's log, shown when something was lost."""
WORDS = ("the", "river", "carries", "old", "stones", "past", "quiet", "houses", "while", "seven", "birds", "argue", "about",
         "bread", "and", "weather")  # fmt: skip
QUESTIONS = ("Name a river.", "What is tea?", "Count to five.", "What do bees make?")
GAUGES = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")


@dataclass
class Tally:
    """What became of the requests."""

    ended: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    first: list[float] = field(default_factory=list)  # seconds to the first piece of a stream
    each: list[float] = field(default_factory=list)  # seconds per token after it
    tokens: int = 0
    memory: list[tuple[float, int, int]] = field(default_factory=list)  # seconds since the start, bytes of both


class Client:
    """One of many: draws what to ask, asks it, says what is wrong with the answer."""

    def __init__(self, url: str, http: httpx2.AsyncClient, facts: dict[str, Any], seed: int, tally: Tally) -> None:
        self._url, self._http, self._facts, self._tally = url, http, facts, tally
        self._random = random.Random(seed)

    async def work(self, until: float) -> None:
        kinds: dict[str, tuple[int, Callable[[], Awaitable[str | None]]]] = {
            "stream": (40, self.stream),
            "whole": (20, self.whole),
            "stream left": (15, self.stream_left),
            "whole left": (5, self.whole_left),
            "too long": (10, self.too_long),
            "known": (10, self.known),
        }
        weights = [weight for weight, _ in kinds.values()]
        while time.monotonic() < until:
            [kind] = self._random.choices(list(kinds), weights)
            try:
                wrong = await kinds[kind][1]()
            except httpx2.HTTPError as error:
                wrong = f"{type(error).__name__} {error}".strip()
            if wrong is None:
                self._tally.ended[kind] += 1
            else:
                self._tally.lost[f"{kind}: {wrong}"] += 1

    def draw(self) -> tuple[str, dict[str, Any]]:
        """A request of random length and sampling: its path and body. Short prompts are drawn more often than long ones."""
        length = int((self._facts["context"] // 8) ** self._random.random())
        body = {
            "model": self._facts["model"],
            "max_tokens": self._random.randint(1, min(LONGEST_OUTPUT, self._facts["context"] // 8)),
        }
        body |= self._random.choice(({"temperature": 0}, {"temperature": 0.8, "top_p": 0.9}, {"top_k": 40}))
        if self._random.random() < 0.5:
            ids = [self._random.randrange(self._facts["vocabulary"]) for _ in range(length)]
            return "/completions", body | {"prompt": ids}
        if self._random.random() < 0.2:
            body["response_format"] = {"type": "json_object"}
        text = " ".join(self._random.choice(WORDS) for _ in range(length))
        return "/chat/completions", body | {"messages": [{"role": "user", "content": text}]}

    async def stream(self) -> str | None:
        path, body = self.draw()
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        began, times, last, usage = time.perf_counter(), list[float](), "", None
        async with self._http.stream("POST", self._url + path, json=body) as answer:
            if answer.status_code != 200:
                return await _refusal(answer)
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    chunk = json.loads(line[6:])
                    if "error" in chunk:
                        return f"broken: {chunk['error']['code']}"
                    usage = chunk.get("usage") or usage
                    if _text(chunk):
                        times.append(time.perf_counter())
                last = line or last
        if last != "data: [DONE]" or usage is None:
            return "a stream without its end"
        return self._note(began, times, usage["completion_tokens"], body["max_tokens"])

    def _note(self, began: float, times: list[float], tokens: int, most: int) -> str | None:
        self._tally.tokens += tokens
        if times:
            self._tally.first.append(times[0] - began)
        if tokens > 1 and len(times) > 1:
            self._tally.each.append((times[-1] - times[0]) / (tokens - 1))
        return None if tokens <= most else f"{tokens} tokens instead of at most {most}"

    async def whole(self) -> str | None:
        path, body = self.draw()
        answer = await self._http.post(self._url + path, json=body)
        if answer.status_code != 200:
            return await _refusal(answer)
        given = answer.json()
        tokens = given["usage"]["completion_tokens"]
        if given["choices"][0]["finish_reason"] not in ("stop", "length"):
            return f"finish_reason {given['choices'][0]['finish_reason']}"
        return self._note(0, [], tokens, body["max_tokens"])

    async def stream_left(self) -> str | None:
        path, body = self.draw()
        pieces = self._random.randint(1, 20)
        async with self._http.stream("POST", self._url + path, json=body | {"stream": True}) as answer:
            if answer.status_code != 200:
                return await _refusal(answer)
            async for line in answer.aiter_lines():
                pieces -= line.startswith("data: ")
                if pieces == 0:
                    break
        return None

    async def whole_left(self) -> str | None:
        path, body = self.draw()
        try:
            async with asyncio.timeout(self._random.uniform(0.0, 2.0)):
                await self._http.post(self._url + path, json=body)
        except TimeoutError:
            pass
        return None

    async def too_long(self) -> str | None:
        """A prompt, or a prompt with its output, of more tokens than the context has."""
        path, body = self.draw()
        over = self._facts["context"] + self._random.randint(1, 1000)
        body |= {"stream": self._random.random() < 0.5}
        if self._random.random() < 0.5:
            body["max_tokens"] = over
        elif path == "/completions":
            body["prompt"] = [self._random.randrange(self._facts["vocabulary"]) for _ in range(over)]
        else:
            body["messages"][0]["content"] = "river " * over
        answer = await self._http.post(self._url + path, json=body)
        if answer.status_code == 400 and answer.json()["error"]["code"] == "context_length_exceeded":
            return None
        return f"expected a refusal, got {await _refusal(answer)}"

    async def known(self) -> str | None:
        question = self._random.choice(QUESTIONS)
        answer = await self._http.post(self._url + "/chat/completions", json=greedy(self._facts["model"], question))
        if answer.status_code != 200:
            return await _refusal(answer)
        same = answer.json()["choices"][0]["message"]["content"] == self._facts["known"][question]
        return None if same else "another text than before the load"


def greedy(model: str, question: str) -> dict[str, Any]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": 24,
        "temperature": 0,
    }


def _text(chunk: dict[str, Any]) -> bool:
    return any(choice.get("text") or choice.get("delta", {}).get("content") for choice in chunk["choices"])


async def _refusal(answer: httpx2.Response) -> str:
    """A status and the error's code."""
    await answer.aread()
    try:
        return f"{answer.status_code} {answer.json()['error']['code']}"
    except (ValueError, KeyError):
        return str(answer.status_code)


async def metric(http: httpx2.AsyncClient, server: Served, *names: str) -> list[float]:
    """Values of metrics that have no labels."""
    text = (await http.get(server.url.removesuffix("/v1") + "/metrics")).text
    pairs = dict(line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
    return [float(pairs[f"freehold:{name}"]) for name in names]


async def facts_of(http: httpx2.AsyncClient, server: Served) -> dict[str, Any]:
    """What clients must know of the model; its sizes are what refusals say."""
    model = (await http.get(server.url + "/models")).json()["data"][0]["id"]
    bodies = ({"prompt": "a", "max_tokens": 2**30}, {"prompt": [2**31 - 1]})
    patterns, known = (r"the context is (\d+) tokens", r"expected less than (\d+)"), {}
    answers = [await http.post(server.url + "/completions", json={"model": model} | body) for body in bodies]
    messages = [answer.json()["error"]["message"] for answer in answers]
    sizes = [re.search(pattern, message) for pattern, message in zip(patterns, messages, strict=True)]
    if None in sizes:
        raise SystemExit(f"expected refusals that name context and vocabulary, found {messages}")
    context, vocabulary = (int(size[1]) for size in sizes if size)
    for question in QUESTIONS:
        answer = await http.post(server.url + "/chat/completions", json=greedy(model, question))
        known[question] = answer.raise_for_status().json()["choices"][0]["message"]["content"]
    return {"model": model, "context": context, "vocabulary": vocabulary, "known": known}


async def _watch(pids: tuple[int, int], began: float, tally: Tally) -> None:
    while True:
        tally.memory.append((time.monotonic() - began, rss(pids[0]), rss(pids[1])))
        await asyncio.sleep(1)


async def _settled(http: httpx2.AsyncClient, server: Served) -> dict[str, float]:
    """What the engine holds once everybody is gone; it has a while to notice."""
    until = time.monotonic() + SETTLE
    while any(held := await metric(http, server, *GAUGES)) and time.monotonic() < until:  # noqa: ASYNC110  (a server's)
        await asyncio.sleep(0.2)
    return dict(zip(GAUGES, held, strict=True))


async def run(given: argparse.Namespace) -> dict[str, Any]:
    """The whole load."""
    tally, limits = Tally(), httpx2.Limits(max_connections=None)
    flags = ("--kv-memory-mb", str(given.kv_memory_mb), "--ttft-seconds", str(WAIT), "--idle-seconds", str(WAIT))
    async with (
        served(given.model, None, *flags) as server,
        httpx2.AsyncClient(timeout=WAIT, limits=limits) as http,
    ):
        facts, engine = await facts_of(http, server), server.engine()
        began = time.monotonic()
        watch = asyncio.create_task(_watch((server.process.pid, engine), began, tally))
        clients = [Client(server.url, http, facts, given.seed * 1000 + i, tally) for i in range(given.clients)]
        await asyncio.gather(*[client.work(began + given.minutes * 60) for client in clients])
        watch.cancel()
        await asyncio.wait([watch])
        seconds, held = time.monotonic() - began, await _settled(http, server)
        preemptions, restarts = await metric(http, server, "num_preemptions_total", "engine_restarts_total")
    log = server.said.splitlines()[-LOG_LINES:] if restarts or tally.lost else []
    return report(tally, seconds, held) | {"preemptions": int(preemptions), "restarts": int(restarts), "log": log}


def growth(samples: list[tuple[float, int]]) -> float:
    """Share gained over the last two thirds: the median of their last tenth over that of their first."""
    late = [size for seconds, size in samples if seconds >= samples[-1][0] / 3]
    tenth = max(1, len(late) // 10)
    return statistics.median(late[-tenth:]) / statistics.median(late[:tenth]) - 1


def percentiles(values: list[float]) -> dict[str, float]:
    """Milliseconds."""
    if len(values) < 2:
        return {}
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {"p50": round(cuts[49] * 1e3, 1), "p99": round(cuts[98] * 1e3, 1), "max": round(max(values) * 1e3, 1)}


def _tenths(sizes: list[int]) -> list[float]:
    """MiB at the start, after each tenth of the run, and at its end."""
    return [round(sizes[(len(sizes) - 1) * i // 10] / 2**20, 1) for i in range(11)]


def report(tally: Tally, seconds: float, held: dict[str, float]) -> dict[str, Any]:
    """What was found."""
    both = [(at, server + engine) for at, server, engine in tally.memory]
    return {
        "seconds": round(seconds, 1),
        "requests": tally.ended.total() + tally.lost.total(),
        "ended": dict(tally.ended),
        "lost": dict(tally.lost),
        "output_tokens_per_second": round(tally.tokens / seconds, 1),
        "ttft_ms": percentiles(tally.first),
        "tpot_ms": percentiles(tally.each),
        "held": held,
        "server_mib": _tenths([server for _, server, _ in tally.memory]),
        "engine_mib": _tenths([engine for _, _, engine in tally.memory]),
        "rss_growth": round(growth(both), 4),
        "rss_growth_server": round(growth([(at, server) for at, server, _ in tally.memory]), 4),
        "rss_growth_engine": round(growth([(at, engine) for at, _, engine in tally.memory]), 4),
    }


def short(found: dict[str, Any]) -> list[str]:
    """In what it fell short."""
    problems = [f"{count} lost: {what}" for what, count in found["lost"].items()]
    problems += [f"{name} is {value:g} after the load" for name, value in found["held"].items() if value]
    if found["rss_growth"] >= MAX_GROWTH:
        problems.append(f"memory grew by {found['rss_growth']:.2%}")
    if found["restarts"]:
        problems.append(f"the engine was restarted {found['restarts']} times")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-int4")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--kv-memory-mb", type=int, default=128)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    found = asyncio.run(run(given))
    problems = short(found)
    if given.json:
        print(json.dumps(found | {"problems": problems}, indent=2))
    else:
        print("\n".join(f"{name:26}{value}" for name, value in found.items() if name != "log"))
        print("\n".join(found["log"]), file=sys.stderr)
        print("\n".join(problems) or "nothing lost, nothing stuck, nothing leaked")
    return int(given.check and bool(problems))


if __name__ == "__main__":
    sys.exit(main())
