"""Settings read: a TOML file, the environment and flags, each value checked against its field.

Every complaint names the setting, the value and where it came from. This module knows no room and no default; those are
`freehold.settings`'s.
"""

from __future__ import annotations

import dataclasses
import os
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from freehold.errors import SettingError
from freehold.settings import (
    PROVIDERS,
    SECTIONS,
    RouterSettings,
    RouteSettings,
    Settings,
    UpstreamSettings,
    env_name,
    own,
)


def load(
    file: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """Settings from defaults, then the file, the environment and the flags (None = not given).

    Args:
        file: TOML with a table for each of `SECTIONS`, and any number of `[[upstream]]` and `[[route]]`.
        flags: values by field name, as given on the command line.
        environment: defaults to os.environ.

    Raises:
        SettingError: a name nobody knows, or a value of the wrong type, range or choice; says where it came from.
    """
    environment = os.environ if environment is None else environment
    table = _read(file) if file else {}
    origins: dict[str, str] = {}
    sections: dict[str, Any] = {}
    for section, cls in SECTIONS.items():
        found = table.pop(section, {})
        if not isinstance(found, dict):
            raise SettingError(f"[{section}] in {file} must be a table")
        sections[section] = _section(section, cls, found, file, environment, flags or {}, origins)
    upstreams = tuple(_upstream(entry, i, file) for i, entry in enumerate(table.pop("upstream", [])))
    routes = _routes(table.pop("route", []), sections["router"], file)
    if table:
        known = ", ".join([*SECTIONS, "upstream", "route"])
        raise SettingError(f"unknown table [{next(iter(table))}] in {file}", hint=f"known tables: {known}")
    return Settings(**sections, upstreams=upstreams, routes=routes, file=file, origins=origins)


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingError(f"no settings file at {file}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise SettingError(f"can't read settings from {file}: {error}") from None


def _section(
    section: str,
    cls: type[Any],
    table: dict[str, Any],
    file: Path | None,
    environment: Mapping[str, str],
    flags: Mapping[str, Any],
    origins: dict[str, str],
) -> Any:
    values: dict[str, Any] = {}
    hints = typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):
        name, wanted = item.name, hints[item.name]
        origin, raw = "default", None
        if name in table:
            origin, raw = f"file {file}", table.pop(name)
            _refuse_password(name, raw, origin)
        if env_name(name) in environment:
            origin, raw = f"env {env_name(name)}", environment[env_name(name)]
        if flags.get(name) is not None:
            origin, raw = f"flag --{name.replace('_', '-')}", flags[name]
        origins[f"{section}.{name}"] = origin
        if origin != "default":
            values[name] = _convert(raw, wanted, item.metadata, f"{section}.{name}", origin)
    if table:
        raise SettingError(
            f"unknown setting {section}.{next(iter(table))} in {file}",
            hint="known: " + ", ".join(item.name for item in dataclasses.fields(cls)),
        )
    return cls(**values)


def _refuse_password(name: str, raw: Any, origin: str) -> None:
    """Secrets stay out of the settings file, where they would be backed up, mailed and committed."""
    if name == "url" and isinstance(raw, str) and re.search(r"://[^/@]*:[^/@]*@|[?&]password=", raw):
        hint = f"put the whole URL into {env_name('url')}, or the password into ~/.pgpass"
        raise SettingError(f"database.url from {origin}: expected no password in it, found one", hint=hint)


def _upstream(entry: Any, index: int, file: Path | None) -> UpstreamSettings:
    where = f"[[upstream]] number {index + 1} in {file}"
    if not isinstance(entry, dict):
        raise SettingError(f"{where} must be a table")
    known = {item.name: item for item in dataclasses.fields(UpstreamSettings)}
    hints = typing.get_type_hints(UpstreamSettings)
    values: dict[str, Any] = {}
    for key, value in entry.items():
        if key not in known:
            hint = "put the key into the environment and name it with key_env" if key in ("key", "api_key") else None
            raise SettingError(f"unknown setting {key} in {where}", hint=hint or "known: " + ", ".join(known))
        metadata = known[key].metadata
        if hints[key] == tuple[str, ...]:
            values[key] = _words(value, metadata["choices"], f"{key} from {where}")
        else:
            values[key] = _convert(value, float if metadata["inherits"] else hints[key], metadata, key, where)
    if not entry.get("name"):
        raise SettingError(f"{where} lacks name")
    if not entry.get("base_url") and not entry.get("provider"):
        raise SettingError(f"{where} lacks base_url", hint="or a provider: " + ", ".join(PROVIDERS))
    return UpstreamSettings(**values)


def _words(value: Any, choices: tuple[str, ...], problem: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(word in choices for word in value):
        raise SettingError(f"{problem}: expected some of {', '.join(choices)}, found {value!r}")
    return tuple(value)


def _routes(entries: Any, default: RouterSettings, file: Path | None) -> tuple[RouteSettings, ...]:
    if not isinstance(entries, list):
        raise SettingError(f"routes in {file} must be written as [[route]]")
    return tuple(_route(entry, f"[[route]] number {i + 1} in {file}", default) for i, entry in enumerate(entries))


def _route(entry: Any, where: str, default: RouterSettings) -> RouteSettings:
    """A route; it inherits what it does not say."""
    if not isinstance(entry, dict):
        raise SettingError(f"{where} must be a table")
    hints = typing.get_type_hints(RouterSettings)
    inherited = {item.name: item for item in dataclasses.fields(RouterSettings) if own(item)}
    model, to, said = entry.get("model"), entry.get("to", []), {}
    if not isinstance(model, str) or not model:
        raise SettingError(f"{where} lacks model", hint='model = "*" is every model')
    if not isinstance(to, list) or not all(isinstance(name, str) and name for name in to):
        raise SettingError(f"to from {where}: expected a list of backends' names, found {to!r}")
    for key, value in entry.items():
        if key in inherited:
            said[key] = _convert(value, hints[key], inherited[key].metadata, key, where)
        elif key not in ("model", "to"):
            raise SettingError(f"unknown setting {key} in {where}", hint="known: model, to, " + ", ".join(inherited))
    return RouteSettings(model, tuple(to), dataclasses.replace(default, **said))


def _convert(raw: Any, wanted: Any, metadata: Mapping[str, Any], name: str, origin: str) -> Any:
    shown = "a value that is not shown" if name.endswith(("key", "url")) else repr(raw)
    problem = f"{name} from {origin}: expected"
    if isinstance(wanted, types.UnionType):
        raise TypeError(f"{name}: unions are not settings")
    try:
        if wanted is bool and isinstance(raw, str):
            value: Any = {"1": True, "true": True, "0": False, "false": False}[raw.lower()]
        elif isinstance(raw, str) or (wanted is float and isinstance(raw, int) and not isinstance(raw, bool)):
            value = wanted(raw)
        else:
            value = raw
    except (ValueError, KeyError):
        raise SettingError(f"{problem} {wanted.__name__}, found {shown}") from None
    if type(value) is not wanted:
        raise SettingError(f"{problem} {wanted.__name__}, found {shown}")
    choices, minimum = metadata.get("choices"), metadata.get("minimum")
    if choices and value not in choices:
        raise SettingError(f"{problem} one of {', '.join(choices)}, found {shown}")
    if minimum is not None and not value >= minimum:
        raise SettingError(f"{problem} at least {minimum:g}, found {shown}")
    maximum = metadata.get("maximum")
    if maximum is not None and not value <= maximum:
        raise SettingError(f"{problem} at most {maximum:g}, found {shown}")
    return value
