"""Verbs that run the real engine: `run`, `serve`, `bench`, on a tiny model."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from freehold.cli.frame import INTERRUPTED

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def test_run_on_this_machine_tells_bits_and_the_cost_of_the_seconds_it_took(freehold: Run, tiny: Path) -> None:
    words = ["run", "-m", str(tiny), "hello", "--max-tokens", "8", "--temperature", "0", "--json"]
    told = json.loads(freehold(*words, "--machine-usd-per-hour", "3600").stdout)
    assert (told["backend"], told["reason"], told["completion_tokens"]) == ("local", "core", 8)
    assert told["prompt_tokens"] == len("hello")
    assert told["bits_per_weight"] > 0
    assert told["cost_usd"] == pytest.approx(told["seconds"])
    assert json.loads(freehold(*words).stdout)["cost_usd"] is None


def test_the_same_seed_gives_the_same_text(freehold: Run, tiny: Path) -> None:
    words = ["run", "-m", str(tiny), "hello", "--max-tokens", "16", "--temperature", "1"]
    texts = [freehold(*words, "--seed", seed).stdout for seed in ("7", "7", "8")]
    assert texts[0] == texts[1] != texts[2]


def test_a_prompt_longer_than_the_context_is_one_error_with_both_numbers(freehold: Run, tiny: Path) -> None:
    done = freehold("run", "-m", str(tiny), "x" * 100, "--max-context", "64")
    assert done.returncode == 3
    assert done.stderr.startswith("error: ") and "64" in done.stderr and "100" in done.stderr
    assert "Traceback" not in done.stderr


def test_serve_prints_what_to_paste_answers_there_and_ends_on_ctrl_c(home: dict[str, str], tiny: Path) -> None:
    command = [sys.executable, "-m", "freehold", "serve", "-m", str(tiny), "--port", "0"]
    server = subprocess.Popen(command, env=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        address = next(found for line in server.stderr if (found := re.search(r"OPENAI_BASE_URL=(\S+)", line)))[1]
        with urllib.request.urlopen(f"{address}/models", timeout=60) as response:
            assert [model["id"] for model in json.load(response)["data"]] == ["tiny"]
        server.send_signal(signal.SIGINT)
        output, errors = server.communicate(timeout=60)
    finally:
        server.kill()
        server.wait()
    assert (output, server.returncode) == ("", INTERRUPTED)
    assert "Traceback" not in errors


def test_serve_refuses_to_be_reached_by_others_without_a_key(freehold: Run, tiny: Path) -> None:
    done = freehold("serve", "-m", str(tiny), "--host", "0.0.0.0", "--port", "0")
    assert done.returncode == 2 and "FREEHOLD_API_KEY" in done.stderr


def test_bench_says_what_context_it_needs(freehold: Run, tiny: Path) -> None:
    done = freehold("bench", str(tiny), env={"FREEHOLD_MAX_CONTEXT": "64"})
    assert done.returncode == 2 and "context of 64 tokens is too short" in done.stderr
