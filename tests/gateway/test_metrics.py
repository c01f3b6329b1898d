"""What `/metrics` says of breakers, escalations, continuations and refusals."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx2
from tests.gateway import fakes
from tests.gateway.test_router import Scripted, answered, judged, request, scripted_core

from freehold.gateway.service import Gateway


def value(gateway: Gateway, series: str) -> float | None:
    lines = gateway.metrics.text().decode().splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.rpartition(" ")[0] == series), None)


def test_each_breaker_is_in_exactly_one_state(directory: Path) -> None:
    gateway = Gateway(fakes.core(directory), [Scripted("one"), Scripted("two")])

    def state(backend: str) -> list[str]:
        lines = gateway.metrics.text().decode().splitlines()
        start = f'freehold:breaker_state{{backend="{backend}",state="'
        return [
            line.removeprefix(start).split('"')[0] for line in lines if line.startswith(start) and line.endswith(" 1.0")
        ]

    assert state("one") == state("two") == state("local") == ["closed"]
    gateway.router.breaker.failed("one", "transport")
    gateway.router.breaker.failed("two", "banned")
    assert (state("one"), state("two"), state("local")) == (["open"], ["quarantined"], ["closed"])
    gateway.router.breaker.succeeded("one")
    assert state("one") == ["closed"]


def test_a_rejected_draft_is_counted_once_by_who_answered_instead() -> None:
    doubtful = judged(scripted_core(-5.0), Scripted("one"))
    asyncio.run(answered(doubtful, request()))
    assert value(doubtful, 'freehold:escalations_total{answered_by="one"}') == 1
    sure = judged(scripted_core(-0.1), Scripted("one"))
    asyncio.run(answered(sure, request()))
    assert value(sure, 'freehold:escalations_total{answered_by="local"}') is None


def test_the_page_is_what_prometheus_reads(directory: Path) -> None:
    with fakes.live(Gateway(fakes.core(directory))) as live:
        page = httpx2.get(live.url + "/metrics")
    assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
    for name in ("breaker_state", "budget_refusals", "escalations", "continuations", "alerts", "failovers"):
        assert f"# TYPE freehold:{name}" in page.text
