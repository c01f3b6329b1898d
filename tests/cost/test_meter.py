"""From what a backend did to a row of usage."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from freehold.cost.meter import MachineClock, Part, UsageRow, row_of
from freehold.cost.prices import RATE_SCALE, Price, Tokens

AT = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)
PRICE = Price("s", "p", "m", {"input": ((0, RATE_SCALE),), "output": ((0, 2 * RATE_SCALE),)})  # 1 and 2 USD a million


def row(part: Part, price: Price | None = PRICE, machine: float = 0.0) -> UsageRow:
    return row_of(part, 0, request_id="r", key_id="k", price=price, machine_usd_per_hour=machine)


def test_a_backends_own_count_is_charged() -> None:
    found = row(Part("b", "m", AT, heard=True, tokens=Tokens(100, 10), finished=True))
    assert (found.nanos, found.estimated, found.price_snapshot) == (120_000, 0, PRICE.snapshot)


def test_a_stream_without_a_count_is_charged_what_was_heard() -> None:
    found = row(Part("b", "m", AT, heard=True, prompt_estimate=100, text_bytes=41))
    assert (found.prompt_tokens, found.completion_tokens, found.estimated) == (100, 11, 1)
    assert found.nanos == 122_000


def test_who_was_left_waiting_may_have_read_the_prompt_and_who_refused_charges_nothing() -> None:
    assert row(Part("b", "m", AT, prompt_estimate=100)).nanos == 100_000
    refused = row(Part("b", "m", AT, prompt_estimate=100, failure="rate"))
    assert (refused.nanos, refused.prompt_tokens, refused.estimated) == (0, 0, 0)


def test_an_unknown_price_is_said_not_guessed() -> None:
    found = row(Part("b", "m", AT, tokens=Tokens(1, 1)), None)
    assert (found.nanos, found.provider, found.price_snapshot) == (None, "unknown", "unknown")
    assert row(Part("local", "m", AT, local=True, seconds=3.0)).nanos is None


def test_the_local_engine_costs_measured_seconds_at_the_machines_price() -> None:
    found = row(Part("local", "m", AT, local=True, seconds=1.5), None, machine=3.6)
    assert (found.nanos, found.provider, found.price_snapshot) == (1_500_000, "local", "machine:3.6/h")


def test_exchanges_at_once_share_the_machine_and_their_shares_add_up() -> None:
    now = 100.0
    clock = MachineClock(lambda: now)
    first = clock.enter()
    now += 4  # alone
    second = clock.enter()
    now += 6  # by two
    one = clock.leave(first)
    now += 1  # alone again
    other = clock.leave(second)
    now += 50  # idle
    third = clock.enter()
    now += 2
    last = clock.leave(third)
    assert (one, other, last) == pytest.approx((7.0, 4.0, 2.0))
