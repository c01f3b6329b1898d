"""Turns, tools and earlier calls as a chat template wants them, or as text where it can't have them.

Templates disagree: most want a call's arguments as an object, DeepSeek's as text, Mistral's wants ids of nine characters,
Llama's one call per turn. So the ways are tried in order, and a model whose template knows no tools is told of them in a
system prompt in the format of Hermes 2 Pro (https://github.com/NousResearch/Hermes-Function-Calling). Knows no tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from freehold.errors import TemplateError
from freehold.gateway.conversation import Request, Tool, ToolCall, Turn
from freehold.gateway.toolformats.marks import Family

Render = Callable[[list[dict[str, Any]], list[dict[str, Any]] | None], str]

INSTRUCTION = """You may call functions to help with the user's request. These are their signatures:
<tools>
{tools}
</tools>
To call a function, answer with its name and arguments as JSON, each call between tags of its own:
<tool_call>
{{"name": "NAME", "arguments": {{...}}}}
</tool_call>"""


def render(family: Family, request: Request, template: Render) -> str:
    """The prompt.

    Args:
        template: renders messages and tools.

    Raises:
        TemplateError: the template refuses the conversation in every form.
    """
    failures: list[TemplateError] = []
    for messages, tools in _ways(family, request):
        try:
            return template(messages, tools)
        except TemplateError as error:
            failures.append(error)
    raise failures[0]


def _ways(family: Family, request: Request) -> Iterator[tuple[list[dict[str, Any]], list[dict[str, Any]] | None]]:
    """Messages and tools, the likeliest to be right first."""
    tools = [specification(tool) for tool in request.tools] if request.wants_tools else []
    history = any(turn.tool_calls or turn.role == "tool" for turn in request.turns)
    if family.native or not (tools or history):
        short = family.kind == "mistral"
        yield [_message(turn, request.turns, short) for turn in request.turns], tools or None
        if history:
            yield [_message(turn, request.turns, short, as_text=True) for turn in request.turns], tools or None
    if tools or history:
        yield _told(request.turns, tools, "system"), None
        yield _told(request.turns, tools, "user"), None


def specification(tool: Tool) -> dict[str, Any]:
    """A tool as OpenAI's API and chat templates describe it."""
    function: dict[str, Any] = {"name": tool.name, "description": tool.description or ""}
    function["parameters"] = tool.parameters or {"type": "object", "properties": {}}
    return {"type": "function", "function": function}


def _message(turn: Turn, turns: Sequence[Turn], short: bool, *, as_text: bool = False) -> dict[str, Any]:
    """A turn as chat templates that know tools expect it."""
    message: dict[str, Any] = {"role": turn.role, "content": turn.text}
    if turn.name is not None:
        message["name"] = turn.name
    if turn.tool_calls:
        message["tool_calls"] = [_call(call, short, as_text) for call in turn.tool_calls]
    if turn.tool_call_id is not None:
        message["tool_call_id"] = _id(turn.tool_call_id, short)
        name = next((c.name for t in turns for c in t.tool_calls if c.id == turn.tool_call_id), None)
        if name is not None:
            message.setdefault("name", name)
    thought = "".join(part.text for part in turn.reasoning)
    if thought:
        message["reasoning_content"] = thought
    return message


def _call(call: ToolCall, short: bool, as_text: bool) -> dict[str, Any]:
    arguments = call.arguments if as_text else _object(call.arguments)
    return {"id": _id(call.id, short), "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _object(arguments: str) -> Any:
    """Arguments as an object, when they are one."""
    try:
        found = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return found if isinstance(found, dict) else arguments


def _id(id: str, short: bool) -> str:
    """Mistral's templates refuse ids that are not nine letters and digits."""
    if not short or (len(id) == 9 and id.isalnum()):
        return id
    return hashlib.sha256(id.encode()).hexdigest()[:9]


def _told(turns: Sequence[Turn], tools: list[dict[str, Any]], role: str) -> list[dict[str, Any]]:
    """Everything as text: tools in the first message of `role`, calls and results between tags."""
    messages: list[dict[str, Any]] = []
    for turn in turns:
        calls = "\n".join(
            f"<tool_call>\n{json.dumps({'name': c.name, 'arguments': _object(c.arguments)}, ensure_ascii=False)}\n</tool_call>"
            for c in turn.tool_calls
        )
        content = "\n".join(part for part in (turn.text, calls) if part)
        spoken = turn.role
        if turn.role == "tool":
            spoken, content = "user", f"<tool_response>\n{turn.text}\n</tool_response>"
            if messages and messages[-1]["role"] == "user" and messages[-1]["content"].endswith("</tool_response>"):
                messages[-1]["content"] += "\n" + content  # answers to parallel calls are one turn
                continue
        messages.append({"role": spoken, "content": content})
    if not tools:
        return messages
    text = INSTRUCTION.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
    first = next((message for message in messages if message["role"] == role), None)
    if first is not None:
        first["content"] = f"{first['content']}\n\n{text}" if role == "system" else f"{text}\n\n{first['content']}"
    else:
        messages.insert(0, {"role": role, "content": text})
    return messages
