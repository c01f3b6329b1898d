"""`freehold config`: show, write and check the settings. Keys are never part of them, so none can be shown."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import click

from freehold.cli.options import as_json, config_file, default_config, load_settings, setting_fields
from freehold.cli.output import emit, emit_json, say, table
from freehold.errors import SettingError, UsageError
from freehold.settings import SECTIONS, Settings

OTHER_VARIABLES = {
    f"FREEHOLD_{name}" for name in ("CONFIG", "HOME", "DEBUG", "DATABASE_URL", "AMX_EMULATED", "SANITIZED", "STARTED")
}
SECRET = ("server.api_key", "database.url")  # their names; a database's URL may hold a password

_at = click.option("--config", type=click.Path(dir_okay=False, path_type=Path), help="Settings file.")


@click.group("config")
def command() -> None:
    """Show, write and check the settings.

    A value comes from, lowest first: its default, the settings file, FREEHOLD_<NAME> in the environment, a flag.
    """


@command.command("show")
@_at
@as_json
def show(config: Path | None, as_json: bool) -> None:
    """Show each value and where it came from."""
    settings = load_settings(config)
    values = _values(settings)
    if as_json:
        upstreams = [dataclasses.asdict(upstream) for upstream in settings.upstreams]
        routes = [dataclasses.asdict(route) for route in settings.routes]
        emit_json({"settings": values, "upstreams": upstreams, "routes": routes})
        return
    emit(table([(v["name"], str(v["value"]), v["origin"]) for v in values], ("SETTING", "VALUE", "FROM")))
    for upstream in settings.upstreams:
        emit(f"upstream {upstream.name}: {upstream.model or 'any model'} at {upstream.base_url}")
    for route in settings.routes:
        emit(
            f"route {route.model}: {', '.join(route.to) or 'the core, then the standbys'}; policy {route.router.policy}"
        )


@command.command("path")
def path() -> None:
    """Print the settings file in use, or where it would be."""
    emit(str(config_file(None) or default_config()))


@command.command("init")
@_at
@click.option("--force", is_flag=True, help="Replace an existing file.")
def init(config: Path | None, force: bool) -> None:
    """Write a settings file in which every line is a comment saying the default."""
    target = config or default_config()
    if target.exists() and not force:
        raise UsageError(f"{target} exists already", hint="--force replaces it")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    with partial.open("w", encoding="utf-8") as stream:
        stream.write(template())
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(target)
    say(f"wrote {target}")


@command.command("check")
@_at
@as_json
def check(config: Path | None, as_json: bool) -> None:
    """Check the settings file and the environment; a bad value is an error that says where it came from.

    What `freehold serve` would refuse of a standby (a key that is not there, a key over http, a name twice) is refused.
    """
    settings = load_settings(config)
    _check_standbys(settings)
    for name in _strangers(settings):
        say(f"warning: {name} in the environment is no setting")
    chosen = sum(origin != "default" for origin in settings.origins.values())
    file = config_file(config)
    if as_json:
        emit_json({"file": file, "set": chosen, "upstreams": [upstream.name for upstream in settings.upstreams]})
    else:
        standbys = f"{len(settings.upstreams)} upstream{'' if len(settings.upstreams) == 1 else 's'}"
        say(f"settings are good: {chosen} set, {standbys}, file {file or 'none'}")


def _check_standbys(settings: Settings) -> None:
    from freehold.gateway.backends.upstreams import upstream_backend

    names = ["local"]  # the engine's own
    for upstream in settings.upstreams:
        if upstream.name in names:
            raise SettingError(f"expected every [[upstream]] to have a name of its own, found '{upstream.name}' twice")
        names.append(upstream.name)
        upstream_backend(upstream, settings.guards)


def _strangers(settings: Settings) -> list[str]:
    """FREEHOLD_* variables that nothing here reads: most likely a setting's name with a typo."""
    known = {"FREEHOLD_" + item.name.upper() for _, item, _ in setting_fields(*SECTIONS)} | OTHER_VARIABLES
    known |= {name.strip() for upstream in settings.upstreams for name in upstream.key_env.split(",")}
    return sorted(name for name in os.environ if name.startswith("FREEHOLD_") and name not in known)


def template() -> str:
    """A settings file that changes nothing: each setting as a comment, with its help and default."""
    lines = ["# Settings of freehold. Every line is a comment that shows the default; remove the # to change one.", ""]
    for section in SECTIONS:
        lines.append(f"[{section}]")
        for _, item, _ in setting_fields(section):
            choices = item.metadata["choices"]
            lines.append(f"# {item.metadata['help']}" + (f" One of: {', '.join(choices)}." if choices else ""))
            lines.append(f"# {item.name} = {_toml(item.default)}")
        lines.append("")
    return "\n".join(lines + _UPSTREAM)


_UPSTREAM = [
    "# A standby: any provider that speaks the OpenAI API. Its key stays out of this file: key_env names an",
    "# environment variable, or key_file a file with mode 0600.",
    "# [[upstream]]",
    '# name = "standby"',
    '# base_url = "https://provider.example/v1"',
    '# model = "its-model-name"',
    '# key_env = "STANDBY_API_KEY"',
    "",
    "# Who answers for some models; what a route leaves out, [router] says. The first that matches counts.",
    "# [[route]]",
    '# model = "gpt-4o*"',
    '# to = ["local", "standby", "standby.another-model"]',
    '# policy = "cheapest"',
    "",
]


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value}"' if isinstance(value, str) else str(value)


def _values(settings: Settings) -> list[dict[str, Any]]:
    values = []
    for name, origin in settings.origins.items():
        section, _, item = name.partition(".")
        value = getattr(getattr(settings, section), item)
        values.append({"name": name, "value": "(set)" if name in SECRET and value else value, "origin": origin})
    return values
