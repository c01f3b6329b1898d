"""What a provider's refusal means, by status, code, type and words.

A status alone misleads: providers report closed accounts with 400, spent budgets with 429. The kinds are those of
`UpstreamError`. Sources: https://platform.openai.com/docs/guides/error-codes,
https://docs.anthropic.com/en/api/errors, https://api-docs.deepseek.com/quick_start/error_codes and bodies that users of
these APIs have published. Knows no HTTP client and no policy.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

_BY_CODE = {
    "account_deactivated": "banned",
    "organization_restricted": "banned",
    "unsupported_country_region_territory": "region",
    "insufficient_quota": "billing",
    "credit_balance_exhausted": "billing",
    "organization_spend_limit_exceeded": "billing",
    "project_spend_limit_exceeded": "billing",
    "organization_usage_limit_exceeded": "billing",
    "billing_hard_limit_reached": "billing",
    "billing_error": "billing",
    "rate_limit_exceeded": "rate",
    "slow_down": "rate",
    "rate_limit_error": "rate",
    "overloaded_error": "overload",
    "context_length_exceeded": "context",
    "content_filter": "content_policy",
    "content_policy_violation": "content_policy",
    "invalid_api_key": "auth",
    "authentication_error": "auth",
    "server_error": "overload",
    "api_error": "overload",
}
_BY_WORDS = (
    (re.compile(r"organization has been (disabled|restricted)|account .{0,20}(deactivated|suspended)", re.I), "banned"),
    (re.compile(r"credit balance is too low|insufficient balance|exceeded your current quota", re.I), "billing"),
    (re.compile(r"api key not valid|incorrect api key", re.I), "auth"),
    (re.compile(r"maximum context length|prompt is too long|context window", re.I), "context"),
)
_BY_STATUS = {401: "auth", 402: "billing", 403: "auth", 408: "transport", 413: "context", 429: "rate"}


def classify(status: int, body: bytes) -> tuple[str, str]:
    """The kind of failure, and the provider's own words on one line (neither shortened nor rid of keys).

    Args:
        status: of the response; 200 for an error that came inside a stream.
        body: the response's body, or the JSON of the in-stream error.
    """
    error = _error_object(body)
    message = _text(error.get("message")) or body.decode("utf-8", "replace")
    kind = _kind(status, error, message)
    return kind, " ".join(message.split())


def _kind(status: int, error: dict[str, Any], message: str) -> str:
    for name in (_text(error.get("code")), _text(error.get("type"))):
        if name in _BY_CODE:
            return _BY_CODE[name]
    for words, kind in _BY_WORDS:
        if words.search(message):
            return kind
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if status in (200, 529) or status >= 500:
        return "overload" if status in (503, 529) else "transport"
    return "invalid" if 400 <= status < 500 else "transport"


def _error_object(body: bytes) -> dict[str, Any]:
    """The object that describes the error: `{"error": {...}}`, `{"error": "..."}` or the body itself."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return {}
    if isinstance(value, list) and value:  # Gemini wraps its errors in a list
        value = value[0]
    if not isinstance(value, dict):
        return {}
    error = value.get("error", value)
    return error if isinstance(error, dict) else {"message": error}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
