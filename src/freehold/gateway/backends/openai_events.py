"""A provider's chunks in OpenAI's wire format to neutral events.

Knows no HTTP and no request bodies. What arrives is not trusted: types, numbers, indices and the order of events are
checked. Quirks handled here were seen in public issue threads or are documented by the provider named beside them.
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
    TokenLogprob,
    ToolCallDelta,
    Usage,
)

_FINISH: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}
_FAILED = {"insufficient_system_resource": "overload", "error": "transport"}
"""Finishes that are none: DeepSeek's (https://api-docs.deepseek.com/api/create-chat-completion) and OpenRouter's."""

MAX_CALLS = 1024
"""Tool calls in one choice; OpenAI takes 128 tools at most."""

Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]


class WireLogprob(msgspec.Struct):
    """One token of a chat chunk's logprobs."""

    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list[WireLogprob] | None = None

    def neutral(self) -> TokenLogprob:
        """The neutral form; some providers leave the bytes out."""
        raw = self.token.encode() if self.bytes is None else bytes(value & 0xFF for value in self.bytes)
        return TokenLogprob(raw, self.logprob, tuple(token.neutral() for token in self.top_logprobs or ()))


class WireLogprobs(msgspec.Struct):
    """Logprobs of either endpoint: `content` for chat, the parallel lists for completions."""

    content: list[WireLogprob] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None

    def neutral(self) -> tuple[TokenLogprob, ...]:
        """Neutral tokens."""
        if self.content is not None:
            return tuple(token.neutral() for token in self.content)
        tops = self.top_logprobs or [None] * len(self.tokens or ())
        return tuple(
            TokenLogprob(name.encode(), value or 0.0, _alternatives(top))
            for name, value, top in zip(self.tokens or (), self.token_logprobs or (), tops, strict=False)
        )


def _alternatives(top: dict[str, float] | None) -> tuple[TokenLogprob, ...]:
    return tuple(TokenLogprob(name.encode(), logprob) for name, logprob in (top or {}).items())


class WireFunction(msgspec.Struct):
    """A piece of a function call."""

    name: str | None = None
    arguments: str | None = None


class WireToolCall(msgspec.Struct):
    """A piece of a tool call; Gemini leaves the index out."""

    index: Annotated[int, msgspec.Meta(ge=0, le=1 << 31)] | None = None
    id: str | None = None
    function: WireFunction | None = None


class WireThought(msgspec.Struct):
    """Sealed thinking (https://openrouter.ai/docs/use-cases/reasoning-tokens); its text comes as `reasoning` too."""

    signature: str | None = None
    data: str | None = None


class WireDelta(msgspec.Struct):
    """What is new in a chat chunk. Thinking goes by two names among providers."""

    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    reasoning_details: list[WireThought] | None = None
    tool_calls: list[WireToolCall] | None = None
    function_call: WireFunction | None = None  # OpenAI's name for a single call, before there could be several


class WireChoice(msgspec.Struct):
    """One choice of a chunk, of either endpoint."""

    index: int = 0
    delta: WireDelta | None = None
    text: str | None = None
    logprobs: WireLogprobs | None = None
    finish_reason: str | None = None


class WireDetails(msgspec.Struct):
    """Parts of the token counts."""

    cached_tokens: Count | None = None
    reasoning_tokens: Count | None = None


class WireUsage(msgspec.Struct):
    """Token counts; DeepSeek has a name of its own for what its cache held."""

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    prompt_tokens_details: WireDetails | None = None
    completion_tokens_details: WireDetails | None = None
    prompt_cache_hit_tokens: Count | None = None

    def neutral(self) -> Usage:
        """Neutral counts."""
        cached = self.prompt_tokens_details.cached_tokens if self.prompt_tokens_details else None
        thought = self.completion_tokens_details.reasoning_tokens if self.completion_tokens_details else None
        cached = self.prompt_cache_hit_tokens if cached is None else cached
        return Usage(self.prompt_tokens or 0, self.completion_tokens or 0, cached or 0, thought or 0)


class WireChunk(msgspec.Struct):
    """One chunk of either endpoint; `error` when the provider failed inside the stream."""

    id: str | None = None
    model: str | None = None
    system_fingerprint: str | None = None
    choices: list[WireChoice] | None = None
    usage: WireUsage | None = None
    error: Any = None


class ChunkReader:
    """Chunks in, events out: Started once, each index in range and finished once, Usage last."""

    def __init__(self, request: Request, provider: str) -> None:
        self._model = request.model
        self._provider = provider
        self._count = request.choices
        self._open = set(range(request.choices))
        self._calls = {index: _Calls() for index in range(request.choices)}
        self._started = False
        self._usage: Usage | None = None
        self.complete = False

    def read(self, event: ServerEvent) -> list[Event]:
        """Events of one chunk; see `AnswerReader.read`."""
        if event.data == "[DONE]":
            self.complete = True
            return []
        if not event.data.strip():
            return []  # some providers send empty data to keep the connection alive
        chunk = msgspec.json.decode(event.data, type=WireChunk)
        if chunk.error is not None:
            raise InStreamError(chunk.error)
        events: list[Event] = []
        if not self._started:
            self._started = True
            model, fingerprint = plain_name(chunk.model) or self._model, plain_name(chunk.system_fingerprint)
            events.append(Started(model, fingerprint, upstream_id=plain_name(chunk.id)))
        if chunk.usage is not None:
            self._usage = chunk.usage.neutral()
        for choice in chunk.choices or ():
            events += self._choice(choice)
        return events

    def end(self) -> list[Event]:
        """The last events. A stream that ends before every choice has finished was cut.

        Raises:
            UpstreamError: it was cut.
        """
        if self._open:
            raise self._wrong(f"the stream ended with {len(self._open)} of {self._count} choices unfinished")
        return [] if self._usage is None else [self._usage]

    def _choice(self, choice: WireChoice) -> list[Event]:
        index = choice.index
        if index not in self._open:
            if 0 <= index < self._count and _empty(choice):
                return []  # some providers send an empty delta after the finish
            raise self._wrong(f"a chunk for choice {index}, which is not open")
        events: list[Event] = []
        delta = choice.delta or WireDelta()
        text = choice.text or delta.content or delta.refusal or ""
        logprobs = choice.logprobs.neutral() if choice.logprobs else ()
        if thought := delta.reasoning_content or delta.reasoning:
            events.append(ReasoningDelta(thought, index))
        for seal in delta.reasoning_details or ():
            if seal.signature or seal.data:
                events.append(ReasoningDelta("", index, seal.signature, seal.data))
        if text or logprobs:
            events.append(TextDelta(text, logprobs, index))
        events += self._tool_calls(delta, index)
        if choice.finish_reason is not None:
            events.append(self._finish(choice.finish_reason, index))
        return events

    def _tool_calls(self, delta: WireDelta, index: int) -> list[Event]:
        events: list[Event] = []
        calls = delta.tool_calls or ()
        if delta.function_call is not None:
            calls = [*calls, WireToolCall(0, None, delta.function_call)]
        for call in calls:
            function = call.function or WireFunction()
            number = self._calls[index].number(call)
            if number >= MAX_CALLS:
                raise self._wrong(f"more than {MAX_CALLS} tool calls")
            events.append(ToolCallDelta(number, call.id, function.name, function.arguments or "", index))
        return events

    def _finish(self, reason: str, index: int) -> Finished:
        if reason in _FAILED:
            raise UpstreamError(f"{self._provider}: the answer was given up ({reason})", kind=_FAILED[reason])
        self._open.discard(index)
        return Finished(_FINISH.get(reason, "stop"), index)

    def _wrong(self, found: str) -> UpstreamError:
        return UpstreamError(f"{self._provider}: {found}", kind="transport")


class _Calls:
    """Numbers the tool calls of one choice from 0: Gemini gives every one of them index 0, or none, but its own id."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._ids: dict[int, str] = {}

    def number(self, call: WireToolCall) -> int:
        """The call that a piece belongs to."""
        index = call.index or 0
        known = self._ids.get(index)
        if index not in self._numbers or (call.id and known and call.id != known):
            self._numbers[index] = max(self._numbers.values(), default=-1) + 1
            self._ids.pop(index, None)
        if call.id:
            self._ids[index] = call.id
        return self._numbers[index]


def _empty(choice: WireChoice) -> bool:
    delta = choice.delta or WireDelta()
    return not (choice.text or delta.content or delta.tool_calls or choice.finish_reason)
