"""Messages of the reference server: https://docs.claude.com/en/api/messages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from freehold.certify.reference import model as lm
from freehold.certify.reference.refusals import Refusal, check_schema, need

FINISH = {"stop": "end_turn", "length": "max_tokens", "calls": "tool_use"}


def read(body: dict[str, Any], version: str | None, *, counting: bool = False) -> lm.Prompt:
    """A body as a prompt.

    Raises:
        Refusal: the body is wrong, or the version header is missing.
    """
    if not version:
        raise Refusal("version", "anthropic-version: header is required")
    messages = need(body, "messages", "array")
    turns = []
    if system := need(body, "system", "string", "array", required=False):
        turns.append(lm.Turn("system", system if isinstance(system, str) else "".join(part["text"] for part in system)))
    turns += _turns(messages)
    tools = {}
    for i, tool in enumerate(need(body, "tools", "array", required=False) or []):
        check_schema(tool.get("input_schema"), f"tools.{i}.input_schema")
        tools[tool["name"]] = tool["input_schema"]
    choice = body.get("tool_choice") or {"type": "auto"}
    kinds = {"auto": "auto", "any": "required", "none": "none", "tool": choice.get("name", "")}
    return lm.Prompt(
        model=need(body, "model", "string"), turns=turns, tools=tools, choice=kinds[choice["type"]],
        parallel=not choice.get("disable_parallel_tool_use"),
        max_tokens=0 if counting else need(body, "max_tokens", "integer"),
        stop=need(body, "stop_sequences", "array", required=False) or [],
    )  # fmt: skip


def _turns(messages: list[Any]) -> list[lm.Turn]:
    turns: list[lm.Turn] = []
    known: set[str] = set()
    for i, message in enumerate(messages):
        content = message.get("content")
        if not isinstance(content, (str, list)):
            raise Refusal("type", f"messages.{i}.content: Input should be a valid list", param=f"messages.{i}.content")
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        said = lm.Turn(message["role"])
        for block in blocks:
            if block["type"] == "tool_use":
                known.add(block["id"])
                said.calls.append((block["id"], block["name"], json.dumps(block["input"])))
            elif block["type"] == "tool_result":
                if block["tool_use_id"] not in known:
                    raise Refusal("orphan", f"messages.{i}: unexpected tool_use_id", param=f"messages.{i}")
                turns.append(lm.Turn("tool", _text(block.get("content")), call_id=block["tool_use_id"]))
            else:
                said.text += block.get("text") or ""
        if said.text or said.calls:
            turns.append(said)
    return turns


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part.get("text") or "" for part in content or [])


def _head(body: dict[str, Any], ids: Iterator[str]) -> dict[str, Any]:
    return {"id": "msg_" + next(ids), "type": "message", "role": "assistant", "model": body["model"]}


def _ending(reply: lm.Reply) -> dict[str, Any]:
    reason = "stop_sequence" if reply.stopped_by is not None else FINISH[reply.finish]
    return {"stop_reason": reason, "stop_sequence": reply.stopped_by}


def _blocks(reply: lm.Reply, ids: Iterator[str]) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if reply.reasoning:
        blocks.append({"type": "thinking", "thinking": "".join(reply.reasoning), "signature": "c2VhbA=="})
    if reply.tokens:
        blocks.append({"type": "text", "text": reply.text, "citations": None})
    for name, arguments in reply.calls:
        blocks.append({"type": "tool_use", "id": "toolu_" + next(ids), "name": name, "input": json.loads(arguments)})
    return blocks


def usage(reply: lm.Reply) -> dict[str, Any]:
    """Tokens, as Messages counts them."""
    cache = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
    return {"input_tokens": reply.prompt_tokens, "output_tokens": reply.written} | cache


def whole(body: dict[str, Any], reply: lm.Reply, ids: Iterator[str], created: int) -> dict[str, Any]:
    """The answer in one piece."""
    return _head(body, ids) | {"content": _blocks(reply, ids)} | _ending(reply) | {"usage": usage(reply)}


def stream(body: dict[str, Any], reply: lm.Reply, ids: Iterator[str], created: int) -> Iterator[tuple[str, Any]]:
    """The answer as events."""

    def event(name: str, **rest: Any) -> tuple[str, Any]:
        return name, {"type": name} | rest

    start = _head(body, ids) | {"content": [], "stop_reason": None, "stop_sequence": None}
    yield event("message_start", message=start | {"usage": usage(reply) | {"output_tokens": 1}})
    yield event("ping")
    for index, block in enumerate(_blocks(reply, ids)):
        empty, deltas = _pieces(block)
        yield event("content_block_start", index=index, content_block=empty)
        for delta in deltas:
            yield event("content_block_delta", index=index, delta=delta)
        yield event("content_block_stop", index=index)
    yield event("message_delta", delta=_ending(reply), usage=usage(reply))
    yield event("message_stop")


def _pieces(block: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A block as it starts, and its deltas."""
    match block["type"]:
        case "thinking":
            deltas = [{"type": "thinking_delta", "thinking": token} for token in lm.tokenize(block["thinking"])]
            seal = {"type": "signature_delta", "signature": block["signature"]}
            return block | {"thinking": "", "signature": ""}, [*deltas, seal]
        case "text":
            return block | {"text": ""}, [{"type": "text_delta", "text": token} for token in lm.tokenize(block["text"])]
    arguments = json.dumps(block["input"], ensure_ascii=False)
    return block | {"input": {}}, [
        {"type": "input_json_delta", "partial_json": token} for token in lm.tokenize(arguments)
    ]
