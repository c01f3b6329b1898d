"""Rates by the minute: token buckets kept in the database, so that several gateways share them.

A bucket holds what may still be used, refills evenly and is full after a minute. Levels are kept in 60-millionths of a
unit: what refills in a microsecond is then exactly the limit, and no fraction is ever lost. Knows SQL and the headers
that tell clients of their rates; no request and no money.
"""

from __future__ import annotations

from dataclasses import dataclass

from freehold.database import Transaction

MINUTE = 60_000_000
"""Microseconds in it, and parts of a unit."""


@dataclass(frozen=True, slots=True)
class Rate:
    """One limit of a key and what is left of it.

    Args:
        unit: `requests` or `tokens`.
        level: what is left, in 60-millionths; below 0 when more was used than had been set aside.
    """

    unit: str
    limit: int
    level: int

    @property
    def remaining(self) -> int:
        """Whole units left."""
        return max(0, self.level // MINUTE)

    @property
    def full_in(self) -> float:
        """Seconds until nothing is missing."""
        return (self.limit * MINUTE - self.level) / self.limit / 1_000_000

    def wait(self, amount: int) -> float:
        """Seconds until that much is there; more than the limit never is, so a full bucket does for it."""
        missing = min(amount, self.limit) * MINUTE - self.level
        return max(0, missing) / self.limit / 1_000_000

    def headers(self) -> dict[str, str]:
        """As OpenAI tells of rates: https://platform.openai.com/docs/guides/rate-limits#rate-limits-in-headers."""
        return {
            f"x-ratelimit-limit-{self.unit}": str(self.limit),
            f"x-ratelimit-remaining-{self.unit}": str(self.remaining),
            f"x-ratelimit-reset-{self.unit}": duration(self.full_in),
        }


def look(transaction: Transaction, key_id: str, unit: str, limit: int, now: int) -> Rate:
    """What is left now. A bucket nobody has used is full."""
    row = transaction.one(
        "select level, at from buckets where key_id = :key_id and unit = :unit", key_id=key_id, unit=unit
    )
    full = limit * MINUTE
    level = full if row is None else min(full, int(row[0]) + max(0, now - int(row[1])) * limit)
    return Rate(unit, limit, level)


def take(transaction: Transaction, key_id: str, rate: Rate, amount: int, now: int) -> Rate:
    """Takes from a bucket (or gives back, when negative); what is left."""
    left = Rate(rate.unit, rate.limit, min(rate.limit * MINUTE, rate.level - amount * MINUTE))
    transaction.run(
        "insert into buckets (key_id, unit, level, at) values (:key_id, :unit, :level, :at) "
        "on conflict (key_id, unit) do update set level = excluded.level, at = excluded.at",
        key_id=key_id,
        unit=rate.unit,
        level=left.level,
        at=now,
    )
    return left


def duration(seconds: float) -> str:
    """As OpenAI writes them: `12ms`, `1s`, `6m0s`."""
    milliseconds = round(seconds * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds / 1000, 60)
    shown = f"{rest:.3f}".rstrip("0").rstrip(".")
    return f"{minutes:.0f}m{shown}s" if minutes else f"{shown}s"
