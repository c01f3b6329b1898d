"""OpenAI's wire format seen from the other side: neutral requests to bodies, a provider's chunks to events.

Knows no HTTP. What arrives is not trusted: types, indices and the order of events are checked.
"""

from __future__ import annotations

from typing import Any

import msgspec

from freehold.errors import UpstreamError
from freehold.gateway.conversation import (
    Event,
    Finished,
    FinishReason,
    ImagePart,
    Part,
    ReasoningDelta,
    Request,
    Started,
    TextDelta,
    TextPart,
    TokenLogprob,
    ToolCallDelta,
    Turn,
    Usage,
)

_FINISH: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}
_SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed",
)  # fmt: skip


def encode(request: Request, limit_field: str = "max_tokens") -> tuple[str, bytes]:
    """The path below the base URL and the body; only what the client asked for is in it.

    Args:
        limit_field: how this provider's chat calls the limit: `max_tokens` or `max_completion_tokens`.
    """
    body: dict[str, Any] = {"model": request.model, "stream": True, "stream_options": {"include_usage": True}}
    for name in _SAMPLING:
        value = getattr(request.sampling, name)
        if value is not None:
            body[name] = value
    if request.sampling.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in request.sampling.logit_bias.items()}
    if request.stop:
        body["stop"] = list(request.stop)
    if request.n != 1:
        body["n"] = request.n
    if request.user is not None:
        body["user"] = request.user
    if request.prompts:
        return "/completions", msgspec.json.encode(body | _completion(request))
    return "/chat/completions", msgspec.json.encode(body | _chat(request, limit_field))


def _completion(request: Request) -> dict[str, Any]:
    body: dict[str, Any] = {"prompt": request.prompts[0] if len(request.prompts) == 1 else request.prompts}
    if request.max_tokens is not None:
        body["max_tokens"] = request.max_tokens
    if request.logprobs is not None:
        body["logprobs"] = request.logprobs
    if request.echo:
        body["echo"] = True
    return body


def _chat(request: Request, limit_field: str) -> dict[str, Any]:
    body: dict[str, Any] = {"messages": [_message(turn) for turn in request.turns]}
    if request.max_tokens is not None:
        body[limit_field] = request.max_tokens
    if request.logprobs is not None:
        body["logprobs"], body["top_logprobs"] = True, request.logprobs
    if request.tools:
        functions = [
            {"name": t.name, "description": t.description, "parameters": t.parameters, "strict": t.strict}
            for t in request.tools
        ]
        body["tools"] = [{"type": "function", "function": _present(f)} for f in functions]
    for name in ("tool_choice", "parallel_tool_calls", "response_format"):
        value = getattr(request, name)
        if value is not None:
            body[name] = value
    return body


def _message(turn: Turn) -> dict[str, Any]:
    plain = all(isinstance(part, TextPart) for part in turn.parts)
    message: dict[str, Any] = {"role": turn.role}
    message["content"] = turn.text if plain else [_part(part) for part in turn.parts]
    if turn.tool_calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in turn.tool_calls
        ]
    return message | _present({"name": turn.name, "tool_call_id": turn.tool_call_id})


def _part(part: Part) -> dict[str, Any]:
    if isinstance(part, ImagePart):
        return {"type": "image_url", "image_url": _present({"url": part.url, "detail": part.detail})}
    return {"type": "text", "text": part.text}


def _present(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


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
    """A piece of a tool call."""

    index: int = 0
    id: str | None = None
    function: WireFunction | None = None


class WireDelta(msgspec.Struct):
    """What is new in a chat chunk. Thinking goes by two names among providers."""

    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[WireToolCall] | None = None


class WireChoice(msgspec.Struct):
    """One choice of a chunk, of either endpoint."""

    index: int = 0
    delta: WireDelta | None = None
    text: str | None = None
    logprobs: WireLogprobs | None = None
    finish_reason: str | None = None


class WireDetails(msgspec.Struct):
    """Parts of the token counts."""

    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class WireUsage(msgspec.Struct):
    """Token counts."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: WireDetails | None = None
    completion_tokens_details: WireDetails | None = None

    def neutral(self) -> Usage:
        """Neutral counts."""
        cached = self.prompt_tokens_details.cached_tokens if self.prompt_tokens_details else None
        thought = self.completion_tokens_details.reasoning_tokens if self.completion_tokens_details else None
        return Usage(self.prompt_tokens, self.completion_tokens, cached or 0, thought or 0)


class WireChunk(msgspec.Struct):
    """One chunk of either endpoint; `error` when the provider failed inside the stream."""

    model: str | None = None
    system_fingerprint: str | None = None
    choices: list[WireChoice] | None = None
    usage: WireUsage | None = None
    error: Any = None


class ErrorChunk(Exception):
    """The provider reported an error inside the stream; `payload` is what it said."""

    def __init__(self, payload: Any) -> None:
        super().__init__("error inside the stream")
        self.payload = payload


class ChunkReader:
    """Chunks in, events out: Started once, each index in range and finished once, Usage last."""

    def __init__(self, request: Request, provider: str) -> None:
        self._model = request.model
        self._provider = provider
        self._open = set(range(request.choices))
        self._count = request.choices
        self._started = False
        self._usage: Usage | None = None

    def read(self, data: str) -> list[Event]:
        """Events of one chunk.

        Raises:
            ErrorChunk: it is an error.
            UpstreamError: a choice that was not asked for.
            msgspec.DecodeError: not JSON, or of another shape (ValidationError).
        """
        chunk = msgspec.json.decode(data, type=WireChunk)
        if chunk.error is not None:
            raise ErrorChunk(chunk.error)
        events: list[Event] = []
        if not self._started:
            self._started = True
            events.append(Started(chunk.model or self._model, chunk.system_fingerprint))
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
            found = f"{self._provider}: the stream ended with {len(self._open)} of {self._count} choices unfinished"
            raise UpstreamError(found, kind="transport")
        return [] if self._usage is None else [self._usage]

    def _choice(self, choice: WireChoice) -> list[Event]:
        index = choice.index
        if index not in self._open:
            if 0 <= index < self._count and _empty(choice):
                return []  # some providers send an empty delta after the finish
            raise UpstreamError(f"{self._provider}: a chunk for choice {index}, which is not open", kind="transport")
        events: list[Event] = []
        delta = choice.delta or WireDelta()
        text = choice.text or delta.content or delta.refusal or ""
        logprobs = choice.logprobs.neutral() if choice.logprobs else ()
        if thought := delta.reasoning_content or delta.reasoning:
            events.append(ReasoningDelta(thought, index))
        if text or logprobs:
            events.append(TextDelta(text, logprobs, index))
        for call in delta.tool_calls or ():
            function = call.function or WireFunction()
            events.append(ToolCallDelta(call.index, call.id, function.name, function.arguments or "", index))
        if choice.finish_reason is not None:
            self._open.discard(index)
            events.append(Finished(_FINISH.get(choice.finish_reason, "stop"), index))
        return events


def _empty(choice: WireChoice) -> bool:
    delta = choice.delta or WireDelta()
    return not (choice.text or delta.content or delta.tool_calls or choice.finish_reason)
