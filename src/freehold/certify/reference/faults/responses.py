"""Faults of Responses."""

from __future__ import annotations

from typing import Any

from freehold.certify.reference.faults.paths import RESPONSES, on, streamed, whole
from freehold.certify.reference.faulty import fault
from freehold.certify.reference.http import Incoming, Outgoing
from freehold.certify.reference.model import BROKEN, Prompt, Reply


def _events(incoming: Incoming, reply: Outgoing, kind: str = "") -> list[tuple[str, Any]]:
    """The events of a stream (of this type)."""
    if not streamed(incoming, reply, RESPONSES):
        return []
    return [pair for pair in reply.events or [] if not kind or pair[0] == kind]


@fault("a response has no instructions field", "RS.1", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if whole(incoming, reply, RESPONSES):
        reply.body.pop("instructions")


@fault("input items cost a token more", "RS.2", "answer")
def _(incoming: Incoming, prompt: Prompt, reply: Reply) -> None:
    if on(incoming, RESPONSES) and isinstance(incoming.body["input"], list) and "tools" not in incoming.body:
        reply.prompt_tokens += 1


@fault("event names are all message", "RS.3", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if streamed(incoming, reply, RESPONSES):
        reply.events = [("message", data) for _, data in reply.events or []]


@fault("sequence numbers begin anew", "RS.4", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    for _, data in _events(incoming, reply)[4:]:
        data["sequence_number"] -= 4


@fault("a part is done before its text", "RS.5", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    names = [name for name, _ in _events(incoming, reply)]
    if "response.content_part.done" in names and reply.events:
        at = names.index("response.content_part.done")
        numbers = [reply.events[i][1]["sequence_number"] for i in (at - 1, at)]
        reply.events[at - 1], reply.events[at] = reply.events[at], reply.events[at - 1]
        for i, number in zip((at - 1, at), numbers, strict=True):
            reply.events[i][1]["sequence_number"] = number


@fault("done text differs from its deltas", "RS.6", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    for _, data in _events(incoming, reply, "response.output_text.done"):
        data["text"] += "."


@fault("a stream that was cut ends as completed", "RS.7", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    for i, (name, data) in enumerate(_events(incoming, reply)):
        if name == "response.incomplete" and reply.events:
            reply.events[i] = ("response.completed", data | {"type": "response.completed"})


@fault("previous_response_id is ignored", "RS.8", "prompt")
def _(incoming: Incoming, prompt: Prompt) -> None:
    if on(incoming, RESPONSES, previous_response_id=...):
        prompt.turns = prompt.turns[-1:]


@fault("outputs of calls are refused", "RS.9", "reply", XP_3="the SDK has no answer to read")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if on(incoming, RESPONSES) and "function_call_output" in incoming.raw.decode():
        reply.status = 400


@fault("allowed_tools is ignored", "RS.10", "prompt")
def _(incoming: Incoming, prompt: Prompt) -> None:
    choice = incoming.body.get("tool_choice") if on(incoming, RESPONSES) else None
    if isinstance(choice, dict) and choice["type"] == "allowed_tools":
        prompt.tools = {tool["name"]: tool["parameters"] for tool in incoming.body["tools"]}


@fault("a cut message is called completed", "RS.11", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if whole(incoming, reply, RESPONSES):
        for item in reply.body["output"]:
            item["status"] = "completed"


@fault("an error in a response stream is bare", "RS.13", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if streamed(incoming, reply, RESPONSES, model=BROKEN) and reply.events:
        reply.events[-1] = ("error", {"message": "failed"})


@fault("null fields of tools are left out", "RS.14", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if whole(incoming, reply, RESPONSES):
        tools = reply.body["tools"]
        reply.body["tools"] = [{key: value for key, value in tool.items() if value is not None} for tool in tools]


@fault("the named tool is ignored in Responses", "RS.15", "prompt")
def _(incoming: Incoming, prompt: Prompt) -> None:
    choice = incoming.body.get("tool_choice") if on(incoming, RESPONSES) else None
    if isinstance(choice, dict) and choice["type"] == "function" and len(prompt.tools) > 1:
        prompt.choice = "required"


@fault("input is not heard in Responses", "RS.16", "prompt")
def _(incoming: Incoming, prompt: Prompt) -> None:
    if on(incoming, RESPONSES, max_output_tokens=32) and "tools" not in incoming.body and len(prompt.turns) == 1:
        prompt.turns[-1].text = "Hello"


@fault("streamed arguments lose a piece in Responses", "RS.17", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    found = _events(incoming, reply, "response.function_call_arguments.delta")
    if found and reply.events:
        reply.events.remove(found[1])


@fault("the total of a response is the prompt's", "RS.18", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if whole(incoming, reply, RESPONSES):
        reply.body["usage"]["total_tokens"] = reply.body["usage"]["input_tokens"]
