"""`freehold bench`: a model's speed, with this machine's limits measured in the same run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from freehold.cli.options import as_json, with_settings
from freehold.cli.output import emit, emit_json, progress, size, table
from freehold.errors import UsageError
from freehold.settings import Settings


class _Counts(click.ParamType[tuple[int, ...]]):
    """Several whole numbers, as in 1,8,32; empty = none."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        words = [word.strip() for word in value.split(",") if word.strip()]
        if not all(word.isdecimal() for word in words):
            self.fail(f"expected whole numbers such as 1,8,32, found {value!r}", param, ctx)
        return tuple(map(int, words))


@click.command("bench")
@click.argument("model", required=False)
@click.option("--shape", metavar="NAME", help="Random weights of a known model's sizes instead of a MODEL.")
@click.option("--prefill", type=_Counts(), default="512,4096", show_default=True, help="Prompt lengths.")
@click.option("--depth", type=_Counts(), default="0,8192,32768", show_default=True, help="Tokens before those decoded.")
@click.option("--decode", type=click.IntRange(1), default=128, show_default=True, help="Tokens decoded at each depth.")
@click.option("--streams", type=_Counts(), default="1,8,16,32", show_default=True, help="Requests at the same time.")
@with_settings("engine.threads", "engine.isa", "engine.kv_dtype", "engine.max_batch", "engine.max_step_tokens")
@as_json
def command(
    model: str | None,
    shape: str | None,
    prefill: tuple[int, ...],
    depth: tuple[int, ...],
    decode: int,
    streams: tuple[int, ...],
    settings: Settings,
    as_json: bool,
) -> None:
    """Measure a model's speed against this machine's limits.

    MODEL is the `model` setting unless named. Read bandwidth and int8 peak are measured in the same run, and each
    speed is given as tok/s and as a share of the limit that bounds it. With --shape nothing is fetched: speed does not
    depend on the weights' values.
    """
    from freehold.engine.bench import bench
    from freehold.formats import store

    if shape and model:
        raise UsageError("name a MODEL or a --shape, not both")
    with progress() as bar:
        path = shape or store.resolve(model or settings.engine.model, progress=bar)
        report = bench(
            path, settings.engine, prefill=prefill, decode=decode, depths=depth, streams=streams, progress=bar
        )
    if as_json:
        emit_json(report)
    else:
        emit(table(list(_rows(report)), ("MEASURE", "VALUE", "")))


def _rows(report: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """The report for people: measure, value, and what it is held against."""
    facts, limits, load, memory = report["facts"], report["limits"], report["load"], report["memory"]
    yield "model", f"{facts['architecture']}, {facts['bits_per_weight']:.2f} bits a weight", report["model"]
    yield "isa", facts["isa"], facts["isa_reason"]
    yield "threads", str(facts["threads"]), facts["threads_reason"]
    yield "limit: read", f"{limits['read_bytes_per_second'] / 1e9:.1f} GB/s", f"{size(limits['step_bytes'])} a token"
    yield "limit: int8", f"{limits['int8_operations_per_second'] / 1e12:.2f} TOPS", ""
    for got in report.get("prefill", []):
        yield (
            f"prefill {got['tokens']}",
            f"{got['tokens_per_second']:,.1f} tok/s",
            f"{got['fraction_of_limit']:.0%} of int8, attention {got['attention_share']:.0%} of the time",
        )
    for got in report.get("decode", []):
        held = (
            f"{got['fraction_of_limit']:.0%} of read, {got['share_outside_kernels']:.1%} outside of the kernels, "
            f"attention {got['attention_share']:.0%} of theirs"
        )
        yield f"decode at {got['depth']}", f"{got['tokens_per_second']:,.1f} tok/s", held
    for run in report.get("streams", []):
        felt = ", ".join(
            f"{label} {run[key]['p50'] * 1000:.0f} ms (p95 {run[key]['p95'] * 1000:.0f})"
            for label, key in (("TTFT", "ttft_seconds"), ("TPOT", "tpot_seconds"))
        )
        name = f"{run['streams']} streams"
        yield name, f"{run['tokens_per_second']:,.1f} tok/s", f"{run['fraction_of_limit']:.0%} of the limit, {felt}"
    yield "load", f"{load['warm_seconds']:.2f} s", f"{load['first_seconds']:.2f} s the first time"
    times = (
        f"{memory['ratio']:.2f} times packed weights and filled KV cache, {size(memory['loaded_bytes'])} once loaded"
    )
    yield "memory", size(memory["resident_bytes"]), times
    for line in report["skipped"]:
        yield "skipped", line, ""
