"""Flags that come from the settings' fields."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from freehold.cli.options import config_file, default_config, flag_name, setting_fields, with_settings
from freehold.settings import SECTIONS, Settings, env_name


@click.command()
@with_settings(*SECTIONS)
def probe(settings: Settings) -> None:
    click.echo(f"{settings.engine.threads} {settings.origins['engine.threads']}")


@pytest.fixture(autouse=True)
def no_settings_of_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for section in SECTIONS:
        for _, item, _ in setting_fields(section):
            monkeypatch.delenv(env_name(item.name), raising=False)
    monkeypatch.delenv("FREEHOLD_CONFIG", raising=False)


def ask(*words: str, **environment: str) -> str:
    result = CliRunner().invoke(probe, words, env=environment, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output.strip()


def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[engine]\nthreads = 2\n")
    assert ask() == "0 default"
    assert ask("--config", str(file)) == f"2 file {file}"
    assert ask("--config", str(file), FREEHOLD_THREADS="3") == "3 env FREEHOLD_THREADS"
    assert ask("--config", str(file), "--threads", "4", FREEHOLD_THREADS="3") == "4 flag --threads"


def test_the_settings_file_is_the_named_one_or_the_default_one_if_it_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert config_file(None) is None
    default_config().parent.mkdir(parents=True)
    default_config().write_text("[engine]\nthreads = 5\n")
    assert config_file(None) == default_config()
    assert ask() == f"5 file {default_config()}"
    monkeypatch.setenv("FREEHOLD_CONFIG", str(tmp_path / "other.toml"))
    assert config_file(None) == tmp_path / "other.toml"
    assert config_file(tmp_path / "named.toml") == tmp_path / "named.toml"


@pytest.mark.parametrize("section", SECTIONS)
def test_every_setting_of_a_section_has_a_flag_that_tells_its_help_default_and_variable(section: str) -> None:
    options: dict[str | None, Any] = {option.name: option for option in probe.params}
    for item in dataclasses.fields(SECTIONS[section]):
        option = options[item.name]
        assert option.opts[0] == flag_name(item.name)
        assert option.default is None or option.default.__class__.__name__ == "Sentinel"
        assert option.help.startswith(item.metadata["help"])
        assert f"env: {env_name(item.name)}" in option.help
        assert item.default == "" or f"default: {item.default}" in option.help


def test_no_two_sections_share_a_settings_name() -> None:
    names = [item.name for section in SECTIONS for _, item, _ in setting_fields(section)]
    assert len(names) == len(set(names))


def test_an_unknown_setting_is_a_bug_seen_at_import() -> None:
    with pytest.raises(KeyError):
        with_settings("engine.nonsense")
