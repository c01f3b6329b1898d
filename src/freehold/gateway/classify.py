"""What a provider's refusal means, by status, code, type and words.

A status alone misleads: providers report closed accounts with 400, spent budgets with 429. The kinds are those of
`UpstreamError`. Sources: https://platform.openai.com/docs/guides/error-codes,
https://docs.anthropic.com/en/api/errors, https://api-docs.deepseek.com/quick_start/error_codes,
https://console.groq.com/docs/errors, https://ai.google.dev/gemini-api/docs/troubleshooting,
https://learn.microsoft.com/azure/ai-services/openai/reference and bodies that users of these APIs have published: each is
named beside its vector under tests/vectors/providers. Knows no HTTP client and no policy.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from freehold.gateway.rates import duration

_BY_CODE = {
    "account_deactivated": "banned",
    "organization_restricted": "banned",
    "CONSUMER_SUSPENDED": "banned",
    "unsupported_country_region_territory": "region",
    "insufficient_quota": "billing",
    "credit_balance_exhausted": "billing",
    "organization_spend_limit_exceeded": "billing",
    "project_spend_limit_exceeded": "billing",
    "organization_usage_limit_exceeded": "billing",
    "enforced_spend_limit_reached": "billing",
    "billing_hard_limit_reached": "billing",
    "billing_not_active": "billing",
    "billing_error": "billing",
    "rate_limit_exceeded": "rate",
    "tokens_usage_based": "rate",
    "slow_down": "rate",
    "overloaded_error": "overload",
    "timeout_error": "overload",
    "context_length_exceeded": "context",
    "request_too_large": "context",
    "content_filter": "content_policy",
    "content_policy_violation": "content_policy",
    "ResponsibleAIPolicyViolation": "content_policy",
    "invalid_api_key": "auth",
    "API_KEY_INVALID": "auth",
    "invalid_authentication": "auth",
    "model_not_found": "capability",
    "DeploymentNotFound": "capability",
    "not_found_error": "capability",
    "unsupported_parameter": "capability",
    "unsupported_value": "capability",
    "server_error": "overload",
    "api_error": "overload",
}
"""Codes that say it all, whatever the status and the words."""

_BY_WORDS = (
    (
        re.compile(
            r"(organi[sz]ation|workspace) has been (disabled|restricted|suspended)"
            r"|account .{0,60}(deactivated|suspended|disabled|terminated)|deactivated account"
            r"|disabled in this account|consumer .{0,80}has been suspended",
            re.I,
        ),
        "banned",
    ),
    (
        re.compile(
            r"country, region,? or territory not supported|user location is not supported"
            r"|not available in your (country|region)",
            re.I,
        ),
        "region",
    ),
    (
        re.compile(
            r"credit balance is too low|insufficient (balance|credits|funds)|exceeded your current quota"
            r"|(spend|spending|usage|monthly) limits?\b.{0,80}(reached|exceeded|regain)"
            r"|reached your specified .{0,20}usage limits"
            r"|billing (details|hard limit)",
            re.I,
        ),
        "billing",
    ),
    (re.compile(r"api key not valid|incorrect api key|invalid (x-)?api[- ]key|api key expired", re.I), "auth"),
    (
        re.compile(
            r"maximum context length|prompt is too long|context (window|length)|exceeds? the maximum number of tokens"
            r"|input token count .{0,40}exceeds",
            re.I,
        ),
        "context",
    ),
    (
        re.compile(r"content (management )?policy|safety system|content filtering policy|input was flagged", re.I),
        "content_policy",
    ),
)
_BY_TYPE = {
    "rate_limit_error": "rate",
    "authentication_error": "auth",
    "RESOURCE_EXHAUSTED": "rate",
    "UNAVAILABLE": "overload",
    "UNAUTHENTICATED": "auth",
}
"""Types that stand for a whole family: words may say more exactly what happened."""

_IN_WORDS = re.compile(
    r"(?:try again|retry) in (?=\d)((?:\d+h)?(?:\d+m(?!s))?(?:\d+(?:\.\d+)?s)?(?:\d+(?:\.\d+)?ms)?)", re.I
)
_BY_STATUS = {401: "auth", 402: "billing", 403: "auth", 408: "transport", 413: "context", 429: "rate"}
_REGION_WORDS = re.compile(r"^request not allowed$", re.I)


def classify(status: int, body: bytes) -> tuple[str, str]:
    """The kind of failure, and the provider's own words on one line (neither shortened nor rid of keys).

    Args:
        status: of the response; 200 for an error that came inside a stream.
        body: the response's body, or the JSON of the in-stream error.
    """
    error = _error_object(body)
    message = _text(error.get("message")) or body.decode("utf-8", "replace")
    return _kind(status, error, message), one_line(message)


def told_delay(body: bytes) -> float | None:
    """Seconds to stay away that the body tells: Google's `RetryInfo`, or OpenAI's "Please try again in 6m0s."."""
    error = _error_object(body)
    if (delay := _retry_info(error)) is not None:
        return duration(delay)
    found = _IN_WORDS.search(_text(error.get("message")))
    return duration(found.group(1)) if found else None


def one_line(text: str) -> str:
    """Foreign words on one line of printable characters: nothing that could forge a log line or move a cursor."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _kind(status: int, error: dict[str, Any], message: str) -> str:
    names = list(_names(error))
    if _retry_info(error) is not None and "RESOURCE_EXHAUSTED" in names:
        return "rate"  # Gemini says "exceeded your current quota" of the minute's quota too
    for name in names:
        if name in _BY_CODE:
            return _BY_CODE[name]
    for words, kind in _BY_WORDS:
        if words.search(message):
            return kind
    if status == 403 and _REGION_WORDS.search(message.strip()):
        return "region"  # Anthropic's edge, for places it does not serve
    for name in names:
        if name in _BY_TYPE:
            return _BY_TYPE[name]
    return _by_status(status, bool(error))


def _by_status(status: int, understood: bool) -> str:
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if status in (498, 503, 529):  # 498: Groq's flex tier is full; 529: Anthropic
        return "overload"
    if 400 <= status < 500:
        # A 404 without an error object is no API: a wrong address, or a proxy that has lost its server.
        return "transport" if status == 404 and not understood else "invalid"
    return "transport"


def _names(error: dict[str, Any]) -> Iterator[str]:
    """Codes and types, the most telling first: `details.error_code` (Anthropic), `innererror` (Azure), `reason` (Google)."""
    for detail in _details(error):
        yield _text(detail.get("error_code"))
        yield _text(detail.get("reason"))
    inner = error.get("innererror")
    if isinstance(inner, dict):
        yield _text(inner.get("code"))
    for field in ("code", "type", "status"):
        yield _text(error.get(field))


def _details(error: dict[str, Any]) -> list[dict[str, Any]]:
    details = error.get("details")
    return [d for d in (details if isinstance(details, list) else [details]) if isinstance(d, dict)]


def _retry_info(error: dict[str, Any]) -> str | None:
    """`retryDelay` of https://github.com/googleapis/googleapis/blob/master/google/rpc/error_details.proto."""
    delays = [_text(d["retryDelay"]) for d in _details(error) if "retryDelay" in d]
    return delays[0] if delays else None


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
