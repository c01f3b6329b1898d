"""Gets a request answered: tries the planned backends until one commits, then passes its events on.

A backend is committed to at its first content, for a whole (not streamed) answer at its end: until then its failure is
invisible to the client. Later ones are framed as a `Failed` event. Knows no HTTP, no dialect and no kind of backend.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass

from freehold.errors import ContextLengthError, EngineError, FreeholdError, TemplateError, UpstreamError, UsageError
from freehold.gateway.confidence import Draft
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


class Relay:
    """Guards, failover and commitment.

    Args:
        router: plans, and is told who failed and who answered.
        guards: limits in seconds; 0 = none.
        on_failover: called with the backend's name and the kind of failure each time a request moves on.
    """

    def __init__(
        self, router: Router, guards: GuardSettings, on_failover: Callable[[str, str], None] = lambda name, kind: None
    ) -> None:
        self._router = router
        self._guards = guards
        self._on_failover = on_failover

    async def open(self, request: Request) -> Exchange:
        """The exchange with the first backend that commits.

        Raises:
            FreeholdError: the request is wrong, or nobody could answer.
        """
        deadline = _after(self._guards.total_seconds)
        failures: Failures = []
        candidates = self._router.plan(request)
        for position, candidate in enumerate(candidates):
            # With nobody left to move on to, impatience would only turn a slow answer into none.
            last = position == len(candidates) - 1
            patience = deadline if last else min(deadline, _after(self._guards.ttft_seconds))
            stream = candidate.backend.stream(candidate.request)
            try:
                seen, arrivals = await self._until_commit(candidate, stream, patience, deadline)
            except FreeholdError as error:
                await stream.aclose()
                self._note(candidate, error, request, moving=not last)
                failures.append((candidate, error))
                if _final(error):
                    break
            except BaseException:
                await stream.aclose()
                raise
            else:
                return self._exchange(candidate, failures, arrivals, self._rest(candidate, seen, stream, deadline))
        raise _verdict(failures)

    async def _until_commit(
        self, candidate: Candidate, stream: AsyncGenerator[Event, None], patience: float, deadline: float
    ) -> tuple[list[Event], list[float]]:
        """Events up to the first content, or all of them when the answer is not streamed; and when content came."""
        seen: list[Event] = []
        arrivals: list[float] = []
        limit = patience
        while (event := await self._next(candidate, stream, limit)) is not None:
            seen.append(event)
            if isinstance(event, CONTENT):
                arrivals.append(asyncio.get_running_loop().time())
                if candidate.request.stream:
                    return seen, arrivals
                limit = self._idle(deadline)
        if not any(isinstance(event, Finished) for event in seen):
            raise UpstreamError(f"{candidate.backend.name}: the answer was empty", kind="transport")
        return seen, arrivals

    async def _next(self, candidate: Candidate, stream: AsyncGenerator[Event, None], limit: float) -> Event | None:
        """The next event, None at the end; a backend's silence or bug becomes a FreeholdError."""
        name = candidate.backend.name
        try:
            async with asyncio.timeout_at(limit):
                return await anext(stream, None)
        except TimeoutError:
            raise UpstreamError(f"{name}: fell silent for longer than its guard allows", kind="transport") from None
        except FreeholdError:
            raise
        except Exception:
            log.exception("backend %s failed in a way it should not", name)
            raise EngineError(f"{name}: internal error") from None

    def _exchange(
        self,
        candidate: Candidate,
        failures: Failures,
        arrivals: list[float],
        events: AsyncGenerator[Event, None],
    ) -> Exchange:
        reason = f"{candidate.reason} after {describe(failures)}" if failures else candidate.reason
        name, model = candidate.backend.name, candidate.request.model
        return Exchange(
            candidate.request, name, model, reason, candidate.dropped, tuple(arrivals), events, candidate.draft
        )

    async def _rest(
        self, candidate: Candidate, seen: list[Event], stream: AsyncGenerator[Event, None], deadline: float
    ) -> AsyncGenerator[Event, None]:
        """What was seen before the commitment, then everything else."""
        async with aclosing(stream):
            for event in seen:
                yield event
            try:
                while (following := await self._next(candidate, stream, self._idle(deadline))) is not None:
                    yield following
            except FreeholdError as error:
                self._note(candidate, error, candidate.request, moving=False)
                yield Failed(error)
            else:
                self._router.succeeded(candidate.backend)

    def _idle(self, deadline: float) -> float:
        return min(deadline, _after(self._guards.idle_seconds))

    def _note(self, candidate: Candidate, error: FreeholdError, request: Request, *, moving: bool) -> None:
        name, kind = candidate.backend.name, kind_of(error)
        self._router.failed(candidate.backend, error)
        log.warning("request %s: %s failed (%s): %s", request.id, name, kind, error.message)
        if moving:
            self._on_failover(name, kind)


def _after(seconds: float) -> float:
    """A point on the event loop's clock; never, for 0."""
    return asyncio.get_running_loop().time() + seconds if seconds else float("inf")


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
