"""`freehold bench`: a model's speed, with this machine's limits measured in the same run."""

from __future__ import annotations

from typing import Any

import click

from freehold.cli.options import as_json, with_settings
from freehold.cli.output import emit, emit_json, progress, table
from freehold.settings import Settings


@click.command("bench")
@click.argument("model", required=False)
@with_settings("engine.threads", "engine.isa", "engine.kv_dtype", "engine.max_batch", "engine.max_step_tokens")
@as_json
def command(model: str | None, settings: Settings, as_json: bool) -> None:
    """Measure a model's speed against this machine's limits.

    MODEL is the `model` setting unless named. Read bandwidth and int8 peak are measured in the same run, and each
    speed is given as tok/s and as a share of the limit that bounds it.
    """
    from freehold.engine.bench import bench
    from freehold.formats import store

    with progress() as bar:
        path = store.resolve(model or settings.engine.model, progress=bar)
        report = bench(path, settings.engine, progress=bar)
    if as_json:
        emit_json(report)
    else:
        emit(table(list(rows(report)), ("MEASURE", "VALUE")))
