"""`freehold drill`: the loss of each provider, practised."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import click

from freehold.cli.options import as_json, with_settings
from freehold.cli.output import emit, emit_json, progress, table
from freehold.settings import Settings


@click.command("drill")
@with_settings("engine.model", "guards")
@click.option("--verbose", is_flag=True, help="Show the gateway's log: each failure as it is met.")
@as_json
@click.pass_context
def command(context: click.Context, settings: Settings, verbose: bool, as_json: bool) -> None:
    """Practise the loss of each provider, and report who answered.

    Every upstream of the settings file is replaced by one on this machine that fails in each way providers fail; no
    byte reaches a real one, and no key is read. Without a settings file a built-in example is drilled: the local model
    with one OpenAI-like and one Anthropic-like standby. Exit code 1 when a request was lost.
    """
    import asyncio

    from freehold.gateway.drill import EXAMPLE, drill
    from freehold.gateway.service import load_core

    if settings.file is None:
        settings = replace(settings, upstreams=EXAMPLE)
    _hear(verbose or bool(context.find_root().params.get("debug")))
    with progress() as bar:
        core = load_core(settings.engine, progress=bar)
        report = asyncio.run(drill(settings, core, progress=bar))
    if as_json:
        emit_json(report)
    else:
        emit(table(list(_rows(report)), ("FAULT", "RESULT", "ANSWERED", "BY", "ADDED P95")))
        emit(f"\nlost: {report['lost']}")
    context.exit(1 if report["lost"] else 0)


def _hear(log: bool) -> None:
    """Shows the gateway's log, or keeps it quiet: here its failures are what was ordered, and the table counts them."""
    import logging

    from freehold.gateway.logs import configure

    if log:
        configure("text")
    else:
        logging.getLogger("freehold").setLevel(logging.CRITICAL)


def _rows(report: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for row in report["faults"]:
        by = ", ".join(f"{name} {count}" for name, count in row["answered_by"].items())
        added = "-" if row["added_ms_p95"] is None else f"{row['added_ms_p95']:,.0f} ms"
        yield row["fault"], row["result"], f"{row['answered']}/{row['requests']}", by or "-", added
