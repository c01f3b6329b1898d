"""A backend that plays neutral events: what a dialect makes of them is seen without any model."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence

from freehold.gateway.conversation import EmbeddingRequest, Embeddings, Event, Request
from freehold.gateway.service import Gateway

Script = Sequence[Event] | Callable[[Request], Sequence[Event]]


class Scripted:
    """Plays `script` to whoever asks, and remembers what was asked."""

    name = "stage"
    model = "play"
    state = "ready"

    def __init__(self, script: Script) -> None:
        self.script = script
        self.requests: list[Request] = []
        self.error: Exception | None = None  # raised behind the last event

    def check(self, request: Request) -> None:
        return

    async def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        self.requests.append(request)
        events = self.script(request) if callable(self.script) else self.script
        for event in events:
            yield event
        if self.error is not None:
            raise self.error

    async def count(self, request: Request) -> int:
        return 11

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        size = request.dimensions or 2
        vectors = tuple((float(len(text)),) + (0.5,) * (size - 1) for text in request.inputs)
        return Embeddings(self.model, vectors, sum(map(len, request.inputs)))

    async def start(self) -> None:
        return

    async def close(self) -> None:
        return

    @property
    def last(self) -> Request:
        return self.requests[-1]


def gateway(script: Script) -> tuple[Gateway, Scripted]:
    """A gateway whose only backend is scripted; ask for `stage.play`."""
    backend = Scripted(script)
    return Gateway(None, [backend]), backend
