"""Items of the Responses API as turns: messages, calls, their outputs and reasoning, given or remembered.

Knows the items' wire format, not the endpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import msgspec

from freehold.gateway.conversation import FilePart, ImagePart, Part, Reasoning, Role, TextPart, ToolCall, Turn
from freehold.gateway.failures import RequestError


class ContentPart(msgspec.Struct):
    """One part of a message, of a tool's output, or of reasoning."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: str | None = None
    detail: str | None = None
    filename: str | None = None
    file_data: str | None = None
    file_url: str | None = None
    file_id: str | None = None
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class InputItem(msgspec.Struct):
    """Any item; which fields it must have depends on its type. A message may leave its type out."""

    type: str | None = None
    id: str | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[ContentPart] | None = None
    status: str | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[ContentPart] | None = None
    summary: list[ContentPart] | None = None
    encrypted_content: str | None = None


def as_items(raw: Sequence[dict[str, Any]]) -> list[InputItem]:
    """Items from JSON objects that have been checked before."""
    return msgspec.convert(raw, list[InputItem])


def numbered(items: Sequence[dict[str, Any]], request_id: str) -> list[dict[str, Any]]:
    """The items, each with a type and an id, as `input_items` lists them."""
    found = []
    for i, item in enumerate(items):
        kind = item.get("type") or "message"
        prefix = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}.get(
            kind, "it"
        )
        found.append({**item, "type": kind, "id": item.get("id") or f"{prefix}_{request_id}_in{i}"})
    return found


def turns_of(items: Sequence[InputItem], where: str, remembered: int = 0) -> tuple[Turn, ...]:
    """The conversation. What the assistant said, thought and called in one go becomes one turn.

    Args:
        where: path of the items, for errors.
        remembered: how many of the first items are not in the request.

    Raises:
        RequestError: names the item at fault.
    """
    turns: list[Turn] = []
    for i, item in enumerate(items):
        turn = _turn(item, f"{where}[{i - remembered}]")
        if turns and _continues(turns[-1], turn):
            turns[-1] = _joined(turns[-1], turn)
        else:
            turns.append(turn)
    return tuple(turns)


def _continues(last: Turn, following: Turn) -> bool:
    """Whether both are one turn: thinking, then at most one text, then calls."""
    if last.role != "assistant" or following.role != "assistant":
        return False
    return not following.parts or not (last.parts or last.tool_calls)


def _joined(last: Turn, following: Turn) -> Turn:
    return replace(
        last,
        parts=last.parts + following.parts,
        tool_calls=last.tool_calls + following.tool_calls,
        reasoning=last.reasoning + following.reasoning,
    )


def _turn(item: InputItem, where: str) -> Turn:
    match item.type:
        case None | "message":
            role = _needed(item.role, f"{where}.role")
            found: Role = "system" if role == "developer" else role
            return Turn(found, _parts(_needed(item.content, f"{where}.content"), f"{where}.content"))
        case "function_call":
            call = ToolCall(
                _needed(item.call_id, f"{where}.call_id"),
                _needed(item.name, f"{where}.name"),
                _needed(item.arguments, f"{where}.arguments"),
            )
            return Turn("assistant", tool_calls=(call,))
        case "function_call_output":
            output = _parts(_needed(item.output, f"{where}.output"), f"{where}.output")
            return Turn("tool", output, tool_call_id=_needed(item.call_id, f"{where}.call_id"))
        case "reasoning":
            return Turn("assistant", reasoning=(_reasoning(item),))
    raise RequestError(
        f"Invalid value: {item.type[:50]!r}. Supported values are: 'message', 'function_call', 'function_call_output', "
        "'reasoning' and 'item_reference'.",
        param=f"{where}.type",
        code="invalid_value",
    )


def _reasoning(item: InputItem) -> Reasoning:
    """Thinking given back: its text, with the provider's seal; or the seal alone."""
    pieces = [*(item.content if isinstance(item.content, list) else ()), *(item.summary or ())]
    text = "".join(piece.text or "" for piece in pieces)
    sealed = item.encrypted_content
    return Reasoning(text, sealed) if text or sealed is None else Reasoning(redacted=sealed)


def _parts(content: str | list[ContentPart], where: str) -> tuple[Part, ...]:
    if isinstance(content, str):
        return (TextPart(content),)
    return tuple(_part(part, f"{where}[{i}]") for i, part in enumerate(content))


def _part(part: ContentPart, where: str) -> Part:
    match part.type:
        case "input_text" | "output_text" | "text":
            return TextPart(_needed(part.text, f"{where}.text"))
        case "refusal":
            return TextPart(_needed(part.refusal, f"{where}.refusal"))
        case "input_image":
            return ImagePart(_needed(part.image_url, f"{where}.image_url"), part.detail)
        case "input_file":
            if part.file_id:
                return FilePart("", part.filename, part.file_id)
            return FilePart(_needed(part.file_data or part.file_url, f"{where}.file_data"), part.filename)
    raise RequestError(
        f"Invalid value: {part.type[:50]!r}. Supported values are: 'input_text', 'input_image', 'input_file', "
        "'output_text' and 'refusal'.",
        param=f"{where}.type",
        code="invalid_value",
    )


def _needed(value: Any, param: str) -> Any:
    if value is None:
        raise RequestError(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
    return value
