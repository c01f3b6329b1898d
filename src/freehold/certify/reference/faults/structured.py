"""Faults of structured output and of log probabilities."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from freehold.certify.reference.faults.paths import CHAT, on, streamed, whole
from freehold.certify.reference.faulty import fault
from freehold.certify.reference.http import Incoming, Outgoing
from freehold.certify.reference.model import Prompt, Reply, tokenize


def _format(incoming: Incoming) -> str:
    """The type of the response format; "" = none."""
    found = incoming.body.get("response_format") if on(incoming, CHAT) else None
    return str(found["type"]) if found else ""


@fault("json_object answers in prose", "SO.1", "prompt")
def _(incoming: Incoming, prompt: Prompt) -> None:
    if _format(incoming) == "json_object":
        prompt.format = None


@fault("strict schemas are hints", "SO.2", "answer")
def _(incoming: Incoming, prompt: Prompt, reply: Reply) -> None:
    if _format(incoming) == "json_schema" and "any of" in prompt.turns[-1].text:
        reply.tokens = tokenize('{"anything": 1}')


@fault("a bad schema is refused without its name", "SO.3", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if reply.refused == "schema" and on(incoming, CHAT):
        reply.body["error"]["param"] = None


@fault("a structured answer that was cut says stop", "SO.4", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if whole(incoming, reply, CHAT, response_format=...):
        for choice in reply.body["choices"]:
            choice["finish_reason"] = "stop" if choice["finish_reason"] == "length" else choice["finish_reason"]


@fault("a structured stream has other spaces", "SO.5", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if streamed(incoming, reply, CHAT, response_format=...):
        for _, data in reply.events or []:
            for choice in data.get("choices", []) if isinstance(data, dict) else []:
                if "content" in choice["delta"]:
                    choice["delta"]["content"] = choice["delta"]["content"].replace(":", " :")


@fault("a schema is forgotten beside tools", "SO.6", "prompt")
def _(incoming: Incoming, prompt: Prompt) -> None:
    if _format(incoming) and prompt.tools:
        prompt.format = None


def _entries(incoming: Incoming, reply: Outgoing, *, streams: bool = True) -> Iterator[dict[str, Any]]:
    """The log probabilities of a reply."""
    if whole(incoming, reply, CHAT, logprobs=True):
        bodies = [reply.body]
    elif streams and streamed(incoming, reply, CHAT, logprobs=True):
        bodies = [data for _, data in reply.events or [] if isinstance(data, dict)]
    else:
        return
    for body in bodies:
        for choice in body["choices"]:
            yield from (choice["logprobs"] or {}).get("content", [])


@fault("tokens are told without their spaces", "LP.1", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    for entry in _entries(incoming, reply):
        entry["token"] = entry["token"].strip()
        entry["bytes"] = list(entry["token"].encode())


@fault("alternatives come the unlikeliest first", "LP.2", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    for entry in _entries(incoming, reply):
        entry["top_logprobs"].reverse()


@fault("one alternative is missing", "LP.3", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    for entry in _entries(incoming, reply):
        entry["top_logprobs"].pop()


@fault("bytes are code points", "LP.4", "reply", LP_1="bytes that are not the text's do not join to it")
def _(incoming: Incoming, reply: Outgoing) -> None:
    for entry in _entries(incoming, reply):
        entry["bytes"] = [min(ord(letter), 255) for letter in entry["token"]]


@fault("streamed log probabilities are others", "LP.5", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if reply.events is not None:
        for entry in _entries(incoming, reply):
            entry["logprob"] -= 0.5
