"""`freehold show`: what is known of a model, without loading its weights."""

from __future__ import annotations

import click

from freehold.cli.options import as_json
from freehold.cli.output import emit, emit_json, size, table


@click.command("show")
@click.argument("model")
@as_json
def command(model: str, as_json: bool) -> None:
    """Show what is known of a model.

    Nothing is fetched and no weights are loaded.
    """
    from freehold.formats import store

    card = store.show(model)
    if as_json:
        emit_json(card)
        return
    import msgspec

    facts = msgspec.to_builtins(card, enc_hook=str)
    rows = [(key.replace("_", " "), _words(key, value)) for key, value in facts.items() if value is not None]
    emit(table(rows, ("", "")).lstrip("\n"))


def _words(key: str, value: object) -> str:
    if key == "size" and isinstance(value, int):
        return size(value)
    if isinstance(value, float):
        return f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
