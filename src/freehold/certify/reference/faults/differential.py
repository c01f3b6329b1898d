"""Faults that only a comparison with a reference can find."""

from __future__ import annotations

import json

from freehold.certify.reference.faults.paths import CHAT, MESSAGES, on, whole
from freehold.certify.reference.faulty import fault
from freehold.certify.reference.http import Incoming, Outgoing
from freehold.certify.reference.model import Prompt, Reply, instance, tokenize


@fault("a large body is 400", "DF.1", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if reply.refused == "size":
        reply.status = 400


@fault("a named call ends with stop", "DF.2", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    named = isinstance(incoming.body, dict) and isinstance(incoming.body.get("tool_choice"), dict)
    if not (named and on(incoming, CHAT)):
        return
    bodies = [reply.body] if whole(incoming, reply, CHAT) else [data for _, data in reply.events or []]
    for body in bodies:
        for choice in body["choices"] if isinstance(body, dict) else []:
            choice["finish_reason"] = "stop" if choice["finish_reason"] else None


@fault("tools are called now only where they were not", "DF.3", "prompt")
def _(incoming: Incoming, prompt: Prompt) -> None:
    if on(incoming, CHAT, max_tokens=48) and len(prompt.turns) == 1 and prompt.tools:
        prompt.choice = "none" if "now" in prompt.turns[-1].text else "required"


def _loose(incoming: Incoming) -> bool:
    format = incoming.body.get("response_format") if on(incoming, CHAT) else None
    return isinstance(format, dict) and format.get("json_schema", {}).get("strict") is False


@fault("loose schemas are ignored", "DF.4", "answer", DF_5="answers that are no objects have no keys")
def _(incoming: Incoming, prompt: Prompt, reply: Reply) -> None:
    if _loose(incoming):
        reply.tokens = tokenize("no JSON")


@fault("loose schemas get a key more", "DF.5", "answer")
def _(incoming: Incoming, prompt: Prompt, reply: Reply) -> None:
    if _loose(incoming):
        reply.tokens = tokenize(json.dumps(instance(prompt.format, "") | {"more": 1}))


@fault("cached tokens are not told", "DF.6", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if whole(incoming, reply, CHAT):
        reply.body["usage"].pop("prompt_tokens_details")


@fault("ids of others' calls are refused", "DF.7", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if on(incoming, CHAT, max_tokens=16) and any(message["role"] == "tool" for message in incoming.body["messages"]):
        reply.status = 400


@fault("a begun answer is begun again", "DF.8", "answer")
def _(incoming: Incoming, prompt: Prompt, reply: Reply) -> None:
    if on(incoming, MESSAGES) and prompt.turns[-1].role == "assistant":
        reply.tokens = tokenize(prompt.turns[-1].text + " and more")


@fault("another model answers open questions", "DF.11", "answer", DF_9="its answers are of another kind")
def _(incoming: Incoming, prompt: Prompt, reply: Reply) -> None:
    if on(incoming, CHAT, max_tokens=24, stream=None) and "Tell me about" in prompt.turns[-1].text:
        reply.tokens = tokenize("Certainly! As an assistant, I am glad to help.")


@fault("answers have a tail of their own", "DF.9", "answer")
def _(incoming: Incoming, prompt: Prompt, reply: Reply) -> None:
    if on(incoming, CHAT, max_tokens=24, stream=None) and "Tell me about" in prompt.turns[-1].text:
        reply.tokens = tokenize(reply.text + " XYZZY XYZZY XYZZY XYZZY XYZZY XYZZY")


@fault("another tokenizer counts", "DF.10", "answer", US_3="declared lengths are another tokenizer's")
def _(incoming: Incoming, prompt: Prompt, reply: Reply) -> None:
    if on(incoming, CHAT, max_tokens=2) and "." not in prompt.turns[-1].text:
        reply.prompt_tokens += reply.prompt_tokens // 4
