"""Events as OpenAI's `chat.completion.chunk`s or one `chat.completion`.

Beyond OpenAI: thinking is `reasoning_content` (DeepSeek's name), and a provider's seal on it `reasoning_details`
(OpenRouter's), without which that provider refuses the thinking later. Knows the wire format only.
"""

from __future__ import annotations

import time
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
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from freehold.gateway.dialects.items import Closed, Grown, Item, Items, Opened, Step
from freehold.gateway.dialects.openai_fields import DONE, failure, logprob, sse, usage


class ChatEncoder:
    """Events as chat completions, streamed or whole.

    Calls come one after the other: the official SDK parses a call's arguments as soon as the next one begins.
    """

    def __init__(self, request: Request, include_usage: bool) -> None:
        self._id = "chatcmpl-" + request.id
        self._created = int(time.time())
        self._include_usage = include_usage
        self._logprobs = request.logprobs is not None
        self._choices = [Items(request.id if i == 0 else f"{request.id}_{i}") for i in range(request.choices)]
        self._finish: dict[int, str] = {}
        self._model = request.model
        self._fingerprint: str | None = None

    def chunk(self, event: Event) -> bytes:
        """One event as SSE; the role comes first for every index, the usage last."""
        match event:
            case Started():
                self._note(event)
                delta = {"role": "assistant", "content": "", "refusal": None}
                return b"".join(self._delta(index, delta) for index in range(len(self._choices)))
            case Usage():
                if not self._include_usage:
                    return b""
                return sse(self._head("chat.completion.chunk") | {"choices": [], "usage": usage(event)})
            case Failed():
                return failure(event)
        shown = b"".join(self._step(event.index, step) for step in self._take(event))
        return shown + self._delta(event.index, {}, finish=event.reason) if isinstance(event, Finished) else shown

    def end(self) -> bytes:
        """The closing mark."""
        return DONE

    def whole(self, events: Sequence[Event]) -> bytes:
        """All events as one `chat.completion`."""
        tokens = Usage(0, 0)
        for event in events:
            match event:
                case Started():
                    self._note(event)
                case Usage():
                    tokens = event
                case Failed():
                    raise event.error
                case _:
                    for _ in self._take(event):
                        continue
        body = self._head("chat.completion")
        body["choices"] = [self._choice(index, items.all) for index, items in enumerate(self._choices)]
        body["usage"] = usage(tokens)
        return msgspec.json.encode(body)

    def _take(self, event: TextDelta | ReasoningDelta | ToolCallDelta | Finished) -> Iterable[Step]:
        items = self._choices[event.index]
        if not isinstance(event, Finished):
            return items.push(event)
        self._finish[event.index] = event.reason
        return items.close(complete=event.reason != "length")

    def _note(self, event: Started) -> None:
        self._model, self._fingerprint = event.model, event.fingerprint

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "system_fingerprint": self._fingerprint,
        }

    def _step(self, index: int, step: Step) -> bytes:
        """What one step adds to the message; many add nothing."""
        all_, item = self._choices[index].all, step.item
        match step, item.kind:
            case Opened(), "call":
                return self._delta(index, {"tool_calls": [{"index": _number(all_, item), **_call(item, "")}]})
            case Grown(text=text), "call":
                piece = {"index": _number(all_, item), "function": {"arguments": text}}
                return self._delta(index, {"tool_calls": [piece]})
            case Grown(text=text, logprobs=logprobs), "text":
                return self._delta(index, {"content": text}, logprobs)
            case Grown(text=text), "reasoning":
                return self._delta(index, {"reasoning_content": text})
            case Closed(), "reasoning":
                seals = _seals(all_[: item.index + 1])
                mine = seals[len(_seals(all_[: item.index])) :]
                return self._delta(index, {"reasoning_details": mine}) if mine else b""
        return b""

    def _delta(
        self, index: int, delta: dict[str, Any], logprobs: Sequence[TokenLogprob] = (), finish: str | None = None
    ) -> bytes:
        shown = {"content": [logprob(token) for token in logprobs], "refusal": None} if logprobs else None
        choice = {"index": index, "delta": delta, "logprobs": shown, "finish_reason": finish}
        body = self._head("chat.completion.chunk") | {"choices": [choice]}
        return sse(body | {"usage": None} if self._include_usage else body)

    def _choice(self, index: int, items: Sequence[Item]) -> dict[str, Any]:
        text = "".join(item.text for item in items if item.kind == "text")
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if thought := "".join(item.text for item in items if item.kind == "reasoning"):
            message["reasoning_content"] = thought
        if seals := _seals(items):
            message["reasoning_details"] = seals
        if calls := [_call(item, item.text) for item in items if item.kind == "call"]:
            message["tool_calls"] = calls
            message["content"] = text or None
        tokens = [logprob(token) for item in items for token in item.logprobs]
        return {
            "index": index,
            "message": message,
            "logprobs": {"content": tokens, "refusal": None} if self._logprobs else None,
            "finish_reason": self._finish.get(index),
        }


def _call(item: Item, arguments: str) -> dict[str, Any]:
    return {"id": item.id, "type": "function", "function": {"name": item.name, "arguments": arguments}}


def _number(items: Sequence[Item], item: Item) -> int:
    """Which of the calls it is."""
    return sum(other.kind == "call" for other in items[: item.index])


def _seals(items: Sequence[Item]) -> list[dict[str, Any]]:
    """The sealed pieces of thinking; clients put list deltas together by their index."""
    found: list[dict[str, Any]] = []
    for item in items:
        if item.redacted is not None:
            found.append({"type": "reasoning.encrypted", "data": item.redacted, "index": len(found)})
        elif item.signature is not None:
            sealed = {"type": "reasoning.text", "text": item.text, "signature": item.signature}
            found.append(sealed | {"index": len(found)})
    return found
