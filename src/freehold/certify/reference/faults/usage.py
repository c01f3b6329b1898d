"""Faults of usage and of refusals."""

from __future__ import annotations

from freehold.certify.reference.faults.paths import CHAT, MESSAGES, RESPONSES, on, streamed, whole
from freehold.certify.reference.faulty import fault
from freehold.certify.reference.http import Incoming, Outgoing
from freehold.certify.reference.model import THINKER, Prompt, Reply


@fault("the total leaves out the prompt", "US.1", "reply", US_6="the total of a stream is right, so they differ")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if whole(incoming, reply, CHAT):
        reply.body["usage"]["total_tokens"] = reply.body["usage"]["completion_tokens"]


@fault("every short prompt has as many tokens", "US.2", "answer")
def _(incoming: Incoming, prompt: Prompt, reply: Reply) -> None:
    if on(incoming, CHAT, max_tokens=2) and "." not in prompt.turns[-1].text:
        reply.prompt_tokens = 9


@fault("prompts are counted in characters", "US.3", "answer")
def _(incoming: Incoming, prompt: Prompt, reply: Reply) -> None:
    if on(incoming, CHAT, max_tokens=2):
        reply.prompt_tokens = len(prompt.turns[-1].text)


@fault("more reasoning than completion", "US.4", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if whole(incoming, reply, CHAT) and not on(incoming, CHAT, model=THINKER):
        reply.body["usage"]["completion_tokens_details"]["reasoning_tokens"] = 10_000


@fault("more is cached than was sent", "US.5", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if whole(incoming, reply, CHAT):
        reply.body["usage"]["prompt_tokens_details"]["cached_tokens"] = 10_000


@fault("a stream counts one token more", "US.6", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if streamed(incoming, reply, CHAT):
        for _, data in reply.events or []:
            if isinstance(data, dict) and data.get("usage"):
                data["usage"]["completion_tokens"] += 1
                data["usage"]["total_tokens"] += 1


@fault("thinking is not counted", "US.7", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if whole(incoming, reply, CHAT, model=THINKER):
        reply.body["usage"]["completion_tokens_details"]["reasoning_tokens"] = 0


@fault("a malformed body is 422", "ER.1", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if reply.refused == "malformed":
        reply.status = 422


@fault("a missing field is not named", "ER.2", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if reply.refused == "missing":
        error = reply.body["error"]
        error["message"] = "Something is missing."
        if "param" in error:
            error["param"] = None


@fault("a wrong type is a server error", "ER.3", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if reply.refused == "type":
        reply.status = 500


@fault("an unknown model is 400", "ER.4", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if reply.refused == "unknown model" and not incoming.path.startswith("/v1/models"):
        reply.status = 400


@fault("a long prompt is cut silently", "ER.5", "reply", MD_4="what is not refused is not refused with 400",
       RS_12="nor with the code that Responses needs")  # fmt: skip
def _(incoming: Incoming, reply: Outgoing) -> None:
    if reply.refused == "context":
        reply.status = 200


@fault("a long prompt is 413", "MD.4", "reply", RS_12="Responses needs 400 too")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if reply.refused == "context":
        reply.status = 413


@fault("a large body is a server error", "ER.6", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if reply.refused == "size":
        reply.status = 500


@fault("errors come in the other dialect's envelope", "ER.7", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if reply.refused in ("malformed", "missing", "type", "unknown model") and on(incoming, MESSAGES):
        reply.body.pop("type")


@fault("an answer that thinking left empty says stop", "ER.8", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if whole(incoming, reply, CHAT, model=THINKER):
        reply.body["choices"][0]["finish_reason"] = "stop"


@fault("a long prompt has no code in Responses", "RS.12", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if reply.refused == "context" and on(incoming, RESPONSES):
        reply.body["error"]["code"] = None
