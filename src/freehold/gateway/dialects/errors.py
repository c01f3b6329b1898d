"""OpenAI's error envelope: which status, type, param and code each of our errors gets.

`{"error": {"message", "type", "param", "code"}}`, as https://platform.openai.com/docs/guides/error-codes describes.
Knows no endpoint. Nothing unexpected reaches the client: an exception that is not ours is reported by request id only.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import msgspec

from freehold.errors import (
    ContextLengthError,
    DatabaseError,
    EngineDownError,
    EngineError,
    FreeholdError,
    OverloadedError,
    TemplateError,
    UpstreamError,
    UsageError,
)
from freehold.gateway.failures import LimitError, RequestError, UnavailableError

INVALID = "invalid_request_error"
RETRY_SECONDS = 1
"""Retry-After of an overloaded or restarting engine: a queue drains and a worker restarts in about this time."""

# What a provider's failure means for our client when that provider was addressed by name. Its own status would mislead
# for auth and billing: those keys are ours, not the client's.
_UPSTREAM_STATUS = {
    "rate": 429, "overload": 503, "invalid": 400, "context": 400, "content_policy": 400, "capability": 400,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Envelope:
    """An error ready for the wire."""

    status: int
    message: str
    type: str
    param: str | None = None
    code: str | None = None
    headers: dict[str, str] = dataclasses.field(default_factory=dict)

    def body(self) -> bytes:
        """The JSON body."""
        fields = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": fields})


def envelope(error: Exception, *, field: str = "messages") -> Envelope:
    """The envelope for any exception; `field` holds the prompt in the dialect that was spoken."""
    if not isinstance(error, FreeholdError):
        return Envelope(
            500, "The server had an error while processing your request.", "server_error", code="internal_error"
        )
    message = f"{error.message} Hint: {error.hint}" if error.hint else error.message
    match error:
        case LimitError():
            kind = (
                "requests" if error.code == "rate_limit_exceeded" else str(error.code)
            )  # as OpenAI's two kinds of 429
            return Envelope(error.status, message, kind, None, error.code, headers=dict(error.headers))
        case RequestError():
            return Envelope(error.status, message, INVALID, error.param, error.code)
        case UsageError():
            return Envelope(400, message, INVALID, code="invalid_value")
        case ContextLengthError():
            return Envelope(400, message, INVALID, field, "context_length_exceeded")
        case TemplateError():
            return Envelope(400, message, INVALID, field, "invalid_messages")
        case UnavailableError():
            return _busy(503, message, "backend_unavailable", error.retry_after)
        case DatabaseError():
            return _busy(503, "Keys and budgets can't be checked right now.", "accounts_unavailable", RETRY_SECONDS)
        case OverloadedError():
            return _busy(503, message, "engine_overloaded", RETRY_SECONDS)
        case EngineDownError():
            return _busy(503, message, "engine_down", RETRY_SECONDS)
        case UpstreamError():
            return _upstream(error, message)
        case EngineError():
            return Envelope(500, message, "server_error", code="engine_error")
    return Envelope(500, message, "server_error", code="internal_error")


def _busy(status: int, message: str, code: str, seconds: int) -> Envelope:
    return Envelope(status, message, "server_error", code=code, headers={"retry-after": str(seconds)})


def _upstream(error: UpstreamError, message: str) -> Envelope:
    status = _UPSTREAM_STATUS.get(error.kind, 502)
    code = "context_length_exceeded" if error.kind == "context" else f"upstream_{error.kind}"
    if status == 400:
        return Envelope(400, message, INVALID, code=code)
    if status == 429:
        return Envelope(429, message, "rate_limit_error", code=code, headers={"retry-after": str(RETRY_SECONDS)})
    return Envelope(status, message, "server_error", code=code, headers={"retry-after": str(RETRY_SECONDS)})
