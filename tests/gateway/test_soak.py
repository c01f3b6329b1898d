"""A short soak: while a provider fails in every way, nothing is lost, nothing leaks, everything is in the ledger."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SOAK = Path(__file__).parents[2] / "bench" / "soak.py"


def test_six_seconds_of_random_faults_lose_no_request_and_leak_no_connection() -> None:
    words = [sys.executable, str(SOAK), "--minutes", "0.1", "--rate", "30", "--fault-seconds", "0.4", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["requests"] == 181 and found["answered"] == 181 and found["lost"] == {}, found
    assert (found["not_accounted"], found["not_recorded"]) == (0, 0)
    assert (
        found["sockets_left"] <= 0
    )  # fewer than before it is no leak: a connection kept alive at the start was closed
    assert found["answered_by"]["first"] > 0 and found["answered_by"]["second"] > 0  # faults were met, and ended
    assert found["rss_mib"] < 160  # of a process without an engine


def test_what_falls_short_is_said() -> None:
    import importlib.util

    spec = importlib.util.spec_from_file_location("soak", SOAK)
    assert spec is not None and spec.loader is not None
    soak = importlib.util.module_from_spec(spec)
    sys.modules["soak"] = soak
    spec.loader.exec_module(soak)
    good = {"lost": {}, "not_accounted": 0, "not_recorded": 0, "rss_growth_mib": 0.4, "sockets_left": 0}
    assert soak.short(good) == []
    for worse in (
        {"lost": {"x": 1}},
        {"not_accounted": 1},
        {"not_recorded": 1},
        {"rss_growth_mib": 1.2},
        {"sockets_left": 2},
    ):
        assert len(soak.short(good | worse)) == 1
    steady = [(float(i), 100 << 20) for i in range(90)]
    leaking = [(float(i), (100 << 20) + i * (1 << 18)) for i in range(90)]
    assert soak.growth(steady) == 0 and soak.growth(leaking) > 10
    warming = [(float(i), min(i, 20) << 20) for i in range(90)]
    assert soak.growth(warming) == 0  # what is gained in the first third is warming up
