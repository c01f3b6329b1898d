"""What a provider's headers say about the rate it still allows: `Retry-After` and the rate-limit headers.

Formats: Retry-After is seconds or a date (RFC 9110, 10.2.3), `retry-after-ms` is OpenAI's and Azure's; OpenAI's resets are
durations like `12ms` or `6m0s` (https://platform.openai.com/docs/guides/rate-limits), Anthropic's are RFC 3339 times
(https://docs.anthropic.com/en/api/rate-limits). Headers are hostile: what can't be read counts as not said. Knows no HTTP
client, no key and no policy.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

LONGEST = 86400.0
"""Seconds: a provider that asks for more gets asked again after a day."""

_RATES = (
    *((f"x-ratelimit-remaining-{what}", f"x-ratelimit-reset-{what}") for what in ("requests", "tokens")),
    *(
        (f"anthropic-ratelimit-{what}-remaining", f"anthropic-ratelimit-{what}-reset")
        for what in ("requests", "tokens", "input-tokens", "output-tokens")
    ),
)
_DURATION = re.compile(
    r"(?=.)(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?", re.ASCII
)
_UNITS = (86400.0, 3600.0, 60.0, 1.0, 0.001)
_MAX_HEADER = 64  # characters; none of the formats needs half of it


@dataclass(frozen=True, slots=True)
class RateState:
    """The tightest limit a provider told of.

    Args:
        remaining: requests or tokens left, whichever has the smaller number; None = not told.
        reset_at: when that limit is fresh again, on the caller's clock; None = not told.
    """

    remaining: int | None = None
    reset_at: float | None = None

    def limited_until(self, now: float) -> float | None:
        """When asking makes sense again, while nothing is left."""
        if self.remaining != 0 or self.reset_at is None or self.reset_at <= now:
            return None
        return self.reset_at


def retry_after(headers: Mapping[str, str], wall: float) -> float | None:
    """Seconds that the provider wants us to stay away; None when it did not say.

    Args:
        headers: with lower-case names.
        wall: seconds since the epoch, now.
    """
    if (milliseconds := _number(headers.get("retry-after-ms", ""))) is not None:
        return min(milliseconds / 1000, LONGEST)
    raw = headers.get("retry-after", "").strip()[:_MAX_HEADER]
    if (seconds := _number(raw)) is not None:
        return min(seconds, LONGEST)
    try:
        when = parsedate_to_datetime(raw)
    except (ValueError, IndexError, OverflowError):
        return None
    return _ahead(when, wall)


def rate_state(headers: Mapping[str, str], now: float, wall: float) -> RateState | None:
    """The tightest of the limits in the headers; None when they name none.

    Args:
        headers: with lower-case names.
        now: the caller's clock, on which `reset_at` is given.
        wall: seconds since the epoch, for resets that are dates.
    """
    found: list[RateState] = []
    for remaining, reset in _RATES:
        left = headers.get(remaining, "").strip()
        if left.isascii() and left.isdigit() and len(left) < 16:
            ahead = _reset(headers.get(reset, ""), wall)
            found.append(RateState(int(left), None if ahead is None else now + ahead))
    return min(found, key=_tightness, default=None)


def duration(raw: str) -> float | None:
    """Seconds of `12ms`, `6m0s`, `34.5s`, `1h2m`; None for anything else."""
    found = _DURATION.fullmatch(raw[:_MAX_HEADER])
    if not found:
        return None
    parts = zip(found.groups(), _UNITS, strict=True)
    return min(sum(float(value) * unit for value, unit in parts if value is not None), LONGEST)


def _tightness(state: RateState) -> tuple[int, float]:
    """Fewest left first; of those that are used up, the one that takes longest."""
    return state.remaining or 0, -(state.reset_at or 0.0)


def _reset(raw: str, wall: float) -> float | None:
    """Seconds until a reset, from a duration, a time or plain seconds (as Groq's and Azure's)."""
    raw = raw.strip()[:_MAX_HEADER]
    if (seconds := _number(raw)) is not None:
        return min(seconds, LONGEST)
    if (length := duration(raw)) is not None:
        return length
    try:
        return _ahead(datetime.fromisoformat(raw), wall)
    except (ValueError, OverflowError):
        return None


def _ahead(when: datetime, wall: float) -> float:
    """Seconds from now to a time, which is UTC unless it says otherwise."""
    aware = when if when.tzinfo else when.replace(tzinfo=UTC)
    return min(max(aware.timestamp() - wall, 0.0), LONGEST)


def _number(raw: str) -> float | None:
    if not re.fullmatch(r"\d{1,12}(\.\d{1,9})?", raw.strip(), re.ASCII):
        return None
    value = float(raw)
    return value if math.isfinite(value) else None
