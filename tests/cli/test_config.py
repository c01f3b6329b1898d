"""`freehold config`."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

from freehold.cli.config import template
from freehold.settings import SECTIONS, Settings
from freehold.settings_file import load

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def test_the_written_file_changes_nothing_and_its_comments_are_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(template())
    assert load(file, environment={}) == load(environment={})
    file.write_text(re.sub(r"^# (?=\w+ = |\[\[)", "", template(), flags=re.MULTILINE))
    enabled = load(file, environment={})
    assert [getattr(enabled, section) for section in SECTIONS] == [getattr(Settings(), section) for section in SECTIONS]
    assert [upstream.name for upstream in enabled.upstreams] == ["standby"]
    assert [(route.model, route.router.policy) for route in enabled.routes] == [("gpt-4o*", "cheapest")]


def test_init_writes_once_and_replaces_only_when_forced(freehold: Run, tmp_path: Path) -> None:
    file = tmp_path / "config" / "freehold" / "config.toml"
    assert freehold("config", "path").stdout.strip() == str(file)
    assert freehold("config", "init").returncode == 0
    assert tomllib.loads(file.read_text()) == {section: {} for section in SECTIONS}
    file.write_text("[engine]\nthreads = 2\n")
    refused = freehold("config", "init")
    assert refused.returncode == 2 and "--force" in refused.stderr
    assert "threads = 2" in file.read_text()
    assert freehold("config", "init", "--force").returncode == 0
    assert file.read_text() == template()
    assert [entry.name for entry in file.parent.iterdir()] == ["config.toml"]


def test_show_names_the_origin_of_each_value(freehold: Run) -> None:
    done = freehold("config", "show", "--json", env={"FREEHOLD_THREADS": "3"})
    shown = {value["name"]: value for value in json.loads(done.stdout)["settings"]}
    assert shown["engine.threads"] == {"name": "engine.threads", "value": 3, "origin": "env FREEHOLD_THREADS"}
    assert shown["server.port"]["origin"] == "default"


def test_show_never_shows_a_key(freehold: Run, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[[upstream]]\nname = "s"\nbase_url = "http://127.0.0.1:9/v1"\nkey_env = "STANDBY_KEY"\n')
    env = {"FREEHOLD_API_KEY": "sk-inbound", "STANDBY_KEY": "sk-outbound"}
    for words in ([], ["--json"]):
        done = freehold("config", "show", "--config", str(file), *words, env=env)
        assert done.returncode == 0 and "server.api_key" in done.stdout and "127.0.0.1:9" in done.stdout
        assert "sk-" not in done.stdout + done.stderr


def test_check_refuses_a_bad_value_and_says_where_it_came_from(freehold: Run, tmp_path: Path) -> None:
    done = freehold("config", "check", env={"FREEHOLD_PORT": "many"})
    assert done.returncode == 2
    assert "server.port from env FREEHOLD_PORT: expected int, found 'many'" in done.stderr
    file = tmp_path / "config.toml"
    file.write_text("[engine]\nthread = 3\n")
    done = freehold("config", "check", "--config", str(file))
    assert done.returncode == 2
    assert "unknown setting engine.thread" in done.stderr and "threads" in done.stderr


def test_check_of_a_missing_file_says_so(freehold: Run) -> None:
    done = freehold("config", "check", "--config", "nowhere.toml")
    assert done.returncode == 2
    assert "no settings file at nowhere.toml" in done.stderr


def test_a_bad_key_is_refused_without_showing_it(freehold: Run, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("[server]\napi_key = 918273645\n")
    done = freehold("config", "check", "--config", str(file))
    assert done.returncode == 2 and "server.api_key" in done.stderr
    assert "918273645" not in done.stderr


UPSTREAM = '[[upstream]]\nname = "{name}"\nbase_url = "{url}"\nmodel = "m"\nkey_env = "STANDBY_KEY"\n'


def test_check_refuses_a_standby_that_serve_would_refuse(freehold: Run, tmp_path: Path) -> None:
    def check(text: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        (tmp_path / "config.toml").write_text(text)
        return freehold("config", "check", "--config", "config.toml", env=env)

    safe, key = "https://provider.example/v1", {"STANDBY_KEY": "sk-outbound"}
    good = check(UPSTREAM.format(name="s", url=safe), key)
    assert good.returncode == 0 and "1 upstream," in good.stderr
    for text, env, words in (
        (UPSTREAM.format(name="s", url=safe), {}, "STANDBY_KEY is not set"),
        (UPSTREAM.format(name="s", url="http://provider.example/v1"), key, "expected https"),
        (UPSTREAM.format(name="s", url=safe) * 2, key, "found 's' twice"),
        (UPSTREAM.format(name="local", url=safe), key, "found 'local' twice"),
    ):
        done = check(text, env)
        assert done.returncode == 2 and words in done.stderr
        assert "sk-outbound" not in done.stderr


def test_check_names_variables_that_nothing_reads(freehold: Run, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(
        UPSTREAM.format(name="s", url="https://x.example/v1").replace("STANDBY_KEY", "FREEHOLD_OWN_KEY")
    )
    env = {"FREEHOLD_THREAD": "2", "FREEHOLD_THREADS": "2", "FREEHOLD_OWN_KEY": "k", "FREEHOLD_DEBUG": "0"}
    done = freehold("config", "check", "--config", "config.toml", env=env)
    assert done.returncode == 0
    assert [line for line in done.stderr.splitlines() if "warning" in line] == [
        "warning: FREEHOLD_THREAD in the environment is no setting"
    ]
