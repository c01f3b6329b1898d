"""A compression that is killed at random moments and taken up again: are its files those of an undisturbed one?

    python bench/compress_kills.py MODEL [--kills 10] [--seed 1] [--json] [-- ARGUMENTS OF freehold compress ...]

First the model is compressed undisturbed; then once more, with SIGKILL for the process and its children at moments drawn evenly
over the time that the undisturbed run took, each followed by the same command again; the last one may end. Every file must have
the same bytes, but for the report, which tells times. Exits with 1 where one has not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TELLS_TIMES = {"freehold-report.json", "report.html"}
LEAST_SECONDS = 0.2
"""Python has not even started before."""


def command(model: str, work: Path, arguments: list[str]) -> list[str]:
    out, statistics = work / "out", work / "statistics"
    told = ["--out", str(out), "--statistics", str(statistics), *arguments]
    return [sys.executable, "-m", "freehold", "compress", model, *told]


def run(words: list[str], *, kill_after: float | None = None) -> tuple[int, float]:
    """Exit code (negative: the signal) and seconds."""
    began = time.monotonic()
    process = subprocess.Popen(words, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        process.wait(kill_after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    told = b"" if process.stderr is None else process.stderr.read()
    if process.returncode > 0:
        sys.exit(f"freehold compress failed: {told.decode(errors='replace')[-1000:]}")
    return process.returncode, time.monotonic() - began


def digests(directory: Path) -> dict[str, str]:
    files = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.name not in TELLS_TIMES
    }


def measure(model: str, kills: int, seed: int, arguments: list[str], work: Path) -> dict[str, Any]:
    for name in ("undisturbed", "killed"):
        (work / name).mkdir()
    _, undisturbed = run(command(model, work / "undisturbed", arguments))
    words = command(model, work / "killed", arguments)
    # What is done stays done, so that moments over the whole time must come from the time that is left.
    drawn, moments = random.Random(seed), []
    gaps = sorted(drawn.uniform(0, undisturbed) for _ in range(kills))
    for before, at in zip([0.0, *gaps], gaps, strict=False):
        after = max(LEAST_SECONDS, at - before)
        code, last = run(words, kill_after=after)
        if code != -signal.SIGKILL:
            break  # it was done
        moments.append(round(after, 2))
    else:
        _, last = run(words)
    wanted, found = digests(work / "undisturbed" / "out"), digests(work / "killed" / "out")
    differing = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    return {
        "model": model,
        "kills": len(moments),
        "killed_after_seconds": moments,
        "undisturbed_seconds": round(undisturbed, 1),
        "last_run_seconds": round(last, 1),
        "files": len(wanted),
        "differing": differing,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    own, handed = sys.argv[1:], []
    if "--" in own:  # argparse gives words after it to no positional that options stand in front of
        own, handed = own[: own.index("--")], own[own.index("--") + 1 :]
    given = parser.parse_args(own)
    with tempfile.TemporaryDirectory() as work:
        found = measure(given.model, given.kills, given.seed, handed, Path(work))
    if given.json:
        print(json.dumps(found, indent=2))
    else:
        print(f"killed {found['kills']} times, after {found['killed_after_seconds']} s")
        print(f"{found['files']} files, differing: {', '.join(found['differing']) or 'none'}")
    sys.exit(1 if found["differing"] or found["kills"] < given.kills else 0)


if __name__ == "__main__":
    main()
