"""`freehold key`: virtual keys for those who share a gateway. A key is shown once, when it is made."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from freehold.cli.options import as_json, load_settings
from freehold.cli.output import emit, emit_json, say, table
from freehold.errors import UsageError

if TYPE_CHECKING:
    from freehold.database import Database
    from freehold.gateway.virtual_keys import Limits, VirtualKey

NANOS = 1_000_000_000
NONE = "none"
_config = click.option("--config", type=click.Path(dir_okay=False, path_type=Path), help="Settings file.")


def _limits(command: Callable[..., None]) -> Callable[..., None]:
    """The flags that limit a key."""
    for name, text in reversed(
        [
            ("--usd-per-day", "Most it may spend in a day (UTC)."),
            ("--usd-per-month", "Most it may spend in a calendar month (UTC)."),
            ("--tokens-per-minute", "Most tokens of prompts and answers."),
            ("--requests-per-minute", "Most requests."),
        ]
    ):
        command = click.option(name, metavar="NUMBER", help=f"{text} `none` = no limit.")(command)
    command = click.option(
        "--backend", "backends", multiple=True, help="A backend that may answer it; may be repeated."
    )(command)
    return click.option("--model", "models", multiple=True, help="A model it may ask for (* and ?); may be repeated.")(
        command
    )


@click.group("key")
def command() -> None:
    """Make, limit and revoke keys for those who share this gateway.

    Keys are kept as hashes in the database of the settings (`database.url`); a running server notices within seconds.
    As soon as there is one key, everybody needs a key, and it stays so when the last one is revoked.
    """


@command.command("create")
@click.argument("name")
@_limits
@_config
@as_json
def create(name: str, config: Path | None, as_json: bool, **given: Any) -> None:
    """Make a key and show it, once."""
    from freehold.gateway import virtual_keys

    limits = _changed(virtual_keys.Limits(), given)
    with _database(config) as database:
        key, work = virtual_keys.create(name, limits, time.time())
        made = database.now(work)
    if as_json:
        emit_json(_shown(made) | {"key": key})
    else:
        say(f"made {made.id} for {name}; keep the key now, it is shown only once")
        emit(key)


@command.command("list")
@click.option("--all", "everything", is_flag=True, help="Revoked ones too.")
@_config
@as_json
def list_(everything: bool, config: Path | None, as_json: bool) -> None:
    """List the keys with their limits; never the keys themselves."""
    from freehold.gateway import virtual_keys

    with _database(config) as database:
        keys = [key for key in database.now(virtual_keys.all_keys) if everything or key.revoked_at is None]
    if as_json:
        emit_json([_shown(key) for key in keys])
    elif not keys:
        say("no keys yet; `freehold key create NAME` makes one")
    else:
        emit(table([_row(_shown(key)) for key in keys], _HEADER))


@command.command("revoke")
@click.argument("name")
@_config
@as_json
def revoke(name: str, config: Path | None, as_json: bool) -> None:
    """End a key, by its name or id; what it spent stays on record."""
    from freehold.gateway import virtual_keys

    with _database(config) as database:
        ended = database.now(virtual_keys.revoke(name, time.time()))
        left = database.now(virtual_keys.in_use)
    if as_json:
        emit_json({"id": ended.id, "name": ended.name, "revoked": True, "keys_in_use": left})
        return
    say(f"revoked {ended.id} ({ended.name}); running servers refuse it within seconds")
    if not left:
        say(
            "that was the last key: servers still ask for one, so only the owner's FREEHOLD_API_KEY gets in, if it is set"
        )
        say("hint: `freehold key create NAME` makes a new key")


@command.command("limit")
@click.argument("name")
@_limits
@_config
@as_json
def limit(name: str, config: Path | None, as_json: bool, **given: Any) -> None:
    """Change what a key may do; limits that are not named stay."""
    from freehold.gateway import virtual_keys

    with _database(config) as database:
        changed = database.now(virtual_keys.limit(name, lambda limits: _changed(limits, given)))
    if as_json:
        emit_json(_shown(changed))
    else:
        emit(table([_row(_shown(changed))], _HEADER))


_HEADER = ("ID", "NAME", "USD/DAY", "USD/MONTH", "TOKENS/MIN", "REQUESTS/MIN", "MODELS", "BACKENDS", "STATE")


def _database(config: Path | None) -> AbstractContextManager[Database]:
    from freehold.database import Database

    return Database(load_settings(config).database.url)


def _changed(limits: Limits, given: dict[str, Any]) -> Limits:
    """The limits with those that were given; `none` takes one away."""
    found: dict[str, Any] = {}
    for name in ("usd_per_day", "usd_per_month", "tokens_per_minute", "requests_per_minute"):
        if given[name] is not None:
            found[name] = None if given[name] == NONE else _number(name, given[name])
    for name in ("models", "backends"):
        if given[name]:
            if any("," in word or not word.isprintable() for word in given[name]):
                raise UsageError(f"expected one name for each --{name[:-1]}, found {', '.join(given[name])}")
            found[name] = () if given[name] == (NONE,) else given[name]
    return replace(limits, **found)


def _number(name: str, text: str) -> int:
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text):
        value = Decimal(text) * (NANOS if name.startswith("usd") else 1)
        if value > 0 and value == int(value):
            return int(value)
    flag = "--" + name.replace("_", "-")
    raise UsageError(f"{flag}: expected a number above 0, or {NONE}, found {text[:50]!r}")


def _shown(key: VirtualKey) -> dict[str, Any]:
    """For people and programs; money in USD."""
    limits = key.limits
    return {
        "id": key.id,
        "name": key.name,
        "usd_per_day": None if limits.usd_per_day is None else limits.usd_per_day / NANOS,
        "usd_per_month": None if limits.usd_per_month is None else limits.usd_per_month / NANOS,
        "tokens_per_minute": limits.tokens_per_minute,
        "requests_per_minute": limits.requests_per_minute,
        "models": list(limits.models),
        "backends": list(limits.backends),
        "created_at": key.created_at // 1_000_000,
        "revoked_at": None if key.revoked_at is None else key.revoked_at // 1_000_000,
    }


def _row(shown: dict[str, Any]) -> tuple[str, ...]:
    numbers = ("usd_per_day", "usd_per_month", "tokens_per_minute", "requests_per_minute")
    cells = ["-" if shown[name] is None else f"{shown[name]:g}" for name in numbers[:2]]
    cells += ["-" if shown[name] is None else str(shown[name]) for name in numbers[2:]]
    names = [",".join(shown[name]) or "all" for name in ("models", "backends")]
    return (shown["id"], shown["name"], *cells, *names, "in use" if shown["revoked_at"] is None else "revoked")
