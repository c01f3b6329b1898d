"""Other people's tools: a coding agent's streaming tool loop, in the shape its traffic has on the wire."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from tests.gateway import fakes

from freehold.engine.request import EngineStats
from freehold.gateway.conversation import Event, Finished, Request, Started, TextDelta, ToolCallDelta, Usage
from freehold.gateway.service import Gateway

HEADERS = {"anthropic-version": "2023-06-01", "anthropic-beta": "interleaved-thinking-2025-05-14", "x-app": "cli"}
TOOLS = [
    {
        "name": name,
        "description": "x",
        "input_schema": {"type": "object", "properties": {field: {"type": "string"}}, "required": [field]},
    }
    for name, field in (("Read", "file_path"), ("Bash", "command"))
]
SYSTEM = [{"type": "text", "text": "You are an agent.", "cache_control": {"type": "ephemeral"}}]
FILES = {"a.txt": "one", "b.txt": "two"}


class Agentic:
    """Reads two files with parallel calls, then runs a command, then says what it saw."""

    name, model, state, continues = "local", "tiny", "ready", True

    def __init__(self) -> None:
        self.engine = SimpleNamespace(stats=EngineStats(), state="ready", facts=None)
        self.requests: list[Request] = []

    def check(self, request: Request) -> None:
        pass

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        self.requests.append(request)
        results = [turn.text for turn in request.turns if turn.role == "tool"]
        yield Started(self.model)
        if not results:
            yield TextDelta("I'll look.")
            for i, file in enumerate(FILES):
                yield ToolCallDelta(i, f"call_{i}", "Read", "")
                for piece in ('{"file_', f'path": "{file}"', "}"):
                    yield ToolCallDelta(i, arguments=piece)
            yield Finished("tool_calls")
        elif len(results) == 2:
            yield ToolCallDelta(0, "call_2", "Bash", json.dumps({"command": "wc " + " ".join(results)}))
            yield Finished("tool_calls")
        else:
            yield TextDelta("Seen: " + ", ".join(results))
            yield Finished("stop")
        yield Usage(10 * len(request.turns), 5)


def streamed(url: str, body: dict[str, Any]) -> tuple[list[dict[str, Any]], str, list[str]]:
    """The content blocks, stop reason and event names of a streamed message, put together as an agent does."""
    answer = httpx2.post(url + "/v1/messages?beta=true", json=body | {"stream": True}, headers=HEADERS)
    assert answer.status_code == 200, answer.text
    blocks: list[dict[str, Any]] = []
    names, reason = [], ""
    for frame in answer.text.strip().split("\n\n"):
        name, data = (line.partition(": ")[2] for line in frame.split("\n"))
        event = json.loads(data)
        assert event["type"] == name
        names.append(name)
        if name == "content_block_start":
            assert event["index"] == len(blocks)
            blocks.append(event["content_block"] | {"json": ""})
        elif name == "content_block_delta":
            delta = event["delta"]
            if delta["type"] == "text_delta":
                blocks[event["index"]]["text"] += delta["text"]
            else:
                blocks[event["index"]]["json"] += delta["partial_json"]
        elif name == "message_delta":
            reason = event["delta"]["stop_reason"]
    for block in blocks:
        raw = block.pop("json")
        if block["type"] == "tool_use":
            block["input"] = json.loads(raw)
    return blocks, reason, names


def execute(block: dict[str, Any]) -> dict[str, Any]:
    """What the agent sends back for a call."""
    asked = block["input"]
    found = FILES[asked["file_path"]] if block["name"] == "Read" else f"ran {asked['command']}"
    content = [{"type": "text", "text": found}]
    return {"type": "tool_result", "tool_use_id": block["id"], "content": content}


@pytest.fixture
def agent() -> Agentic:
    return Agentic()


def test_a_coding_agents_tool_loop_runs_to_its_end_over_streams(agent: Agentic, directory: Path) -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "text", "text": "What is in the files?"}]}]
    body = {
        "model": "tiny", "max_tokens": 32000, "system": SYSTEM, "tools": TOOLS, "messages": messages,
        "metadata": {"user_id": "user_1_account_2_session_3"}, "temperature": 1,
    }  # fmt: skip
    with fakes.live(Gateway(agent)) as live:  # type: ignore[arg-type]
        for _ in range(5):
            blocks, reason, names = streamed(live.url, body)
            assert names[0] == "message_start" and names[-1] == "message_stop" and names.count("message_delta") == 1
            assert names.count("content_block_start") == names.count("content_block_stop") == len(blocks)
            messages.append({"role": "assistant", "content": blocks})
            if reason != "tool_use":
                break
            results = [execute(block) for block in blocks if block["type"] == "tool_use"]
            messages.append({"role": "user", "content": results})
    assert (reason, blocks[0]["text"]) == ("end_turn", "Seen: one, two, ran wc one two")
    assert len(agent.requests) == 3
    last = agent.requests[-1]
    calls = [call for turn in last.turns for call in turn.tool_calls]
    assert [(call.id, call.name) for call in calls] == [("call_0", "Read"), ("call_1", "Read"), ("call_2", "Bash")]
    answers = [turn.tool_call_id for turn in last.turns if turn.role == "tool"]
    assert answers == ["call_0", "call_1", "call_2"]
    assert last.turns[0].role == "system" and [tool.name for tool in last.tools] == ["Read", "Bash"]
