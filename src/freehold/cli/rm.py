"""`freehold rm`: remove a model from the store."""

from __future__ import annotations

import click

from freehold.cli.options import as_json
from freehold.cli.output import emit_json, say, size


@click.command("rm")
@click.argument("model")
@as_json
def command(model: str, as_json: bool) -> None:
    """Remove a model from the store.

    Only what lies in the store is removed: a directory or file of your own is never touched.
    """
    from freehold.formats import store

    freed = store.remove(model)
    if as_json:
        emit_json({"model": model, "bytes_freed": freed})
    else:
        say(f"removed {model}, {size(freed)} freed")
