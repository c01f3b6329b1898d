"""The tables of money: what keys and backends have spent, and what is set aside for requests under way. Knows SQL only.

A purse is a key's or a backend's: `scope` says which, `subject` whose. Money in nano-dollars, times in microseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from freehold.cost.meter import UsageRow
from freehold.database import Transaction
from freehold.gateway.virtual_keys import Limits

RESERVED_SECONDS = 60
"""A reservation that is not renewed frees itself after so long."""

DAY, MONTH = "%Y-%m-%d", "%Y-%m"
"""Names of periods, in UTC."""


def available(
    transaction: Transaction, scope: str, subject: str, limits: Limits, periods: tuple[str, str], now: int
) -> int:
    """What the limits leave after what was spent and what is set aside."""
    remains = left(limits, *spent(transaction, scope, subject, *periods))
    row = transaction.one(
        "select coalesce(sum(nanos), 0) from reservations "
        "where scope = :scope and subject = :subject and expires_at > :now",
        scope=scope,
        subject=subject,
        now=now,
    )
    return remains - (int(row[0]) if row else 0)


def hold(transaction: Transaction, id: str, scope: str, subject: str, nanos: int, now: int) -> None:
    """Sets money aside."""
    transaction.run(
        "insert into reservations (id, scope, subject, nanos, expires_at) values (:id, :scope, :subject, :nanos, :at)",
        id=id,
        scope=scope,
        subject=subject,
        nanos=nanos,
        at=expiry(now),
    )


def renew(transaction: Transaction, ids: Sequence[str], now: int) -> None:
    """Keeps the reservations of running requests, and clears away those that nobody kept."""
    for id in ids:
        transaction.run("update reservations set expires_at = :at where id = :id", at=expiry(now), id=id)
    transaction.run("delete from reservations where expires_at < :now", now=now)


def spend(transaction: Transaction, row: UsageRow) -> None:
    """Adds a row's cost to what its key (if it has one) and its backend have spent in its day and month."""
    at = datetime.fromtimestamp(row.at / 1_000_000, UTC)
    transaction.run(
        _SPEND_BOTH if row.key_id else _SPEND_BACKEND,
        backend=row.backend,
        day=at.strftime(DAY),
        month=at.strftime(MONTH),
        nanos=row.nanos,
        **({"key": row.key_id} if row.key_id else {}),
    )


_SPEND = (
    "insert into spending (scope, subject, period, nanos) values "
    "('backend', :backend, :day, :nanos), ('backend', :backend, :month, :nanos)"
)
_ADD = " on conflict (scope, subject, period) do update set nanos = spending.nanos + excluded.nanos"
_SPEND_BACKEND = _SPEND + _ADD
_SPEND_BOTH = _SPEND + ", ('key', :key, :day, :nanos), ('key', :key, :month, :nanos)" + _ADD


def spent(transaction: Transaction, scope: str, subject: str, day: str, month: str) -> tuple[int, int]:
    """Nano-dollars of the day and of the month."""
    rows = transaction.rows(
        "select period, nanos from spending where scope = :scope and subject = :subject and period in (:day, :month)",
        scope=scope,
        subject=subject,
        day=day,
        month=month,
    )
    found = {period: int(nanos) for period, nanos in rows}
    return found.get(day, 0), found.get(month, 0)


def left(limits: Limits, day: int, month: int) -> int:
    """What the tighter of the two limits leaves; call it only when there is one."""
    remains = [
        limit - spent
        for limit, spent in ((limits.usd_per_day, day), (limits.usd_per_month, month))
        if limit is not None
    ]
    return min(remains)


def expiry(now: int) -> int:
    """When a reservation made now ends."""
    return now + RESERVED_SECONDS * 1_000_000
