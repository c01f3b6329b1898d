"""Anthropic Messages seen from the other side: neutral requests to bodies.

A client's own Messages body passes through as it came: only the model, the stream and what the router took away are
changed. Knows no HTTP. Format: https://platform.claude.com/docs/en/api/messages.
"""

from __future__ import annotations

from typing import Any

import msgspec

from freehold.gateway.backends.anthropic_events import MessageReader
from freehold.gateway.backends.anthropic_turns import Translator
from freehold.gateway.backends.splice import JsonObject
from freehold.gateway.conversation import Request
from freehold.gateway.failures import CapabilityError

VERSION = "2023-06-01"  # https://platform.claude.com/docs/en/api/versioning
DIALECT = "anthropic_messages"
DEFAULT_MAX_TOKENS = 4096
"""When the client gives no limit, which Anthropic demands: the smallest maximum among its models' (Claude 3's,
https://platform.claude.com/docs/en/about-claude/models/overview), so that every one of them takes it."""
SMALLEST_BUDGET = 1024  # tokens of thinking: https://platform.claude.com/docs/en/build-with-claude/extended-thinking

_NO_SUCH = ("min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed")
_OWN_SAMPLING = ("temperature", "top_p", "top_k")


class AnthropicWire:
    """Asks as Anthropic's API wants it.

    Args:
        name: the upstream's, for errors.
        max_tokens: when the client gives no limit; 0 = DEFAULT_MAX_TOKENS.
    """

    def __init__(self, name: str, max_tokens: int = 0) -> None:
        self._name = name
        self._max_tokens = max_tokens or DEFAULT_MAX_TOKENS

    def check(self, request: Request) -> None:
        """There are no raw completions, and one answer at a time."""
        refused = {
            "prompt": bool(request.prompts),
            "n": request.n != 1,
            "messages": not any(turn.role != "system" for turn in request.turns),
        }
        for param, is_refused in refused.items():
            if is_refused:
                text = (
                    f"The upstream '{self._name}' speaks Anthropic's dialect, which can't be asked for this '{param}'."
                )
                raise CapabilityError(text, param=param)
        if request.continue_from != request.continue_from.rstrip():
            raise CapabilityError(f"The upstream '{self._name}' can't go on behind white space.")
        Translator(request).check()

    def path(self, request: Request) -> str:
        """The only one."""
        return "/messages"

    def headers(self, key: str) -> dict[str, str]:
        """Key and version."""
        return {"anthropic-version": VERSION} | ({"x-api-key": key} if key else {})

    def body(self, request: Request) -> bytes:
        """The client's own body where it can be used, else one with what the neutral request says."""
        own = relayed(request)
        return msgspec.json.encode(self._encoded(request)) if own is None else own

    def counted_body(self, request: Request) -> bytes:
        """The same for a count of its tokens, which knows only what the prompt consists of."""
        whole = self._encoded(request)
        counted = ("model", "messages", "system", "tools", "tool_choice", "thinking")
        return msgspec.json.encode({name: whole[name] for name in counted if name in whole})

    def reader(self, request: Request) -> MessageReader:
        """For the events of one message."""
        return MessageReader(request, self._name)

    def dropped(self, request: Request) -> tuple[str, ...]:
        """See `Wire.dropped`."""
        return () if relayed(request) is not None else (*request.dropped, *carried(request))

    def _encoded(self, request: Request) -> dict[str, Any]:
        translator = Translator(request)
        thinking = budget(request)
        room = request.max_tokens or self._max_tokens + (thinking or 0)
        body: dict[str, Any] = {"model": request.model, "max_tokens": room, "stream": True}
        if system := translator.system():
            body["system"] = system
        body["messages"] = translator.messages()
        if request.stop:
            body["stop_sequences"] = [stop for stop in request.stop if stop.strip()]
        if request.user is not None:
            body["metadata"] = {"user_id": request.user}
        if thinking is not None:
            body["thinking"] = {"type": "enabled", "budget_tokens": thinking}
        if schema := _schema(request):
            body["output_config"] = {"format": {"type": "json_schema", "schema": schema}}
        return body | _sampling(request) | _tools(request)


def carried(request: Request) -> tuple[str, ...]:
    """Names what the neutral request asks for and Anthropic can't be told; the rest is carried."""
    lost = {name: getattr(request.sampling, name) is not None for name in _NO_SUCH}
    sampling = _sampling(request)
    for name in _OWN_SAMPLING:
        lost[name] = getattr(request.sampling, name) not in (None, sampling.get(name))
    effort = request.reasoning_effort not in (None, "none") and budget(request) is None
    lost |= {
        "logit_bias": bool(request.sampling.logit_bias),
        "logprobs": request.logprobs is not None,
        "stop": any(not stop.strip() for stop in request.stop),
        "response_format": request.response_format is not None and not _schema(request),
        "reasoning_effort": effort,
        "thinking.budget_tokens": request.reasoning_budget is not None and budget(request) != request.reasoning_budget,
        "tool_choice": request.tool_choice is not None and bool(request.tools) and _choice(request) is None,
    }
    return (*(name for name, is_lost in lost.items() if is_lost), *Translator(request).lost())


def relayed(request: Request) -> bytes | None:
    """The client's own body with our model in it; None where it no longer says what is asked.

    Thinking without a seal was another backend's, and Anthropic refuses it: such a body is written anew.
    """
    if request.dialect != DIALECT or not request.body:
        return None
    unsealed = any(not (r.signature or r.redacted) for turn in request.turns for r in turn.reasoning)
    try:
        own = JsonObject(request.body)
    except ValueError:
        return None
    if unsealed or request.continue_from != _prefill(own):
        return None
    changes: dict[str, bytes | None] = {"model": msgspec.json.encode(request.model), "stream": b"true"}
    if request.max_tokens is not None:
        changes["max_tokens"] = msgspec.json.encode(request.max_tokens)
    for name in _OWN_SAMPLING:
        if getattr(request.sampling, name) is None and name in own.values:
            changes[name] = None
    same = {name for name, value in changes.items() if value is not None and bytes(own.values.get(name, b"")) == value}
    return own.spliced({name: value for name, value in changes.items() if name not in same})


def _prefill(own: JsonObject) -> str:
    """The text of a last turn of the assistant's, which is the beginning of the answer."""
    messages = own.get("messages")
    last = messages[-1] if isinstance(messages, list) and len(messages) > 1 else {}
    if not isinstance(last, dict) or last.get("role") != "assistant":
        return ""
    content = last.get("content")
    if isinstance(content, str):
        return content
    blocks = [block for block in content or () if isinstance(block, dict)]
    return "".join(b["text"] for b in blocks) if all(b.get("type") == "text" for b in blocks) else ""


def budget(request: Request) -> int | None:
    """Tokens of thinking to ask for; None = don't.

    Anthropic demands at least 1024, fewer than `max_tokens`, no prefill, no tool that must be used, and, in a tool loop,
    the sealed thinking that began it, which an answer of another backend does not have.
    """
    asked = request.reasoning_budget
    if asked is None or asked < SMALLEST_BUDGET or request.continue_from:
        return None
    if request.max_tokens is not None and asked >= request.max_tokens:
        return None
    if request.wants_tools and request.tool_choice not in (None, "auto"):
        return None
    return None if Translator(request).in_foreign_loop() else asked


def _sampling(request: Request) -> dict[str, Any]:
    """Sampling as Anthropic allows it: temperature up to 1, not together with top_p, and neither of them, nor top_k,
    beside thinking (https://platform.claude.com/docs/en/build-with-claude/extended-thinking)."""
    asked = request.sampling
    if budget(request) is not None:
        return {}
    found: dict[str, Any] = {}
    if asked.temperature is not None:
        found["temperature"] = min(asked.temperature, 1.0)
    elif asked.top_p is not None:
        found["top_p"] = asked.top_p
    if asked.top_k is not None:
        found["top_k"] = asked.top_k
    return found


def _schema(request: Request) -> dict[str, Any] | None:
    """The JSON schema of the answer (https://platform.claude.com/docs/en/build-with-claude/structured-outputs)."""
    described = (request.response_format or {}).get("json_schema")
    schema = described.get("schema") if isinstance(described, dict) else None
    return schema if isinstance(schema, dict) else None


def _tools(request: Request) -> dict[str, Any]:
    if not request.tools:
        return {}
    tools = []
    for tool in request.tools:
        spec: dict[str, Any] = {"name": tool.name, "input_schema": tool.parameters or {"type": "object"}}
        if tool.description is not None:
            spec["description"] = tool.description
        if tool.strict is not None:
            spec["strict"] = tool.strict
        tools.append(spec)
    choice = _choice(request)
    if request.parallel_tool_calls is False and (choice or {}).get("type") != "none":
        choice = (choice or {"type": "auto"}) | {"disable_parallel_tool_use": True}
    return {"tools": tools} | ({"tool_choice": choice} if choice else {})


def _choice(request: Request) -> dict[str, Any] | None:
    chosen = request.tool_choice
    if isinstance(chosen, str):
        name = {"auto": "auto", "required": "any", "none": "none"}.get(chosen)
        return {"type": name} if name else None
    function = (chosen or {}).get("function")
    if isinstance(function, dict) and isinstance(function.get("name"), str):
        return {"type": "tool", "name": function["name"]}
    return None
