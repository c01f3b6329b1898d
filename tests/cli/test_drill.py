"""`freehold drill` as a person runs it: a tiny real engine, faults on real sockets."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.gateway import byte_model

from freehold.gateway.faults import FAULTS

Run = Callable[..., "subprocess.CompletedProcess[str]"]
QUICK = {"FREEHOLD_TTFT_SECONDS": "0.5", "FREEHOLD_IDLE_SECONDS": "0.5", "FREEHOLD_THREADS": "1"}


@pytest.fixture
def chatty(tmp_path: Path) -> Path:
    """A random Llama of a few bytes' weight that reads and writes bytes."""
    (tmp_path / "chatty").mkdir()
    return byte_model.write(tmp_path / "chatty")


def test_the_built_in_example_loses_nothing_and_says_who_answered(freehold: Run, chatty: Path) -> None:
    done = freehold("drill", "--json", "--model", str(chatty), env=QUICK)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert set(report) == {"faults", "lost"} and report["lost"] == 0
    assert [row["fault"] for row in report["faults"]] == list(FAULTS)
    assert done.stderr == ""  # failures are what was ordered: no log of each
    assert all(row["answered"] == row["requests"] == 4 and row["result"] == "pass" for row in report["faults"])


def test_a_file_of_ones_own_is_drilled_without_its_keys_and_shown_as_a_table(
    freehold: Run, chatty: Path, tmp_path: Path
) -> None:
    config = tmp_path / "config.toml"
    config.write_text(
        '[[upstream]]\nname = "mine"\nbase_url = "https://192.0.2.1/v1"\nmodel = "m"\nkey_env = "NO_SUCH_KEY"\n'
    )
    done = freehold("drill", "--verbose", "--config", str(config), "--model", str(chatty), env=QUICK)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["FAULT", "RESULT", "ANSWERED", "BY", "ADDED", "P95"]
    assert len(lines) == len(FAULTS) + 3 and lines[-1] == "lost: 0"
    assert all(" pass " in line and " 2/2 " in line for line in lines[1:-2])
    assert "mine failed" in done.stderr and "NO_SUCH_KEY" not in done.stderr


def test_the_documentation_counts_the_faults_there_are() -> None:
    text = (Path(__file__).parents[2] / "docs" / "gateway.md").read_text()
    assert f"({len(FAULTS)}, rate limits" in text


def test_a_file_without_an_upstream_is_wrong_use(freehold: Run, chatty: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f'[engine]\nmodel = "{chatty}"\n')
    done = freehold("drill", "--config", str(config))
    assert done.returncode == 2 and "nothing to drill" in done.stderr and "hint: " in done.stderr
    assert done.stdout == ""
