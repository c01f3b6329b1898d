"""What several dialects decode alike: which tools may be called, and output formats, in the neutral shape of Chat.

Knows no wire format but that shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from freehold.gateway.conversation import Tool, Turn
from freehold.gateway.failures import RequestError


def function_choice(name: str, tools: Sequence[Tool], param: str) -> dict[str, Any]:
    """The choice of one function, which must be among the tools."""
    _check_known(name, tools, param)
    return {"type": "function", "function": {"name": name}}


def allowed(names: Sequence[str], tools: Sequence[Tool], param: str) -> tuple[Tool, ...]:
    """The tools of those names: offering only these is what allowing only these means, to any backend."""
    for name in names:
        _check_known(name, tools, param)
    return tuple(tool for tool in tools if tool.name in names)


def _check_known(name: str, tools: Sequence[Tool], param: str) -> None:
    if all(tool.name != name for tool in tools):
        raise RequestError(
            f"Invalid '{param}': there is no tool '{name[:100]}' in 'tools'.", param=param, code="invalid_value"
        )


def check_needs_tools(choice: str | dict[str, Any] | None, tools: Sequence[Tool], param: str) -> None:
    """A call can be demanded only of tools that there are."""
    if choice is not None and choice not in ("none", "auto") and not tools:
        raise RequestError(
            f"Invalid '{param}': a call is demanded, but there are no tools.", param=param, code="invalid_value"
        )


def check_answers(turns: Sequence[Turn]) -> None:
    """A tool's message answers a call of an earlier assistant's message, as OpenAI demands.

    Raises:
        RequestError: names the first that answers nobody.
    """
    called: set[str] = set()
    for i, turn in enumerate(turns):
        called.update(call.id for call in turn.tool_calls)
        if turn.role == "tool" and turn.tool_call_id not in called:
            raise RequestError(
                "Invalid parameter: messages with role 'tool' must be a response to a preceding message with "
                f"'tool_calls', but nobody has called '{(turn.tool_call_id or '')[:100]}'.",
                param=f"messages[{i}].tool_call_id",
                code="invalid_value",
            )


def check_format(given: dict[str, Any] | None, param: str = "response_format") -> dict[str, Any] | None:
    """Chat's `response_format`, checked; None for plain text.

    Raises:
        RequestError: an unknown type, or a JSON schema without its name or schema.
    """
    if given is None:
        return None
    kind = given.get("type")
    if kind in ("text", "json_object"):
        return None if kind == "text" else {"type": "json_object"}
    if kind != "json_schema":
        raise RequestError(
            f"Invalid value for '{param}.type'. Supported values are: 'text', 'json_object' and 'json_schema'.",
            param=f"{param}.type",
            code="invalid_value",
        )
    schema = given.get("json_schema")
    for name, wanted in (("name", str), ("schema", dict)):
        if not isinstance(schema, dict) or not isinstance(schema.get(name), wanted):
            path = f"{param}.json_schema.{name}"
            raise RequestError(f"Missing required parameter: '{path}'.", param=path, code="missing_required_parameter")
    return given
