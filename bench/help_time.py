"""How long `freehold --help` takes: median and spread of fresh processes, in milliseconds.

    python bench/help_time.py [REPETITIONS] [--json]

Exit 1 when the median is above the 150 ms that the command line promises.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

LIMIT_MS = 150.0


def main() -> int:
    repetitions = next((int(word) for word in sys.argv[1:] if word.isdigit()), 20)
    command = [str(Path(sys.executable).with_name("freehold")), "--help"]
    if not Path(command[0]).exists():
        command = [sys.executable, "-m", "freehold", "--help"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # the first run compiles the bytecode
    times = []
    for _ in range(repetitions):
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append((time.perf_counter() - began) * 1000)
    median = statistics.median(times)
    report = {"command": " ".join(command[-2:]), "repetitions": repetitions, "limit_ms": LIMIT_MS}
    report |= {"median_ms": round(median, 1), "min_ms": round(min(times), 1), "max_ms": round(max(times), 1)}
    if "--json" in sys.argv:
        print(json.dumps(report))
    else:
        print(f"freehold --help: {median:.0f} ms (from {min(times):.0f} to {max(times):.0f}, {repetitions} runs)")
    return 0 if median <= LIMIT_MS else 1


if __name__ == "__main__":
    sys.exit(main())
