"""How the reference server says no, in each dialect's envelope; and the fields both OpenAI dialects check alike."""

from __future__ import annotations

from typing import Any

from freehold.certify.reference.http import Outgoing

ANTHROPIC = {
    400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 405: "invalid_request_error",
    413: "request_too_large", 429: "rate_limit_error", 500: "api_error",
}  # fmt: skip
"""https://docs.claude.com/en/api/errors"""


class Refusal(Exception):
    """The request is refused.

    Args:
        tag: what for; faults go by it.
        param: the field at fault.
    """

    def __init__(
        self, tag: str, message: str, *, status: int = 400, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.tag = tag
        self.message = message
        self.status = status
        self.param = param
        self.code = code

    def reply(self, dialect: str) -> Outgoing:
        """In the dialect's envelope."""
        headers = {429: {"retry-after": "20"}, 405: {"allow": "GET, POST"}}.get(self.status, {})
        body = envelope(dialect, self.status, self.message, self.param, self.code)
        return Outgoing(self.status, dict(headers), body, refused=self.tag)


def envelope(
    dialect: str, status: int, message: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """An error as the dialect writes it."""
    if dialect == "messages":
        return {"type": "error", "error": {"type": ANTHROPIC[status], "message": message}}
    kind = {401: "authentication_error", 429: "rate_limit_exceeded", 500: "server_error"}.get(
        status, "invalid_request_error"
    )
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


KINDS = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list, "object": dict}


def need(body: dict[str, Any], field: str, *kinds: str, required: bool = True) -> Any:
    """A field of one of the JSON types.

    Raises:
        Refusal: it is missing, or of another type.
    """
    if body.get(field) is None:
        if required:
            raise Refusal(
                "missing", f"Missing required parameter: '{field}'.", param=field, code="missing_required_parameter"
            )
        return None
    value = body[field]
    for kind in kinds:
        if isinstance(value, KINDS[kind]) and (kind == "boolean" or not isinstance(value, bool)):  # type: ignore[arg-type]
            return value
    raise Refusal(
        "type", f"Invalid type for '{field}': expected {' or '.join(kinds)}.", param=field, code="invalid_type"
    )


def check_schema(schema: Any, param: str) -> None:
    """Refuse what is no schema.

    Raises:
        Refusal: names the parameter.
    """
    known = {None, "string", "number", "integer", "boolean", "object", "array", "null"}
    if not isinstance(schema, dict) or schema.get("type") not in known:
        raise Refusal("schema", f"Invalid schema for '{param}'.", param=param, code="invalid_value")
    for child in schema.get("properties", {}).values():
        check_schema(child, param)
