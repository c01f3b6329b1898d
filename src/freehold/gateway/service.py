"""The gateway without HTTP: settings in, answered requests out. `freehold run` uses it in process, `app.py` over HTTP.

Owns the backends' lives and measures every exchange. Knows no dialect and no web server.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freehold.engine.process import EngineProcess
from freehold.errors import FreeholdError
from freehold.gateway.backends import Backend
from freehold.gateway.backends.defaults import recommended
from freehold.gateway.backends.embedding import pooling_of
from freehold.gateway.backends.local import LocalBackend, load_text_side
from freehold.gateway.backends.upstreams import upstream_backend
from freehold.gateway.conversation import (
    EmbeddingRequest,
    Embeddings,
    Event,
    Request,
    Started,
)
from freehold.gateway.counting import embed
from freehold.gateway.exchange import Answer, Meter, Record
from freehold.gateway.failures import LimitError, kind_of
from freehold.gateway.metrics import Metrics
from freehold.gateway.policy import Policy
from freehold.gateway.quarantine import QuarantineStore, state_directory
from freehold.gateway.relay import Exchange, Relay
from freehold.gateway.router import Router
from freehold.gateway.watch import Watch
from freehold.progress import Progress
from freehold.settings import AlertSettings, BreakerSettings, EngineSettings, GuardSettings, Settings, UpstreamSettings

if TYPE_CHECKING:
    from freehold.gateway.accounts import Accounts
    from freehold.gateway.budget import Budget, Hold
    from freehold.gateway.recording import Recorder, Recording
    from freehold.gateway.tracing import Tracing
    from freehold.provenance.ledger import Ledger


log = logging.getLogger("freehold.gateway")


class Gateway:
    """Backends, router, relay and metrics.

    Args:
        core: the local engine as a backend; None to run on upstreams alone.
        standbys: upstreams in order of preference.
        guards: time limits.
        policy: routes.
        upstreams: what is declared of the standbys.
        breaker: when a failing standby is left alone.
        alerts: who is told of quarantines.
        store: keeps quarantines across restarts; None = they end with the process.
        budget: keys, limits and accounts; None = nobody is limited, nothing is written down.
        ledger: of the same database, takes every exchange; None = nothing is recorded.
        weights: what stands for the core's weights there (`provenance.weights.files_of`).
    """

    def __init__(
        self,
        core: LocalBackend | None,
        standbys: Sequence[Backend] = (),
        guards: GuardSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
        policy: Policy | None = None,
        upstreams: Sequence[UpstreamSettings] = (),
        breaker: BreakerSettings | None = None,
        alerts: AlertSettings | None = None,
        store: QuarantineStore | None = None,
        budget: Budget | None = None,
        ledger: Ledger | None = None,
        weights: str = "",
    ) -> None:
        self.core = core
        load = None if core is None else lambda: core.engine.stats
        self.metrics = Metrics(load)
        self.watch = Watch(
            breaker, alerts, store, count=self.metrics.alert, backends=lambda: self.router.standbys, clock=clock
        )
        self.router = Router(
            core, standbys, clock=clock, policy=policy, upstreams=upstreams, load=load, breaker=self.watch.breaker
        )
        self.relay = Relay(self.router, guards or GuardSettings(), self.metrics.failover, self.watch.pings.wake)
        self.metrics.watch(lambda: [backend.name for backend in self.router.backends], self.watch.breaker.state)
        self.created = int(time.time())
        self.accounts = None if budget is None else _accounts(budget, self.router, self.relay)
        self._tracing: Tracing | None = None
        self.recorder = _recorder(ledger, self.accounts, upstreams, weights)

    @classmethod
    def build(cls, settings: Settings, *, progress: Progress | None = None, accounts: bool = False) -> Gateway:
        """A gateway as the settings say; fetches the model if needed, but starts nothing yet.

        Args:
            progress: told about downloads.
            accounts: whether keys are known, limits held and usage written down.

        Raises:
            FreeholdError: no such model, a broken tokenizer, a missing key.
        """
        standbys = [upstream_backend(upstream, settings.guards) for upstream in settings.upstreams]
        core, budget = load_core(settings.engine, progress=progress), _budget(settings) if accounts else None
        recorded = budget is not None and settings.provenance.ledger
        return cls(
            core,
            standbys,
            settings.guards,
            policy=Policy.of(settings),
            upstreams=settings.upstreams,
            breaker=settings.breaker,
            alerts=settings.alerts,
            store=QuarantineStore(state_directory(settings.breaker.state_dir)),
            budget=budget,
            ledger=_ledger(settings, budget) if budget is not None and recorded else None,
            weights=_weights(settings.engine) if recorded else "",
        )

    async def start(self) -> None:
        """Starts every backend; returns when all are ready. Standbys can be used before that.

        Raises:
            FreeholdError: a backend can't be started; the core only where no standby can answer for it.
        """
        if self.accounts is not None:
            await self.accounts.budget.start()
        if self.recorder is not None:
            await self.recorder.start()
        for backend in reversed(self.router.backends):
            try:
                await backend.start()
            except FreeholdError as error:
                if backend is not self.core or not any(standby.model for standby in self.router.standbys):
                    raise
                log.error("the local engine can't start, so standbys answer for it: %s", error.message)

    async def close(self) -> None:
        """Stops every backend."""
        await self.watch.close()
        for backend in self.router.backends:
            await backend.close()
        if self.recorder is not None:
            await self.recorder.close()
        if self.accounts is not None:
            await self.accounts.budget.close()
        if self._tracing is not None:
            await self._tracing.close()

    async def __aenter__(self) -> Gateway:
        try:
            await self.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    def health(self) -> dict[str, Any]:
        """`status` is `ok`, `degraded` (a standby answers for the core) or the core's state; then each backend."""
        states = [
            {"name": b.name, "model": b.model, "state": b.state, "cooling": self.router.cooling(b)}
            for b in self.router.backends
        ]
        if self.core is None or self.core.state == "ready":
            status = "ok"
        else:
            status = "degraded" if any(s.model for s in self.router.standbys) else self.core.state
        problem = {} if self.router.problem is None else {"problem": self.router.problem}
        return {"status": status, "backends": states} | problem

    async def answer(self, request: Request) -> Answer:
        """The first backend's answer that commits.

        Raises:
            FreeholdError: the request is wrong, or nobody could answer.
        """
        record, began = Record(request.id, request.model, key_id=request.key_id), asyncio.get_running_loop().time()
        hold, exchange, recording = None, None, None
        try:
            if self.recorder is not None:
                await self.recorder.ready()
            if self.accounts is not None:
                request, hold = await self.accounts.begin(request)
                record.rates = hold.headers
            exchange = await self.relay.open(request)
            if self.recorder is not None:
                recording = self.recorder.begin(request, exchange.backend, exchange.continued)
        except BaseException as error:
            if exchange is not None:
                await exchange.events.aclose()
            if self.accounts is not None and hold is not None:
                self.accounts.end(hold, request.id)
            self.metrics.request_failure.labels("none", _reason(error)).inc()
            if isinstance(error, LimitError):
                self.metrics.budget_refusals.labels(error.code or "limit").inc()
            raise
        record.backend, record.model, record.reason = exchange.backend, exchange.model, exchange.reason
        record.dropped, record.draft = exchange.dropped, exchange.draft
        record.continued = exchange.continued
        self.router.answered(request, exchange.backend)
        record.provenance = "" if recording is None else recording.id
        events = self._measured(exchange, record, began, hold, recording)
        await anext(events)  # into its `try`: closing it settles even when nobody reads an event
        return Answer(record, events)

    async def _measured(
        self, exchange: Exchange, record: Record, began: float, hold: Hold | None, recording: Recording | None
    ) -> AsyncGenerator[Event, None]:
        """The events, counted and timed as they pass; the first is a sign that it has begun."""
        meter = Meter(self.metrics, record, began, iter(exchange.arrivals))
        try:
            yield Started(record.model)
            async with aclosing(exchange.events):
                async for event in exchange.events:
                    meter.note(event)
                    if recording is not None:
                        recording.note(event)
                    yield event
        finally:
            meter.settle()
            if recording is not None:
                recording.close()
            if record.ttft is not None and record.seconds is not None and record.finished and record.failure is None:
                self.router.measures.note(record.backend, record.ttft, record.seconds, record.completion_tokens)
            if self.accounts is not None and hold is not None:
                self.accounts.end(hold, record.request_id)

    def trace(self, tracing: Tracing) -> None:
        """Makes spans from now on; they end with the gateway."""
        self._tracing = tracing
        self.relay.context.stream = tracing.traced(self.relay.context.stream)

    async def embed(self, request: EmbeddingRequest) -> tuple[Record, Embeddings]:
        """Vectors, and who made them.

        Raises:
            FreeholdError: no such model, it does not embed, its backend failed, or the key may not.
        """
        work = self._embed(request)
        return await (work if self._tracing is None else self._tracing.embedding(request, work))

    async def _embed(self, request: EmbeddingRequest) -> tuple[Record, Embeddings]:
        record = Record(request.id, request.model, key_id=request.key_id)
        if self.accounts is None:
            record.backend, found = await embed(self.router, request)
            record.model, record.prompt_tokens = found.model, found.prompt_tokens
            return record, found
        if self.recorder is not None:
            await self.recorder.ready()
        hold, began = await self.accounts.begin_embedding(request), asyncio.get_running_loop().time()
        try:
            record.backend, found = await embed(self.router, request)
        except BaseException:
            self.accounts.budget.settle(hold, request.id, ())
            raise
        record.model, record.prompt_tokens = found.model, found.prompt_tokens
        seconds = asyncio.get_running_loop().time() - began
        part = self.accounts.end_embedding(hold, request, record.backend, found, seconds)
        if self.recorder is not None:
            record.provenance = self.recorder.embedding(request, part)
        return record, found


def _budget(settings: Settings) -> Budget:
    """From the settings; imported here, because a model asked in process needs no database."""
    from freehold.database import Database
    from freehold.gateway.budget import Budget

    return Budget(
        Database(settings.database.url), settings=settings.budget, cost=settings.cost, upstreams=settings.upstreams
    )


def _accounts(budget: Budget, router: Router, relay: Relay) -> Accounts:
    from freehold.gateway.accounts import Accounts

    return Accounts(budget, router, relay)


def _ledger(settings: Settings, budget: Budget) -> Ledger:
    from freehold.provenance.ledger import Ledger

    return Ledger(budget.database, settings.provenance)


def _weights(settings: EngineSettings) -> str:
    from freehold.formats import store
    from freehold.formats.builtin import BUILTINS
    from freehold.provenance.weights import files_of

    builtin = BUILTINS.get(settings.model)
    return files_of(store.resolve(settings.model), None if builtin is None else builtin.licence)


def _recorder(
    ledger: Ledger | None, accounts: Accounts | None, upstreams: Sequence[UpstreamSettings], weights: str
) -> Recorder | None:
    if ledger is None:
        return None
    if accounts is None:
        raise TypeError("a ledger needs a budget: both hear of exchanges by the same taps")
    from freehold.gateway.recording import Recorder

    return Recorder(ledger, accounts.taps, upstreams, weights)


def load_core(settings: EngineSettings, *, progress: Progress | None = None) -> LocalBackend:
    """The local backend of the model in the settings, not yet started."""
    from freehold.formats import store  # here, because the hub's client is slow to import

    path = store.resolve(settings.model, progress=progress)
    tokenizer, template = load_text_side(path)
    engine, (pooling, _) = EngineProcess(path, settings), pooling_of(path)
    return LocalBackend(
        engine, tokenizer, template, public_name(settings.model), pooling=pooling, sampling=recommended(path)
    )


def public_name(reference: str) -> str:
    """What clients call the model: the reference, without the directories of a path on this machine."""
    path = Path(reference).expanduser()
    return (path.name or path.resolve().name) if path.exists() else reference


def _reason(error: BaseException) -> str:
    return kind_of(error) if isinstance(error, Exception) else "left"
