"""Faults of transport, models and limits."""

from __future__ import annotations

from freehold.certify.reference.faults.paths import CHAT, on, streamed
from freehold.certify.reference.faulty import FAULTS, Fault, fault
from freehold.certify.reference.http import Incoming, Outgoing
from freehold.certify.reference.model import Prompt

FAULTS["slots of those who left are never free"] = Fault(
    "slots of those who left are never free", "TR.5", leaks=True,
    collateral=dict.fromkeys(("RL.1", "RL.2", "RL.3"), "a server without a slot answers nobody"),
)  # fmt: skip
_before: dict[int, str] = {}


@fault("json is called text", "TR.1", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if reply.events is None and reply.status == 200:
        reply.headers["content-type"] = "text/plain"


@fault("streams are called json", "TR.2", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if reply.events is not None:
        reply.headers["content-type"] = "application/json"


@fault("characters are sent in latin-1", "TR.3", "portions", TR_2="what is no UTF-8 is no event stream",
       TR_4="and has no events to arrive")  # fmt: skip
def _(incoming: Incoming, reply: Outgoing) -> None:
    if streamed(incoming, reply) and "naïve" in incoming.raw.decode():
        reply.portions = [portion.decode().encode("latin-1", "ignore") for portion in reply.portions]


@fault("streams are held until they are complete", "TR.4", "portions", TR_5="a client can't leave in mid-stream")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if reply.events is not None:
        reply.portions = [b"".join(reply.portions)]


@fault("a wrong key is 403", "TR.6", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if reply.refused == "key" and "authorization" in incoming.headers:
        reply.status = 403


@fault("answers carry the last request's words", "TR.7", "prompt")
def _(incoming: Incoming, prompt: Prompt) -> None:
    said = prompt.turns[-1].text
    if on(incoming, CHAT, max_tokens=24, stream=False):
        prompt.turns[-1].text = f"Repeat: {said} {_before.get(0, '')}"
        _before[0] = said.split()[-1]


@fault("an unknown path is 400", "TR.8", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if reply.refused == "path":
        reply.status = 400


@fault("a wrong method is 404", "TR.9", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if reply.refused == "method":
        reply.status = 404


@fault("models have no owner", "MD.1", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if incoming.path == "/v1/models":
        for entry in reply.body["data"]:
            entry.pop("owned_by")
    elif incoming.path.startswith("/v1/models/") and reply.status == 200:
        reply.body.pop("owned_by")


@fault("a model retrieved has another date", "MD.2", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if incoming.path.startswith("/v1/models/") and reply.status == 200:
        reply.body["created"] += 1


@fault("any model can be retrieved", "MD.3", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if incoming.path.startswith("/v1/models/") and reply.status == 404:
        reply.status, reply.body = 200, {"id": "any", "object": "model", "created": 1, "owned_by": "nobody"}


@fault("answers name a model that is not listed", "MD.5", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if isinstance(reply.body, dict) and "model" in reply.body:
        reply.body["model"] = "some-model"


@fault("429 has another envelope", "RL.1", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if reply.status == 429:
        reply.body = {"detail": "slow down"}


@fault("retry-after is a word", "RL.2", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if reply.status == 429:
        reply.headers["retry-after"] = "soon"


@fault("remaining never goes down", "RL.3", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if "x-ratelimit-remaining-requests" in reply.headers:
        reply.headers["x-ratelimit-remaining-requests"] = "3"


@fault("all answers have one request id", "RL.4", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    for name in ("x-request-id", "request-id"):
        if name in reply.headers:
            reply.headers[name] = "req_1"
