"""Escalation: the core drafts, the draft is judged, and a doubtful one is asked elsewhere.

Two judges: how probable its tokens were to the core itself, and how far it agrees with second answers of the core to the
same question (`agreement.py`). A judged backend fails with `LowConfidenceError`, so that the relay moves on as after any
failure; when nobody better can answer, the draft is the answer. Whole answers are judged at their end. A streamed one
could only be judged if it was held until then: that is the route's choice (`escalate_streams`), and its first-token guard
bounds how long. Knows no provider and no policy.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from freehold.errors import FreeholdError
from freehold.gateway.agreement import Said, agreement
from freehold.gateway.backends import Backend
from freehold.gateway.conversation import Event, Finished, Request, TextDelta
from freehold.gateway.failures import LowConfidenceError
from freehold.settings import RouterSettings

log = logging.getLogger("freehold.gateway")

SAMPLE_TEMPERATURE = 0.7
"""Least temperature of second answers: greedy ones would all be the same."""


@dataclass(slots=True)
class Draft:
    """The core's answer and how sure it was; it stays in the record when another answered.

    Args:
        agreement: with second answers, from 0 to 1; None when there were none.
    """

    backend: str
    events: list[Event] = field(default_factory=list)
    said: Said = field(default_factory=Said)
    means: list[float] = field(default_factory=list)  # of choices, where known
    agreement: float | None = None
    error: FreeholdError | None = None
    rejected: bool = False

    @property
    def text(self) -> str:
        """The text of the first choice."""
        return self.said.text

    @property
    def confidence(self) -> float | None:
        """Mean log-probability of the least certain choice; None when the engine gave none (a tool call, say)."""
        return min(self.means, default=None)

    def note(self, event: Event, *, show: bool) -> Event | None:
        """Keeps an event and gives it back as the client may see it: log probabilities only if it asked (`show`)."""
        self.said.note(event)
        if isinstance(event, Finished) and event.mean_logprob is not None:
            self.means.append(event.mean_logprob)
        if isinstance(event, TextDelta) and not show:
            event = replace(event, logprobs=())
            if not event.text:
                return None
        self.events.append(event)
        return event


class JudgedBackend:
    """A backend whose answers must be sure enough.

    Args:
        rules: `escalate_below`, a mean log-probability below 0, and `escalate_agreement`, from 0 to 1; 0 = not looked at.
        draft: filled with the answer.
    """

    def __init__(self, backend: Backend, rules: RouterSettings, draft: Draft) -> None:
        self._backend = backend
        self._rules = rules
        self._draft = draft
        self.name = backend.name
        self.model = backend.model

    @property
    def state(self) -> str:
        """The backend's."""
        return self._backend.state

    def check(self, request: Request) -> None:
        """The backend's."""
        self._backend.check(request)

    async def start(self) -> None:
        """The backend is started by its owner."""

    async def close(self) -> None:
        """The backend is closed by its owner."""

    async def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        """The backend's answer; a streamed one comes in one go at its end.

        Raises:
            LowConfidenceError: it was not sure enough.
        """
        held: list[Event] = []
        seconds = [asyncio.create_task(self._second(request, i)) for i in range(self._samples())]
        try:
            async with aclosing(self._drafted(request)) as events:
                async for event in events:
                    if request.stream:
                        held.append(event)
                    else:
                        yield event
            self._judge_probability()
            await self._judge_agreement(seconds)
        except FreeholdError as error:
            self._draft.error = error
            raise
        finally:
            for task in seconds:
                task.cancel()
            await asyncio.gather(*seconds, return_exceptions=True)
        for event in held:
            yield event

    async def _drafted(self, request: Request) -> AsyncGenerator[Event, None]:
        """The answer as the client may see it, noted."""
        show = request.logprobs is not None
        asked = request if show or not self._rules.escalate_below else replace(request, logprobs=0)
        async with aclosing(self._backend.stream(asked)) as events:
            async for event in events:
                seen = self._draft.note(event, show=show)
                if seen is not None:
                    yield seen

    def _samples(self) -> int:
        return self._rules.escalate_samples if self._rules.escalate_agreement else 0

    async def _second(self, request: Request, number: int) -> Said | None:
        """Another answer to the same question, asked at the same time: the engine runs both in one batch."""
        asked = request.sampling
        seed = None if asked.seed is None else asked.seed + 1 + number
        sampling = replace(asked, temperature=max(asked.temperature or 0.0, SAMPLE_TEMPERATURE), seed=seed)
        name = f"{request.id}-second-{number}"
        said = Said()
        try:
            async with aclosing(
                self._backend.stream(replace(request, id=name, n=1, stream=False, logprobs=None, sampling=sampling))
            ) as events:
                async for event in events:
                    said.note(event)
        except FreeholdError as error:
            log.warning("request %s: no second answer: %s", request.id, error.message)
            return None
        return said

    def _judge_probability(self) -> None:
        found, limit = self._draft.confidence, self._rules.escalate_below
        if found is not None and found < limit:
            self._reject(f"mean log-probability {found:.2f}, expected at least {limit:g}")

    async def _judge_agreement(self, seconds: Sequence[asyncio.Task[Said | None]]) -> None:
        others = [said for said in await asyncio.gather(*seconds) if said is not None]
        found = self._draft.agreement = agreement(self._draft.said, others)
        limit = self._rules.escalate_agreement
        if found is not None and found < limit:
            self._reject(f"agreement with itself {found:.2f}, expected at least {limit:g}")

    def _reject(self, why: str) -> None:
        self._draft.rejected = True
        raise LowConfidenceError(f"{self.name}: {why}")


class DraftBackend:
    """Answers with the draft: better a doubtful answer than none."""

    def __init__(self, draft: Draft, model: str) -> None:
        self._draft = draft
        self.name = draft.backend
        self.model = model
        self.state = "ready"

    def check(self, request: Request) -> None:
        """What the core could answer, its draft can."""

    async def start(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do."""

    async def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        """The draft's events.

        Raises:
            FreeholdError: why there is no draft.
        """
        if not self._draft.rejected:
            raise self._draft.error or LowConfidenceError(f"{self.name}: no draft was completed")
        for event in self._draft.events:
            yield event
