"""One backend's try at a request: its stream under its guards, and what the breaker is told of it.

The relay decides who tries and what becomes of a failure. Knows no HTTP, no dialect and no kind of backend.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field

from freehold.errors import EngineError, FreeholdError, UpstreamError
from freehold.gateway.backends import Backend
from freehold.gateway.conversation import Event, Finished, ReasoningDelta, Request, TextDelta, ToolCallDelta
from freehold.gateway.failures import kind_of
from freehold.gateway.router import Candidate, Router
from freehold.settings import GuardSettings

log = logging.getLogger("freehold.gateway")

Failures = list[tuple[Candidate, FreeholdError]]
CONTENT = (TextDelta, ReasoningDelta, ToolCallDelta, Finished)

LEAST_TRIAL_SECONDS = 2.0
"""A backend that may be back has at least so long for its first token."""


@dataclass(slots=True)
class Run:
    """One request on its way."""

    request: Request
    candidates: Sequence[Candidate]
    deadline: float
    failures: Failures = field(default_factory=list)
    continued: list[str] = field(default_factory=list)
    unfit: list[Candidate] = field(default_factory=list)  # can't continue this answer
    broke: Candidate | None = None
    crashed: bool = False  # it was an engine that died


def straight(backend: Backend, request: Request) -> AsyncGenerator[Event, None]:
    """A backend's stream as it is."""
    return backend.stream(request)


@dataclass(slots=True)
class Context:
    """What all attempts share.

    Args:
        router: its breaker is told who failed and who answered.
        guards: limits in seconds; 0 = none. A backend with `guards` of its own is held to those.
        on_failover: called with the backend's name and the kind of failure each time a request moves on.
        on_break: called after each failure that a breaker has noted.
        stream: how a backend is asked; may be put under measure.
    """

    router: Router
    guards: GuardSettings
    on_failover: Callable[[str, str], None] = lambda name, kind: None
    on_break: Callable[[], None] = lambda: None
    stream: Callable[[Backend, Request], AsyncGenerator[Event, None]] = straight

    def guards_of(self, candidate: Candidate) -> GuardSettings:
        """The limits that hold for a backend."""
        own = getattr(candidate.backend, "guards", None)
        return own if isinstance(own, GuardSettings) else self.guards

    def deadline(self, candidates: Sequence[Candidate]) -> float:
        """When a request must be done: the longest that any of those who may answer it is given."""
        totals = [self.guards_of(candidate).total_seconds or float("inf") for candidate in candidates]
        return after(max(totals))


class Attempt:
    """One backend's try at a request: its stream under its guards, and what the breaker is told of it."""

    def __init__(self, context: Context, run: Run, candidate: Candidate, request: Request | None = None) -> None:
        self.candidate = candidate
        self.name = candidate.backend.name
        self._context = context
        self._run = run
        self._guards = context.guards_of(candidate)
        self._breaker = context.router.breaker
        core = context.router.core
        self._watched = core is None or self.name != core.name  # the engine's own state says whether it can answer
        self._request = request or candidate.request
        self._stream: AsyncGenerator[Event, None] | None = None
        self._deadline = min(run.deadline, after(self._guards.total_seconds))
        self._measures = context.router.measures
        self._call: object = None  # while it waits for content
        self._trial = False
        self._heard = False
        self._began = 0.0

    def leave(self) -> bool:
        """Whether the breaker lets it be asked now; a half-open one lets one through at a time."""
        if not self._watched:
            return True
        verdict = self._breaker.allows(self.name)
        leave = self._breaker.probe(self.name)
        self._trial = leave and verdict.trial
        return leave

    def patience(self) -> float:
        """When the first token must be there."""
        return min(self._deadline, after(self._guards.ttft_seconds), self._enough())

    def _enough(self) -> float:
        """When somebody who only tries whether a backend is back has waited long enough."""
        usual = self._measures.longest_silence(self.name) if self._trial else None
        return float("inf") if usual is None else after(max(usual, LEAST_TRIAL_SECONDS))

    def idle(self) -> float:
        """When the next event must be there.

        An engine of ours that lives may be slow (a neighbour's long prompt, preemption): it is left for its silence only
        where somebody else can take over, which for a stream that has begun means going on behind its last character.
        """
        if not self._watched:
            others = (other for other in self._run.candidates if other is not self.candidate)
            if not any(continues(other) or not self._request.stream for other in others):
                return self._deadline
        return min(self._deadline, after(self._guards.idle_seconds), self._enough())

    async def next(self, limit: float) -> Event | None:
        """The next event, None at the end; a backend's silence or bug becomes a FreeholdError."""
        limit = min(limit, self._deadline)
        self._began = asyncio.get_running_loop().time()
        try:
            if self._stream is None:
                self._stream = self._context.stream(self.candidate.backend, self._request)
            if self._call is None:  # not while a client is slow to read
                self._call = self._measures.waits(self.name)
            async with asyncio.timeout_at(limit):
                event = await anext(self._stream, None)
        except TimeoutError:
            raise self._silence() from None
        except FreeholdError:
            raise
        except Exception:
            log.exception("backend %s failed in a way it should not", self.name)
            raise EngineError(f"{self.name}: internal error") from None
        if isinstance(event, CONTENT):
            self._got()
            if self._trial and not self._heard:
                self._breaker.heard(self.name)
            self._heard = True
        return event

    def _got(self) -> None:
        """It has content, or waits for none any more."""
        self._measures.got(self.name, self._call)
        self._call = None

    def _silence(self) -> UpstreamError:
        """What a wait that took too long means: a silent backend, or one that was asked too late."""
        now, guards = asyncio.get_running_loop().time(), self._guards
        patience = min(guards.ttft_seconds or float("inf"), guards.idle_seconds or float("inf"))
        if now >= self._run.deadline and now - self._began < patience:
            return OutOfTime(f"{self.name}: was not done when the request's time was up", kind="transport")
        return UpstreamError(f"{self.name}: fell silent for longer than its guard allows", kind="transport")

    async def failed(self, error: FreeholdError, *, moving: bool) -> None:
        """Notes a failure and hangs up."""
        kind = kind_of(error)
        log.warning("request %s: %s failed (%s): %s", self._run.request.id, self.name, kind, error.message)
        if moving:
            self._context.on_failover(self.name, kind)
        if self._watched and not isinstance(error, OutOfTime):
            wait = error.retry_after if isinstance(error, UpstreamError) else None
            self._breaker.failed(self.name, kind, wait, trial=self._trial, late=self._heard)
            self._trial = False
            self._context.on_break()
        await self.left()

    def succeeded(self) -> None:
        """Notes a complete answer, and whether the provider says that it was the last for now."""
        self._trial = False
        if self._watched:
            self._breaker.succeeded(self.name)
            limited = getattr(self.candidate.backend, "limited_until", lambda: None)()
            if limited is not None:
                self._breaker.rest(self.name, limited - time.monotonic())

    async def left(self) -> None:
        """Hangs up; whatever leave it had is given back."""
        if self._trial:
            self._breaker.abandoned(self.name)
            self._trial = False
        self._got()
        if self._stream is not None:
            await self._stream.aclose()


class OutOfTime(UpstreamError):
    """The request's total time is over; its last backend need not be to blame."""


def after(seconds: float) -> float:
    """A point on the event loop's clock; never, for 0."""
    return asyncio.get_running_loop().time() + seconds if seconds else float("inf")


def continues(candidate: Candidate) -> bool:
    """Whether a backend can go on from exact text."""
    return bool(getattr(candidate.backend, "continues", False))
