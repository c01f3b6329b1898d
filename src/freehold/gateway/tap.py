"""Measures what each backend does for an exchange, as its events pass: the bill is made from that.

An answer may be the work of several backends, and one that was left in the middle charges all the same; so streams are
measured one by one, not the answer as the client sees it. Knows events; no price and no database.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from datetime import UTC, datetime

from freehold.cost.meter import BYTES_PER_TOKEN, MachineClock, Part
from freehold.cost.prices import Tokens
from freehold.errors import FreeholdError
from freehold.gateway.backends import Backend
from freehold.gateway.conversation import (
    Event,
    FilePart,
    Finished,
    ImagePart,
    ReasoningDelta,
    Request,
    Started,
    TextDelta,
    ToolCallDelta,
    Turn,
    Usage,
)
from freehold.gateway.failures import kind_of

IMAGE_TOKENS = 1105
"""What OpenAI's guide counts for a large image in high detail: https://platform.openai.com/docs/guides/images-vision"""

PAGE_TOKENS = 3000
"""What Anthropic's guide gives as the most that a page of a PDF has:
https://platform.claude.com/docs/en/build-with-claude/pdf-support"""

PAGE_BYTES = 50_000
"""What a page takes, about; how many there are could be told from the file only by reading it."""

TURN_TOKENS = 4
"""What a chat format puts around a turn:
https://cookbook.openai.com/examples/how_to_count_tokens_with_tiktoken (3 each, one more for a name)"""


class Taps:
    """Parts of the exchanges under way.

    Args:
        core: name of the local engine; None when there is none.
        clock: seconds, monotonic.
        now: seconds since 1970.
    """

    def __init__(
        self, core: str | None, clock: Callable[[], float] = time.monotonic, now: Callable[[], float] = time.time
    ) -> None:
        self._core = core
        self._clock = clock
        self._now = now
        self._machine = MachineClock(clock)
        self._parts: dict[str, list[Part]] = {}  # by request

    def begin(self, request_id: str) -> None:
        """An exchange begins: its streams are measured from now on."""
        self._parts[request_id] = []

    def end(self, request_id: str) -> list[Part]:
        """What its backends did; nothing more is measured for it."""
        return self._parts.pop(request_id, [])

    def parts(self, request_id: str) -> list[Part]:
        """What its backends have done so far."""
        return self._parts.get(request_id, [])

    def stream(self, backend: Backend, request: Request) -> AsyncGenerator[Event, None]:
        """The backend's events, measured if the exchange is."""
        events = backend.stream(request)
        parts = self._parts.get(request.id)
        return events if parts is None else self._measured(backend, request, events, parts)

    async def _measured(
        self, backend: Backend, request: Request, events: AsyncGenerator[Event, None], parts: list[Part]
    ) -> AsyncGenerator[Event, None]:
        local = backend.name == self._core
        part = Part(
            backend.name,
            backend.model if local else request.model,
            datetime.fromtimestamp(self._now(), UTC),
            local=local,
            prompt_estimate=prompt_tokens(request),
        )
        parts.append(part)
        began = self._machine.enter() if local else self._clock()
        try:
            async with aclosing(events):
                async for event in events:
                    _note(part, event)
                    yield event
        except FreeholdError as error:
            part.failure = kind_of(error)
            raise
        finally:
            part.seconds = self._machine.leave(began) if local else self._clock() - began


def _note(part: Part, event: Event) -> None:
    part.heard = True
    match event:
        case TextDelta() | ReasoningDelta():
            part.text_bytes += len(event.text.encode("utf-8", "replace"))
        case ToolCallDelta():
            part.text_bytes += len(((event.name or "") + event.arguments).encode("utf-8", "replace"))
        case Usage():
            part.tokens = Tokens(
                event.prompt_tokens,
                event.completion_tokens,
                event.cached_tokens,
                event.cache_write_tokens,
                event.reasoning_tokens,
            )
        case Finished():
            part.finished = True
        case Started():
            part.upstream_id = event.upstream_id


def prompt_tokens(request: Request) -> int:
    """Tokens of the prompt, roughly, tools, images and documents included: to reserve by, and for who did not count."""
    size = len(request.continue_from.encode("utf-8", "replace"))
    tokens = 0
    for prompt in request.prompts:
        if isinstance(prompt, str):
            size += len(prompt.encode("utf-8", "replace"))
        else:
            tokens += len(prompt)
    for turn in request.turns:
        size += _bytes(turn)
        tokens += TURN_TOKENS + IMAGE_TOKENS * sum(isinstance(part, ImagePart) for part in turn.parts)
        files = [part for part in turn.parts if isinstance(part, FilePart)]
        tokens += sum(PAGE_TOKENS * (1 + len(part.url) * 3 // 4 // PAGE_BYTES) for part in files)
    for tool in request.tools:
        size += len(tool.name) + len(tool.description or "") + len(json.dumps(tool.parameters or {}))
    return tokens - (-size // BYTES_PER_TOKEN)


def _bytes(turn: Turn) -> int:
    pieces = [turn.text, *(call.name + call.arguments for call in turn.tool_calls), *(r.text for r in turn.reasoning)]
    return sum(len(piece.encode("utf-8", "replace")) for piece in pieces)
