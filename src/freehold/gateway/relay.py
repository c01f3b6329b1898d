"""Gets a request answered: tries the planned backends until one commits, passes its events on, and mends what breaks.

A backend is committed to at its first content, for a whole (not streamed) answer at its end: until then its failure is
invisible to the client. After it, another backend goes on behind the last character (see `continuation.py`), and only
when none can does the client see a `Failed` event. Knows no HTTP, no dialect and no kind of backend.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from freehold.errors import (
    ContextLengthError,
    EngineDownError,
    EngineError,
    FreeholdError,
    TemplateError,
    UpstreamError,
    UsageError,
)
from freehold.gateway.backends import Backend, lost
from freehold.gateway.confidence import Draft
from freehold.gateway.continuation import Count, Delivered
from freehold.gateway.conversation import (
    Event,
    Failed,
    Finished,
    ReasoningDelta,
    Request,
    TextDelta,
    ToolCallDelta,
)
from freehold.gateway.failures import CapabilityError, RequestError, UnavailableError, kind_of
from freehold.gateway.router import Candidate, Router, describe
from freehold.settings import GuardSettings

log = logging.getLogger("freehold.gateway")

Failures = list[tuple[Candidate, FreeholdError]]
CONTENT = (TextDelta, ReasoningDelta, ToolCallDelta, Finished)
MOST_CONTINUATIONS = 8
"""Of one answer: whatever breaks more often will go on breaking."""

LEAST_TRIAL_SECONDS = 2.0
"""A backend that may be back has at least so long for its first token."""

RESTART_POLL_SECONDS = 0.02
"""How often an engine that restarts is looked at while an answer waits for it; its first token takes longer."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request that a backend has committed to."""

    request: Request
    backend: str
    model: str
    reason: str
    dropped: tuple[str, ...]
    arrivals: tuple[float, ...]  # when the content before the commitment came, on the event loop's clock
    events: AsyncGenerator[Event, None]
    draft: Draft | None = None
    continued: list[str] = field(
        default_factory=list
    )  # who took over after a break; complete when the events have ended


@dataclass(slots=True)
class _Run:
    """One request on its way."""

    request: Request
    candidates: Sequence[Candidate]
    deadline: float
    failures: Failures = field(default_factory=list)
    continued: list[str] = field(default_factory=list)
    unfit: list[Candidate] = field(default_factory=list)  # can't continue this answer
    broke: Candidate | None = None
    crashed: bool = False  # it was an engine that died


class Relay:
    """Guards, failover, commitment and continuation.

    Args:
        router: plans, and its breaker is told who failed and who answered.
        guards: limits in seconds; 0 = none. A backend with `guards` of its own is held to those.
        on_failover: called with the backend's name and the kind of failure each time a request moves on.
        on_break: called after each failure that a breaker has noted.
    """

    def __init__(
        self,
        router: Router,
        guards: GuardSettings,
        on_failover: Callable[[str, str], None] = lambda name, kind: None,
        on_break: Callable[[], None] = lambda: None,
    ) -> None:
        self._router = router
        self._guards = guards
        self._on_failover = on_failover
        self.stream: Callable[[Backend, Request], AsyncGenerator[Event, None]] = _stream  # may be put under measure
        self._on_break = on_break

    async def open(self, request: Request) -> Exchange:
        """The exchange with the first backend that commits.

        Raises:
            FreeholdError: the request is wrong, or nobody could answer.
        """
        run = _Run(request, self._router.plan(request), _after(self._guards.total_seconds))
        for position, candidate in enumerate(run.candidates):
            last = position == len(run.candidates) - 1
            attempt = _Attempt(self, run, candidate)
            if not attempt.leave() and not last:
                continue
            # With nobody left to move on to, impatience would only turn a slow answer into none.
            patience = run.deadline if last else attempt.patience()
            try:
                seen, arrivals = await self._until_commit(attempt, patience)
            except FreeholdError as error:
                await attempt.failed(error, moving=not last)
                run.failures.append((candidate, error))
                if _final(error) or isinstance(error, _OutOfTime):
                    break
            except BaseException:
                await attempt.left()
                raise
            else:
                return self._exchange(run, candidate, arrivals, self._rest(run, attempt, seen))
        raise _verdict(run.failures)

    async def _until_commit(self, attempt: _Attempt, patience: float) -> tuple[list[Event], list[float]]:
        """Events up to the first content, or all of them when the answer is not streamed; and when content came."""
        seen: list[Event] = []
        arrivals: list[float] = []
        limit = patience
        while (event := await attempt.next(limit)) is not None:
            seen.append(event)
            if isinstance(event, CONTENT):
                arrivals.append(asyncio.get_running_loop().time())
                if attempt.candidate.request.stream:
                    return seen, arrivals
                limit = attempt.idle()
        if not any(isinstance(event, Finished) for event in seen):
            raise UpstreamError(f"{attempt.name}: the answer was empty", kind="transport")
        return seen, arrivals

    def _exchange(
        self, run: _Run, candidate: Candidate, arrivals: list[float], events: AsyncGenerator[Event, None]
    ) -> Exchange:
        reason = f"{candidate.reason} after {describe(run.failures)}" if run.failures else candidate.reason
        dropped = dict.fromkeys((*candidate.dropped, *lost(candidate.backend, candidate.request)))
        return Exchange(
            candidate.request, candidate.backend.name, candidate.request.model, reason, tuple(dropped),
            tuple(arrivals), events, candidate.draft, run.continued,
        )  # fmt: skip

    async def _rest(self, run: _Run, attempt: _Attempt, seen: list[Event]) -> AsyncGenerator[Event, None]:
        """What was seen before the commitment, then everything else, by whoever can say it."""
        could_move = len(run.candidates) > 1 or _continues(attempt.candidate)
        given = Delivered(run.request, holds_calls=could_move)
        try:
            for event in seen:
                for shown in given.take(event):
                    yield shown
            while (following := await attempt.next(attempt.idle())) is not None:
                for shown in given.take(following):
                    yield shown
        except FreeholdError as error:
            await attempt.failed(error, moving=False)
            async with aclosing(self._continued(run, attempt.candidate, given, error)) as mended:
                async for event in mended:
                    yield event
        else:
            attempt.succeeded()
        finally:
            await attempt.left()

    async def _continued(
        self, run: _Run, broken: Candidate, given: Delivered, error: FreeholdError
    ) -> AsyncGenerator[Event, None]:
        """The rest of an answer whose backend broke; ends in `Failed` when nobody can say it."""
        run.broke, run.crashed = broken, isinstance(error, EngineDownError)
        given.breaks(_counter(run.candidates))
        attempts = 0
        while given.open:
            index = given.open[0]
            attempts += 1
            over = _final(error) or isinstance(error, _OutOfTime) or attempts > MOST_CONTINUATIONS
            found = None if over else await self._heir(run, given, index)
            if found is None:
                yield Failed(error)
                return
            try:
                async with aclosing(self._one_choice(run, found, given, index)) as events:
                    async for event in events:
                        yield event
            except FreeholdError as again:
                error, run.broke, run.crashed = again, found, isinstance(again, EngineDownError)
                given.breaks(_counter(run.candidates))
        for event in given.end():
            yield event

    async def _one_choice(
        self, run: _Run, heir: Candidate, given: Delivered, index: int
    ) -> AsyncGenerator[Event, None]:
        """The rest of one choice by one backend; raises what it raised."""
        rest, splice = given.remainder(index, heir.request), given.splice(index)
        if splice.over():  # the stop string was there already, and its provider did not stop
            for shown in given.take(splice.stop):
                yield shown
            return
        if rest is None or rest.max_tokens == 0:
            for shown in given.take(Finished("length", index)):
                yield shown
            return
        attempt = _Attempt(self, run, heir, rest)
        attempt.leave()
        count = _counter([heir])
        try:
            limit = attempt.patience()
            while not splice.over() or splice.usage is None:
                event = await attempt.next(limit)
                if event is None:
                    break
                if isinstance(event, CONTENT) and heir.backend.name not in run.continued[-1:]:
                    run.continued.append(heir.backend.name)
                for piece in splice.take(event):
                    for shown in given.take(piece):
                        yield shown
                if splice.stopped:
                    break
                limit = attempt.idle() if isinstance(event, CONTENT) else limit
            if not splice.over():
                raise UpstreamError(f"{attempt.name}: the answer was empty", kind="transport")
        except FreeholdError as error:
            if not splice.over():
                await attempt.failed(error, moving=True)
                raise
            log.warning("request %s: %s broke after its end: %s", run.request.id, attempt.name, error.message)
        finally:
            given.reported(index, splice.usage, count(rest.continue_from) if count else 0)
            await attempt.left()
        attempt.succeeded()

    async def _heir(self, run: _Run, given: Delivered, index: int) -> Candidate | None:
        """Who goes on with a choice: those that can at once in the order of the line, then an engine that restarts."""
        able = [candidate for candidate in run.candidates if self._fits(run, candidate, given, index)]
        for candidate in able:
            if candidate.backend.state == "ready" and candidate is not run.broke:
                return candidate
        for candidate in able:
            if candidate is run.broke and not run.crashed:
                continue  # an engine that lives and failed at this text would fail at it again
            if _continues(candidate) and await self._comes_back(candidate, min(run.deadline, self._idle())):
                return candidate
        return None

    def _fits(self, run: _Run, candidate: Candidate, given: Delivered, index: int) -> bool:
        if candidate in run.unfit or not (_continues(candidate) or given.blank(index)):
            return False
        verdict = self._router.breaker.allows(candidate.backend.name)
        rest = given.remainder(index, candidate.request)
        try:
            if rest is not None:
                candidate.backend.check(rest)
        except CapabilityError:
            rest = None
        if rest is None:
            run.unfit.append(candidate)
        return rest is not None and (verdict.allowed or (candidate is run.broke and not verdict.final))

    async def _comes_back(self, candidate: Candidate, limit: float) -> bool:
        """Waits for an engine that is being restarted."""
        while candidate.backend.state in ("starting", "restarting"):
            if asyncio.get_running_loop().time() >= limit:
                return False
            await asyncio.sleep(RESTART_POLL_SECONDS)
        return candidate.backend.state == "ready"

    def _idle(self) -> float:
        return _after(self._guards.idle_seconds)

    def guards_of(self, candidate: Candidate) -> GuardSettings:
        """The limits that hold for a backend."""
        own = getattr(candidate.backend, "guards", None)
        return own if isinstance(own, GuardSettings) else self._guards

    def broke(self) -> None:
        """Tells that a breaker has noted a failure."""
        self._on_break()

    def note(self, run: _Run, candidate: Candidate, error: FreeholdError, *, moving: bool) -> None:
        """Logs and counts a failure."""
        name, kind = candidate.backend.name, kind_of(error)
        log.warning("request %s: %s failed (%s): %s", run.request.id, name, kind, error.message)
        if moving:
            self._on_failover(name, kind)


class _Attempt:
    """One backend's try at a request: its stream under its guards, and what the breaker is told of it."""

    def __init__(self, relay: Relay, run: _Run, candidate: Candidate, request: Request | None = None) -> None:
        self.candidate = candidate
        self.name = candidate.backend.name
        self._relay = relay
        self._run = run
        self._guards = relay.guards_of(candidate)
        self._breaker = relay._router.breaker
        core = relay._router.core
        self._watched = core is None or self.name != core.name  # the engine's own state says whether it can answer
        self._request = request or candidate.request
        self._stream: AsyncGenerator[Event, None] | None = None
        self._deadline = min(run.deadline, _after(self._guards.total_seconds))
        self._measures = relay._router.measures
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
        return min(self._deadline, _after(self._guards.ttft_seconds), self._enough())

    def _enough(self) -> float:
        """When somebody who only tries whether a backend is back has waited long enough."""
        usual = self._measures.longest_silence(self.name) if self._trial else None
        return float("inf") if usual is None else _after(max(usual, LEAST_TRIAL_SECONDS))

    def idle(self) -> float:
        """When the next event must be there.

        An engine of ours that lives may be slow (a neighbour's long prompt, preemption): it is left for its silence only
        where somebody else can take over, which for a stream that has begun means going on behind its last character.
        """
        if not self._watched:
            others = (other for other in self._run.candidates if other is not self.candidate)
            if not any(_continues(other) or not self._request.stream for other in others):
                return self._deadline
        return min(self._deadline, _after(self._guards.idle_seconds), self._enough())

    async def next(self, limit: float) -> Event | None:
        """The next event, None at the end; a backend's silence or bug becomes a FreeholdError."""
        limit = min(limit, self._deadline)
        self._began = asyncio.get_running_loop().time()
        try:
            if self._stream is None:
                self._stream = self._relay.stream(self.candidate.backend, self._request)
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
            return _OutOfTime(f"{self.name}: was not done when the request's time was up", kind="transport")
        return UpstreamError(f"{self.name}: fell silent for longer than its guard allows", kind="transport")

    async def failed(self, error: FreeholdError, *, moving: bool) -> None:
        """Notes a failure and hangs up."""
        self._relay.note(self._run, self.candidate, error, moving=moving)
        if self._watched and not isinstance(error, _OutOfTime):
            wait = getattr(error, "retry_after", None)
            self._breaker.failed(self.name, kind_of(error), wait, trial=self._trial, late=self._heard)
            self._trial = False
            self._relay.broke()
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


class _OutOfTime(UpstreamError):
    """The request's total time is over; its last backend need not be to blame."""


def _stream(backend: Backend, request: Request) -> AsyncGenerator[Event, None]:
    return backend.stream(request)


def _after(seconds: float) -> float:
    """A point on the event loop's clock; never, for 0."""
    return asyncio.get_running_loop().time() + seconds if seconds else float("inf")


def _continues(candidate: Candidate) -> bool:
    """Whether a backend can go on from exact text."""
    return bool(getattr(candidate.backend, "continues", False))


def _counter(candidates: Sequence[Candidate]) -> Count | None:
    """Who can count tokens, if somebody can."""
    for candidate in candidates:
        count: Count | None = getattr(candidate.backend, "tokens_of", None)
        if count is not None:
            return count
    return None


def _final(error: FreeholdError) -> bool:
    """Whether asking another backend would be wrong: refusals on content are not routed around, wrong stays wrong."""
    return kind_of(error) == "content_policy" or (
        isinstance(error, UsageError) and not isinstance(error, CapabilityError)
    )


def _verdict(failures: Failures) -> FreeholdError:
    """The one error that helps the client most."""
    _, first = failures[0]
    last = failures[-1][1]
    if len(failures) == 1 or kind_of(last) == "content_policy":
        return last
    if isinstance(first, (ContextLengthError, TemplateError, RequestError)):
        return first
    told = "; ".join(f"{candidate.backend.name}: {error.message}" for candidate, error in failures)
    return UnavailableError(f"No backend could answer: {told}.", hint="try again in a moment; see the server's log")
