"""`freehold route`: what the routing would do with a request, without sending it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from freehold.cli.options import as_json, with_settings
from freehold.cli.output import emit, emit_json, say, table
from freehold.errors import UsageError
from freehold.settings import Settings

LARGEST = 64 << 20


@click.command("route")
@click.option(
    "--explain", "file", required=True, type=click.Path(path_type=Path), help="Request body as JSON; - is stdin."
)
@click.option(
    "--dialect",
    type=click.Choice(["chat", "completions", "messages"]),
    default="chat",
    help="How the body is to be read.",
)
@click.option("--session", default="", help="As if the client sent it as x-freehold-session.")
@with_settings("engine.model")
@as_json
@click.pass_context
def command(context: click.Context, settings: Settings, file: Path, dialect: str, session: str, as_json: bool) -> None:
    """Say which backends would be asked, in which order and why.

    Nothing is sent and nothing is started. Exit code 1 when nobody would be asked.
    """
    from freehold.formats import store
    from freehold.gateway.explain import explain
    from freehold.gateway.service import Gateway

    body = _body(file)
    store.resolve(settings.engine.model, offline=True)  # a dry run fetches nothing
    found = explain(Gateway.build(settings, accounts=True).router, body, dialect, session=session)
    if as_json:
        emit_json(found)
    else:
        _show(found)
    context.exit(0 if found["line"] else 1)


def _body(file: Path) -> bytes:
    if str(file) == "-":
        return sys.stdin.buffer.read(LARGEST)
    try:
        with file.open("rb") as stream:
            return stream.read(LARGEST)
    except OSError as error:
        raise UsageError(f"can't read {file}: {error.strerror}") from None


def _show(found: dict[str, Any]) -> None:
    route = f"route '{found['route']}'" if found["route"] else "no [[route]]"
    say(f"{found['model']}: {route}, policy {found['policy']}, prompt of about {found['prompt_tokens']} tokens")
    rows = [(str(i), c["backend"], c["model"], c["reason"]) for i, c in enumerate(found["line"], 1)]
    rows += [("-", entry["backend"], "", f"not asked: {entry['reason']}") for entry in found["not_asked"]]
    emit(table(rows, ("", "BACKEND", "MODEL", "WHY")))
    if found["error"]:
        say(f"the client would be told: {found['error']}")
