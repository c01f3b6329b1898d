"""Does a server get the same level each time, whatever the seed, and how long does it take?

    python bench/certify.py                                  # the suite's own reference server
    python bench/certify.py http://127.0.0.1:7411 --declare bench/smollm2.yaml --key-env KEY
    python bench/certify.py URL --level 1 --runs 20          # the quick judgement

Runs with two seeds, half of them each; prints levels, what was not passed, and durations. Exit code 1 when levels differ.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

from freehold.certify import Declaration, Endpoint, Plan, declaration, run, selftest
from freehold.certify.judge import judge
from freehold.certify.reference import ReferenceServer
from freehold.certify.requirements import load

SEEDS = ("a1" * 32, "b2" * 32)


async def once(endpoint: Endpoint | None, plan: Plan) -> tuple[int, list[str], float]:
    """Level, ids that were not passed, seconds."""
    begin = time.perf_counter()
    if endpoint is None:
        async with ReferenceServer().running() as url:
            found = await run(Endpoint(url, selftest.KEYS), plan)
    else:
        found = await run(endpoint, plan)
    took = time.perf_counter() - begin
    judgement = judge(found.evidence(), load(), plan.level, found.errors)
    return judgement.level, [verdict.id for verdict in judgement.verdicts if verdict.bad], took


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("url", nargs="?")
    arguments.add_argument("--runs", type=int, default=20)
    arguments.add_argument("--level", type=int, default=3)
    arguments.add_argument("--declare", type=Path)
    arguments.add_argument("--key-env", default="")
    given = arguments.parse_args()
    key = os.environ[given.key_env] if given.key_env else ""
    endpoint = Endpoint(given.url, {"good": key}) if given.url else None
    declared = declaration.load(given.declare) if given.declare else Declaration() if given.url else selftest.DECLARED
    levels: Counter[int] = Counter()
    missed: Counter[str] = Counter()
    seconds = []
    for i in range(given.runs):
        level, bad, took = asyncio.run(once(endpoint, Plan(SEEDS[i % 2], given.level, declared)))
        levels[level] += 1
        missed.update(bad)
        seconds.append(took)
        print(f"run {i + 1}: level {level}, {took:.1f} s {' '.join(bad)}", file=sys.stderr, flush=True)
    spread = {"min": min(seconds), "median": statistics.median(seconds), "max": max(seconds)}
    report = {"runs": given.runs, "levels": dict(levels), "not_passed": dict(missed),
              "seconds": {name: round(value, 1) for name, value in spread.items()}}  # fmt: skip
    print(json.dumps(report, indent=2))
    return 0 if len(levels) == 1 else 1


if __name__ == "__main__":
    sys.exit(main())
