"""OpenAI Completions (https://platform.openai.com/docs/api-reference/completions): raw text in, raw text out.

Knows the wire format only: no model, no backend, no socket.
"""

from __future__ import annotations

import codecs
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec

from freehold.gateway.conversation import (
    Event,
    Failed,
    Finished,
    Prompt,
    Request,
    Started,
    TextDelta,
    TokenLogprob,
    Usage,
)
from freehold.gateway.dialects import Dialect
from freehold.gateway.dialects import body as bodies
from freehold.gateway.dialects.leftovers import unknown
from freehold.gateway.dialects.openai_fields import DONE, MAX_CHOICES, SharedFields, failure, sse, usage
from freehold.gateway.failures import RequestError

NAME = "openai_completions"
DEFAULT_MAX_TOKENS = 16  # OpenAI's documented default for this endpoint

TokenId = Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]


class CompletionBody(SharedFields, kw_only=True):
    """The body of POST /v1/completions."""

    prompt: str | list[str | TokenId | list[TokenId]]
    max_tokens: Annotated[int, msgspec.Meta(ge=0, le=1 << 31)] | None = None
    logprobs: Annotated[int, msgspec.Meta(ge=0, le=5)] | None = None
    best_of: Annotated[int, msgspec.Meta(ge=1, le=20)] | None = None
    echo: bool | None = None
    suffix: str | None = None


def decode(body: bytes, request_id: str) -> tuple[Request, CompletionEncoder]:
    """A body as a neutral request, and the encoder that answers it.

    Raises:
        RequestError: names the field at fault.
    """
    fields = bodies.decode(body, CompletionBody)
    if fields.best_of is not None and fields.best_of != (fields.n or 1):
        raise RequestError("'best_of' must equal 'n'.", param="best_of", code="invalid_value")
    if fields.suffix:
        raise RequestError("'suffix' is not supported.", param="suffix", code="unsupported_parameter")
    include_usage = fields.check_stream_options()
    request = Request(
        id=request_id,
        model=fields.model,
        prompts=prompts_of(fields.prompt),
        sampling=fields.sampling(),
        stop=fields.stops(),
        n=fields.n or 1,
        logprobs=fields.logprobs,
        max_tokens=DEFAULT_MAX_TOKENS if fields.max_tokens is None else fields.max_tokens,
        echo=bool(fields.echo),
        user=fields.user,
        stream=bool(fields.stream),
        dialect=NAME,
        body=body,
        dropped=unknown(body, CompletionBody),
    )
    if request.choices > MAX_CHOICES:
        raise RequestError(
            f"Prompts times 'n' must be at most {MAX_CHOICES}, but got {request.choices}.",
            param="n",
            code="invalid_value",
        )
    return request, CompletionEncoder(request, include_usage)


def prompts_of(prompt: str | list[Any], param: str = "prompt", most: int = 1 << 31) -> tuple[Prompt, ...]:
    """A text, several texts, the ids of one prompt, or the ids of several."""
    if isinstance(prompt, str):
        return (prompt,)
    kinds = {type(item) for item in prompt}
    if kinds == {int}:
        return (tuple(prompt),)
    if len(prompt) > most:
        raise RequestError(
            f"Invalid '{param}': expected at most {most} items.", param=param, code="array_above_max_length"
        )
    if kinds == {str}:
        return tuple(prompt)
    if kinds == {list} and all(prompt):
        return tuple(tuple(ids) for ids in prompt)
    problem = "must not be empty" if not prompt or kinds == {list} else "mixes texts, token ids and lists of them"
    raise RequestError(f"Invalid '{param}': the array {problem}.", param=param, code="invalid_value")


@dataclass(slots=True)
class _Choice:
    """What one choice has come to so far."""

    text: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    finish: str | None = None
    _spelled: int = 0  # characters that the tokens so far have completed
    _decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace")
    )

    def add(self, event: TextDelta) -> list[int]:
        """Takes more text; the offset at which the text of each token that came with it begins."""
        offsets = []
        for token in event.logprobs:
            offsets.append(self._spelled)
            self._spelled += len(self._decoder.decode(token.bytes))
        self.text.append(event.text)
        self.logprobs.extend(event.logprobs)
        self.offsets.extend(offsets)
        return offsets


class CompletionEncoder:
    """Events as `text_completion` objects, streamed or whole."""

    def __init__(self, request: Request, include_usage: bool) -> None:
        self._id = "cmpl-" + request.id
        self._created = int(time.time())
        self._include_usage = include_usage
        self._logprobs = request.logprobs is not None
        self._choices = [_Choice() for _ in range(request.choices)]
        self._model = request.model
        self._fingerprint: str | None = None

    def chunk(self, event: Event) -> bytes:
        """One event as SSE."""
        match event:
            case Started():
                self._model, self._fingerprint = event.model, event.fingerprint
            case TextDelta():
                offsets = self._choices[event.index].add(event)
                return self._delta(event.index, event.text, _logprobs(event.logprobs, offsets))
            case Finished():
                return self._delta(event.index, "", None, event.reason)
            case Usage() if self._include_usage:
                return sse(self._head() | {"choices": [], "usage": usage(event)})
            case Failed():
                return failure(event)
        return b""

    def end(self) -> bytes:
        """The closing mark."""
        return DONE

    def whole(self, events: Sequence[Event]) -> bytes:
        """All events as one body."""
        tokens = Usage(0, 0)
        for event in events:
            match event:
                case Started():
                    self._model, self._fingerprint = event.model, event.fingerprint
                case TextDelta():
                    self._choices[event.index].add(event)
                case Finished():
                    self._choices[event.index].finish = event.reason
                case Usage():
                    tokens = event
                case Failed():
                    raise event.error
        choices = [
            {
                "text": "".join(choice.text),
                "index": index,
                "logprobs": _logprobs(choice.logprobs, choice.offsets) if self._logprobs else None,
                "finish_reason": choice.finish,
            }
            for index, choice in enumerate(self._choices)
        ]
        return msgspec.json.encode(self._head() | {"choices": choices, "usage": usage(tokens)})

    def _head(self) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._model,
            "system_fingerprint": self._fingerprint,
        }

    def _delta(self, index: int, text: str, logprobs: dict[str, Any] | None, finish: str | None = None) -> bytes:
        choice = {"text": text, "index": index, "logprobs": logprobs, "finish_reason": finish}
        body = self._head() | {"choices": [choice]}
        return sse(body | {"usage": None} if self._include_usage else body)


def _logprobs(tokens: Sequence[TokenLogprob], offsets: Sequence[int]) -> dict[str, Any] | None:
    if not tokens and not offsets:
        return None
    return {
        "tokens": [_name(token) for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [{_name(t): t.logprob for t in token.top} for token in tokens],
        "text_offset": list(offsets),
    }


def _name(token: TokenLogprob) -> str:
    """The token's text; part of a character is written `bytes:\\xe2\\x80`, as OpenAI does: names stay distinct."""
    try:
        return token.bytes.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.bytes)


DIALECT = Dialect(decode, "prompt", NAME)
