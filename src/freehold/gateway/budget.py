"""Money and rates: set aside before a request is sent, settled when it has ended, in one transaction each.

What a request may cost at most is reserved for its key and for the backends that could answer it; who can't be paid is
not asked. A reservation that nobody keeps alive frees itself after a minute, so a killed gateway locks up nothing.
Requests without any limit never wait for the database. Knows keys, prices and rows of usage; no HTTP and no routing.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import msgspec

from freehold.cost import usage
from freehold.cost.meter import Part, UsageRow, row_of
from freehold.cost.prices import NANOS, Price, PriceBook
from freehold.database import Database, Transaction
from freehold.errors import FreeholdError, OverloadedError
from freehold.gateway.buckets import Rate, look, take
from freehold.gateway.failures import LimitError, RequestError
from freehold.gateway.purses import DAY, MONTH, available, left, renew, spend, spent
from freehold.gateway.purses import hold as set_aside
from freehold.gateway.virtual_keys import KeyRing, Limits, VirtualKey
from freehold.settings import BudgetSettings, CostSettings, UpstreamSettings

log = logging.getLogger("freehold.budget")

KEEP_SECONDS = 20
"""How often reservations of running requests are renewed, and what could not be written is tried again."""

MOST_WAITING = 20_000
"""Pieces of work that may wait for the database before new requests with limits are refused."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A backend that could answer, and what that would cost at most: None when its price is not known."""

    backend: str
    nanos: int | None


@dataclass(slots=True)
class Hold:
    """What was set aside for a request.

    Args:
        backends: who can be paid; None = anybody.
        tokens: taken from the key's bucket.
        reserved: in the database, so that it must be settled or freed there.
        rates: what was left of the key's rates.
    """

    id: str
    key_id: str = ""
    backends: tuple[str, ...] | None = None
    tokens: int = 0
    reserved: bool = False
    rates: tuple[Rate, ...] = ()

    @property
    def headers(self) -> dict[str, str]:
        """For the client: what is left of its rates."""
        return {name: value for rate in self.rates for name, value in rate.headers().items()}


@dataclass(slots=True)
class _Settlement:
    hold: Hold
    rows: list[tuple[UsageRow, Price | None]]
    tokens: int


@dataclass(frozen=True, slots=True)
class _Asked:
    hold: Hold
    key: VirtualKey | None
    offers: Sequence[Offer]
    tokens: int


class Budget:
    """Keys, their limits, and those of backends.

    Args:
        database: opened by `start`, closed by `close`.
        upstreams: whose prices and limits count; every other backend is the local engine.
        now: seconds since 1970.
    """

    def __init__(
        self,
        database: Database,
        *,
        settings: BudgetSettings | None = None,
        cost: CostSettings | None = None,
        upstreams: Sequence[UpstreamSettings] = (),
        now: Callable[[], float] = time.time,
    ) -> None:
        self.database = database
        self.ring = KeyRing(database)
        self.settings = settings or BudgetSettings()
        self._machine = (cost or CostSettings()).machine_usd_per_hour
        self.book = PriceBook.load((cost or CostSettings()).prices)
        self._upstreams = {upstream.name: upstream for upstream in upstreams}
        self._caps = {
            u.name: Limits(usd_per_day=_nanos(u.usd_per_day), usd_per_month=_nanos(u.usd_per_month)) for u in upstreams
        }
        self._now = now
        self._live: dict[str, Hold] = {}
        self._unwritten: deque[_Settlement] = deque()
        self._spent: dict[str, tuple[str, int, int]] = {}  # by backend: day, nanos of that day and of its month
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Opens the database, reads keys and what backends have spent, loads prices; keeps reservations alive.

        Raises:
            DatabaseError: the database can't be used.
        """
        await asyncio.to_thread(self.database.open)
        await self.ring.refresh()
        await self.database.run(self._read_spent)
        if self._upstreams:  # the first look-up loads the snapshot, which takes a moment
            await asyncio.to_thread(self.price, next(iter(self._upstreams)), "")
        self._keeper = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """Writes what is left to write and closes the database."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
            self._keeper = None
            self._write_again()
        await self.ring.close()
        await asyncio.to_thread(self.database.close)
        for settlement in self._unwritten:
            _report(settlement)
        self._unwritten.clear()

    def price(self, backend: str, model: str, at: datetime | None = None) -> Price | None:
        """What an upstream's model costs, now unless said otherwise; None when nobody knows."""
        upstream = self._upstreams.get(backend)
        if upstream is None:
            return None
        at = at or datetime.fromtimestamp(self._now(), UTC)
        return self.book.find(upstream.provider, model, at, url=upstream.base_url, name=upstream.name)

    def usd(self, backend: str, model: str, prompt: int, completion: int) -> float | None:
        """About what an answer costs, for routing; the local engine's costs nothing more than is spent already."""
        if backend not in self._upstreams:
            return 0.0
        price = self.price(backend, model)
        return None if price is None else price.dearest(prompt, completion) / NANOS

    def offer(self, backend: str, model: str, prompt: int, completion: int) -> Offer:
        """What a backend's answer would cost at most."""
        if backend not in self._upstreams:
            return Offer(backend, 0)
        price = self.price(backend, model)
        return Offer(backend, None if price is None else price.dearest(prompt, completion))

    def allows(self, backend: str) -> bool:
        """Whether a backend's own budget has anything left; as of the last exchange, without asking the database."""
        caps = self._caps.get(backend)
        if caps is None or not caps.money:
            return True
        today, month = self._periods()
        day, spent_day, spent_month = self._spent.get(backend, ("", 0, 0))
        spent_day = spent_day if day == today else 0
        spent_month = spent_month if day.startswith(month) else 0
        return left(caps, spent_day, spent_month) > 0

    def limited(self, key_id: str, backends: Sequence[str]) -> bool:
        """Whether such a request has to be reserved for."""
        key = self.ring.by_id(key_id) if key_id else None
        if key_id and (key is None or key.limits != Limits()):
            return True
        return any(self._caps_money(backend) for backend in backends)

    async def reserve(self, key_id: str, model: str, offers: Sequence[Offer], tokens: int) -> Hold:
        """Sets aside what a request may cost and counts it against its key's rates.

        Args:
            key_id: of a virtual key; empty = the owner's, which has no limits.
            model: as the client asked for it.
            offers: of the backends that could answer, in order.
            tokens: of prompt and output, roughly.

        Raises:
            RequestError: the key may not ask for that (403).
            LimitError: its rate or money is used up (429).
            DatabaseError: nobody can tell.
        """
        hold = Hold(uuid.uuid4().hex, key_id)  # one request may be tried, and reserved for, more than once
        key = self.ring.by_id(key_id) if key_id else None
        if key_id and key is None:
            raise RequestError("This key has been revoked.", code="invalid_api_key", status=401)
        if key is not None:
            offers = _permitted(key, model, offers)
            hold.backends = tuple(offer.backend for offer in offers)
        if not (key and (key.limits.money or key.limits.rates)) and not any(
            self._caps_money(o.backend) for o in offers
        ):
            return hold
        if self.database.waiting > MOST_WAITING:
            raise OverloadedError("the database can't keep up with accounting", hint="try again in a moment")
        self._live[hold.id] = hold
        asked = _Asked(hold, key, offers, tokens)
        try:
            return await self.database.run(lambda transaction: self._reserve(transaction, asked))
        except BaseException as error:
            self._live.pop(hold.id, None)
            if isinstance(error, asyncio.CancelledError):  # it may be made nevertheless
                self.settle(replace(hold, reserved=True, tokens=0), "", ())
            raise

    def settle(self, hold: Hold, request_id: str, parts: Sequence[Part]) -> None:
        """Frees what was set aside and writes what it really was; returns at once."""
        self._live.pop(hold.id, None)
        rows = [self._row(part, i, request_id, hold.key_id) for i, part in enumerate(parts)]
        if not rows and not hold.reserved:
            return
        used = sum(row.prompt_tokens + row.completion_tokens for row, _ in rows)
        self._post(_Settlement(hold, rows, used))

    async def flush(self) -> None:
        """Waits until everything settled so far is written."""
        await self.database.run(lambda transaction: None)

    def _row(self, part: Part, number: int, request_id: str, key_id: str) -> tuple[UsageRow, Price | None]:
        price = None if part.local else self.price(part.backend, part.model, part.at)
        row = row_of(
            part, number, request_id=request_id, key_id=key_id, price=price, machine_usd_per_hour=self._machine
        )
        return row, price

    def _post(self, settlement: _Settlement) -> None:
        def written(done: Future[None]) -> None:
            if not done.cancelled() and (error := done.exception()) is not None:
                log.warning("usage is not written yet: %s", error)
                self._unwritten.append(settlement)

        try:
            self.database.post(lambda transaction: self._settle(transaction, settlement)).add_done_callback(written)
        except FreeholdError:  # closed already
            self._unwritten.append(settlement)

    def _write_again(self) -> None:
        for _ in range(len(self._unwritten)):
            settlement = self._unwritten.popleft()
            if len(self._unwritten) < MOST_WAITING:
                self._post(settlement)
            else:
                _report(settlement)

    async def keep(self) -> None:
        """Renews the reservations of running requests and what is known of keys and spending; writes what is left."""
        await self.database.run(lambda transaction: renew(transaction, list(self._live), self._micros()))
        await self.database.run(self._read_spent)
        await self.ring.refresh()
        self._write_again()

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(KEEP_SECONDS)
            try:
                await self.keep()
            except FreeholdError as error:
                log.warning("accounting: %s", error)

    def _read_spent(self, transaction: Transaction) -> None:
        for backend in self._caps:
            self._note_spent(transaction, backend)

    def _note_spent(self, transaction: Transaction, backend: str) -> None:
        if self._caps_money(backend):
            day, month = self._periods()
            self._spent[backend] = (day, *spent(transaction, "backend", backend, day, month))

    def _reserve(self, transaction: Transaction, asked: _Asked) -> Hold:
        """In one transaction: what is left is looked at, and what is needed is taken."""
        now, hold, key = self._micros(), asked.hold, asked.key
        rates = [] if key is None else _rates(transaction, key, now)
        needed = {"requests": 1, "tokens": asked.tokens}
        if key is not None and any(rate.wait(needed[rate.unit]) > 0 for rate in rates):
            raise _too_fast(rates, needed)
        kept = self._affordable(transaction, asked, now)
        hold.rates = tuple(take(transaction, hold.key_id, rate, needed[rate.unit], now) for rate in rates)
        hold.tokens, hold.backends, hold.reserved = asked.tokens, tuple(offer.backend for offer in kept), True
        if key is not None and key.limits.money:
            set_aside(transaction, hold.id, "key", key.id, max(offer.nanos or 0 for offer in kept), now)
        for offer in kept:
            if self._caps_money(offer.backend):
                set_aside(transaction, hold.id, "backend", offer.backend, offer.nanos or 0, now)
        return hold

    def _affordable(self, transaction: Transaction, asked: _Asked, now: int) -> list[Offer]:
        """The offers for which the key and the backend have money."""
        key, kept, unpriced = asked.key, [], []
        mine = self._purse(transaction, "key", key.id, key.limits, now) if key else None
        for offer in asked.offers:
            theirs = self._purse(transaction, "backend", offer.backend, self._caps.get(offer.backend, Limits()), now)
            purses = [purse for purse in (mine, theirs) if purse is not None]
            if purses and offer.nanos is None and self.settings.unknown_price == "refuse":
                unpriced.append(offer.backend)
            elif offer.nanos == 0 or all(purse >= (offer.nanos or 1) for purse in purses):
                kept.append(offer)
        if not kept:
            raise self._too_dear(transaction, unpriced, asked)
        return kept

    def _purse(self, transaction: Transaction, scope: str, subject: str, limits: Limits, now: int) -> int | None:
        """What is left of a key's or a backend's money; None when it has no limit."""
        return available(transaction, scope, subject, limits, self._periods(), now) if limits.money else None

    def _too_dear(self, transaction: Transaction, unpriced: Sequence[str], asked: _Asked) -> RequestError:
        if len(unpriced) == len(asked.offers):
            hint = 'put its price into the file of cost.prices, or set budget.unknown_price = "allow"'
            text = (
                f"The price of this model at {', '.join(unpriced)} is not known, and this request has a limit in USD."
            )
            return RequestError(text, code="unknown_price", status=403, hint=hint)
        if asked.key is not None and asked.key.limits.money:
            whose, scope, subject, limits = "This key's", "key", asked.key.id, asked.key.limits
        else:
            subject = next(offer.backend for offer in asked.offers if self._caps_money(offer.backend))
            whose, scope, limits = f"The budget of '{subject}'", "backend", self._caps[subject]
        cheapest = min(offer.nanos or 1 for offer in asked.offers)
        so_far = spent(transaction, scope, subject, *self._periods())
        text = f"{whose} budget does not allow this request now." if scope == "key" else f"{whose} is used up."
        if left(limits, *so_far) >= cheapest:  # what others have reserved may be free again in a moment
            return LimitError(text, code="insufficient_quota", retry_after=1)
        monthly = limits.usd_per_month is not None and limits.usd_per_month - so_far[1] < cheapest
        headers = {"x-should-retry": "false"}  # heeded by OpenAI's and Anthropic's SDKs
        return LimitError(text, code="insufficient_quota", retry_after=self._next(monthly), headers=headers)

    def _settle(self, transaction: Transaction, settlement: _Settlement) -> None:
        """In one transaction: rows written, spending added up, reservation and tokens given back."""
        hold, now = settlement.hold, self._micros()
        for row, price in settlement.rows:
            if usage.write(transaction, row, price) and row.nanos:
                spend(transaction, row)
                self._note_spent(transaction, row.backend)
        if hold.reserved:
            transaction.run("delete from reservations where id = :id", id=hold.id)
        key = self.ring.by_id(hold.key_id)
        limit = None if key is None else key.limits.tokens_per_minute
        if limit is not None and settlement.tokens != hold.tokens:
            rate = look(transaction, hold.key_id, "tokens", limit, now)
            take(transaction, hold.key_id, rate, settlement.tokens - hold.tokens, now)

    def _caps_money(self, backend: str) -> bool:
        return backend in self._caps and self._caps[backend].money

    def _micros(self) -> int:
        return round(self._now() * 1_000_000)

    def _periods(self) -> tuple[str, str]:
        at = datetime.fromtimestamp(self._now(), UTC)
        return at.strftime(DAY), at.strftime(MONTH)

    def _next(self, monthly: bool) -> int:
        """Seconds until the next day or month begins, when its limit allows again."""
        at = datetime.fromtimestamp(self._now(), UTC)
        begin = at.replace(hour=0, minute=0, second=0, microsecond=0)
        following = (begin.replace(day=1) + timedelta(days=32)).replace(day=1) if monthly else begin + timedelta(days=1)
        return max(1, math.ceil((following - at).total_seconds()))


def _permitted(key: VirtualKey, model: str, offers: Sequence[Offer]) -> list[Offer]:
    """The offers of backends that the key may use."""
    if not key.limits.allows_model(model):
        text = f"This key may not use the model '{model[:200]}'."
        raise RequestError(text, code="model_not_found", status=403, hint="; ".join(key.limits.models))
    kept = [offer for offer in offers if not key.limits.backends or offer.backend in key.limits.backends]
    if not kept:
        raise RequestError(
            "This key may not use any backend that could answer.", code="backend_not_allowed", status=403
        )
    return kept


def _rates(transaction: Transaction, key: VirtualKey, now: int) -> list[Rate]:
    limits = {"requests": key.limits.requests_per_minute, "tokens": key.limits.tokens_per_minute}
    return [look(transaction, key.id, unit, limit, now) for unit, limit in limits.items() if limit is not None]


def _too_fast(rates: Sequence[Rate], needed: dict[str, int]) -> LimitError:
    worst = max(rates, key=lambda rate: rate.wait(needed[rate.unit]))
    seconds = max(1, math.ceil(worst.wait(needed[worst.unit])))
    headers = {name: value for rate in rates for name, value in rate.headers().items()}
    text = (
        f"Rate limit reached for this key on {worst.unit} per minute: limit {worst.limit}, left {worst.remaining}, "
        f"requested {needed[worst.unit]}. Please try again in {seconds}s."
    )
    return LimitError(text, code="rate_limit_exceeded", retry_after=seconds, headers=headers)


def _nanos(usd: float) -> int | None:
    """A limit of the settings, where 0 means none."""
    return round(usd * NANOS) if usd else None


def _report(settlement: _Settlement) -> None:
    """The last resort for rows that no database took: the log keeps them."""
    for row, _ in settlement.rows:
        log.error("usage that could not be written: %s", msgspec.json.encode(row).decode())
