"""Anthropic's error envelope (https://platform.claude.com/docs/en/api/errors): the same errors, in its types and statuses.

`{"type": "error", "error": {"type", "message"}, "request_id"}`. Knows no endpoint.
"""

from __future__ import annotations

import msgspec

from freehold.gateway.dialects.errors import Envelope

OVERLOADED = 529

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    OVERLOADED: "overloaded_error",
}


def status(envelope: Envelope) -> int:
    """The status Anthropic has for it: nobody can answer now is 529, not 503."""
    return OVERLOADED if envelope.status == 503 else envelope.status


def error_object(envelope: Envelope) -> dict[str, str]:
    """`error` of the envelope; its message names the field at fault, for which Anthropic has no place of its own."""
    found = status(envelope)
    kind = _TYPES.get(found, "api_error" if found >= 500 else "invalid_request_error")
    message = envelope.message
    if envelope.param and envelope.param not in message:
        message = f"{envelope.param}: {message}"
    return {"type": kind, "message": message}


def body(envelope: Envelope, request_id: str) -> bytes:
    """The JSON body."""
    return msgspec.json.encode({"type": "error", "error": error_object(envelope), "request_id": request_id})
