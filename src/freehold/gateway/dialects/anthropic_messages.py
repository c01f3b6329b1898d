"""Anthropic Messages (https://platform.claude.com/docs/en/api/messages): bodies to neutral requests.

A tool's result, which Anthropic puts into the user's turn, becomes a turn of its own. Knows the wire format only; the
answers are written by `anthropic_encoder`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from freehold.gateway.conversation import (
    FilePart,
    ImagePart,
    Part,
    Reasoning,
    Request,
    Sampling,
    TextPart,
    Tool,
    ToolCall,
    Turn,
)
from freehold.gateway.dialects import Dialect
from freehold.gateway.dialects import body as bodies
from freehold.gateway.dialects.anthropic_encoder import MessagesEncoder
from freehold.gateway.dialects.leftovers import clean, unknown
from freehold.gateway.dialects.neutral import check_needs_tools, function_choice
from freehold.gateway.dialects.openai_fields import Stop
from freehold.gateway.failures import RequestError

NAME = "anthropic_messages"
MAX_STOPS = 64
EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}
SMALLEST_BUDGET = 1024  # https://platform.claude.com/docs/en/build-with-claude/extended-thinking


class Base64Source(msgspec.Struct, tag="base64", tag_field="type"):
    """Bytes of a file."""

    media_type: str
    data: str


class UrlSource(msgspec.Struct, tag="url", tag_field="type"):
    """A file elsewhere."""

    url: str


class TextSource(msgspec.Struct, tag="text", tag_field="type"):
    """A document that is text."""

    data: str
    media_type: str | None = None


class TextBlock(msgspec.Struct, tag="text", tag_field="type"):
    """Text."""

    text: str


class ImageBlock(msgspec.Struct, tag="image", tag_field="type"):
    """An image."""

    source: Base64Source | UrlSource


class FileSource(msgspec.Struct, tag="file", tag_field="type"):
    """A document that Anthropic has already."""

    file_id: str


class ContentSource(msgspec.Struct, tag="content", tag_field="type"):
    """A document in pieces."""

    content: str | list[TextBlock | ImageBlock]


class DocumentBlock(msgspec.Struct, tag="document", tag_field="type"):
    """A document; plain text goes on as text, everything else as it is."""

    source: Base64Source | UrlSource | TextSource | FileSource | ContentSource
    title: str | None = None
    context: str | None = None


class ToolUseBlock(msgspec.Struct, tag="tool_use", tag_field="type"):
    """A call the assistant made."""

    id: str
    name: str
    input: dict[str, Any]


class ToolResultBlock(msgspec.Struct, tag="tool_result", tag_field="type"):
    """What a tool answered."""

    tool_use_id: str
    content: str | list[TextBlock | ImageBlock | DocumentBlock] | None = None
    is_error: bool | None = None


class ThinkingBlock(msgspec.Struct, tag="thinking", tag_field="type"):
    """Thinking of an earlier turn."""

    thinking: str
    signature: str | None = None


class RedactedThinkingBlock(msgspec.Struct, tag="redacted_thinking", tag_field="type"):
    """Thinking that only the provider can read."""

    data: str


Block: TypeAlias = (
    TextBlock | ImageBlock | DocumentBlock | ToolUseBlock | ToolResultBlock | ThinkingBlock | RedactedThinkingBlock
)


class Message(msgspec.Struct):
    """One turn; Claude Code puts instructions between turns, as `system`."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class ToolSpec(msgspec.Struct):
    """A tool: the client's own, or one of Anthropic's by its `type`."""

    name: str
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None


class ToolChoice(msgspec.Struct):
    """Which tool must be used."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(msgspec.Struct):
    """Whether to think, and for how long."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int, msgspec.Meta(ge=SMALLEST_BUDGET, le=1 << 31)] | None = None


class Metadata(msgspec.Struct):
    """About the request."""

    user_id: str | None = None


class OutputFormat(msgspec.Struct):
    """Structured output."""

    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(msgspec.Struct):
    """Effort and format of the answer."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class CountBody(msgspec.Struct, kw_only=True):
    """The body of POST /v1/messages/count_tokens."""

    model: Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
    messages: Annotated[list[Message], msgspec.Meta(min_length=1)]
    system: str | list[TextBlock] | None = None
    tools: list[ToolSpec] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None


class MessagesBody(CountBody, kw_only=True):
    """The body of POST /v1/messages."""

    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=1 << 31)]
    stop_sequences: Annotated[list[Stop], msgspec.Meta(max_length=MAX_STOPS)] | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, msgspec.Meta(ge=0, le=1 << 31)] | None = None
    metadata: Metadata | None = None
    stream: bool | None = None


def decode(body: bytes, request_id: str) -> tuple[Request, MessagesEncoder]:
    """A body as a neutral request, and the encoder that answers it.

    Raises:
        RequestError: names the field at fault.
    """
    fields = bodies.decode(body, MessagesBody)
    budget = fields.thinking.budget_tokens if fields.thinking else None
    if budget is not None and budget >= fields.max_tokens:
        raise RequestError(
            "'max_tokens' must be greater than 'thinking.budget_tokens'.", param="max_tokens", code="invalid_value"
        )
    request = replace(
        _common(fields, request_id, unknown(body, MessagesBody)),
        sampling=Sampling(temperature=fields.temperature, top_p=fields.top_p, top_k=fields.top_k),
        stop=tuple(stop for stop in fields.stop_sequences or () if stop),
        max_tokens=fields.max_tokens,
        user=fields.metadata.user_id if fields.metadata else None,
        stream=bool(fields.stream),
        reasoning_budget=budget,
        body=body,
    )
    return request, MessagesEncoder(request)


def decode_count(body: bytes, request_id: str) -> Request:
    """The body of a request for a count of its tokens."""
    return replace(_common(bodies.decode(body, CountBody), request_id, unknown(body, MessagesBody)), body=body)


def _common(fields: CountBody, request_id: str, lost: tuple[str, ...]) -> Request:
    """What a message and the count of its tokens have in common."""
    tools, hosted = _tools(fields.tools or [])
    system = (Turn("system", tuple(_parts(fields.system))),) if fields.system else ()
    turns = [turn for i, message in enumerate(fields.messages) for turn in _turns(message, i)]
    prefill = _prefill(turns)
    if not turns:
        raise RequestError("Invalid 'messages': no message has content.", param="messages", code="invalid_value")
    config = fields.output_config or OutputConfig()
    effort = "none" if fields.thinking and fields.thinking.type == "disabled" else None
    if config.effort is not None and effort is None:
        effort = EFFORTS[config.effort]
        lost += ("output_config.effort",) if effort != config.effort else ()
    schema = None if config.format is None else {"name": "output", "schema": config.format.schema, "strict": True}
    return Request(
        id=request_id,
        model=fields.model,
        turns=system + tuple(turns[:-1] if prefill else turns),
        tools=tools,
        tool_choice=_choice(fields.tool_choice, tools),
        parallel_tool_calls=False if fields.tool_choice and fields.tool_choice.disable_parallel_tool_use else None,
        response_format=None if schema is None else {"type": "json_schema", "json_schema": schema},
        reasoning_effort=effort,
        dialect=NAME,
        dropped=lost + hosted,
        continue_from=prefill,
    )


def _prefill(turns: list[Turn]) -> str:
    """A last turn of the assistant is the beginning of the answer, and not repeated in it."""
    last = turns[-1] if len(turns) > 1 else None
    if last is None or last.role != "assistant" or last.tool_calls or last.reasoning:
        return ""
    return last.text


def _tools(given: list[ToolSpec]) -> tuple[tuple[Tool, ...], tuple[str, ...]]:
    """The client's own tools, and the names of those that only Anthropic can run."""
    tools, hosted = [], []
    for i, tool in enumerate(given):
        if tool.type not in (None, "custom"):
            hosted.append(clean(f"tools.{tool.type}"))
        elif tool.input_schema is None:
            param = f"tools[{i}].input_schema"
            raise RequestError(
                f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter"
            )
        else:
            tools.append(Tool(tool.name, tool.description, tool.input_schema, tool.strict))
    return tuple(tools), tuple(hosted)


def _choice(choice: ToolChoice | None, tools: tuple[Tool, ...]) -> str | dict[str, Any] | None:
    if choice is None:
        return None
    if choice.type == "tool":
        if choice.name is None:
            raise RequestError(
                "Missing required parameter: 'tool_choice.name'.",
                param="tool_choice.name",
                code="missing_required_parameter",
            )
        return function_choice(choice.name, tools, "tool_choice.name")
    found = {"any": "required"}.get(choice.type, choice.type)
    check_needs_tools(found, tools, "tool_choice")
    return found


def _turns(message: Message, index: int) -> Iterator[Turn]:
    """A message as turns: each tool result by itself, in order with what stands around it."""
    if isinstance(message.content, str):
        yield Turn(message.role, (TextPart(message.content),))
        return
    rest: list[Block] = []
    for j, block in enumerate(message.content):
        _check_role(block, message.role, f"messages[{index}].content[{j}]")
        if not isinstance(block, ToolResultBlock):
            rest.append(block)
            continue
        if rest:
            yield _turn(message.role, rest)
            rest = []
        parts = tuple(_parts(block.content or ""))
        yield Turn("tool", parts, tool_call_id=block.tool_use_id, failed=bool(block.is_error))
    if rest:
        yield _turn(message.role, rest)


def _check_role(block: Block, role: str, where: str) -> None:
    theirs = {ToolResultBlock: "user", ImageBlock: "user", DocumentBlock: "user"}
    ours = dict.fromkeys((ToolUseBlock, ThinkingBlock, RedactedThinkingBlock), "assistant")
    owner = (theirs | ours).get(type(block), role)
    if owner != role:
        raise RequestError(
            f"Invalid value for '{where}.type': such a block belongs to the {owner}, but the role is {role}.",
            param=f"{where}.type",
            code="invalid_value",
        )


def _turn(role: Literal["user", "assistant", "system"], blocks: list[Block]) -> Turn:
    calls = [b for b in blocks if isinstance(b, ToolUseBlock)]
    return Turn(
        role,
        tuple(_parts([b for b in blocks if isinstance(b, (TextBlock, ImageBlock, DocumentBlock))])),
        tool_calls=tuple(ToolCall(b.id, b.name, msgspec.json.encode(b.input).decode()) for b in calls),
        reasoning=tuple(_reasoning(b) for b in blocks if isinstance(b, (ThinkingBlock, RedactedThinkingBlock))),
    )


def _reasoning(block: ThinkingBlock | RedactedThinkingBlock) -> Reasoning:
    if isinstance(block, ThinkingBlock):
        return Reasoning(block.thinking, block.signature or None)
    return Reasoning(redacted=block.data)


def _parts(content: str | list[Any]) -> Iterator[Part]:
    if isinstance(content, str):
        yield TextPart(content)
        return
    for block in content:
        match block:
            case TextBlock():
                yield TextPart(block.text)
            case DocumentBlock():
                yield from _document(block)
            case ImageBlock(source=UrlSource(url=url)):
                yield ImagePart(url)
            case ImageBlock(source=Base64Source(media_type=kind, data=data)):
                yield ImagePart(f"data:{kind};base64,{data}")


def _document(block: DocumentBlock) -> Iterator[Part]:
    about = [text for text in (block.title, block.context) if text]
    match block.source:
        case TextSource(data=data) | ContentSource(content=str(data)):
            yield TextPart("\n".join([*about, data]))
        case ContentSource(content=pieces):
            if about:
                yield TextPart("\n".join(about))
            yield from _parts(pieces)
        case UrlSource(url=url):
            yield FilePart(url, block.title, context=block.context)
        case FileSource(file_id=file_id):
            yield FilePart("", block.title, file_id, block.context)
        case Base64Source(media_type=kind, data=data):
            yield FilePart(f"data:{kind};base64,{data}", block.title, context=block.context)


DIALECT = Dialect(decode, "messages", NAME)
