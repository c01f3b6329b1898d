"""Events as a response, whole or streamed (https://platform.openai.com/docs/api-reference/responses-streaming).

Every event has a sequence number; items are added, grown and done one after the other, and the last event carries the
whole response, which is also what is kept. Knows the wire format only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from freehold.gateway.dialects.errors import envelope
from freehold.gateway.dialects.items import Closed, Grown, Item, Items, Opened, Step
from freehold.gateway.dialects.openai_fields import logprob

_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
_PREFIX = {"text": "msg", "reasoning": "rs", "call": "fc"}


@dataclass(frozen=True, slots=True)
class Kept:
    """A finished response, for those who store it: its JSON object and the items that led to it."""

    response: dict[str, Any]
    input: list[dict[str, Any]]


class ResponsesEncoder:
    """Events as one response.

    Args:
        echo: fields of the request that the response repeats.
        given: the request's input items.
        keep: takes the finished response; None when it is not to be stored.
    """

    def __init__(
        self,
        request: Request,
        echo: dict[str, Any],
        given: list[dict[str, Any]],
        keep: Callable[[Kept], None] | None,
    ) -> None:
        self._request = request
        self._echo = echo
        self._given = given
        self._keep = keep
        self._items = Items(request.id)
        self._created = int(time.time())
        self._model = request.model
        self._finish = Finished("stop")
        self._usage: Usage | None = None
        self._number = 0
        self._summarized = echo["reasoning"]["summary"] is not None
        self._logprobs = request.logprobs is not None

    def chunk(self, event: Event) -> bytes:
        """One event as SSE."""
        return b"".join(self._sse(payload) for payload in self._take(event))

    def end(self) -> bytes:
        """The closing event."""
        response = self._finished()
        return self._sse({"type": f"response.{response['status']}", "response": response})

    def whole(self, events: Sequence[Event]) -> bytes:
        """All events as one response."""
        for event in events:
            if isinstance(event, Failed):
                raise event.error
            for _ in self._take(event):
                continue
        return msgspec.json.encode(self._finished())

    def _take(self, event: Event) -> Iterator[dict[str, Any]]:
        match event:
            case Started():
                self._model = event.model
                for name in ("created", "in_progress"):
                    yield {"type": f"response.{name}", "response": self._response("in_progress", [])}
            case TextDelta() | ReasoningDelta() | ToolCallDelta():
                for step in self._items.push(event):
                    yield from self._wire(step)
            case Finished():
                self._finish = event
                for step in self._items.close(complete=event.reason not in _INCOMPLETE):
                    yield from self._wire(step)
            case Usage():
                self._usage = event
            case Failed():
                yield self._failure(event.error)

    def _finished(self) -> dict[str, Any]:
        """The response at its end, which is kept."""
        cause = _INCOMPLETE.get(self._finish.reason)
        output = [self._item(item) for item in self._items.all]
        response = self._response("incomplete" if cause else "completed", output)
        response["incomplete_details"] = {"reason": cause} if cause else None
        response["completed_at"] = None if cause else int(time.time())
        if self._keep is not None:
            self._keep(Kept(response, self._given))
        return response

    def _failure(self, error: Exception) -> dict[str, Any]:
        """`response.failed`: what there is so far, and why no more comes."""
        found = envelope(error)
        output = [self._item(item, "incomplete") for item in self._items.all]
        response = self._response("failed", output)
        code = "rate_limit_exceeded" if found.status == 429 else "server_error"
        response["error"] = {"code": code, "message": found.message}
        return {"type": "response.failed", "response": response}

    def _response(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": "resp_" + self._request.id,
            "object": "response",
            "created_at": self._created,
            "completed_at": None,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": self._model,
            "output": output,
            "usage": None if self._usage is None else _usage(self._usage),
            **self._echo,
        }

    def _id(self, item: Item) -> str:
        return f"{_PREFIX[item.kind]}_{self._request.id}_{item.index}"

    def _item(self, item: Item, status: str | None = None) -> dict[str, Any]:
        """An output item as it is now."""
        head = {"id": self._id(item), "status": status or ("completed" if item.complete else "incomplete")}
        if item.kind == "call":
            call = {"type": "function_call", "call_id": item.id, "name": item.name, "arguments": item.text}
            return head | call
        if item.kind == "text":
            return head | {"type": "message", "role": "assistant", "content": [self._part(item)]}
        shown: dict[str, Any] = {"type": "reasoning", "summary": [], "content": []}
        if item.pieces:
            shown["summary" if self._summarized else "content"] = [self._part(item)]
        if (sealed := item.redacted or item.signature) is not None:
            shown["encrypted_content"] = sealed
        return head | shown

    def _part(self, item: Item, *, empty: bool = False) -> dict[str, Any]:
        """The only content part of a message or reasoning."""
        text = "" if empty else item.text
        if item.kind == "reasoning":
            return {"type": "summary_text" if self._summarized else "reasoning_text", "text": text}
        logprobs = [] if empty else self._shown(item.logprobs)
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    def _wire(self, step: Step) -> Iterator[dict[str, Any]]:
        """The events of one step."""
        item = step.item
        where: dict[str, Any] = {"item_id": self._id(item), "output_index": item.index}
        match step:
            case Opened():
                yield self._added(item)
                if item.kind == "text":
                    yield self._part_event("added", item, where, empty=True)
            case Grown():
                if item.kind == "reasoning" and len(item.pieces) == 1:
                    yield self._part_event("added", item, where, empty=True)
                yield self._delta(step, where)
            case Closed():
                if item.kind == "call" or item.pieces:
                    yield self._text_done(item, where)
                if item.kind != "call" and item.pieces:
                    yield self._part_event("done", item, where)
                yield {"type": "response.output_item.done", "output_index": item.index, "item": self._item(item)}

    def _added(self, item: Item) -> dict[str, Any]:
        empty = Item(item.kind, item.index, id=item.id, name=item.name, redacted=item.redacted)
        shown = self._item(empty, "in_progress") | ({"content": []} if item.kind == "text" else {})
        return {"type": "response.output_item.added", "output_index": item.index, "item": shown}

    def _part_event(self, what: str, item: Item, where: dict[str, Any], *, empty: bool = False) -> dict[str, Any]:
        part = self._part(item, empty=empty)
        if item.kind == "reasoning" and self._summarized:
            return {"type": f"response.reasoning_summary_part.{what}", **where, "summary_index": 0, "part": part}
        return {"type": f"response.content_part.{what}", **where, "content_index": 0, "part": part}

    def _place(self, item: Item, where: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """The name of an item's text events, and where they belong."""
        if item.kind == "call":
            return "response.function_call_arguments", where
        if item.kind == "text":
            return "response.output_text", where | {"content_index": 0}
        if self._summarized:
            return "response.reasoning_summary_text", where | {"summary_index": 0}
        return "response.reasoning_text", where | {"content_index": 0}

    def _delta(self, step: Grown, where: dict[str, Any]) -> dict[str, Any]:
        name, place = self._place(step.item, where)
        extra = {"logprobs": self._shown(step.logprobs)} if step.item.kind == "text" else {}
        return {"type": f"{name}.delta", **place, "delta": step.text, **extra}

    def _text_done(self, item: Item, where: dict[str, Any]) -> dict[str, Any]:
        name, place = self._place(item, where)
        match item.kind:
            case "call":
                return {"type": f"{name}.done", **place, "name": item.name, "arguments": item.text}
            case "text":
                return {"type": f"{name}.done", **place, "text": item.text, "logprobs": self._shown(item.logprobs)}
        return {"type": f"{name}.done", **place, "text": item.text}

    def _shown(self, tokens: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
        return [logprob(token) for token in tokens] if self._logprobs else []

    def _sse(self, payload: dict[str, Any]) -> bytes:
        """A server-sent event with its type as its name and the next number."""
        numbered = {"type": payload["type"], "sequence_number": self._number} | payload
        self._number += 1
        name: str = payload["type"]
        return b"event: " + name.encode() + b"\ndata: " + msgspec.json.encode(numbered) + b"\n\n"


def _usage(tokens: Usage) -> dict[str, Any]:
    details = {"cached_tokens": tokens.cached_tokens, "cache_write_tokens": tokens.cache_write_tokens}
    return {
        "input_tokens": tokens.prompt_tokens,
        "input_tokens_details": details,
        "output_tokens": tokens.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": tokens.reasoning_tokens},
        "total_tokens": tokens.prompt_tokens + tokens.completion_tokens,
    }
