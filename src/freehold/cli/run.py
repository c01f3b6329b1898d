"""`freehold run`: one prompt, one answer."""

from __future__ import annotations

import sys
from typing import Any

import click

from freehold.cli.asking import Answer, answer, make_request, open_gateway, request_flags, turn, writer
from freehold.cli.options import as_json, with_settings
from freehold.cli.output import emit_json, say
from freehold.errors import UsageError
from freehold.settings import Settings


@click.command("run")
@click.argument("prompt", required=False)
@with_settings("engine.model", "engine.threads", "engine.isa", "engine.max_context", "cost")
@request_flags
@as_json
def command(prompt: str | None, settings: Settings, as_json: bool, **values: Any) -> None:
    """Answer one prompt, streamed to stdout.

    Without PROMPT, or with -, it is read from stdin. Ends with one line on stderr: backend, tokens, tokens per second,
    bits per weight, cost.
    """
    import asyncio  # here, so that --help stays light

    text = read_prompt(prompt)
    given = asyncio.run(_ask(text, settings, values, quiet=as_json))
    if as_json:
        emit_json(given)
    else:
        sys.stdout.write("\n")
        sys.stdout.flush()
        say(given.line())


def read_prompt(prompt: str | None) -> str:
    """The prompt itself, or what stdin holds.

    Raises:
        UsageError: there is none, or it is not UTF-8.
    """
    if prompt is None and sys.stdin.isatty():
        raise UsageError("a prompt is needed", hint='`freehold run "your prompt"`, or pipe one in')
    try:
        text = sys.stdin.buffer.read().decode("utf-8") if prompt in (None, "-") else prompt or ""
    except UnicodeDecodeError as error:
        raise UsageError(f"the prompt on stdin must be UTF-8, found a bad byte at {error.start}") from None
    if not text.strip():
        raise UsageError("the prompt is empty")
    return text


async def _ask(text: str, settings: Settings, values: dict[str, Any], *, quiet: bool) -> Answer:
    turns = (turn("system", values["system"]),) if values["system"] else ()
    request = make_request(settings, (*turns, turn("user", text)), values)
    async with open_gateway(settings) as gateway:
        return await answer(gateway, request, settings, (lambda text: None) if quiet else writer())
