"""What accounting adds to a request: reserve and settle, one after another and 200 at once, on a real database.

python bench/budget.py [DATABASE_URL]     (a SQLite file in a temporary directory by default)
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from datetime import UTC, datetime

from freehold.cost.meter import Part
from freehold.cost.prices import Tokens
from freehold.database import Database
from freehold.gateway import virtual_keys
from freehold.gateway.budget import Budget, Offer
from freehold.gateway.virtual_keys import Limits
from freehold.settings import UpstreamSettings

ROUNDS = 1000
AT_ONCE = 200


async def run(url: str) -> dict[str, object]:
    upstream = UpstreamSettings(name="openai", provider="openai", model="gpt-4o-mini")
    budget = Budget(Database(url), upstreams=[upstream])
    await budget.start()
    try:
        _, work = virtual_keys.create("bench", Limits(usd_per_day=10**15, requests_per_minute=10**9), time.time())
        key = (await budget.database.run(work)).id
        await budget.ring.refresh()

        async def reserve(key_id: str) -> float:
            began = time.perf_counter()
            offer: Offer = budget.offer("openai", "gpt-4o-mini", 1000, 500)
            hold = await budget.reserve(key_id, "gpt-4o-mini", [offer], 1500)
            took = time.perf_counter() - began
            began = time.perf_counter()
            part = Part("openai", "gpt-4o-mini", datetime.now(UTC), heard=True, tokens=Tokens(1000, 500), finished=True)
            budget.settle(hold, hold.id, [part])
            return took + time.perf_counter() - began

        limited = sorted([await reserve(key) for _ in range(ROUNDS)])
        free = sorted([await reserve("") for _ in range(ROUNDS)])
        began = time.perf_counter()
        for _ in range(5):
            await asyncio.gather(*[reserve(key) for _ in range(AT_ONCE)])
        await budget.flush()
        busy = 5 * AT_ONCE / (time.perf_counter() - began)
    finally:
        await budget.close()
    return {
        "database": budget.database.url.get_backend_name(),
        "limited_ms": {"p50": _at(limited, 0.5), "p99": _at(limited, 0.99)},
        "unlimited_ms": {"p50": _at(free, 0.5), "p99": _at(free, 0.99)},
        "requests_per_second": round(busy),
    }


def _at(values: list[float], share: float) -> float:
    return round(values[int(share * (len(values) - 1))] * 1000, 3)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        url = sys.argv[1] if len(sys.argv) > 1 else f"sqlite:///{directory}/bench.db"
        print(json.dumps(asyncio.run(run(url)), indent=2))
