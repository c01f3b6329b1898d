"""Chat Completions of the reference server: https://platform.openai.com/docs/api-reference/chat."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from freehold.certify.reference import model as lm
from freehold.certify.reference.refusals import Refusal, check_schema, need

FINISH = {"stop": "stop", "length": "length", "calls": "tool_calls"}


def read(body: dict[str, Any]) -> lm.Prompt:
    """A body as a prompt.

    Raises:
        Refusal: the body is wrong.
    """
    messages = need(body, "messages", "array")
    if not messages:
        raise Refusal("missing", "'messages' is empty.", param="messages")
    tools = {}
    for i, tool in enumerate(need(body, "tools", "array", required=False) or []):
        spec = tool["function"]
        check_schema(spec.get("parameters") or {}, f"tools[{i}].function.parameters")
        tools[spec["name"]] = spec.get("parameters") or {"type": "object", "properties": {}}
    stop = need(body, "stop", "string", "array", required=False) or []
    return lm.Prompt(
        model=need(body, "model", "string"),
        turns=_turns(messages),
        tools=tools,
        choice=_choice(body.get("tool_choice"), tools),
        parallel=body.get("parallel_tool_calls") is not False,
        format=_format(body.get("response_format")),
        max_tokens=need(body, "max_completion_tokens", "integer", required=False)
        or need(body, "max_tokens", "integer", required=False)
        or 512,
        stop=[stop] if isinstance(stop, str) else stop,
        seed=body.get("seed"),
        bias=need(body, "logit_bias", "object", required=False) or {},
    )


def _turns(messages: list[Any]) -> list[lm.Turn]:
    turns: list[lm.Turn] = []
    known: set[str] = set()
    for i, message in enumerate(messages):
        role = message.get("role")
        if role not in ("system", "developer", "user", "assistant", "tool"):
            raise Refusal("value", f"Invalid value: {role!r}.", param=f"messages[{i}].role", code="invalid_value")
        turn = lm.Turn(
            "system" if role == "developer" else role, text_of(message.get("content"), f"messages[{i}].content")
        )
        for call in message.get("tool_calls") or []:
            turn.calls.append((call["id"], call["function"]["name"], call["function"]["arguments"]))
            known.add(call["id"])
        if role == "tool" and message.get("tool_call_id") not in known:
            raise Refusal("orphan", "'tool_call_id' answers no call.", param=f"messages[{i}].tool_call_id")
        turns.append(turn)
    return turns


def text_of(content: Any, where: str) -> str:
    """Content as text, whether a string or parts."""
    if isinstance(content, list):
        return "".join(part.get("text") or "" for part in content)
    if content is not None and not isinstance(content, str):
        raise Refusal("type", f"Invalid type for '{where}'.", param=where, code="invalid_type")
    return content or ""


def _choice(given: Any, tools: dict[str, Any]) -> str:
    if isinstance(given, dict):
        given = given["function"]["name"]
        if given not in tools:
            raise Refusal("choice", "'tool_choice' names no tool.", param="tool_choice")
    if given == "required" and not tools:
        raise Refusal("required without tools", "'tool_choice' needs 'tools'.", param="tool_choice")
    return given or "auto"


def _format(given: Any) -> Any:
    match given:
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return "json"
        case {"type": "json_schema", "json_schema": {"schema": schema}}:
            check_schema(schema, "response_format")
            return schema
    raise Refusal("schema", "Invalid 'response_format'.", param="response_format", code="invalid_value")


def usage(reply: lm.Reply, count: int = 1) -> dict[str, Any]:
    """Tokens, as Chat counts them."""
    written = reply.written * count
    return {
        "prompt_tokens": reply.prompt_tokens, "completion_tokens": written,
        "total_tokens": reply.prompt_tokens + written, "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": len(reply.reasoning) * count},
    }  # fmt: skip


def _token(tokens: list[str], index: int, count: int) -> dict[str, Any]:
    def entry(text: str, value: float) -> dict[str, Any]:
        return {"token": text, "logprob": value, "bytes": list(text.encode())}

    top = [entry(*pair) for pair in lm.alternatives(tokens, index, count)]
    return entry(tokens[index], lm.logprob(tokens, index)) | {"top_logprobs": top}


def _logprobs(body: dict[str, Any], tokens: list[str], first: int = 0, last: int | None = None) -> Any:
    if not body.get("logprobs"):
        return None
    last = len(tokens) if last is None else last
    return {"content": [_token(tokens, i, body.get("top_logprobs") or 0) for i in range(first, last)], "refusal": None}


def whole(body: dict[str, Any], reply: lm.Reply, ids: Iterator[str], created: int) -> dict[str, Any]:
    """The answer in one piece."""
    choices = []
    for index in range(body.get("n") or 1):
        message: dict[str, Any] = {"role": "assistant", "content": None if reply.calls else reply.text, "refusal": None}
        if reply.calls:
            message["tool_calls"] = [
                {"id": next(ids), "type": "function", "function": {"name": name, "arguments": arguments}}
                for name, arguments in reply.calls
            ]
        if reply.reasoning:
            message["reasoning_content"] = "".join(reply.reasoning)
        choices.append(
            {
                "index": index,
                "message": message,
                "logprobs": _logprobs(body, reply.tokens),
                "finish_reason": FINISH[reply.finish],
            }
        )
    return {
        "id": "chatcmpl-" + next(ids), "object": "chat.completion", "created": created, "model": body["model"],
        "choices": choices, "usage": usage(reply, len(choices)),
    }  # fmt: skip


def stream(body: dict[str, Any], reply: lm.Reply, ids: Iterator[str], created: int) -> Iterator[tuple[str, Any]]:
    """The answer in chunks."""
    head = {
        "id": "chatcmpl-" + next(ids),
        "object": "chat.completion.chunk",
        "created": created,
        "model": body["model"],
    }
    counted = (body.get("stream_options") or {}).get("include_usage")
    rest = {"usage": None} if counted else {}
    count = body.get("n") or 1

    def chunk(index: int, delta: dict[str, Any], finish: str | None = None, logprobs: Any = None) -> tuple[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return "", head | {"choices": [choice]} | rest

    for index in range(count):
        yield chunk(index, {"role": "assistant", "content": ""})
        for token in reply.reasoning:
            yield chunk(index, {"reasoning_content": token})
        for i, token in enumerate(reply.tokens):
            yield chunk(index, {"content": token}, logprobs=_logprobs(body, reply.tokens, i, i + 1))
        for number, (name, arguments) in enumerate(reply.calls):
            function = {"name": name, "arguments": ""}
            yield chunk(
                index, {"tool_calls": [{"index": number, "id": next(ids), "type": "function", "function": function}]}
            )
            for token in lm.tokenize(arguments):
                yield chunk(index, {"tool_calls": [{"index": number, "function": {"arguments": token}}]})
        yield chunk(index, {}, FINISH[reply.finish])
    if counted:
        yield "", head | {"choices": [], "usage": usage(reply, count)}
    yield "", "[DONE]"
