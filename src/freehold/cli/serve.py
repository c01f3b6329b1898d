"""`freehold serve`: the HTTP server, in the foreground."""

from __future__ import annotations

from dataclasses import replace

import click

from freehold.cli.options import with_settings
from freehold.cli.output import progress
from freehold.settings import Settings


@click.command("serve")
@click.argument("named", metavar="[MODEL]", required=False)
@with_settings("engine", "server.host", "server.port", "server.max_body_mb", "guards")
def command(named: str | None, settings: Settings) -> None:
    """Serve the OpenAI API from this machine.

    MODEL says the same as --model. Prints the lines that point OpenAI clients here, and serves until Ctrl-C. The key
    that clients must send comes from FREEHOLD_API_KEY or the settings file, never from a flag, where every user of the
    machine could read it.
    """
    from freehold.formats import store
    from freehold.gateway import serve
    from freehold.gateway.logs import configure

    if named is not None:
        settings = replace(settings, engine=replace(settings.engine, model=named))
    configure(settings.server.log_format)
    with progress() as bar:
        store.resolve(settings.engine.model, progress=bar)
    serve(settings)
