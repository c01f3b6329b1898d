"""Events as an Anthropic message, whole or streamed (https://platform.claude.com/docs/en/build-with-claude/streaming).

`message_start`, then each block's start, deltas and stop, `message_delta` with the stop reason and the usage,
`message_stop`. Knows the wire format only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from freehold.gateway.conversation import (
    Event,
    Failed,
    Finished,
    ReasoningDelta,
    Request,
    Started,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from freehold.gateway.dialects.anthropic_errors import error_object
from freehold.gateway.dialects.errors import envelope
from freehold.gateway.dialects.items import Grown, Item, Items, Opened, Step
from freehold.gateway.dialects.partial_json import whole_object

CHARACTERS_PER_TOKEN = 4
"""https://help.openai.com/en/articles/4936856: used for `message_start` only, when a provider tells its count at the end."""

_STOP = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}


class MessagesEncoder:
    """Events as one message."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._items = Items(request.id)
        self._model = request.model
        self._finish = Finished("stop")
        self._usage: Usage | None = None
        self._prompt_tokens = 0
        # As with Anthropic, what came from a cache is counted apart only when the client asked for caching.
        self._splits = any(name.endswith("cache_control") for name in request.dropped)

    def chunk(self, event: Event) -> bytes:
        """One event as SSE."""
        match event:
            case Started():
                self._note(event)
                return _sse({"type": "message_start", "message": self._message([], None)}) + _sse({"type": "ping"})
            case Failed():
                return _sse({"type": "error", "error": error_object(envelope(event.error))})
            case _:
                return b"".join(_sse(*_wire(step)) for step in self._take(event) if not _is_silent(step))

    def end(self) -> bytes:
        """The stop reason, the usage and the closing mark."""
        usage = self._counts(self._usage) if self._usage else {"output_tokens": 0}
        delta = {"type": "message_delta", "delta": self._stop() | {"stop_details": None}, "usage": usage}
        return _sse(delta) + _sse({"type": "message_stop"})

    def whole(self, events: Sequence[Event]) -> bytes:
        """All events as one message."""
        for event in events:
            match event:
                case Started():
                    self._note(event)
                case Failed():
                    raise event.error
                case _:
                    for _ in self._take(event):
                        continue
        blocks = [_block(item) for item in self._items.all]
        return msgspec.json.encode(self._message(blocks, self._usage or Usage(0, 0)) | self._stop())

    def _note(self, event: Started) -> None:
        self._model = event.model
        self._prompt_tokens = event.prompt_tokens or _estimate(self._request)

    def _take(self, event: Event) -> Iterable[Step]:
        match event:
            case TextDelta() | ReasoningDelta() | ToolCallDelta():
                return self._items.push(event)
            case Finished():
                self._finish = event
                return self._items.close(complete=event.reason != "length")
            case Usage():
                self._usage = event
        return ()

    def _message(self, content: list[dict[str, Any]], usage: Usage | None) -> dict[str, Any]:
        counts = self._counts(usage) if usage else {"input_tokens": self._prompt_tokens, "output_tokens": 0}
        return {
            "id": "msg_" + self._request.id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0} | counts,
        }

    def _counts(self, usage: Usage) -> dict[str, int]:
        read, written = (usage.cached_tokens, usage.cache_write_tokens) if self._splits else (0, 0)
        return {
            "input_tokens": max(usage.prompt_tokens - read - written, 0),
            "cache_creation_input_tokens": written,
            "cache_read_input_tokens": read,
            "output_tokens": usage.completion_tokens,
        }

    def _stop(self) -> dict[str, Any]:
        sequence = self._finish.stop_sequence
        reason = "stop_sequence" if sequence is not None else _STOP[self._finish.reason]
        return {"stop_reason": reason, "stop_sequence": sequence}


def _block(item: Item) -> dict[str, Any]:
    """A whole block."""
    empty = _empty(item)
    match empty["type"]:
        case "text":
            return empty | {"text": item.text}
        case "thinking":
            return empty | {"thinking": item.text, "signature": item.signature or ""}
        case "tool_use":
            return empty | {"input": whole_object(item.text)}
    return empty


def _empty(item: Item) -> dict[str, Any]:
    """A block as it starts."""
    if item.kind == "text":
        return {"type": "text", "text": ""}
    if item.kind == "call":
        return {"type": "tool_use", "id": item.id, "name": item.name, "input": {}}
    if item.redacted is not None:
        return {"type": "redacted_thinking", "data": item.redacted}
    return {"type": "thinking", "thinking": "", "signature": ""}


def _is_silent(step: Step) -> bool:
    return isinstance(step, Grown) and not step.text  # log probabilities alone


def _wire(step: Step) -> tuple[dict[str, Any], ...]:
    index = step.item.index
    if isinstance(step, Opened):
        return ({"type": "content_block_start", "index": index, "content_block": _empty(step.item)},)
    if isinstance(step, Grown):
        return ({"type": "content_block_delta", "index": index, "delta": _delta(step)},)
    stop = {"type": "content_block_stop", "index": index}
    if step.item.signature is None:
        return (stop,)
    seal = {"type": "signature_delta", "signature": step.item.signature}
    return {"type": "content_block_delta", "index": index, "delta": seal}, stop


def _delta(step: Grown) -> dict[str, str]:
    match step.item.kind:
        case "text":
            return {"type": "text_delta", "text": step.text}
        case "reasoning":
            return {"type": "thinking_delta", "thinking": step.text}
        case "call":
            return {"type": "input_json_delta", "partial_json": step.text}


def _estimate(request: Request) -> int:
    """About how many tokens the prompt has."""
    characters = sum(len(turn.text) for turn in request.turns)
    return max(1, characters // CHARACTERS_PER_TOKEN)


def _sse(*payloads: dict[str, Any]) -> bytes:
    """Server-sent events, each with its type as its name."""
    return b"".join(
        b"event: " + payload["type"].encode() + b"\ndata: " + msgspec.json.encode(payload) + b"\n\n"
        for payload in payloads
    )
