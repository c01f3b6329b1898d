"""A short mixed load: nothing is lost, over-long requests are refused, and the engine holds nothing in the end."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCH)
    return import_module("load")


def test_six_seconds_of_mixed_load_lose_nothing_and_leave_nothing_behind(directory: Path) -> None:
    words = [sys.executable, str(BENCH / "load.py"), "--model", str(directory), "--minutes", "0.1", "--clients", "12"]
    done = subprocess.run([*words, "--kv-memory-mb", "1", "--json"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["lost"] == {} and found["restarts"] == 0, found
    assert len(found["ended"]) >= 3, "a starved machine gets through a few kinds of requests"
    assert found["held"] == {"num_requests_running": 0, "num_requests_waiting": 0, "kv_cache_usage_perc": 0}


def test_what_falls_short_is_said(load: ModuleType) -> None:
    good = {"lost": {}, "held": {"num_requests_running": 0.0}, "rss_growth": 0.004, "restarts": 0}
    assert load.short(good) == []
    for worse in (
        {"lost": {"stream: 503 engine_down": 2}},
        {"held": {"kv_cache_usage_perc": 0.1}},
        {"rss_growth": 0.01},
        {"restarts": 1},
    ):
        assert len(load.short(good | worse)) == 1, worse


def test_growth_is_counted_after_the_first_third(load: ModuleType) -> None:
    assert load.growth([(float(i), min(i, 20) << 20) for i in range(1, 90)]) == 0
    assert load.growth([(float(i), (100 << 20) + i * (1 << 18)) for i in range(90)]) > 0.1
