"""Faults of Chat Completions, whole and streamed."""

from __future__ import annotations

from freehold.certify.reference.faults.paths import CHAT, on, streamed, whole
from freehold.certify.reference.faulty import fault
from freehold.certify.reference.http import Incoming, Outgoing
from freehold.certify.reference.model import Prompt, Reply, tokenize


@fault("a completion has no object", "CC.1", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if whole(incoming, reply, CHAT):
        reply.body.pop("object")


@fault("all completions have one id", "CC.2", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if whole(incoming, reply, CHAT):
        reply.body["id"] = "chatcmpl-1"


@fault("the user is not heard", "CC.3", "prompt")
def _(incoming: Incoming, prompt: Prompt) -> None:
    if on(incoming, CHAT, max_tokens=24, stream=None):
        prompt.turns[-1].text = "Repeat: canned"


@fault("system messages are dropped", "CC.4", "prompt")
def _(incoming: Incoming, prompt: Prompt) -> None:
    if on(incoming, CHAT):
        prompt.turns = [turn for turn in prompt.turns if turn.role != "system"]


@fault("only the last turn is heard", "CC.5", "prompt")
def _(incoming: Incoming, prompt: Prompt) -> None:
    if on(incoming, CHAT) and not any(turn.role == "tool" for turn in prompt.turns):
        prompt.turns = [turn for turn in prompt.turns[:-1] if turn.role == "system"] + prompt.turns[-1:]


@fault("text parts are counted twice", "CC.6", "answer")
def _(incoming: Incoming, prompt: Prompt, reply: Reply) -> None:
    if on(incoming, CHAT) and isinstance(incoming.body["messages"][-1]["content"], list):
        reply.prompt_tokens *= 2


@fault("max_completion_tokens is ignored", "CC.7", "prompt")
def _(incoming: Incoming, prompt: Prompt) -> None:
    if on(incoming, CHAT, max_completion_tokens=...):
        prompt.max_tokens = 512


@fault("stop strings are ignored", "CC.8", "prompt")
def _(incoming: Incoming, prompt: Prompt) -> None:
    if on(incoming, CHAT):
        prompt.stop = []


@fault("n is ignored", "CC.9", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if whole(incoming, reply, CHAT, n=...):
        reply.body["choices"] = reply.body["choices"][:1]


_seeds: list[int] = []


@fault("seeds are ignored", "CC.10", "answer")
def _(incoming: Incoming, prompt: Prompt, reply: Reply) -> None:
    if on(incoming, CHAT, seed=...):
        _seeds.append(1)
        reply.tokens = tokenize(f"Story number {len(_seeds)}")


@fault("bans are ignored", "CC.11", "prompt")
def _(incoming: Incoming, prompt: Prompt) -> None:
    if on(incoming, CHAT):
        prompt.bias = dict.fromkeys(sorted(prompt.bias, key=int)[:1], 100)


@fault("an unknown field is a server error", "CC.12", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if on(incoming, CHAT) and b'"x_' in incoming.raw:
        reply.status = 500


@fault("the developer role is a server error", "CC.13", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if on(incoming, CHAT) and '"developer"' in incoming.raw.decode():
        reply.status = 500


@fault("each chunk has an id of its own", "CS.1", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if streamed(incoming, reply, CHAT) and reply.events:
        for number, (_, data) in enumerate(reply.events):
            if isinstance(data, dict) and "id" in data:
                data["id"] = f"chatcmpl-{number}"
                reply.events[number] = ("", dict(data))


@fault("every delta has the role", "CS.2", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if streamed(incoming, reply, CHAT):
        for _, data in reply.events or []:
            for choice in data.get("choices", []) if isinstance(data, dict) else []:
                choice["delta"]["role"] = "assistant"


@fault("the finish is told twice", "CS.3", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if streamed(incoming, reply, CHAT) and reply.events:
        last = max(i for i, (_, data) in enumerate(reply.events) if isinstance(data, dict) and data.get("choices"))
        reply.events.insert(last, reply.events[last])


@fault("a stream ends without [DONE]", "CS.4", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if streamed(incoming, reply, CHAT) and reply.events and reply.events[-1][1] == "[DONE]":
        reply.events.pop()


@fault("a stream loses a token", "CS.5", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if streamed(incoming, reply, CHAT, stream_options=...) and reply.events and "tools" not in incoming.body:
        texts = [i for i, (_, d) in enumerate(reply.events) if '"content": "' in str(d).replace("'", '"')]
        if "logprobs" not in incoming.body and "response_format" not in incoming.body and len(texts) > 2:
            reply.events.pop(texts[2])


@fault("include_usage is ignored", "CS.6", "reply", US_6="a stream without usage has none to compare")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if streamed(incoming, reply, CHAT) and reply.events:
        reply.events = [pair for pair in reply.events if not (isinstance(pair[1], dict) and pair[1].get("usage"))]


@fault("usage is in every chunk", "CS.7", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if streamed(incoming, reply, CHAT):
        for _, data in reply.events or []:
            if isinstance(data, dict) and data.get("choices"):
                data["usage"] = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}


@fault("a stream that was cut says stop", "CS.8", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if streamed(incoming, reply, CHAT):
        for _, data in reply.events or []:
            for choice in data.get("choices", []) if isinstance(data, dict) else []:
                if choice["finish_reason"] == "length":
                    choice["finish_reason"] = "stop"


@fault("an error in a stream is bare text", "CS.9", "reply")
def _(incoming: Incoming, reply: Outgoing) -> None:
    if streamed(incoming, reply, CHAT) and reply.events and "error" in reply.events[-1][1]:
        reply.events[-1] = ("", {"message": "the model has failed"})
