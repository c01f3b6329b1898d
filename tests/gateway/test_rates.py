"""Headers that tell what rate a provider still allows."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from freehold.gateway.rates import LONGEST, RateState, duration, rate_state, retry_after

NOON = 1_795_435_200.0  # 2026-11-23T12:00:00Z


@pytest.mark.parametrize(
    ("raw", "seconds"),
    [("12ms", 0.012), ("6m0s", 360.0), ("1s", 1.0), ("1h2m3.5s", 3723.5), ("7.66s", 7.66), ("2m59.56s", 179.56),
     ("1d", 86400.0), ("99d", LONGEST), ("", None), ("5", None), ("s", None), ("-1s", None), ("1s1h", None), ("١s", None),
     ("9" * 500 + "s", None)],
)  # fmt: skip
def test_durations_are_read_as_openai_writes_them(raw: str, seconds: float | None) -> None:
    assert duration(raw) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "Mon, 23 Nov 2026 12:00:30 GMT"}, 30.0),
        ({"retry-after": "Mon, 23 Nov 2026 11:00:00 GMT"}, 0.0),
        ({"retry-after": "Monday, 23-Nov-26 12:00:30 GMT"}, 30.0),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after": "999999999"}, LONGEST),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}, LONGEST),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "1e999"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Mon, 99 Nov 2026 99:99:99 GMT"}, None),
        ({"retry-after": "9" * 10_000}, None),
        ({}, None),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_nonsense_counts_as_not_said(
    headers: Mapping[str, str], seconds: float | None
) -> None:
    assert retry_after(headers, NOON) == seconds


def test_the_tightest_limit_counts() -> None:
    openai = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6m0s",
              "x-ratelimit-remaining-tokens": "149984", "x-ratelimit-reset-tokens": "12ms"}  # fmt: skip
    assert rate_state(openai, 100.0, NOON) == RateState(0, 460.0)
    anthropic = {"anthropic-ratelimit-requests-remaining": "49", "anthropic-ratelimit-requests-reset": "2026-11-23T12:00:05Z",
                 "anthropic-ratelimit-output-tokens-remaining": "0",
                 "anthropic-ratelimit-output-tokens-reset": "2026-11-23T13:00:40+01:00"}  # fmt: skip
    assert rate_state(anthropic, 100.0, NOON) == RateState(0, 140.0)
    both = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1s",
            "x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "9"}  # fmt: skip
    assert rate_state(both, 100.0, NOON) == RateState(0, 109.0)
    assert rate_state({"x-ratelimit-limit-requests": "5"}, 100.0, NOON) is None


@pytest.mark.parametrize("left", ["-1", "x", "", "1.5", "²", "9" * 50])
def test_a_number_left_that_is_none_is_not_said(left: str) -> None:
    assert rate_state({"x-ratelimit-remaining-requests": left}, 0.0, NOON) is None


@pytest.mark.parametrize("reset", ["", "soon", "99999999999999999999-01-01", "2026-13-01T00:00:00Z", "\x00"])
def test_a_reset_that_is_none_limits_nothing(reset: str) -> None:
    state = rate_state({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": reset}, 0.0, NOON)
    assert state == RateState(0, None) and state.limited_until(0.0) is None


def test_a_limit_holds_until_its_reset_and_only_when_nothing_is_left() -> None:
    assert RateState(0, 10.0).limited_until(9.9) == 10.0
    assert RateState(0, 10.0).limited_until(10.0) is None
    assert RateState(1, 10.0).limited_until(9.9) is None
    assert RateState().limited_until(0.0) is None
