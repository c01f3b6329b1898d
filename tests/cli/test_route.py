"""`freehold route --explain`: a decision without a request."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]

CONFIG = """
[engine]
model = "{model}"
[[upstream]]
name = "openai"
base_url = "http://127.0.0.1:9/v1"
provider = "openai"
model = "gpt-4o-mini"
[[upstream]]
name = "blind"
base_url = "http://127.0.0.1:9/v1"
model = "m"
abilities = ["json"]
[[route]]
model = "smart"
to = ["openai.gpt-4o", "blind", "local"]
[[route]]
model = "cheap"
policy = "cheapest"
"""


@pytest.fixture
def explain(freehold: Run, tiny: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    config = tmp_path / "config.toml"
    config.write_text(CONFIG.format(model=tiny))

    def run(body: object, *words: str) -> subprocess.CompletedProcess[str]:
        words = ("route", "--explain", "-", "--config", str(config), *words)
        return freehold(*words, input=json.dumps(body), env={"OPENAI_API_KEY": "sk-of-a-test"})

    return run


def asked(model: str, **given: object) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": "hello there"}]} | given


def test_the_order_and_its_reasons_are_told_and_nothing_is_sent(explain: Run) -> None:
    """Both upstreams are at a port where nobody listens: asking one would fail."""
    done = explain(asked("smart", top_k=5), "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [(c["backend"], c["model"]) for c in told["line"]] == [
        ("openai", "gpt-4o"),
        ("blind", "m"),
        ("local", "tiny"),
    ]
    assert told["line"][0]["dropped"] == ["top_k"] and told["line"][2]["dropped"] == []
    assert told["route"] == "smart" and told["prompt_tokens"] == 3


def test_the_cheapest_knows_real_prices(explain: Run) -> None:
    line = json.loads(explain(asked("cheap"), "--json").stdout)["line"]
    reasons = {c["backend"]: c["reason"] for c in line}
    assert reasons["blind"] == "cheapest: price unknown" and line[-1]["backend"] == "blind"
    assert float(reasons["openai"].rpartition("$")[2]) > 0


def test_whoever_is_not_asked_is_told_with_the_reason(explain: Run) -> None:
    picture = {"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}
    body = {"model": "smart", "messages": [{"role": "user", "content": [picture]}]}
    told = json.loads(explain(body, "--json").stdout)
    assert {entry["backend"] for entry in told["not_asked"]} == {"blind", "local"}
    shown = explain(body)
    assert "declared without 'vision'" in shown.stdout and "not asked" in shown.stdout


def test_when_nobody_would_answer_the_exit_code_and_the_words_say_so(explain: Run) -> None:
    done = explain(asked("nothing-we-know"))
    assert done.returncode == 1 and "does not exist" in done.stderr and "smart" in done.stderr


def test_a_body_that_is_wrong_is_refused_as_the_server_would(explain: Run) -> None:
    done = explain({"model": "smart"})
    assert done.returncode == 2 and "messages" in done.stderr


def test_a_dry_run_fetches_nothing(freehold: Run) -> None:
    done = freehold("route", "--explain", "-", "-m", "nobody/nothing", input=json.dumps(asked("local")))
    assert done.returncode == 3 and "error: " in done.stderr and "hint: " in done.stderr
