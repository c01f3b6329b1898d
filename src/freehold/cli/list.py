"""`freehold list`: the models in the store."""

from __future__ import annotations

import click

from freehold.cli.options import as_json
from freehold.cli.output import emit, emit_json, say, size, table


@click.command("list")
@as_json
def command(as_json: bool) -> None:
    """List the models in the store."""
    from freehold.formats import store

    models = store.list_models()
    if as_json:
        emit_json(models)
    elif not models:
        say("no models yet; `freehold pull smollm2` fetches the built-in one")
    else:
        rows = [(model.name, model.kind, size(model.size), str(model.path or "-")) for model in models]
        emit(table(rows, ("MODEL", "KIND", "SIZE", "PATH")))
