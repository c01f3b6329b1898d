"""The events of one of Anthropic's messages to neutral events.

Follows https://platform.claude.com/docs/en/build-with-claude/streaming: one `message_start`, blocks that start, grow and
stop, `message_delta` with the reason and the counts, `message_stop`. Events and deltas of unknown types are skipped, as
its versioning policy asks. A stream without `message_stop` was cut. Knows no HTTP; what arrives is not trusted.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from freehold.errors import UpstreamError
from freehold.gateway.backends.sse import ServerEvent
from freehold.gateway.backends.wire import InStreamError, plain_name
from freehold.gateway.conversation import (
    Event,
    Finished,
    FinishReason,
    ReasoningDelta,
    Request,
    Started,
    TextDelta,
    ToolCallDelta,
    Usage,
)

_STOP: dict[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
MAX_BLOCKS = 4096

Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]


class WireUsage(msgspec.Struct):
    """Token counts; those of the cache are not part of `input_tokens`."""

    input_tokens: Count | None = None
    output_tokens: Count | None = None
    cache_read_input_tokens: Count | None = None
    cache_creation_input_tokens: Count | None = None


class WireMessage(msgspec.Struct):
    """The empty message that a stream begins with."""

    id: str | None = None
    model: str = ""
    usage: WireUsage | None = None


class WireBlock(msgspec.Struct):
    """The beginning of a block."""

    type: str
    text: str = ""
    thinking: str = ""
    signature: str = ""
    data: str = ""
    id: str = ""
    name: str = ""
    input: msgspec.Raw = msgspec.Raw(b"{}")


class WireDelta(msgspec.Struct):
    """What is new in a block, or in the message."""

    type: str = ""
    text: str = ""
    thinking: str = ""
    signature: str = ""
    partial_json: str = ""
    stop_reason: str | None = None
    stop_sequence: str | None = None


class WireEvent(msgspec.Struct):
    """Any event."""

    type: str
    index: int = 0
    message: WireMessage | None = None
    content_block: WireBlock | None = None
    delta: WireDelta | None = None
    usage: WireUsage | None = None
    error: Any = None


class MessageReader:
    """Server-sent events in, neutral events out: Started, deltas, Finished, Usage."""

    def __init__(self, request: Request, provider: str) -> None:
        self._model = request.model
        self._provider = provider
        self._started = False
        self._open: dict[int, str] = {}  # type of each block that has not stopped
        self._seen: set[int] = set()
        self._calls: dict[int, int] = {}  # number of the tool call in a block
        self._written: set[int] = set()  # blocks whose arguments have begun
        self._counts = WireUsage(0, 0, 0, 0)
        self._reason: str | None = None
        self._sequence: str | None = None
        self.complete = False

    def read(self, event: ServerEvent) -> list[Event]:
        """Events of one server-sent event; see `AnswerReader.read`."""
        found = msgspec.json.decode(event.data, type=WireEvent)
        if found.type == "error" or event.name == "error":
            raise InStreamError(found.error)
        if found.type == "message_start":
            return self._start(found.message or WireMessage())
        if found.type not in ("message_delta", "message_stop") and not found.type.startswith("content_block_"):
            return []  # ping, and what is yet to come
        if not self._started:
            raise self._wrong(f"a {found.type[:50]} before message_start")
        return self._grow(found)

    def end(self) -> list[Event]:
        """How it ended; raises UpstreamError when it did not."""
        if not self.complete:
            raise self._wrong("the stream ended without message_stop")
        if self._reason is None:
            raise self._wrong("the message stopped without a reason")
        reason = _STOP.get(self._reason, "stop")
        return [Finished(reason, stop_sequence=self._sequence), self._usage()]

    def _start(self, message: WireMessage) -> list[Event]:
        if self._started:
            raise self._wrong("a second message_start")
        self._started = True
        self._count(message.usage)
        model, tokens = plain_name(message.model) or self._model, self._usage().prompt_tokens
        return [Started(model, prompt_tokens=tokens, upstream_id=plain_name(message.id))]

    def _grow(self, event: WireEvent) -> list[Event]:
        match event.type:
            case "content_block_start" if event.content_block is not None:
                return self._block(event.index, event.content_block)
            case "content_block_delta" if event.delta is not None:
                return self._delta(event.index, event.delta)
            case "content_block_stop":
                return self._stop(event.index)
            case "message_delta":
                self._count(event.usage)
                delta = event.delta or WireDelta()
                self._reason = delta.stop_reason or self._reason
                self._sequence = delta.stop_sequence or self._sequence
            case "message_stop":
                if self._open:
                    raise self._wrong(f"message_stop with {len(self._open)} blocks open")
                self.complete = True
            case _:
                raise self._wrong(f"a {event.type[:50]} without its content")
        return []

    def _block(self, index: int, block: WireBlock) -> list[Event]:
        if index in self._seen or len(self._seen) >= MAX_BLOCKS:
            raise self._wrong(f"block {index} starts twice, or there are more than {MAX_BLOCKS}")
        self._seen.add(index)
        self._open[index] = block.type
        match block.type:
            case "text" if block.text:
                return [TextDelta(block.text)]
            case "thinking" if block.thinking or block.signature:
                return [ReasoningDelta(block.thinking, signature=block.signature or None)]
            case "redacted_thinking":
                return [ReasoningDelta("", redacted=block.data)]
            case "tool_use":
                number = self._calls[index] = len(self._calls)
                given = bytes(block.input)
                arguments = "" if given.translate(None, b" \t\r\n") in (b"{}", b"null") else given.decode()
                if arguments:
                    self._written.add(index)
                return [ToolCallDelta(number, block.id, block.name, arguments)]
        return []

    def _delta(self, index: int, delta: WireDelta) -> list[Event]:
        if index not in self._open:
            raise self._wrong(f"more of block {index}, which is not open")
        match delta.type:
            case "text_delta" if delta.text:
                return [TextDelta(delta.text)]
            case "thinking_delta" if delta.thinking:
                return [ReasoningDelta(delta.thinking)]
            case "signature_delta" if delta.signature:
                return [ReasoningDelta("", signature=delta.signature)]
            case "input_json_delta" if delta.partial_json and index in self._calls:
                self._written.add(index)
                return [ToolCallDelta(self._calls[index], arguments=delta.partial_json)]
        return []

    def _stop(self, index: int) -> list[Event]:
        if self._open.pop(index, None) is None:
            raise self._wrong(f"the end of block {index}, which is not open")
        if index in self._calls and index not in self._written:
            return [ToolCallDelta(self._calls[index], arguments="{}")]  # a call without arguments sends none
        return []

    def _count(self, usage: WireUsage | None) -> None:
        """Counts are cumulative: the latest of each holds."""
        for name in WireUsage.__struct_fields__:
            if (value := getattr(usage, name, None)) is not None:
                setattr(self._counts, name, value)

    def _usage(self) -> Usage:
        counts = self._counts
        read, written = counts.cache_read_input_tokens or 0, counts.cache_creation_input_tokens or 0
        prompt = (counts.input_tokens or 0) + read + written
        return Usage(prompt, counts.output_tokens or 0, cached_tokens=read, cache_write_tokens=written)

    def _wrong(self, found: str) -> UpstreamError:
        return UpstreamError(f"{self._provider}: {found}", kind="transport")
