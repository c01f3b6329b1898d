"""Escalation: the core drafts, its own log probabilities judge the draft, and a doubtful one is asked elsewhere.

A judged backend fails with `LowConfidenceError`, so that the relay moves on as after any failure; when nobody better can
answer, the draft is the answer. Whole answers are judged at their end. A streamed one could only be judged if it was
held until then: that is the route's choice (`escalate_streams`), and its first-token guard bounds how long.
Knows no provider and no policy.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from freehold.errors import FreeholdError
from freehold.gateway.backends import Backend
from freehold.gateway.conversation import Event, Request, TextDelta
from freehold.gateway.failures import LowConfidenceError


@dataclass(slots=True)
class Draft:
    """The core's answer and how sure it was; it stays in the record when another answered."""

    backend: str
    events: list[Event] = field(default_factory=list)
    logprobs: dict[int, list[float]] = field(default_factory=dict)  # by choice
    error: FreeholdError | None = None
    rejected: bool = False

    @property
    def text(self) -> str:
        """The text of the first choice."""
        return "".join(event.text for event in self.events if isinstance(event, TextDelta) and event.index == 0)

    @property
    def confidence(self) -> float | None:
        """Mean log-probability of the least certain choice; None when the engine gave none (a tool call, say)."""
        means = [sum(values) / len(values) for values in self.logprobs.values() if values]
        return min(means, default=None)

    def note(self, event: Event, *, show: bool) -> Event | None:
        """Keeps an event and gives it back as the client may see it: log probabilities only if it asked (`show`)."""
        if isinstance(event, TextDelta):
            self.logprobs.setdefault(event.index, []).extend(token.logprob for token in event.logprobs)
            if not show:
                event = replace(event, logprobs=())
                if not event.text:
                    return None
        self.events.append(event)
        return event


class JudgedBackend:
    """A backend whose answers must reach a mean log-probability.

    Args:
        threshold: natural logarithm, below 0.
        draft: filled with the answer.
    """

    def __init__(self, backend: Backend, threshold: float, draft: Draft) -> None:
        self._backend = backend
        self._threshold = threshold
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
        show = request.logprobs is not None
        asked = request if show else replace(request, logprobs=0)
        held: list[Event] = []
        try:
            async with aclosing(self._backend.stream(asked)) as events:
                async for event in events:
                    seen = self._draft.note(event, show=show)
                    if seen is None:
                        continue
                    if request.stream:
                        held.append(seen)
                    else:
                        yield seen
        except FreeholdError as error:
            self._draft.error = error
            raise
        found = self._draft.confidence
        if found is not None and found < self._threshold:
            self._draft.rejected = True
            told = f"{self.name}: mean log-probability {found:.2f}, expected at least {self._threshold:g}"
            raise LowConfidenceError(told)
        for event in held:
            yield event


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
