"""Faults of Messages, and of the agreement of the dialects."""

from __future__ import annotations

import json
from typing import Any

from freehold.certify.reference.faults.paths import MESSAGES, RESPONSES, on, streamed, whole
from freehold.certify.reference.faulty import fault
from freehold.certify.reference.http import Incoming, Outgoing
from freehold.certify.reference.model import BROKEN, Prompt, Reply, tokenize


def _events(incoming: Incoming, reply: Outgoing, kind: str) -> list[dict[str, Any]]:
    """The data of a stream's events of this type."""
    if not streamed(incoming, reply, MESSAGES):
        return []
    return [data for name, data in reply.events or [] if name == kind]


@fault("a message has no type", "AM.1", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if whole(incoming, reply, MESSAGES):
        reply.body.pop("type")


@fault("max_tokens may be left out", "AM.2", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if on(incoming, MESSAGES, max_tokens=None) and reply.refused == "missing" and "messages" in incoming.body:
        reply.status = 200


@fault("anthropic-version may be left out", "AM.3", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if reply.refused == "version":
        reply.status = 200


@fault("message_stop is missing", "AM.4", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if _events(incoming, reply, "message_stop") and reply.events:
        reply.events.pop()


@fault("blocks are numbered from 1", "AM.5", "reply", XP_3="the SDK puts blocks where their index says")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if streamed(incoming, reply, MESSAGES, tools=None):
        for _, data in reply.events or []:
            if "index" in data:
                data["index"] += 1


@fault("the prompt is not counted at the start", "AM.6", "reply", AM_20="a count of 0 is not the whole answer's")
def _(incoming: Incoming, reply: Outgoing) -> None:
    for data in _events(incoming, reply, "message_start"):
        data["message"]["usage"]["input_tokens"] = 0


@fault("the stop sequence is not told", "AM.7", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if whole(incoming, reply, MESSAGES):
        reply.body["stop_sequence"] = None


@fault("a message that was cut says end_turn", "AM.8", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    for data in _events(incoming, reply, "message_delta"):
        if data["delta"]["stop_reason"] == "max_tokens":
            data["delta"]["stop_reason"] = "end_turn"


@fault("partial_json loses a piece", "AM.9", "reply", XP_3="the SDK joins and parses it too")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if streamed(incoming, reply, MESSAGES, tools=...) and reply.events:
        pieces = [
            i for i, (_, data) in enumerate(reply.events) if data.get("delta", {}).get("type") == "input_json_delta"
        ]
        reply.events.pop(pieces[1])


@fault("a tool_result is not heard", "AM.10", "prompt")
def _(incoming: Incoming, prompt: Prompt) -> None:
    for turn in prompt.turns:
        if on(incoming, MESSAGES) and turn.role == "tool":
            turn.text = "nothing"


@fault("text beside a tool_result is dropped", "AM.11", "prompt")
def _(incoming: Incoming, prompt: Prompt) -> None:
    if on(incoming, MESSAGES) and [turn.role for turn in prompt.turns][-2:] == ["tool", "user"]:
        prompt.turns.pop()


@fault("is_error is refused", "AM.12", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if on(incoming, MESSAGES) and b"is_error" in incoming.raw:
        reply.status = 400


@fault("tool_choice any is taken for none", "AM.13", "prompt")
def _(incoming: Incoming, prompt: Prompt) -> None:
    if on(incoming, MESSAGES) and (incoming.body.get("tool_choice") or {}).get("type") == "any":
        prompt.choice = "none"


@fault("count_tokens leaves out the system prompt", "AM.14", "prompt")
def _(incoming: Incoming, prompt: Prompt) -> None:
    if incoming.path.endswith("/count_tokens"):
        prompt.turns = [turn for turn in prompt.turns if turn.role != "system"]


@fault("an error in a message stream is bare", "AM.15", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if streamed(incoming, reply, MESSAGES, model=BROKEN) and reply.events:
        reply.events[-1] = ("message_stop", {"type": "message_stop"})


@fault("x-api-key is not known", "AM.16", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if "x-api-key" in incoming.headers and incoming.path == MESSAGES:
        reply.status = 403


@fault("the user is not heard in Messages", "AM.17", "prompt")
def _(incoming: Incoming, prompt: Prompt) -> None:
    if on(incoming, MESSAGES, max_tokens=24, stream=None) and len(prompt.turns) == 1:
        prompt.turns[-1].text = "Repeat: canned"


@fault("the system prompt is dropped in Messages", "AM.18", "prompt")
def _(incoming: Incoming, prompt: Prompt) -> None:
    if on(incoming, MESSAGES, max_tokens=32):
        prompt.turns = [turn for turn in prompt.turns if turn.role != "system"]


@fault("a message stream says more", "AM.19", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if streamed(incoming, reply, MESSAGES, max_tokens=6):
        texts = [data for data in _events(incoming, reply, "content_block_delta") if "text" in data["delta"]]
        texts[-1]["delta"]["text"] += "!"


@fault("a message stream counts one token more", "AM.20", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if streamed(incoming, reply, MESSAGES, max_tokens=48):
        for data in _events(incoming, reply, "message_delta"):
            data["usage"]["output_tokens"] += 1


@fault("Messages adds a token to every prompt", "XP.1", "answer", AM_14="usage is one more than what count_tokens says")
def _(incoming: Incoming, prompt: Prompt, reply: Reply) -> None:
    if on(incoming, MESSAGES):
        reply.prompt_tokens += 1


@fault("Responses chooses the last word of an enum", "XP.2", "answer")
def _(incoming: Incoming, prompt: Prompt, reply: Reply) -> None:
    if on(incoming, RESPONSES) and "with the word" in prompt.turns[-1].text:
        reply.calls = [(name, json.dumps({"word": "other"})) for name, _ in reply.calls]


@fault("text parts of a response have Chat's type", "XP.3", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if whole(incoming, reply, RESPONSES):
        for part in [part for item in reply.body["output"] for part in item.get("content", [])]:
            part["type"] = "text"


@fault("Messages stops short", "XP.4", "answer")
def _(incoming: Incoming, prompt: Prompt, reply: Reply) -> None:
    if on(incoming, MESSAGES, max_tokens=16, temperature=0, stream=False):
        reply.finish, reply.tokens = "length", tokenize("cut")
