"""`freehold pull`: fetch a model into the store."""

from __future__ import annotations

import click

from freehold.cli.on_record import on_record
from freehold.cli.options import as_json
from freehold.cli.output import emit, emit_json, progress


@click.command("pull")
@click.argument("model")
@as_json
def command(model: str, as_json: bool) -> None:
    """Fetch a model into the store.

    MODEL is a built-in name (smollm2) or org/repo[:variant] as on Hugging Face. Prints the path of the fetched model.
    """
    from freehold.formats import store
    from freehold.formats.builtin import BUILTINS
    from freehold.provenance.deeds import pulled

    with progress() as bar:
        path = store.pull(model, progress=bar)
        licence = BUILTINS[model].licence if model in BUILTINS else None
        record = on_record(lambda settings: pulled(settings, model, path, licence))
    if as_json:
        emit_json({"model": model, "path": path, "record": record})
    else:
        emit(str(path))
