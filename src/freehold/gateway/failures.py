"""Errors that only a gateway can raise: a request that can't be served as asked, and a moment when nobody can answer.

    FreeholdError
    ├── RequestError           the client's request is wrong, or asks for what a backend can't do
    │   ├── CapabilityError    well formed, but this backend can't do it; another may
    │   └── LimitError         well formed, but the key that asks has used up its rate or its money
    ├── LowConfidenceError     the core answered, but was not sure enough; another may be
    └── UnavailableError       every backend failed or is down

This module knows no HTTP status and no dialect: `dialects/errors.py` gives each its envelope.
"""

from __future__ import annotations

from collections.abc import Mapping

from freehold.errors import (
    ContextLengthError,
    EngineDownError,
    EngineError,
    FreeholdError,
    OverloadedError,
    TemplateError,
    UpstreamError,
    UsageError,
)


class RequestError(UsageError):
    """The request is wrong.

    Args:
        param: path of the field at fault, such as `messages[0].role`.
        code: machine-readable reason, such as `invalid_type`.
        status: HTTP status that the dialect should use.
    """

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        status: int = 400,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.param = param
        self.code = code
        self.status = status


class CapabilityError(RequestError):
    """A well-formed request for something this backend can't do."""


class LimitError(RequestError):
    """The key's rate or money does not allow it now.

    Args:
        code: `rate_limit_exceeded` or `insufficient_quota`, as OpenAI calls them.
        retry_after: seconds after which it may.
        headers: for the client: what is left of its rates.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str,
        retry_after: int,
        headers: Mapping[str, str] | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, code=code, status=429, hint=hint)
        self.retry_after = retry_after
        self.headers = {**(headers or {}), "retry-after": str(retry_after)}


class LowConfidenceError(FreeholdError):
    """An answer that was less sure than its route asks for: improbable, or at odds with second answers."""


class UnavailableError(FreeholdError):
    """No backend could answer.

    Args:
        retry_after: seconds after which trying again makes sense.
    """

    def __init__(self, message: str, *, retry_after: int = 1, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


def kind_of(error: Exception) -> str:
    """One word for a failure, for headers, metrics and cooldowns; an UpstreamError's own kind where there is one."""
    match error:
        case UpstreamError():
            return error.kind
        case CapabilityError():
            return "capability"
        case LimitError():
            return "limit"
        case LowConfidenceError():
            return "low_confidence"
        case ContextLengthError():
            return "context"
        case OverloadedError():
            return "overload"
        case EngineDownError():
            return "engine_down"
        case EngineError():
            return "engine_error"
        case RequestError() | UsageError() | TemplateError():
            return "invalid"
    return "internal"
