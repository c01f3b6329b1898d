"""OpenAI Chat Completions (https://platform.openai.com/docs/api-reference/chat): bodies to requests, events to chunks.

Knows the wire format only: no model, no backend, no socket.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from freehold.gateway.conversation import (
    FilePart,
    ImagePart,
    Part,
    Reasoning,
    Request,
    Role,
    TextPart,
    Tool,
    ToolCall,
    Turn,
)
from freehold.gateway.dialects import Dialect
from freehold.gateway.dialects import body as bodies
from freehold.gateway.dialects.leftovers import clean, unknown
from freehold.gateway.dialects.neutral import allowed, check_answers, check_format, check_needs_tools, function_choice
from freehold.gateway.dialects.openai_chat_encoder import ChatEncoder
from freehold.gateway.dialects.openai_fields import SharedFields, ToolChoice
from freehold.gateway.failures import RequestError

NAME = "openai_chat"
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]


class ImageUrl(msgspec.Struct):
    """An image by URL."""

    url: str
    detail: str | None = None


class File(msgspec.Struct):
    """A file: its bytes as a data URL, or the id it has at OpenAI."""

    filename: str | None = None
    file_data: str | None = None
    file_id: str | None = None


class ContentPart(msgspec.Struct):
    """One part of a message's content."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: ImageUrl | None = None
    file: File | None = None


class FunctionCall(msgspec.Struct):
    """A function call as the assistant wrote it."""

    name: str
    arguments: str = ""


class MessageToolCall(msgspec.Struct):
    """A tool call in an assistant message."""

    id: str
    function: FunctionCall


class ReasoningDetail(msgspec.Struct):
    """A provider's sealed thinking, as OpenRouter writes it (https://openrouter.ai/docs/use-cases/reasoning-tokens)."""

    type: str
    text: str | None = None
    signature: str | None = None
    data: str | None = None


class Message(msgspec.Struct):
    """One message; `reasoning_content` (DeepSeek's name) is the assistant's thinking."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[MessageToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning_details: list[ReasoningDetail] | None = None


class FunctionSpec(msgspec.Struct):
    """A function the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolSpec(msgspec.Struct):
    """A tool."""

    type: str
    function: FunctionSpec | None = None


class NamedFunction(msgspec.Struct):
    """A function by its name."""

    name: str


class NamedTool(msgspec.Struct):
    """A tool by its name."""

    type: str
    function: NamedFunction | None = None


class AllowedTools(msgspec.Struct):
    """Which of the tools may be called."""

    mode: Literal["auto", "required"]
    tools: list[NamedTool]


class ForcedChoice(msgspec.Struct):
    """A `tool_choice` that is an object: one function, or the allowed ones."""

    type: str
    function: NamedFunction | None = None
    allowed_tools: AllowedTools | None = None


class ReasoningOptions(msgspec.Struct):
    """`reasoning`, OpenRouter's: https://openrouter.ai/docs/use-cases/reasoning-tokens."""

    effort: Effort | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=0, le=1 << 31)] | None = None
    enabled: bool | None = None

    def wanted(self) -> Effort | None:
        """The effort that it stands for."""
        if self.enabled is False:
            return "none"
        return self.effort or ("medium" if self.enabled and self.max_tokens is None else None)


class ChatBody(SharedFields, kw_only=True):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], msgspec.Meta(min_length=1)]
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=1 << 31)] | None = None
    max_completion_tokens: Annotated[int, msgspec.Meta(ge=1, le=1 << 31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None
    tools: list[ToolSpec] | None = None
    tool_choice: ToolChoice | ForcedChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    reasoning_effort: Effort | None = None
    reasoning: ReasoningOptions | None = None
    thinking_token_budget: Annotated[int, msgspec.Meta(ge=0, le=1 << 31)] | None = None  # vLLM's


def decode(body: bytes, request_id: str) -> tuple[Request, ChatEncoder]:
    """A body as a neutral request, and the encoder that answers it.

    Raises:
        RequestError: names the field at fault.
    """
    fields = bodies.decode(body, ChatBody)
    if fields.top_logprobs is not None and not fields.logprobs:
        raise RequestError("'top_logprobs' needs 'logprobs' to be true.", param="top_logprobs", code="invalid_value")
    include_usage = fields.check_stream_options()
    tools, others = _tools(fields.tools or [])
    choice, offered = _choice(fields.tool_choice, tools)
    thinking = fields.reasoning or ReasoningOptions()
    turns = tuple(_turn(message, i) for i, message in enumerate(fields.messages))
    check_answers(turns)
    request = Request(
        id=request_id,
        model=fields.model,
        turns=turns,
        sampling=fields.sampling(),
        stop=fields.stops(),
        n=fields.n or 1,
        logprobs=(fields.top_logprobs or 0) if fields.logprobs else None,
        max_tokens=fields.max_completion_tokens or fields.max_tokens,
        tools=offered,
        tool_choice=choice,
        parallel_tool_calls=fields.parallel_tool_calls,
        response_format=check_format(fields.response_format),
        user=fields.user,
        stream=bool(fields.stream),
        reasoning_effort=fields.reasoning_effort or thinking.wanted(),
        reasoning_budget=fields.thinking_token_budget if thinking.max_tokens is None else thinking.max_tokens,
        dialect=NAME,
        body=body,
        dropped=unknown(body, ChatBody) + others,
    )
    return request, ChatEncoder(request, include_usage)


def _turn(message: Message, index: int) -> Turn:
    where = f"messages[{index}]"
    calls = tuple(ToolCall(c.id, c.function.name, c.function.arguments) for c in message.tool_calls or ())
    if message.content is None and message.role != "assistant":
        raise RequestError(
            f"Invalid type for '{where}.content': expected a string or an array, but got null instead.",
            param=f"{where}.content",
            code="invalid_type",
        )
    if message.role == "tool" and message.tool_call_id is None:
        param = f"{where}.tool_call_id"
        raise RequestError(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
    role: Role = "system" if message.role == "developer" else message.role
    parts = _parts(message.content, where)
    return Turn(role, parts, message.name, calls, message.tool_call_id, reasoning=_reasoning(message))


def _reasoning(message: Message) -> tuple[Reasoning, ...]:
    """Thinking given back: sealed where the client kept the seal."""
    sealed = tuple(
        Reasoning(detail.text or "", detail.signature, detail.data)
        for detail in message.reasoning_details or ()
        if detail.text or detail.signature or detail.data
    )
    return sealed or ((Reasoning(message.reasoning_content),) if message.reasoning_content else ())


def _parts(content: str | list[ContentPart] | None, where: str) -> tuple[Part, ...]:
    if content is None:
        return ()
    if isinstance(content, str):
        return (TextPart(content),)
    return tuple(_part(part, f"{where}.content[{i}]") for i, part in enumerate(content))


def _part(part: ContentPart, where: str) -> Part:
    match part:
        case ContentPart(type="text", text=str(text)) | ContentPart(type="refusal", refusal=str(text)):
            return TextPart(text)
        case ContentPart(type="image_url", image_url=ImageUrl(url=url, detail=detail)):
            return ImagePart(url, detail)
        case ContentPart(type="file", file=File(filename=name, file_data=data, file_id=file_id)) if data or file_id:
            return FilePart(data or "", name, file_id)
        case ContentPart(type="text" | "refusal" | "image_url" | "file" as kind):
            param = f"{where}.{kind}"
            raise RequestError(
                f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter"
            )
    raise RequestError(
        f"Invalid value: {part.type[:50]!r}. Supported values are: 'text', 'image_url', 'file' and 'refusal'.",
        param=f"{where}.type",
        code="invalid_value",
    )


def _tools(given: list[ToolSpec]) -> tuple[tuple[Tool, ...], tuple[str, ...]]:
    """The functions, and the types of other tools."""
    tools, others = [], []
    for i, tool in enumerate(given):
        if tool.type != "function":
            others.append(clean(f"tools.{tool.type}"))
        elif tool.function is None:
            param = f"tools[{i}].function"
            raise RequestError(
                f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter"
            )
        else:
            spec = tool.function
            tools.append(Tool(spec.name, spec.description, spec.parameters, spec.strict))
    return tuple(tools), tuple(others)


def _choice(
    given: str | ForcedChoice | None, tools: tuple[Tool, ...]
) -> tuple[str | dict[str, Any] | None, tuple[Tool, ...]]:
    """The neutral choice, and the tools that remain to choose from."""
    match given:
        case None | str():
            check_needs_tools(given, tools, "tool_choice")
            return given, tools
        case ForcedChoice(type="function", function=NamedFunction(name=name)):
            return function_choice(name, tools, "tool_choice.function.name"), tools
        case ForcedChoice(type="allowed_tools", allowed_tools=AllowedTools(mode=mode, tools=named)):
            names = [tool.function.name for tool in named if tool.function is not None]
            return mode, allowed(names, tools, "tool_choice.allowed_tools.tools")
    raise RequestError(
        "Invalid 'tool_choice': expected 'none', 'auto', 'required', a function by its name, or allowed_tools.",
        param="tool_choice",
        code="invalid_value",
    )


DIALECT = Dialect(decode, "messages", NAME)
