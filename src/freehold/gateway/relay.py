"""Gets a request answered: tries the planned backends until one commits, passes its events on, and mends what breaks.

A backend is committed to at its first content, for a whole (not streamed) answer at its end: until then its failure is
invisible to the client. After it, another backend goes on behind the last character (see `continuation.py`), and only
when none can does the client see a `Failed` event. Knows no HTTP, no dialect and no kind of backend.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from freehold.errors import (
    ContextLengthError,
    EngineDownError,
    FreeholdError,
    TemplateError,
    UpstreamError,
    UsageError,
)
from freehold.gateway.attempt import CONTENT, Attempt, Context, Failures, OutOfTime, Run, after, continues
from freehold.gateway.backends import lost
from freehold.gateway.confidence import Draft
from freehold.gateway.continuation import Count, Delivered
from freehold.gateway.conversation import Event, Failed, Finished, Request
from freehold.gateway.failures import CapabilityError, RequestError, UnavailableError, kind_of
from freehold.gateway.router import Candidate, Router, describe
from freehold.settings import GuardSettings

log = logging.getLogger("freehold.gateway")

MOST_CONTINUATIONS = 8
"""Of one answer: whatever breaks more often will go on breaking."""

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
        self.context = Context(router, guards, on_failover, on_break)

    async def open(self, request: Request) -> Exchange:
        """The exchange with the first backend that commits.

        Raises:
            FreeholdError: the request is wrong, or nobody could answer.
        """
        candidates = self.context.router.plan(request)
        run = Run(request, candidates, self.context.deadline(candidates))
        for position, candidate in enumerate(run.candidates):
            last = position == len(run.candidates) - 1
            attempt = Attempt(self.context, run, candidate)
            if not attempt.leave() and not last:
                continue
            # With nobody left to move on to, impatience would only turn a slow answer into none.
            patience = run.deadline if last else attempt.patience()
            try:
                seen, arrivals = await self._until_commit(attempt, patience)
            except FreeholdError as error:
                await attempt.failed(error, moving=not last)
                run.failures.append((candidate, error))
                if _final(error) or isinstance(error, OutOfTime):
                    break
            except BaseException:
                await attempt.left()
                raise
            else:
                return self._exchange(run, candidate, arrivals, self._rest(run, attempt, seen))
        raise _verdict(run.failures)

    async def _until_commit(self, attempt: Attempt, patience: float) -> tuple[list[Event], list[float]]:
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
        self, run: Run, candidate: Candidate, arrivals: list[float], events: AsyncGenerator[Event, None]
    ) -> Exchange:
        reason = f"{candidate.reason} after {describe(run.failures)}" if run.failures else candidate.reason
        dropped = dict.fromkeys((*candidate.dropped, *lost(candidate.backend, candidate.request)))
        return Exchange(
            candidate.request, candidate.backend.name, candidate.request.model, reason, tuple(dropped),
            tuple(arrivals), events, candidate.draft, run.continued,
        )  # fmt: skip

    async def _rest(self, run: Run, attempt: Attempt, seen: list[Event]) -> AsyncGenerator[Event, None]:
        """What was seen before the commitment, then everything else, by whoever can say it."""
        could_move = len(run.candidates) > 1 or continues(attempt.candidate)
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
        self, run: Run, broken: Candidate, given: Delivered, error: FreeholdError
    ) -> AsyncGenerator[Event, None]:
        """The rest of an answer whose backend broke; ends in `Failed` when nobody can say it."""
        run.broke, run.crashed = broken, isinstance(error, EngineDownError)
        given.breaks(_counter(run.candidates))
        attempts = 0
        while given.open:
            index = given.open[0]
            attempts += 1
            over = _final(error) or isinstance(error, OutOfTime) or attempts > MOST_CONTINUATIONS
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

    async def _one_choice(self, run: Run, heir: Candidate, given: Delivered, index: int) -> AsyncGenerator[Event, None]:
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
        attempt = Attempt(self.context, run, heir, rest)
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

    async def _heir(self, run: Run, given: Delivered, index: int) -> Candidate | None:
        """Who goes on with a choice: those that can at once in the order of the line, then an engine that restarts."""
        able = [candidate for candidate in run.candidates if self._fits(run, candidate, given, index)]
        for candidate in able:
            if candidate.backend.state == "ready" and candidate is not run.broke:
                return candidate
        for candidate in able:
            if candidate is run.broke and not run.crashed:
                continue  # an engine that lives and failed at this text would fail at it again
            if continues(candidate) and await self._comes_back(candidate, min(run.deadline, self._idle())):
                return candidate
        return None

    def _fits(self, run: Run, candidate: Candidate, given: Delivered, index: int) -> bool:
        if candidate in run.unfit or not (continues(candidate) or given.blank(index)):
            return False
        verdict = self.context.router.breaker.allows(candidate.backend.name)
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
        return after(self.context.guards.idle_seconds)


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
