"""`freehold cost`: what was spent, what the same tokens would have cost elsewhere, what was saved."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from freehold.cli.options import as_json, load_settings, moment
from freehold.cli.output import emit, emit_json, say, table

if TYPE_CHECKING:
    from freehold.cost.usage import Line

NANOS = 1_000_000_000


@click.command("cost")
@click.option("--since", default="30d", show_default=True, help="A span (12h, 7d, 4w), a date (2026-01-31), or all.")
@click.option("--by", type=click.Choice(("key", "backend", "model")), default="backend", help="What a line is for.")
@click.option("--at", "compare_with", help="PROVIDER/MODEL to compare with. [default: cost.compare_with]")
@click.option("--config", type=click.Path(dir_okay=False, path_type=Path), help="Settings file.")
@as_json
def command(since: str, by: str, compare_with: str | None, config: Path | None, as_json: bool) -> None:
    """Report what was spent, and what it would have cost elsewhere.

    The comparison takes the tokens as they were counted here, at the other provider's prices of the same moment; its
    own tokenizer would count a little differently.
    """
    from freehold.cost import usage
    from freehold.cost.prices import PriceBook
    from freehold.database import Database
    from freehold.gateway.virtual_keys import all_keys

    settings = load_settings(config)
    compare = settings.cost.compare_with if compare_with is None else compare_with
    start = 0 if since == "all" else moment("--since", since, datetime.now(UTC), also=" or all")
    with Database(settings.database.url) as database:
        rows = usage.read(database, start)
        lines, total = usage.summarize(rows, by, PriceBook.load(settings.cost.prices), compare)
        if by == "key":
            names = {key.id: key.name for key in database.now(all_keys)}
            for line in lines:
                line.name = names.get(line.name, line.name)
    if as_json:
        emit_json(_report(lines, total, by, start, compare))
        return
    emit(table([_row(line, bool(compare)) for line in [*lines, total]], _HEADER))
    _explain(total, compare, settings.cost.machine_usd_per_hour)


_HEADER = ("", "REQUESTS", "PROMPT", "OUTPUT", "SPENT USD", "ELSEWHERE USD", "SAVED USD")


def _usd(nanos: int | None) -> str:
    """With six decimals: a cent has ten thousand of them. Nobody knows what has no price."""
    return "?" if nanos is None else f"{nanos / NANOS:.6f}"


def _row(line: Line, compared: bool) -> tuple[str, ...]:
    counts = (line.requests, line.prompt_tokens, line.completion_tokens)
    others = map(_usd, (line.elsewhere, line.saved)) if compared else ("-", "-")
    return (line.name, *map(str, counts), _usd(line.spent), *others)


def _explain(total: Line, compare: str, machine: float) -> None:
    """What the numbers leave out, in words."""
    if not compare:
        say("`--at openai/gpt-4o-mini` compares with what the same tokens cost there")
    if total.local_seconds and not machine:
        say("the local engine's costs are not known: set cost.machine_usd_per_hour")
    if total.unpriced:
        say(f"{total.unpriced} exchanges have no known price and are not in SPENT, ELSEWHERE and SAVED")
    if total.estimated:
        say(f"{total.estimated} exchanges were cut or left before their backend counted tokens: those are estimates")


def _report(lines: list[Line], total: Line, by: str, start: int, compare: str) -> dict[str, Any]:
    return {
        "since": datetime.fromtimestamp(start / 1_000_000, UTC).isoformat(),
        "by": by,
        "compared_with": compare or None,
        "lines": [_line(line) for line in lines],
        "total": _line(total),
    }


def _line(line: Line) -> dict[str, Any]:
    money = {"spent": line.spent, "elsewhere": line.elsewhere, "saved": line.saved}
    return {
        "name": line.name,
        "requests": line.requests,
        "prompt_tokens": line.prompt_tokens,
        "completion_tokens": line.completion_tokens,
        "cached_tokens": line.cached_tokens,
        "estimated": line.estimated,
        "unpriced": line.unpriced,
        "local_seconds": round(line.local_seconds, 6),
        **{f"{name}_nanos": nanos for name, nanos in money.items()},
        **{f"{name}_usd": None if nanos is None else nanos / NANOS for name, nanos in money.items()},
    }
