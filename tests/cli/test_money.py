"""`freehold key` and `freehold cost`."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from freehold.cost import usage
from freehold.cost.meter import Part, row_of
from freehold.cost.prices import Price, PriceBook, Tokens
from freehold.database import Database
from freehold.gateway import virtual_keys

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def database(home: dict[str, str]) -> Database:
    return Database(f"sqlite:///{home['FREEHOLD_HOME']}/state/freehold.db")


def test_a_key_is_shown_once_limited_listed_and_revoked(freehold: Run, home: dict[str, str]) -> None:
    made = freehold("key", "create", "alice", "--usd-per-day", "0.5", "--model", "tiny*", "--model", "gpt-*")
    key = made.stdout.strip()
    assert made.returncode == 0 and virtual_keys.looks_right(key) and key not in made.stderr
    assert freehold("key", "create", "alice").returncode == 2
    changed = freehold("key", "limit", "alice", "--usd-per-day", "none", "--tokens-per-minute", "900", "--json")
    shown = json.loads(changed.stdout)
    assert (shown["usd_per_day"], shown["tokens_per_minute"], shown["models"]) == (None, 900, ["tiny*", "gpt-*"])
    listed = freehold("key", "list")
    assert "alice" in listed.stdout and key not in listed.stdout
    with database(home) as opened:
        stored = opened.now(lambda t: t.rows("select * from keys"))
        assert key not in str(stored) and virtual_keys.digest(key) in str(stored)
    assert freehold("key", "revoke", "alice").returncode == 0
    assert freehold("key", "revoke", "alice").returncode == 2
    assert json.loads(freehold("key", "list", "--json").stdout) == []
    assert json.loads(freehold("key", "list", "--all", "--json").stdout)[0]["revoked_at"] > 0


def test_revoking_the_last_key_says_that_the_door_stays_closed(freehold: Run) -> None:
    for name in ("alice", "bob"):
        assert freehold("key", "create", name).returncode == 0
    assert "last key" not in freehold("key", "revoke", "alice").stderr
    last = freehold("key", "revoke", "bob")
    assert last.returncode == 0 and "that was the last key: servers still ask for one" in last.stderr


@pytest.mark.parametrize("value", ["0", "-1", "nan", "1e3", "0.0000000001", "many", "1.5"])
def test_a_limit_that_is_no_number_is_refused(freehold: Run, value: str) -> None:
    done = freehold("key", "create", "x", "--requests-per-minute", value)
    assert done.returncode == 2 and "--requests-per-minute" in done.stderr and "hint" not in done.stdout


def spend(opened: Database, at: datetime) -> None:
    """A local exchange of 2 seconds, one at an upstream, one whose price nobody knows."""
    price = Price("own-x", "mine", "m", {"input": ((0, 10**18),), "output": ((0, 4 * 10**18),)})
    tokens = Tokens(prompt=1000, completion=500)
    parts = [
        (Part("local", "tiny", at, local=True, seconds=2.0, tokens=tokens, finished=True), None),
        (Part("mine", "m", at, tokens=tokens, finished=True), price),
        (Part("odd", "x", at, tokens=tokens, finished=True), None),
    ]
    for i, (part, known) in enumerate(parts):
        row = row_of(part, 0, request_id=f"r{i}", key_id="", price=known, machine_usd_per_hour=3.6)
        opened.now(lambda t, row=row, known=known: usage.write(t, row, known))  # type: ignore[misc]


def test_cost_says_what_was_spent_what_it_would_have_cost_and_what_was_saved(
    freehold: Run, home: dict[str, str]
) -> None:
    at = datetime.now(UTC)
    with database(home) as opened:
        spend(opened, at)
    report = json.loads(freehold("cost", "--at", "openai/gpt-4o-mini", "--json").stdout)
    lines = {line["name"]: line for line in report["lines"]}
    there = PriceBook.load().find("openai", "gpt-4o-mini", at)
    assert there is not None
    each = there.cost(Tokens(prompt=1000, completion=500))
    assert lines["local"]["spent_nanos"] == 2_000_000  # 2 s at 0.1 cents a second
    assert lines["mine"]["spent_nanos"] == 1000 * 1000 + 500 * 4000
    odd = lines["odd"]
    assert [odd[f"{name}_nanos"] for name in ("spent", "elsewhere", "saved")] == [None, None, None]
    assert (odd["unpriced"], odd["requests"], odd["spent_usd"]) == (1, 1, None)
    assert lines["local"]["elsewhere_nanos"] == each and lines["local"]["saved_nanos"] == each - 2_000_000
    total = report["total"]
    assert total["elsewhere_nanos"] == 2 * each and total["requests"] == 3  # what has no price is not compared
    assert total["saved_nanos"] == 2 * each - 2_000_000 - 1000 * 1000 - 500 * 4000
    shown = freehold("cost", "--at", "openai/gpt-4o-mini").stdout.splitlines()
    assert next(line for line in shown if line.startswith("odd")).split()[-3:] == ["?", "?", "?"]
    words = freehold("cost", "--by", "model")
    assert "0.003000" in words.stdout and "no known price" in words.stderr


def test_cost_looks_back_as_far_as_asked(freehold: Run, home: dict[str, str]) -> None:
    with database(home) as opened:
        spend(opened, datetime(2020, 1, 1, tzinfo=UTC))
    counts = [
        json.loads(freehold("cost", "--since", since, "--json").stdout)["total"]["requests"]
        for since in ("all", "2020-01-01", "2020-01-02", "12h")
    ]
    assert counts == [3, 3, 0, 0]
    for words in (["--since", "soon"], ["--at", "nobody/nothing"]):
        assert freehold("cost", *words).returncode == 2


def test_a_databases_password_is_kept_out_of_the_settings_file_and_never_shown(freehold: Run, tmp_path: Path) -> None:
    url = "postgresql://me:hunter2@127.0.0.1:1/x"
    file = tmp_path / "config.toml"
    file.write_text(f'[database]\nurl = "{url}"\n')
    refused = freehold("key", "list", "--config", str(file))
    assert refused.returncode == 2 and "FREEHOLD_DATABASE_URL" in refused.stderr
    for words in (["config", "show"], ["config", "show", "--json"], ["key", "list"], ["cost"]):
        done = freehold(*words, env={"FREEHOLD_DATABASE_URL": url})
        assert "hunter2" not in refused.stderr + done.stdout + done.stderr
    assert done.returncode == 3 and "127.0.0.1" in done.stderr
