"""Faults of function calling."""

from __future__ import annotations

import json
from typing import Any

from freehold.certify.reference.faults.paths import CHAT, on, streamed, whole
from freehold.certify.reference.faulty import fault
from freehold.certify.reference.http import Incoming, Outgoing
from freehold.certify.reference.model import Prompt, Reply, instance


def _calls(reply: Outgoing) -> list[dict[str, Any]]:
    """The calls of a whole chat answer."""
    return [call for choice in reply.body["choices"] for call in choice["message"].get("tool_calls") or []]


def _auto(incoming: Incoming) -> bool:
    return on(incoming, CHAT, tools=..., tool_choice=None) and "response_format" not in incoming.body


def _names(incoming: Incoming, path: str, *kinds: str) -> bool:
    """Whether the request's tool_choice is one of these words, or an object where "named" is among them."""
    choice = incoming.body.get("tool_choice") if on(incoming, path) else None
    return choice in kinds if isinstance(choice, str) else choice is not None and "named" in kinds


@fault("auto never calls", "TL.1", "prompt")
def _(incoming: Incoming, prompt: Prompt) -> None:
    if _auto(incoming):
        prompt.choice = "none"


@fault("auto always calls", "TL.2", "answer")
def _(incoming: Incoming, prompt: Prompt, reply: Reply) -> None:
    if _auto(incoming) and "say the word" in prompt.turns[-1].text:
        name, schema = next(iter(prompt.tools.items()))
        reply.tokens, reply.calls, reply.finish = [], [(name, json.dumps(instance(schema, "")))], "calls"


@fault("none is taken for auto", "TL.3", "prompt")
def _(incoming: Incoming, prompt: Prompt) -> None:
    if _names(incoming, CHAT, "none"):
        prompt.choice = "auto"


@fault("required is taken for auto", "TL.4", "prompt", TL_6="the answer that should have called has no arguments")
def _(incoming: Incoming, prompt: Prompt) -> None:
    if _names(incoming, CHAT, "required"):
        prompt.choice = "auto"


@fault("the named tool is taken for any tool", "TL.5", "prompt")
def _(incoming: Incoming, prompt: Prompt) -> None:
    if _names(incoming, CHAT, "named") and len(prompt.tools) > 1:
        prompt.choice = "required"


@fault("required calls have arguments that are a list", "TL.6", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if whole(incoming, reply, CHAT) and _names(incoming, CHAT, "required"):
        for call in _calls(reply):
            call["function"]["arguments"] = "[1]"


@fault("schemas of strict tools are not kept", "TL.7", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if whole(incoming, reply, CHAT, tools=...) and incoming.body["tools"][0]["function"].get("strict"):
        for call in _calls(reply):
            call["function"]["arguments"] = '{"anything": 1}'


@fault("results of tools are not heard", "TL.8", "prompt")
def _(incoming: Incoming, prompt: Prompt) -> None:
    for turn in prompt.turns:
        if on(incoming, CHAT) and turn.role == "tool":
            turn.text = "nothing"


@fault("parallel calls share an index", "TL.9", "reply", TL_6="the arguments of both become one text")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if streamed(incoming, reply, CHAT, parallel_tool_calls=True):
        for _, data in reply.events or []:
            for choice in data.get("choices", []) if isinstance(data, dict) else []:
                for call in choice["delta"].get("tool_calls", []):
                    call["index"] = 0


@fault("parallel_tool_calls is ignored", "TL.10", "prompt")
def _(incoming: Incoming, prompt: Prompt) -> None:
    if on(incoming, CHAT):
        prompt.parallel = True


@fault("streamed arguments lose their first piece", "TL.11", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if (
        streamed(incoming, reply, CHAT, tools=...)
        and _names(incoming, CHAT, "named")
        and len(incoming.body["tools"]) > 1
    ):
        for _, data in reply.events or []:
            for choice in data.get("choices", []) if isinstance(data, dict) else []:
                for call in choice["delta"].get("tool_calls", []):
                    text = call["function"]["arguments"]
                    call["function"]["arguments"] = text.replace(":", ": ") if text else ""


@fault("a closing tag ends a call wherever it is", "TL.12", "answer")
def _(incoming: Incoming, prompt: Prompt, reply: Reply) -> None:
    if on(incoming, CHAT):
        reply.calls = [(name, text.replace(" </tool_call> b", "")) for name, text in reply.calls]


@fault("markup of calls is left in the content", "TL.13", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if whole(incoming, reply, CHAT, tool_choice="required"):
        reply.body["choices"][0]["message"]["content"] = "<tool_call>"


@fault("required without tools is answered", "TL.14", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if on(incoming, CHAT) and reply.refused == "required without tools":
        reply.status = 200


@fault("an orphan tool message is a server error", "TL.15", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if on(incoming, CHAT) and reply.refused == "orphan":
        reply.status = 500
