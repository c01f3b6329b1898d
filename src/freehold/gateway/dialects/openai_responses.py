"""OpenAI Responses (https://platform.openai.com/docs/api-reference/responses): bodies to neutral requests.

Earlier responses are recalled through functions that the caller passes in. Knows the wire format only; the answers are
written by `responses_encoder`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal

import msgspec

from freehold.gateway.conversation import Request, Sampling, TextPart, Tool, Turn
from freehold.gateway.dialects import Dialect
from freehold.gateway.dialects import body as bodies
from freehold.gateway.dialects.leftovers import clean, unknown
from freehold.gateway.dialects.neutral import allowed, check_format, check_needs_tools, function_choice
from freehold.gateway.dialects.openai_fields import ToolChoice
from freehold.gateway.dialects.responses_encoder import Kept, ResponsesEncoder
from freehold.gateway.dialects.responses_items import InputItem, as_items, numbered, turns_of
from freehold.gateway.failures import RequestError

NAME = "openai_responses"
LOGPROBS = "message.output_text.logprobs"
ENCRYPTED = "reasoning.encrypted_content"


class ToolSpec(msgspec.Struct):
    """A function, or one of OpenAI's own tools by its `type`."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class TextFormat(msgspec.Struct):
    """`text.format`."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None


class TextOptions(msgspec.Struct):
    """`text`."""

    format: TextFormat | None = None


class ReasoningOptions(msgspec.Struct):
    """`reasoning`."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None


class AllowedTool(msgspec.Struct):
    """One of `tool_choice.tools`."""

    type: str
    name: str | None = None


class ForcedChoice(msgspec.Struct):
    """A `tool_choice` that is an object: one function, or the allowed ones."""

    type: str
    name: str | None = None
    mode: Literal["auto", "required"] | None = None
    tools: list[AllowedTool] | None = None


class ResponsesBody(msgspec.Struct, kw_only=True):
    """The body of POST /v1/responses."""

    model: Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
    input: str | list[InputItem] | None = None
    instructions: str | None = None
    tools: list[ToolSpec] | None = None
    tool_choice: ToolChoice | ForcedChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    max_output_tokens: Annotated[int, msgspec.Meta(ge=1, le=1 << 31)] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    previous_response_id: str | None = None
    include: list[str] | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    user: str | None = None
    stream: bool | None = None
    background: bool | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    """How earlier responses are found and this one is kept.

    Args:
        recall: all items (as JSON objects) of the conversation up to and with a response; raises when there is none.
        item: a stored item by its id; None when there is none.
        keep: takes a response that is complete.
    """

    recall: Callable[[str], list[dict[str, Any]]]
    item: Callable[[str], dict[str, Any] | None]
    keep: Callable[[Kept], None]


def dialect(memory: Memory) -> Dialect:
    """The dialect, with one client's memory."""
    return Dialect(partial(decode, memory), "input", NAME)


def decode(memory: Memory, body: bytes, request_id: str) -> tuple[Request, ResponsesEncoder]:
    """A body as a neutral request, and the encoder that answers it.

    Raises:
        RequestError: names the field at fault.
    """
    fields = bodies.decode(body, ResponsesBody)
    _check(fields)
    given = numbered(_input(fields, body, memory), request_id)
    earlier = memory.recall(fields.previous_response_id) if fields.previous_response_id else []
    tools, hosted = _tools(fields.tools or [])
    choice, offered = _choice(fields.tool_choice, tools)
    system = (Turn("system", (TextPart(fields.instructions),)),) if fields.instructions else ()
    wants_logprobs = LOGPROBS in (fields.include or ()) or fields.top_logprobs
    request = Request(
        id=request_id,
        model=fields.model,
        turns=system + turns_of(as_items([*earlier, *given]), "input", len(earlier)),
        sampling=Sampling(temperature=fields.temperature, top_p=fields.top_p),
        logprobs=(fields.top_logprobs or 0) if wants_logprobs else None,
        max_tokens=fields.max_output_tokens,
        tools=offered,
        tool_choice=choice,
        parallel_tool_calls=fields.parallel_tool_calls,
        response_format=_format(fields.text),
        user=fields.user,
        stream=bool(fields.stream),
        reasoning_effort=fields.reasoning.effort if fields.reasoning else None,
        dialect=NAME,
        body=body,
        dropped=unknown(body, ResponsesBody) + hosted + _unserved(fields.include or []),
        truncate=fields.truncation == "auto",
    )
    if earlier or any(item.type == "item_reference" for item in _items(fields)):
        request = replace(request, body=b"")  # it names what only this server remembers
    keep = None if fields.store is False else memory.keep
    return request, ResponsesEncoder(request, _echo(fields), given, keep)


def _check(fields: ResponsesBody) -> None:
    if fields.background:
        raise RequestError("'background' is not supported.", param="background", code="unsupported_parameter")
    if not fields.input and fields.previous_response_id is None:
        raise RequestError("Missing required parameter: 'input'.", param="input", code="missing_required_parameter")
    metadata = fields.metadata or {}
    if len(metadata) > 16 or any(len(k) > 64 or len(v) > 512 for k, v in metadata.items()):
        raise RequestError(
            "Invalid 'metadata': expected at most 16 pairs, keys up to 64 and values up to 512 characters.",
            param="metadata",
            code="invalid_value",
        )


def _items(fields: ResponsesBody) -> list[InputItem]:
    return fields.input if isinstance(fields.input, list) else []


def _input(fields: ResponsesBody, body: bytes, memory: Memory) -> list[dict[str, Any]]:
    """The input as JSON items as they came; references are looked up."""
    if fields.input is None or isinstance(fields.input, str):
        content = [{"type": "input_text", "text": fields.input or ""}]
        return [{"type": "message", "role": "user", "content": content}] if fields.input else []
    raw: list[dict[str, Any]] = bodies.plain(body)["input"]
    found = []
    for i, (item, value) in enumerate(zip(fields.input, raw, strict=True)):
        if item.type == "item_reference":
            referred = memory.item(item.id or "")
            if referred is None:
                raise RequestError(
                    f"Item '{(item.id or '')[:100]}' not found.",
                    param=f"input[{i}].id",
                    code="item_not_found",
                    status=404,
                )
            value = referred
        found.append(value)
    return found


def _tools(given: list[ToolSpec]) -> tuple[tuple[Tool, ...], tuple[str, ...]]:
    """The functions, and the names of tools that only OpenAI can run."""
    tools, hosted = [], []
    for i, tool in enumerate(given):
        if tool.type != "function":
            hosted.append(clean(f"tools.{tool.type}"))
        elif not tool.name:
            param = f"tools[{i}].name"
            raise RequestError(
                f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter"
            )
        else:
            tools.append(Tool(tool.name, tool.description, tool.parameters, tool.strict))
    return tuple(tools), tuple(hosted)


def _choice(
    given: str | ForcedChoice | None, tools: tuple[Tool, ...]
) -> tuple[str | dict[str, Any] | None, tuple[Tool, ...]]:
    """The neutral choice, and the tools that remain to choose from."""
    if given is None or isinstance(given, str):
        check_needs_tools(given, tools, "tool_choice")
        return given, tools
    if given.type == "function" and given.name is not None:
        return function_choice(given.name, tools, "tool_choice.name"), tools
    if given.type == "allowed_tools" and given.tools:
        names = [tool.name or "" for tool in given.tools if tool.type == "function"]
        return given.mode or "auto", allowed(names, tools, "tool_choice.tools")
    raise RequestError(
        "Invalid 'tool_choice': expected 'none', 'auto', 'required', a function by its name, or allowed_tools.",
        param="tool_choice",
        code="invalid_value",
    )


def _format(text: TextOptions | None) -> dict[str, Any] | None:
    """`text.format` in Chat's shape."""
    if text is None or text.format is None:
        return None
    given = {name: value for name, value in msgspec.structs.asdict(text.format).items() if value is not None}
    kind = given.pop("type")
    shaped = {"type": kind, "json_schema": given} if kind == "json_schema" else {"type": kind}
    try:
        return check_format(shaped, "text.format")
    except RequestError as error:
        error.param = (error.param or "").replace(".json_schema", "")
        raise


def _unserved(include: list[str]) -> tuple[str, ...]:
    """What was asked to be included, and can't be."""
    return tuple(clean(f"include.{name}") for name in include if name not in (LOGPROBS, ENCRYPTED))


def _echo(fields: ResponsesBody) -> dict[str, Any]:
    """The request's own fields, as the response repeats them; 1.0, auto and so on are the API's documented defaults."""
    choice = fields.tool_choice or "auto"
    text_format = fields.text.format if fields.text and fields.text.format else TextFormat("text")
    return {
        "instructions": fields.instructions,
        "max_output_tokens": fields.max_output_tokens,
        "metadata": fields.metadata or {},
        "parallel_tool_calls": True if fields.parallel_tool_calls is None else fields.parallel_tool_calls,
        "previous_response_id": fields.previous_response_id,
        "reasoning": msgspec.structs.asdict(fields.reasoning or ReasoningOptions()),
        "store": fields.store is not False,
        "temperature": 1.0 if fields.temperature is None else fields.temperature,
        "text": {"format": _echoed_format(text_format)},
        "tool_choice": choice if isinstance(choice, str) else _given(choice),
        "tools": [msgspec.structs.asdict(tool) for tool in fields.tools or () if tool.type == "function"],
        "top_logprobs": fields.top_logprobs or 0,
        "top_p": 1.0 if fields.top_p is None else fields.top_p,
        "truncation": fields.truncation or "disabled",
        "user": fields.user,
        "background": False,
    }


def _echoed_format(given: TextFormat) -> dict[str, Any]:
    if given.type != "json_schema":
        return {"type": given.type}
    return msgspec.structs.asdict(given)


def _given(choice: ForcedChoice) -> dict[str, Any]:
    raw: dict[str, Any] = msgspec.to_builtins(choice)
    shown = {name: value for name, value in raw.items() if value is not None}
    for tool in shown.get("tools", ()):
        if tool["name"] is None:
            del tool["name"]
    return shown
