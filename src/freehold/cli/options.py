"""Flags derived from the settings' fields, so that name, default, help and choices live once.

Knows click and `settings`; no room. A flag that is not given is None: the file, the environment and the default decide.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import typing
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import click

from freehold.errors import UsageError
from freehold.settings import SECTIONS, Settings, env_name
from freehold.settings_file import load

P = ParamSpec("P")
R = TypeVar("R")
SHORT = {"model": "-m", "threads": "-t", "port": "-p"}

as_json = click.option("--json", "as_json", is_flag=True, help="Report as JSON on stdout.")


def default_config() -> Path:
    """Where the settings file is looked for when nobody names one."""
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "freehold" / "config.toml"


def config_file(named: Path | None) -> Path | None:
    """The settings file in use: `--config`, FREEHOLD_CONFIG, or the default place when there is a file."""
    if named is None and os.environ.get("FREEHOLD_CONFIG"):
        named = Path(os.environ["FREEHOLD_CONFIG"])
    if named is not None:
        return named.expanduser()
    return default_config() if default_config().is_file() else None


def flag_name(field: str) -> str:
    """`kv_dtype` -> `--kv-dtype`."""
    return "--" + field.replace("_", "-")


def setting_fields(*which: str) -> Iterator[tuple[str, dataclasses.Field[Any], type[Any]]]:
    """(section, field, type) of the settings named by "section" or "section.field", in their order."""
    for name in which:
        section, _, wanted = name.partition(".")
        hints = typing.get_type_hints(SECTIONS[section])
        found = [item for item in dataclasses.fields(SECTIONS[section]) if wanted in ("", item.name)]
        if not found:
            raise KeyError(name)
        for item in found:
            yield section, item, hints[item.name]


def with_settings(*which: str) -> Callable[[Callable[P, R]], Callable[..., R]]:
    """Give a verb one flag for each of the settings named, and the loaded `settings` as a keyword.

    Args:
        which: "section" for all its fields, "section.field" for one.
    """
    chosen = list(setting_fields(*which))

    def decorate(function: Callable[P, R]) -> Callable[..., R]:
        @functools.wraps(function)
        def verb(*args: Any, config: Path | None, **values: Any) -> R:
            flags = {item.name: values.pop(item.name) for _, item, _ in chosen}
            return function(*args, settings=load(config_file(config), flags), **values)  # type: ignore[arg-type]

        wrapped: Callable[..., R] = verb
        for _, item, kind in reversed(chosen):
            wrapped = _flag(item, kind)(wrapped)
        return _config_flag(wrapped)

    return decorate


_config_flag = click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Settings file. [env: FREEHOLD_CONFIG]",
)


def _flag(item: dataclasses.Field[Any], kind: type[Any]) -> Callable[[Callable[..., R]], Callable[..., R]]:
    choices = item.metadata["choices"]
    names = [flag_name(item.name)] + ([SHORT[item.name]] if item.name in SHORT else [])
    default = f"default: {item.default}; " if item.default != "" else ""
    return click.option(
        *names,
        item.name,
        type=click.Choice(choices) if choices else kind,
        default=None,
        metavar=None if choices else kind.__name__.upper(),
        help=f"{item.metadata['help']} [{default}env: {env_name(item.name)}]",
    )


def load_settings(config: Path | None = None) -> Settings:
    """The settings without any flag."""
    return load(config_file(config))


def moment(flag: str, text: str, now: datetime, *, also: str = "") -> int:
    """A span before now or a date (UTC unless it says otherwise), in microseconds since 1970.

    Args:
        flag: named in the error; `also` is what else may be given there.
    """
    if span := re.fullmatch(r"(\d{1,5})([hdw])", text):
        return max(0, round((now - timedelta(**{_SPANS[span[2]]: int(span[1])})).timestamp() * 1_000_000))
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{flag}: expected 12h, 7d, 4w, a date{also}, found {text[:50]!r}") from None
    return round((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() * 1_000_000)


_SPANS = {"h": "hours", "d": "days", "w": "weeks"}
