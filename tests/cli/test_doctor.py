"""`freehold doctor`."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from freehold.gateway.quarantine import Quarantine, QuarantineStore

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def findings(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    return {finding["topic"]: finding for finding in json.loads(done.stdout)["findings"]}


def standby(home: dict[str, str], source: str) -> None:
    file = Path(home["XDG_CONFIG_HOME"]) / "freehold" / "config.toml"
    file.parent.mkdir(parents=True)
    file.write_text(f'[[upstream]]\nname = "s"\nbase_url = "http://127.0.0.1:9/v1"\nmodel = "m"\n{source}\n')


def test_a_forced_tier_is_chosen_because_it_was_asked_for(freehold: Run) -> None:
    done = freehold("doctor", "--json", env={"FREEHOLD_ISA": "portable"})
    assert findings(done)["isa"] == {"topic": "isa", "value": "portable", "reason": "asked for", "good": True}


def test_every_automatic_choice_comes_with_a_reason(freehold: Run) -> None:
    found = findings(freehold("doctor", "--json"))
    for topic in ("isa", "threads", "memory", "store", "disk"):
        assert found[topic]["value"] and found[topic]["reason"]


def test_the_table_says_what_the_json_says(freehold: Run) -> None:
    topics = findings(freehold("doctor", "--json"))
    lines = freehold("doctor").stdout.splitlines()
    assert len(lines) == len(topics) + 1
    assert all(any(f"  {topic}" in line for line in lines) for topic in topics)


def test_a_key_is_said_to_be_present_and_never_shown(freehold: Run, home: dict[str, str]) -> None:
    standby(home, 'key_env = "STANDBY_KEY"')
    for words in ([], ["--json"]):
        done = freehold("doctor", *words, env={"STANDBY_KEY": "sk-very-secret"})
        assert "key present (STANDBY_KEY)" in done.stdout
        assert "very-secret" not in done.stdout + done.stderr


def test_a_missing_key_is_wrong_and_makes_the_exit_code_one(freehold: Run, home: dict[str, str]) -> None:
    standby(home, 'key_env = "STANDBY_KEY"')
    done = freehold("doctor", "--json")
    assert done.returncode == 1
    assert findings(done)["standby s"]["good"] is False
    assert "STANDBY_KEY" in findings(done)["standby s"]["reason"]


def test_a_quarantined_standby_is_wrong_and_the_report_says_how_to_end_it(
    freehold: Run, home: dict[str, str], tmp_path: Path
) -> None:
    standby(home, 'key_env = "STANDBY_KEY"')
    env = {"STANDBY_KEY": "sk-very-secret", "FREEHOLD_STATE_DIR": str(tmp_path / "state")}
    assert findings(freehold("doctor", "--json", env=env))["standby s"]["good"] is True
    QuarantineStore(tmp_path / "state").save({"s": Quarantine("banned", 1_700_000_000.0, 1_700_001_800.0)})
    done = freehold("doctor", "--json", env=env)
    found = findings(done)["standby s"]
    assert (done.returncode, found["value"], found["good"]) == (1, "quarantined", False)
    assert "banned" in found["reason"] and "2023-11-14T22:13" in found["reason"]
    assert f"delete {tmp_path / 'state' / 'quarantine.json'}" in found["reason"]


def test_a_key_file_that_others_can_read_is_wrong(freehold: Run, home: dict[str, str], tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("sk-very-secret\n")
    key.chmod(0o644)
    standby(home, f'key_file = "{key}"')
    done = freehold("doctor")
    assert done.returncode == 1
    assert "0644" in done.stdout and "very-secret" not in done.stdout
    key.chmod(0o600)
    assert "key present" in freehold("doctor").stdout


def test_a_server_that_others_can_reach_without_a_key_is_wrong(freehold: Run) -> None:
    done = freehold("doctor", "--json", env={"FREEHOLD_HOST": "0.0.0.0"})
    assert done.returncode == 1 and findings(done)["server"]["good"] is False
    done = freehold("doctor", "--json", env={"FREEHOLD_HOST": "0.0.0.0", "FREEHOLD_API_KEY": "sk-very-secret"})
    assert findings(done)["server"]["good"] is True
    assert "very-secret" not in done.stdout


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_a_server_on_loopback_needs_no_key(host: str, freehold: Run) -> None:
    assert findings(freehold("doctor", "--json", env={"FREEHOLD_HOST": host}))["server"]["good"] is True


def test_the_hub_token_is_looked_for_where_it_is_used_from(freehold: Run, tmp_path: Path) -> None:
    assert findings(freehold("doctor", "--json"))["hub token"]["value"] == "none"
    token = tmp_path / "token"
    token.write_text("hf_very_secret\n")
    done = freehold("doctor", "--json", env={"HF_TOKEN_PATH": str(token)})
    assert findings(done)["hub token"]["value"] == "present" and "very_secret" not in done.stdout


def test_an_instruction_set_that_does_not_exist_is_refused(freehold: Run) -> None:
    done = freehold("doctor", env={"FREEHOLD_ISA": "mmx"})
    assert done.returncode == 2 and "FREEHOLD_ISA" in done.stderr


@pytest.mark.parametrize("value", ["1", "true", "YES"])
def test_an_offline_hub_is_mentioned(value: str, freehold: Run) -> None:
    assert findings(freehold("doctor", "--json", env={"HF_HUB_OFFLINE": value}))["hub"]["value"] == "offline"


def test_more_threads_than_cpus_are_wrong(freehold: Run) -> None:
    done = freehold("doctor", "--json", "--threads", "9999")
    threads = findings(done)["threads"]
    assert done.returncode == 1 and threads["value"] == "9999" and not threads["good"]
    assert "can run at a time" in threads["reason"]


def test_a_standby_that_would_send_its_key_in_the_open_is_wrong(freehold: Run, home: dict[str, str]) -> None:
    standby(home, 'key_env = "STANDBY_KEY"')
    file = Path(home["XDG_CONFIG_HOME"]) / "freehold" / "config.toml"
    file.write_text(file.read_text().replace("127.0.0.1:9", "provider.example"))
    done = freehold("doctor", "--json", env={"STANDBY_KEY": "sk-outbound"})
    found = findings(done)["standby s"]
    assert done.returncode == 1 and found["value"] == "refused" and "expected https" in found["reason"]
    assert "sk-outbound" not in done.stdout + done.stderr
