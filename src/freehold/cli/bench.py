"""`freehold bench`: a model's speed, with this machine's limits measured in the same run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from freehold.cli.options import as_json, with_settings
from freehold.cli.output import emit, emit_json, progress, size, table
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
        emit(table(list(_rows(report)), ("MEASURE", "VALUE", "")))


def _rows(report: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """The report for people: measure, value, and what it is held against."""
    facts, limits = report["facts"], report["limits"]
    yield "model", f"{facts['architecture']}, {facts['bits_per_weight']:.2f} bits a weight", report["model"]
    yield "isa", facts["isa"], facts["isa_reason"]
    yield "threads", str(facts["threads"]), facts["threads_reason"]
    yield "limit: read", f"{limits['read_bytes_per_second'] / 1e9:.1f} GB/s", f"{size(limits['step_bytes'])} a token"
    yield "limit: int8", f"{limits['int8_operations_per_second'] / 1e12:.2f} TOPS", ""
    for name in ("prefill", "decode"):
        got = report[name]
        bound = limits[f"{name}_tokens_per_second"]
        held = f"{got['fraction_of_limit']:.0%} of this machine's {bound:,.0f}"
        yield f"{name} {got['tokens']}", f"{got['tokens_per_second']:,.1f} tok/s", held
    for run in report["streams"]:
        felt = ", ".join(
            f"{label} {run[key]['p50'] * 1000:.0f} ms (p95 {run[key]['p95'] * 1000:.0f})"
            for label, key in (("TTFT", "ttft_seconds"), ("TPOT", "tpot_seconds"))
        )
        yield f"{run['streams']} streams", f"{run['tokens_per_second']:,.1f} tok/s", felt
    yield "load", f"{report['load_seconds']:.2f} s", ""
    yield "memory", size(report["rss_peak_bytes"]), f"{size(report['rss_loaded_bytes'])} once loaded"
