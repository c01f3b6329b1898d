"""Responses of the reference server: https://platform.openai.com/docs/api-reference/responses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from freehold.certify.reference import model as lm
from freehold.certify.reference.refusals import Refusal, check_schema, need

CONTEXT_PARAM = {"chat": "messages", "responses": "input", "messages": None}


def read(body: dict[str, Any], stored: dict[str, list[lm.Turn]]) -> lm.Prompt:
    """A body as a prompt.

    Raises:
        Refusal: the body is wrong.
    """
    given = need(body, "input", "string", "array")
    turns: list[lm.Turn] = []
    previous = need(body, "previous_response_id", "string", required=False)
    if previous:
        if previous not in stored:
            raise Refusal("previous", "Previous response not found.", status=404, param="previous_response_id")
        turns += [turn for turn in stored[previous] if turn.role != "system"]
    if body.get("instructions"):
        turns.insert(0, lm.Turn("system", body["instructions"]))
    turns += [lm.Turn("user", given)] if isinstance(given, str) else _turns(given, turns)
    tools = {}
    for i, tool in enumerate(need(body, "tools", "array", required=False) or []):
        check_schema(tool.get("parameters") or {}, f"tools[{i}].parameters")
        tools[tool["name"]] = tool.get("parameters") or {"type": "object", "properties": {}}
    tools, choice = _choice(body.get("tool_choice"), tools)
    return lm.Prompt(
        model=need(body, "model", "string"), turns=turns, tools=tools, choice=choice,
        parallel=body.get("parallel_tool_calls") is not False,
        format=_format((body.get("text") or {}).get("format")),
        max_tokens=need(body, "max_output_tokens", "integer", required=False) or 512,
    )  # fmt: skip


def _turns(items: list[Any], before: list[lm.Turn]) -> list[lm.Turn]:
    turns: list[lm.Turn] = []
    known = {call[0] for turn in before for call in turn.calls}
    for i, item in enumerate(items):
        match item.get("type", "message"):
            case "message":
                content = item.get("content")
                text = content if isinstance(content, str) else "".join(part.get("text") or "" for part in content)
                turns.append(lm.Turn("system" if item["role"] == "developer" else item["role"], text))
            case "function_call":
                known.add(item["call_id"])
                turns.append(lm.Turn("assistant", calls=[(item["call_id"], item["name"], item["arguments"])]))
            case "function_call_output":
                if item.get("call_id") not in known:
                    raise Refusal("orphan", "No tool call found for this output.", param=f"input[{i}].call_id")
                turns.append(lm.Turn("tool", item["output"], call_id=item["call_id"]))
            case other:
                raise Refusal("value", f"Invalid value: {other!r}.", param=f"input[{i}].type", code="invalid_value")
    return turns


def _choice(given: Any, tools: dict[str, Any]) -> tuple[dict[str, Any], str]:
    if isinstance(given, dict) and given["type"] == "allowed_tools":
        names = [tool["name"] for tool in given["tools"]]
        return {name: schema for name, schema in tools.items() if name in names}, given["mode"]
    if isinstance(given, dict):
        return tools, given["name"]
    if given == "required" and not tools:
        raise Refusal("required without tools", "'tool_choice' needs 'tools'.", param="tool_choice")
    return tools, given or "auto"


def _format(given: Any) -> Any:
    match given:
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return "json"
        case {"type": "json_schema", "schema": schema}:
            check_schema(schema, "text.format")
            return schema
    raise Refusal("schema", "Invalid 'text.format'.", param="text.format", code="invalid_value")


def made(body: dict[str, Any], reply: lm.Reply, ids: Iterator[str], created: int) -> dict[str, Any]:
    """The response resource."""
    length = reply.finish == "length"
    status = "incomplete" if length else "completed"
    output: list[dict[str, Any]] = []
    if reply.reasoning:
        text = {"type": "reasoning_text", "text": "".join(reply.reasoning)}
        output.append({"id": "rs_" + next(ids), "type": "reasoning", "summary": [], "content": [text]})
    for name, arguments in reply.calls:
        output.append({"id": "fc_" + next(ids), "type": "function_call", "status": "completed",
                       "call_id": "call_" + next(ids), "name": name, "arguments": arguments})  # fmt: skip
    if reply.tokens or not output:
        part = {"type": "output_text", "text": reply.text, "annotations": [], "logprobs": []}
        output.append(
            {"id": "msg_" + next(ids), "type": "message", "role": "assistant", "status": status, "content": [part]}
        )
    return {
        "id": "resp_" + next(ids), "object": "response", "created_at": created, "status": status, "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if length else None,
        "instructions": body.get("instructions"), "max_output_tokens": body.get("max_output_tokens"),
        "model": body["model"], "output": output, "parallel_tool_calls": body.get("parallel_tool_calls") is not False,
        "previous_response_id": body.get("previous_response_id"), "reasoning": {"effort": None, "summary": None},
        "store": body.get("store") is not False, "temperature": body.get("temperature", 1.0),
        "text": body.get("text") or {"format": {"type": "text"}}, "tool_choice": body.get("tool_choice") or "auto",
        "tools": [{"description": None, "strict": None, "parameters": None} | tool for tool in body.get("tools") or []],
        "top_p": body.get("top_p", 1.0), "truncation": body.get("truncation") or "disabled", "usage": usage(reply),
        "user": body.get("user"), "metadata": body.get("metadata") or {},
    }  # fmt: skip


def usage(reply: lm.Reply) -> dict[str, Any]:
    """Tokens, as Responses counts them."""
    return {
        "input_tokens": reply.prompt_tokens, "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": reply.written, "output_tokens_details": {"reasoning_tokens": len(reply.reasoning)},
        "total_tokens": reply.prompt_tokens + reply.written,
    }  # fmt: skip


def turns_of(response: dict[str, Any]) -> list[lm.Turn]:
    """What a later request remembers of it."""
    turns = []
    for item in response["output"]:
        if item["type"] == "message":
            turns.append(lm.Turn("assistant", item["content"][0]["text"]))
        elif item["type"] == "function_call":
            turns.append(lm.Turn("assistant", calls=[(item["call_id"], item["name"], item["arguments"])]))
    return turns


def events(response: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The response as numbered events."""
    for number, (name, rest) in enumerate(_events(response)):
        yield name, {"type": name, "sequence_number": number} | rest


def _events(response: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    begun = response | {"status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
    yield "response.created", {"response": begun}
    yield "response.in_progress", {"response": begun}
    for index, item in enumerate(response["output"]):
        yield from _item(index, item)
    yield f"response.{response['status']}", {"response": response}


_NOTHING: dict[str, Any] = {"content": []}


def _item(index: int, item: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    empty = item | {"status": "in_progress"}
    empty |= {"arguments": ""} if item["type"] == "function_call" else _NOTHING
    where = {"item_id": item["id"], "output_index": index}
    yield "response.output_item.added", {"output_index": index, "item": empty}
    if item["type"] == "function_call":
        for token in lm.tokenize(item["arguments"]):
            yield "response.function_call_arguments.delta", where | {"delta": token}
        yield "response.function_call_arguments.done", where | {"arguments": item["arguments"], "name": item["name"]}
    elif item["type"] == "reasoning":
        text = item["content"][0]["text"]
        for token in lm.tokenize(text):
            yield "response.reasoning_text.delta", where | {"content_index": 0, "delta": token}
        yield "response.reasoning_text.done", where | {"content_index": 0, "text": text}
    else:
        part = item["content"][0]
        where = where | {"content_index": 0}
        yield "response.content_part.added", where | {"part": part | {"text": ""}}
        for token in lm.tokenize(part["text"]):
            yield "response.output_text.delta", where | {"delta": token, "logprobs": []}
        yield "response.output_text.done", where | {"text": part["text"], "logprobs": []}
        yield "response.content_part.done", where | {"part": part}
    yield "response.output_item.done", {"output_index": index, "item": item}


def failed(begun: list[tuple[str, Any]]) -> tuple[str, Any]:
    """The event that ends a broken stream."""
    error = {"code": "server_error", "message": "The model has failed."}
    response = begun[0][1]["response"] | {"status": "failed", "error": error}
    return "response.failed", {"type": "response.failed", "sequence_number": len(begun), "response": response}
