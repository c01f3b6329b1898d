"""Money and rates: exactly what there is money for, on both databases, and nothing lost or locked up by a crash."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.conftest import counted

from freehold.cost import usage
from freehold.cost.meter import Part
from freehold.cost.prices import Tokens
from freehold.database import Database
from freehold.gateway import virtual_keys
from freehold.gateway.budget import Budget, Hold, Offer
from freehold.gateway.failures import LimitError, RequestError
from freehold.gateway.virtual_keys import Limits
from freehold.settings import BudgetSettings, CostSettings, UpstreamSettings

NOON = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)
CENT = 10_000_000  # nano-dollars


class Clock:
    """Seconds since 1970, moved by the test."""

    def __init__(self) -> None:
        self.now = NOON.timestamp()

    def __call__(self) -> float:
        return self.now


PRICES = '[[price]]\nprovider = "mine"\nmodel = "m"\ninput = 10\noutput = 10\n'  # a thousand tokens cost a cent


@asynccontextmanager
async def opened(
    url: str, tmp_path: Path, clock: Clock, *, settings: BudgetSettings | None = None, **upstream: float
) -> AsyncIterator[Budget]:
    file = tmp_path / "prices.toml"
    file.write_text(PRICES)
    upstreams = [UpstreamSettings(name="mine", base_url="http://127.0.0.1:9/v1", model="m", **upstream)]  # type: ignore[arg-type]
    cost = CostSettings(prices=str(file), machine_usd_per_hour=3.6)
    budget = Budget(Database(url), settings=settings, cost=cost, upstreams=upstreams, now=clock)
    await budget.start()
    try:
        yield budget
    finally:
        await budget.close()


async def a_key(budget: Budget, **limits: object) -> str:
    _, work = virtual_keys.create("alice", Limits(**limits), budget._now())  # type: ignore[arg-type]
    made = await budget.database.run(work)
    await budget.ring.refresh()
    return made.id


def part(tokens: int, **given: object) -> Part:
    return replace(Part("mine", "m", NOON, heard=True, tokens=Tokens(prompt=tokens), finished=True), **given)  # type: ignore[arg-type]


async def all_of(work: Sequence[Awaitable[Hold]]) -> tuple[list[Hold], list[BaseException]]:
    results = await asyncio.gather(*work, return_exceptions=True)
    return [r for r in results if isinstance(r, Hold)], [r for r in results if isinstance(r, BaseException)]


def offer(nanos: int | None, backend: str = "mine") -> list[Offer]:
    return [Offer(backend, nanos)]


@pytest.mark.parametrize("whose", ["key", "backend"])
def test_of_200_at_once_exactly_the_50_there_is_money_for_pass(database_url: str, tmp_path: Path, whose: str) -> None:
    async def run() -> None:
        caps = {"usd_per_day": 0.5} if whose == "backend" else {}
        async with opened(database_url, tmp_path, Clock(), **caps) as budget:
            key = await a_key(budget, usd_per_day=50 * CENT) if whose == "key" else ""
            passed, refused = await all_of([budget.reserve(key, "m", offer(CENT), 10) for _ in range(200)])
            assert (len(passed), len(refused)) == (50, 150)
            assert {(type(error), getattr(error, "code", "")) for error in refused} == {
                (LimitError, "insufficient_quota")
            }
            for hold in passed:
                budget.settle(hold, hold.id, [part(1000)])
            await budget.flush()
            assert counted(budget.database, "reservations") == 0
            again, _ = await all_of([budget.reserve(key, "m", offer(CENT), 10) for _ in range(10)])
            assert again == []
            assert budget.allows("mine") is (whose == "key")

    asyncio.run(run())


def test_two_gateways_on_one_database_share_the_money(database_url: str, tmp_path: Path) -> None:
    async def run() -> None:
        clock = Clock()
        async with opened(database_url, tmp_path, clock) as one, opened(database_url, tmp_path, clock) as other:
            key = await a_key(one, usd_per_month=50 * CENT)
            await other.ring.refresh()
            both = [budget.reserve(key, "m", offer(CENT), 10) for _ in range(100) for budget in (one, other)]
            passed, _ = await all_of(both)
            assert len(passed) == 50
            for hold in passed:
                one.settle(hold, hold.id, [])

    asyncio.run(run())


def test_what_was_not_needed_is_free_again_and_what_was_is_spent(database_url: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with opened(database_url, tmp_path, Clock()) as budget:
            key = await a_key(budget, usd_per_day=10 * CENT)
            hold = await budget.reserve(key, "m", offer(9 * CENT), 10)
            with pytest.raises(LimitError) as caught:
                await budget.reserve(key, "m", offer(9 * CENT), 10)
            assert caught.value.retry_after == 1  # soon: it is only reserved
            budget.settle(hold, "r1", [part(500)])
            hold = await budget.reserve(key, "m", offer(9 * CENT), 10)
            budget.settle(hold, "r2", [part(9500)])
            with pytest.raises(LimitError) as caught:
                await budget.reserve(key, "m", offer(CENT), 10)
            assert caught.value.retry_after == 12 * 3600 and caught.value.headers["x-should-retry"] == "false"
            rows = list(usage.read(budget.database))
            assert [row.nanos for row in rows] == [CENT // 2, 95 * CENT // 10]
            prices = await budget.database.run(lambda t: [usage.price_of(t, row.price_snapshot) for row in rows])
            assert [p.cost(r.tokens) for p, r in zip(prices, rows, strict=True) if p] == [row.nanos for row in rows]

    asyncio.run(run())


def test_a_new_day_and_a_new_month_bring_new_money(database_url: str, tmp_path: Path) -> None:
    async def run() -> None:
        clock = Clock()
        async with opened(database_url, tmp_path, clock) as budget:
            key = await a_key(budget, usd_per_day=CENT, usd_per_month=2 * CENT)

            async def spend() -> bool:
                try:
                    hold = await budget.reserve(key, "m", offer(CENT), 10)
                except LimitError:
                    return False
                budget.settle(hold, hold.id, [part(1000, at=datetime.fromtimestamp(clock.now, UTC))])
                return True

            assert [await spend(), await spend()] == [True, False]
            clock.now += 86400
            assert [await spend(), await spend()] == [True, False]
            clock.now += 86400
            assert await spend() is False  # the month's is gone
            clock.now = datetime(2026, 4, 1, tzinfo=UTC).timestamp()
            assert await spend() is True

    asyncio.run(run())


def test_a_reservation_nobody_keeps_frees_itself_after_a_minute_and_one_that_is_kept_does_not(
    database_url: str, tmp_path: Path
) -> None:
    async def run() -> None:
        clock = Clock()
        async with opened(database_url, tmp_path, clock) as budget:
            key = await a_key(budget, usd_per_day=CENT)
            hold = await budget.reserve(key, "m", offer(CENT), 10)
            clock.now += 40
            await budget.keep()
            clock.now += 40
            with pytest.raises(LimitError):
                await budget.reserve(key, "m", offer(CENT), 10)
            budget._live.clear()  # as if its gateway had been killed
            await budget.keep()
            clock.now += 21
            assert (await budget.reserve(key, "m", offer(CENT), 10)).reserved
            budget.settle(hold, "r", [])

    asyncio.run(run())


def test_kill_9_loses_no_settled_exchange_and_locks_up_no_money(database_url: str, tmp_path: Path) -> None:
    program = """
import asyncio, sys
from pathlib import Path
from tests.gateway.test_budget import CENT, Clock, a_key, offer, opened, part

async def run():
    async with opened(sys.argv[1], Path(sys.argv[2]), Clock()) as budget:
        key = await a_key(budget, usd_per_day=10**6 * CENT)
        print(key, flush=True)
        await budget.reserve(key, "m", offer(10**6 * CENT - 10**4 * CENT), 10)  # dies with the process
        for i in range(10**4):
            budget.settle(await budget.reserve(key, "m", offer(CENT), 10), f"r{i:05}", [part(1000)])
            await budget.flush()
            print(i, flush=True)

asyncio.run(run())
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program, database_url, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    key = process.stdout.readline().strip()
    for line in process.stdout:
        if int(line) >= 20:
            process.send_signal(signal.SIGKILL)
            break
    told = [20, *(int(word) for word in process.stdout.read().split())][-1]
    process.stdout.close()
    assert process.wait(30) == -signal.SIGKILL

    async def run() -> None:
        clock = Clock()
        clock.now += 61
        async with opened(database_url, tmp_path, clock) as budget:
            rows = list(usage.read(budget.database))
            assert len(rows) in (told + 1, told + 2)  # one may have been committed and not yet told
            spent = await budget.database.run(lambda t: t.rows("select nanos from spending where scope = 'key'"))
            assert spent == [(len(rows) * CENT,)] * 2  # its day and its month
            left = (10**6 - len(rows)) * CENT
            assert (await budget.reserve(key, "m", offer(left), 10)).reserved

    asyncio.run(run())


def test_an_unknown_price_is_refused_where_money_is_limited_unless_told_otherwise(
    database_url: str, tmp_path: Path
) -> None:
    async def run(setting: str) -> None:
        given = BudgetSettings(unknown_price=setting)
        async with opened(database_url, tmp_path, Clock(), settings=given) as budget:
            key = await a_key(budget, usd_per_day=CENT)
            assert budget.offer("mine", "another", 10, 10) == Offer("mine", None)
            if setting == "allow":
                hold = await budget.reserve(key, "another", offer(None), 10)
                budget.settle(hold, "r", [part(10, model="another")])
                assert [(r.nanos, r.price_snapshot) for r in usage.read(budget.database)] == [(None, "unknown")]
            else:
                with pytest.raises(RequestError) as caught:
                    await budget.reserve(key, "another", offer(None), 10)
                assert (caught.value.status, caught.value.code) == (403, "unknown_price")
                kept = await budget.reserve(key, "m", [Offer("local", 0), Offer("mine", None)], 10)
                assert kept.backends == ("local",)
                budget.settle(kept, "r", [])
                assert (await budget.reserve("", "another", offer(None), 10)).backends is None
            await budget.database.run(virtual_keys.revoke(key, 1.0))

    asyncio.run(run("refuse"))
    asyncio.run(run("allow"))


def test_who_can_not_be_paid_is_not_asked_and_the_local_engine_always_can(database_url: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with opened(database_url, tmp_path, Clock()) as budget:
            key = await a_key(budget, usd_per_day=CENT)
            line = [Offer("local", 0), Offer("dear", 5 * CENT), Offer("mine", CENT)]
            holds = [await budget.reserve(key, "m", line, 10) for _ in range(2)]
            assert [hold.backends for hold in holds] == [("local", "mine"), ("local",)]

    asyncio.run(run())


def test_requests_and_tokens_by_the_minute_are_counted_told_and_refilled(database_url: str, tmp_path: Path) -> None:
    async def run() -> None:
        clock = Clock()
        async with opened(database_url, tmp_path, clock) as budget:
            key = await a_key(budget, requests_per_minute=3, tokens_per_minute=1000)
            holds, refused = await all_of([budget.reserve(key, "m", offer(None), 100) for _ in range(5)])
            assert (len(holds), len(refused)) == (3, 2)
            assert holds[-1].headers == {
                "x-ratelimit-limit-requests": "3", "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-requests": "1m0s", "x-ratelimit-limit-tokens": "1000",
                "x-ratelimit-remaining-tokens": "700", "x-ratelimit-reset-tokens": "18s",
            }  # fmt: skip
            error = refused[0]
            assert isinstance(error, LimitError) and error.code == "rate_limit_exceeded"
            assert error.headers["retry-after"] == "20" and error.headers["x-ratelimit-remaining-requests"] == "0"
            budget.settle(holds[0], "r", [part(850)])  # 750 more than were set aside
            await budget.flush()
            clock.now += 20
            with pytest.raises(LimitError, match="tokens per minute"):
                await budget.reserve(key, "m", offer(None), 700)  # 700 - 750 + a third of 1000
            clock.now += 25
            assert (await budget.reserve(key, "m", offer(None), 700)).rates[1].remaining == 0
            clock.now += 60
            assert (await budget.reserve(key, "m", offer(None), 10**6)).rates[1].remaining == 0  # more than ever fits

    asyncio.run(run())


def test_a_key_reaches_only_its_models_and_backends(database_url: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with opened(database_url, tmp_path, Clock()) as budget:
            key = await a_key(budget, models=("gpt-*", "m"), backends=("local",))
            both = [Offer("mine", CENT), Offer("local", 0)]
            assert (await budget.reserve(key, "m", both, 1)).backends == ("local",)
            for model, offers in (("other", both), ("gpt-9", offer(CENT))):
                with pytest.raises(RequestError) as caught:
                    await budget.reserve(key, model, offers, 1)
                assert caught.value.status == 403

    asyncio.run(run())


def test_writing_a_row_twice_charges_once(database_url: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with opened(database_url, tmp_path, Clock()) as budget:
            for _ in range(2):
                budget.settle(Hold("h", "k"), "r", [part(1000)])
            await budget.flush()
            assert await budget.database.run(lambda t: t.rows("select distinct nanos from spending")) == [(CENT,)]

    asyncio.run(run())


def test_a_cancelled_reservation_is_given_back(database_url: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with opened(database_url, tmp_path, Clock()) as budget:
            key = await a_key(budget, usd_per_day=CENT)
            waiting = asyncio.create_task(budget.reserve(key, "m", offer(CENT), 10))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait([waiting])
            assert (await budget.reserve(key, "m", offer(CENT), 10)).reserved and budget._live

    asyncio.run(run())


def test_usage_that_no_database_takes_is_written_later_or_told_to_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with opened(f"sqlite:///{tmp_path / 'x.db'}", tmp_path, Clock()) as budget:
            write = usage.write
            monkeypatch.setattr(usage, "write", lambda *given: given[0].run("nonsense"))
            budget.settle(Hold("h"), "r1", [part(1000)])
            await budget.flush()
            assert list(usage.read(budget.database)) == [] and "not written yet" in caplog.text
            monkeypatch.setattr(usage, "write", write)
            await budget.keep()
            await budget.flush()
            assert [row.request_id for row in usage.read(budget.database)] == ["r1"]
            monkeypatch.setattr(usage, "write", lambda *given: given[0].run("nonsense"))
            budget.settle(Hold("h"), "r2", [part(1000)])
            await budget.flush()

    asyncio.run(run())
    assert '"request_id":"r2"' in caplog.text


def test_requests_without_limits_never_wait_for_the_database(tmp_path: Path) -> None:
    async def run() -> None:
        async with opened(f"sqlite:///{tmp_path / 'x.db'}", tmp_path, Clock()) as budget:
            key = await a_key(budget)
            await asyncio.to_thread(budget.database.close)
            assert not budget.limited("", ["mine"]) and not budget.limited(key, ["mine"])
            assert (await budget.reserve("", "m", offer(None), 10)).backends is None

    asyncio.run(run())
