"""Prices: exact, the same as genai-prices computes, with the user's own in front, each named by its snapshot."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import pytest
from genai_prices import Usage
from genai_prices.data_snapshot import get_snapshot

from freehold.cost.prices import RATE_SCALE, Price, PriceBook, Tokens, _price, source
from freehold.errors import SettingError

NOON = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)
EVENING = datetime(2026, 3, 4, 18, 0, tzinfo=UTC)

NANO = RATE_SCALE // 10**9  # rates below are in nano-dollars for a million tokens


def test_every_model_of_the_snapshot_costs_what_genai_prices_says() -> None:
    """An independent computation of the same bill, over all models, tiers and hours."""
    random.seed(7)
    checked = 0
    for provider in get_snapshot().providers:
        for model in provider.models:
            for at in (NOON, EVENING):
                price = _price(provider.id, model, at)
                if price is None:
                    continue
                for size in (1_000, 150_000, 900_000):
                    prompt, completion = random.randrange(size), random.randrange(size // 4)
                    cached = random.randrange(prompt + 1)
                    written = random.randrange(prompt - cached + 1)
                    reasoning = random.randrange(completion + 1)
                    usage = Usage(
                        input_tokens=prompt, output_tokens=completion, cache_read_tokens=cached,
                        cache_write_tokens=written, output_reasoning_tokens=reasoning,
                    )  # fmt: skip
                    theirs = model.calc_price(usage, provider, genai_request_timestamp=at).total_price
                    expected = int((theirs * 10**9).quantize(Decimal(1), ROUND_HALF_UP))
                    assert price.cost(Tokens(prompt, completion, cached, written, reasoning)) == expected, model.id
                    assert price.dearest(prompt, completion) >= expected
                    checked += 1
    assert checked > 5000


def test_off_peak_hours_are_cheaper_where_the_provider_says_so() -> None:
    book, tokens = PriceBook.load(), Tokens(prompt=1_000_000, completion=100_000, cached=400_000)
    costs = []
    for at in (NOON, EVENING):
        price = book.find("deepseek", "deepseek-chat", at)
        assert price is not None
        costs.append(price.cost(tokens))
    # 0.27, 0.07 and 1.10 USD per million by day; 0.135, 0.035 and 0.55 from 16:30 to 00:30 UTC
    assert costs == [300_000_000, 150_000_000]


def test_a_long_prompt_pays_the_tier_for_all_its_tokens() -> None:
    price = Price(
        "s", "p", "m", {"input": ((0, 1_000_000_000 * NANO), (200_000, 2_000_000_000 * NANO)), "output": ((0, 0),)}
    )
    assert price.cost(Tokens(prompt=200_000)) == 200_000_000
    assert price.cost(Tokens(prompt=200_001)) == 400_002_000


def test_kinds_without_a_price_of_their_own_cost_what_their_whole_does() -> None:
    price = Price("s", "p", "m", {"input": ((0, 1_000_000 * NANO),), "output": ((0, 10_000_000 * NANO),)})
    assert price.cost(Tokens(10, 5, cached=4, cache_write=3, reasoning=2)) == price.cost(Tokens(10, 5)) == 60


def test_a_broken_providers_numbers_never_make_a_cost_negative_or_larger_than_its_tokens() -> None:
    price = Price(
        "s",
        "p",
        "m",
        {"input": ((0, 3_000_000 * NANO),), "cached": ((0, 1_000_000 * NANO),), "output": ((0, 2_000_000 * NANO),)},
    )
    assert price.cost(Tokens(-5, -5, -5, -5, -5)) == 0
    assert price.cost(Tokens(10, 10, cached=1000, cache_write=1000, reasoning=1000)) == 10 + 20


def test_many_small_exchanges_add_up_to_the_nano_dollar() -> None:
    price = Price("s", "p", "m", {"input": ((0, 150_000_000 * NANO),), "output": ((0, 600_000_000 * NANO),)})
    assert sum(price.cost(Tokens(7, 3)) for _ in range(20_000)) == 20_000 * (7 * 150 + 3 * 600)


def test_a_model_is_never_priced_by_its_name_alone() -> None:
    book = PriceBook.load()
    assert book.find("", "gpt-4o-mini", NOON, url="https://api.openai.com/v1") is not None
    assert book.find("openai", "gpt-4o-mini", NOON) is not None
    assert book.find("", "gpt-4o-mini", NOON, url="http://127.0.0.1:8000/v1", name="mine") is None
    assert book.find("openai", "no-such-model", NOON) is None


def test_the_snapshots_id_names_the_very_rates() -> None:
    book = PriceBook.load()
    day, night = (book.find("deepseek", "deepseek-chat", at) for at in (NOON, EVENING))
    assert day is not None and night is not None
    assert day.snapshot != night.snapshot and day.snapshot.startswith(source() + ":deepseek/deepseek-chat:")
    again = Price.from_json(day.json())
    assert again == day and again.snapshot == day.snapshot


OWN = """
[[price]]
provider = "mine"
model = "big-*"
input = 1.5
output = 4
cached = 0.1
tiers = [{ above = 1000, input = 3, output = 8 }]
[[price]]
provider = "mine"
hours = "22:00-06:00"
input = 0.000001
output = 0
[[price]]
provider = "openai"
model = "gpt-4o-mini"
input = 0
output = 0
request = 0.002
"""


def test_the_users_prices_go_first_and_are_exact(tmp_path: Path) -> None:
    file = tmp_path / "prices.toml"
    file.write_text(OWN)
    book = PriceBook.load(file)
    big = book.find("", "big-one", NOON, name="mine")
    assert big is not None and big.snapshot.startswith("own-")
    assert big.cost(Tokens(1000, 10, cached=500)) == 500 * 1500 + 500 * 100 + 10 * 4000
    assert big.cost(Tokens(1001, 10)) == 1001 * 3000 + 10 * 8000
    assert book.find("", "small", NOON, name="mine") is None
    night = book.find("", "small", datetime(2026, 3, 4, 23, 0, tzinfo=UTC), name="mine")
    assert night is not None and night.cost(Tokens(3_000_000)) == 3_000
    mini = book.find("openai", "gpt-4o-mini", NOON)
    assert mini is not None and mini.cost(Tokens(5, 5)) == 2_000_000
    other = PriceBook.load().find("openai", "gpt-4o-mini", NOON)
    assert other is not None and other.snapshot != mini.snapshot


@pytest.mark.parametrize(
    "text",
    [
        "[[price]]\nprovider = 'x'\ninput = 1",
        "[[price]]\nprovider = 'x'\ninput = -1\noutput = 1",
        "[[price]]\nprovider = 'x'\ninput = nan\noutput = 1",
        "[[price]]\nprovider = 'x'\ninput = inf\noutput = 1",
        "[[price]]\nprovider = 'x'\ninput = '1'\noutput = 1",
        "[[price]]\nprovider = 'x'\ninput = true\noutput = 1",
        "[[price]]\nprovider = 'x'\ninput = 1\noutput = 1\nhours = '25:00-3'",
        "[[price]]\nprovider = 'x'\ninput = 1\noutput = 1\ntiers = [{ above = 0, input = 2 }]",
        "[[price]]\nprovider = 'x'\ninput = 1\noutput = 1\ntiers = [{ input = 2 }]",
        "[[price]]\nprovider = 'x'\ninput = 1\noutput = 1\nsurprise = 1",
        "[[price]]\ninput = 1\noutput = 1",
        "price = 1",
        "[other]\nx = 1",
        "not toml",
    ],
)
def test_a_price_that_is_none_is_refused_and_says_where(tmp_path: Path, text: str) -> None:
    file = tmp_path / "prices.toml"
    file.write_text(text)
    with pytest.raises(SettingError, match=r"prices\.toml"):
        PriceBook.load(file)
