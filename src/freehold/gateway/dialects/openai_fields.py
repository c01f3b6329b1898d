"""What OpenAI's chat and completions endpoints have in common: sampling, stops, usage, stream options, SSE.

Ranges are those of https://platform.openai.com/docs/api-reference/chat/create; `top_k`, `min_p` and
`repetition_penalty` are extensions with the meaning vLLM gave them. Knows neither endpoint's messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from freehold.gateway.conversation import Failed, Sampling, TokenLogprob, Usage
from freehold.gateway.dialects.errors import envelope
from freehold.gateway.failures import RequestError

MAX_STOPS = 4
MAX_STOP_LENGTH = 4096  # a longer one could never be meant, and would cost memory per choice
MAX_CHOICES = 128

Stop = Annotated[str, msgspec.Meta(max_length=MAX_STOP_LENGTH)]
Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]
Bias = Annotated[float, msgspec.Meta(ge=-100, le=100)]


class StreamOptions(msgspec.Struct):
    """`stream_options`."""

    include_usage: bool | None = None


class SharedFields(msgspec.Struct, kw_only=True):
    """Fields of both bodies. None means absent or null: OpenAI treats them alike."""

    model: Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, msgspec.Meta(ge=-1, le=1 << 31)] | None = None
    min_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, msgspec.Meta(ge=0.01, le=100)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Bias] | None = None
    seed: Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=MAX_CHOICES)] | None = None
    stop: Stop | Annotated[list[Stop], msgspec.Meta(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None

    def sampling(self) -> Sampling:
        """The neutral sampling parameters; top_k of -1 or 0 means off."""
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=None if self.top_k is None else max(self.top_k, 0),
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=_token_ids(self.logit_bias or {}),
            seed=self.seed,
        )

    def stops(self) -> tuple[str, ...]:
        """Stop strings; empty ones mean nothing and are left out."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(stop for stop in given if stop)

    def check_stream_options(self) -> bool:
        """Whether usage is wanted in the stream; refuses options without a stream, as OpenAI does."""
        if self.stream_options is not None and not self.stream:
            raise RequestError(
                "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
                param="stream_options",
                code="invalid_value",
            )
        return bool(self.stream_options and self.stream_options.include_usage)


def _token_ids(bias: Mapping[str, float]) -> dict[int, float]:
    result = {}
    for key, value in bias.items():
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            raise RequestError(
                "Invalid key in 'logit_bias': expected a token id.", param="logit_bias", code="invalid_value"
            )
        result[int(key)] = value
    return result


def usage(tokens: Usage) -> dict[str, Any]:
    """OpenAI's usage object."""
    return {
        "prompt_tokens": tokens.prompt_tokens,
        "completion_tokens": tokens.completion_tokens,
        "total_tokens": tokens.prompt_tokens + tokens.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": tokens.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": tokens.reasoning_tokens},
    }


def logprob(token: TokenLogprob) -> dict[str, Any]:
    """One token with its alternatives."""
    top = [{"token": t.text, "logprob": t.logprob, "bytes": list(t.bytes)} for t in token.top]
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.bytes), "top_logprobs": top}


def sse(payload: object) -> bytes:
    """One server-sent event carrying JSON (which never contains a raw newline)."""
    return b"data: " + msgspec.json.encode(payload) + b"\n\n"


DONE = b"data: [DONE]\n\n"


def failure(event: Failed) -> bytes:
    """An error inside a stream; OpenAI's SDKs raise on it. No [DONE] follows: the answer is not complete."""
    return b"data: " + envelope(event.error).body() + b"\n\n"


ToolChoice = Literal["none", "auto", "required"]
