"""What is known about one exchange, gathered as its events pass.

Knows conversations and metrics; no backend, no dialect.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import dataclass, field

from freehold.gateway.confidence import Draft
from freehold.gateway.conversation import (
    Event,
    Failed,
    Finished,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from freehold.gateway.failures import kind_of
from freehold.gateway.metrics import Metrics


@dataclass(slots=True)
class Record:
    """What is known about one exchange; complete when its events have ended. Times in seconds.

    `draft` is the core's own answer, when its confidence was judged.
    """

    request_id: str
    asked_model: str
    backend: str = ""
    model: str = ""
    reason: str = ""
    dropped: tuple[str, ...] = ()
    prompt_tokens: int = 0
    completion_tokens: int = 0
    ttft: float | None = None
    seconds: float | None = None
    finished: list[str] = field(default_factory=list)
    failure: str | None = None
    draft: Draft | None = None
    continued: list[str] = field(default_factory=list)  # backends that took over after a break, in order
    key_id: str = ""
    rates: Mapping[str, str] = field(default_factory=dict)  # headers that tell what is left of the key's rates
    provenance: str = ""  # id of its record in the ledger


@dataclass(frozen=True, slots=True)
class Answer:
    """The events of a committed exchange, and the record that fills as they are read. Close `events` if you leave."""

    record: Record
    events: AsyncGenerator[Event, None]


class Meter:
    """Fills the record and the metrics as events pass.

    Args:
        arrivals: when the first pieces of content came, for those that were held until the commitment.
    """

    def __init__(self, metrics: Metrics, record: Record, began: float, arrivals: Iterator[float]) -> None:
        self._metrics = metrics
        self._record = record
        self._began = began
        self._arrivals = arrivals
        self._latest: dict[int, float] = {}  # by choice

    def note(self, event: Event) -> None:
        """Takes one event into account."""
        record = self._record
        match event:
            case TextDelta() | ReasoningDelta() | ToolCallDelta():
                self._content(event.index, self._now())
            case Finished():
                self._now()
                record.finished.append(event.reason)
            case Started():
                record.model = event.model
            case Usage():
                record.prompt_tokens, record.completion_tokens = event.prompt_tokens, event.completion_tokens
            case Failed():
                record.failure = kind_of(event.error)

    def settle(self) -> None:
        """Counts an exchange that has ended, well or not."""
        record, name = self._record, self._record.backend
        record.seconds = asyncio.get_running_loop().time() - self._began
        self._metrics.prompt_tokens.labels(name).inc(record.prompt_tokens)
        self._metrics.generation_tokens.labels(name).inc(record.completion_tokens)
        for reason in record.finished:
            self._metrics.request_success.labels(name, reason).inc()
        if record.failure is not None or not record.finished:
            self._metrics.request_failure.labels(name, record.failure or "left").inc()
        self._metrics.e2e_request_latency.labels(name).observe(record.seconds)
        if record.draft is not None and record.draft.rejected:
            self._metrics.escalations.labels(name).inc()
        for other in record.continued:
            self._metrics.continuations.labels(other).inc()

    def _content(self, index: int, now: float) -> None:
        name = self._record.backend
        if self._record.ttft is None:
            self._record.ttft = now - self._began
            self._metrics.time_to_first_token.labels(name).observe(self._record.ttft)
        if index in self._latest:
            self._metrics.inter_token_latency.labels(name).observe(now - self._latest[index])
        self._latest[index] = now

    def _now(self) -> float:
        return next(self._arrivals, None) or asyncio.get_running_loop().time()
