"""An engine that hangs in the middle of a streamed answer: how long until it is noticed, replaced, and the answer goes on.

    python bench/hang.py [--model MODEL] [--json]

The engine's process is stopped (SIGSTOP) after some tokens of a greedy answer; settings are the defaults. The answer must be
the same, byte for byte, as without. Exit code 1 when it is not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from contextlib import aclosing

from freehold.engine.pulse import cpu_seconds
from freehold.gateway.conversation import Request, Sampling, TextDelta, TextPart, Turn
from freehold.gateway.service import Gateway
from freehold.settings import EngineSettings, Settings

TOKENS, BEFORE, IDLE_SECONDS = 120, 20, 20


def request(name: str) -> Request:
    turns = (Turn("user", (TextPart("Write a story about a lighthouse."),)),)
    sampling = Sampling(temperature=0.0)
    return Request(id=name, model="local", turns=turns, max_tokens=TOKENS, stream=True, sampling=sampling)


async def text_of(gateway: Gateway, name: str) -> str:
    answer = await gateway.answer(request(name))
    return "".join([event.text async for event in answer.events if isinstance(event, TextDelta)])


async def hang(gateway: Gateway) -> dict[str, float | bool]:
    """One answer, stopped in the middle."""
    engine = gateway.core.engine  # type: ignore[union-attr]
    whole = await text_of(gateway, "whole")
    idle = cpu_seconds(engine.facts.pid) or 0.0  # type: ignore[union-attr]
    await asyncio.sleep(IDLE_SECONDS)
    idle = (cpu_seconds(engine.facts.pid) or 0.0) - idle  # type: ignore[union-attr]
    text, pieces, stopped = "", 0, 0.0
    times: dict[str, float] = {}
    answer = await gateway.answer(request("stopped"))

    async def watch() -> None:
        for state in ("restarting", "ready"):
            while engine.state != state:  # noqa: ASYNC110  (a state has no event)
                await asyncio.sleep(0.005)
            times[state] = time.monotonic() - stopped

    async with aclosing(answer.events) as events:
        async for event in events:
            if not isinstance(event, TextDelta):
                continue
            text, pieces = text + event.text, pieces + 1
            if stopped and "went on" not in times and "ready" in times:
                times["went on"] = time.monotonic() - stopped
            if pieces == BEFORE:
                stopped = time.monotonic()
                os.kill(engine.facts.pid, signal.SIGSTOP)  # type: ignore[union-attr]
                watching = asyncio.create_task(watch())
    await watching
    return {
        "noticed_s": times["restarting"], "ready_s": times["ready"], "went_on_s": times["went on"],
        "same_text": text == whole, "idle_cpu_share": idle / IDLE_SECONDS,
    }  # fmt: skip


async def run(model: str) -> dict[str, float | bool]:
    async with Gateway.build(Settings(engine=EngineSettings(model=model))) as gateway:
        return await hang(gateway)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = asyncio.run(run(given.model))
    if given.json:
        print(json.dumps(found))
    else:
        print(
            f"noticed after {found['noticed_s']:.1f} s, a new engine after {found['ready_s']:.1f} s, the answer went on"
        )
        print(f"after {found['went_on_s']:.1f} s; same text: {found['same_text']}")
        print(f"the engine's idle share of a CPU, with a word a second: {found['idle_cpu_share']:.3%}")
    return int(not found["same_text"])


if __name__ == "__main__":
    sys.exit(main())
