"""AM: Anthropic's Messages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from freehold.certify.evidence import VERSION, Ask, Evidence, check, expect, post, scenario
from freehold.certify.suite.common import NONCE, dig, echo, middle_word, said, shaped, told, tool_name, until_heard
from freehold.certify.suite.tools import LIMIT, word_schema
from freehold.certify.transcript import Exchange, Untestable
from freehold.certify.verdict import Trial

COUNT = "Count from 1 to 40."


def tool(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """A Messages tool."""
    return {"name": name, "description": f"Runs {name}.", "input_schema": schema}


@scenario("messages.echo", dialect="messages")
async def echoes(ask: Ask) -> None:
    """A word to say again; a word that only the system prompt has."""

    async def user(i: int) -> Exchange:
        return await ask.messages(f"user{i}", told(ask.draw.word(f"user{i}"), i), max_tokens=24)

    async def system(i: int) -> Exchange:
        rule = f"The code word is {ask.draw.word(f'system{i}')}. Tell it to whoever asks."
        return await ask.messages(f"system{i}", "What is the code word?", system=rule, max_tokens=32)

    await until_heard(user, lambda i: ask.draw.word(f"user{i}"), text_of)
    await until_heard(system, lambda i: ask.draw.word(f"system{i}"), text_of)


@scenario("messages.stream", dialect="messages")
async def stream(ask: Ask) -> None:
    """The same greedy request, whole and streamed; ended and cut."""
    for name, prompt, limit in (("end", echo(ask.draw.word("word")), 48), ("cut", COUNT, 6)):
        await ask.messages(f"{name}.whole", prompt, max_tokens=limit)
        await ask.messages(f"{name}.stream", prompt, max_tokens=limit, stream=True)


@scenario("messages.edges", dialect="messages")
async def edges(ask: Ask) -> None:
    """No limit, no version, a stop sequence out of what the model says by itself."""
    user = [{"role": "user", "content": "Hello"}]
    await ask.messages("no limit", "Hello", max_tokens=...)
    await ask("no version", post("/messages", {"model": ask.model, "max_tokens": 8, "messages": user}))
    free = await ask.messages("free", COUNT, max_tokens=48)
    word = middle_word(text_of(free))
    if word:
        await ask.messages("stopped", COUNT, max_tokens=48, stop_sequences=[word])


@scenario("messages.key", dialect="messages", capability="auth")
async def key(ask: Ask) -> None:
    """The key in Anthropic's header, right and wrong."""
    body = {"model": ask.model, "max_tokens": 8, "messages": [{"role": "user", "content": "Hello"}]}
    await ask("right", post("/messages", body, VERSION, style="x-api-key"))
    await ask("wrong", post("/messages", body, VERSION, style="x-api-key", auth="bad"))


@scenario("messages.tools", dialect="messages", level=2, capability="tools")
async def tools(ask: Ask) -> None:
    """Every form of tool_choice."""
    offered = [tool(tool_name(ask.draw, f"tool{i}"), word_schema(ask.draw, f"schema{i}")) for i in range(2)]
    prompt = f"Use the tool {offered[0]['name']}."
    fields: dict[str, Any] = {"tools": offered, "max_tokens": LIMIT}
    named = {"type": "tool", "name": offered[1]["name"]}
    await ask.messages("any", prompt, tool_choice={"type": "any", "disable_parallel_tool_use": True}, **fields)
    await ask.messages("none", prompt, tool_choice={"type": "none"}, **fields | {"max_tokens": 24})
    await ask.messages("tool.whole", prompt, tool_choice=named, **fields)
    await ask.messages("tool.stream", prompt, tool_choice=named, stream=True, **fields)


@scenario("messages.result", dialect="messages", level=2, capability="tools")
async def result(ask: Ask) -> None:
    """What a tool brought: alone, beside text, and as an error."""
    offered = [tool(tool_name(ask.draw, "tool"), word_schema(ask.draw, "schema"))]
    use = {"type": "tool_use", "id": f"toolu_{ask.draw.word('id')}", "name": offered[0]["name"], "input": {"word": "x"}}
    question = {"role": "user", "content": "What is the code word? Ask the tool and tell me its answer."}

    async def back(name: str, answer: dict[str, Any], *more: dict[str, Any]) -> Exchange:
        result = {"type": "tool_result", "tool_use_id": use["id"]} | answer
        turns = [question, {"role": "assistant", "content": [use]}, {"role": "user", "content": [result, *more]}]
        return await ask.messages(name, messages=turns, tools=offered, max_tokens=48)

    async def used(i: int) -> Exchange:
        return await back(f"used{i}", {"content": f"The code word is {ask.draw.word(f'used{i}')}."})

    async def mixed(i: int) -> Exchange:
        text = {"type": "text", "text": told(ask.draw.word(f"mixed{i}"), i + 1)}
        return await back(f"mixed{i}", {"content": "It is done."}, text)

    await until_heard(used, lambda i: ask.draw.word(f"used{i}"), text_of)
    await until_heard(mixed, lambda i: ask.draw.word(f"mixed{i}"), text_of)
    await back("error", {"content": "The tool has failed.", "is_error": True})


@scenario("messages.count", dialect="messages", level=2, capability="count_tokens")
async def count(ask: Ask) -> None:
    """The same prompts counted and sent."""
    for i in range(3):
        body: dict[str, Any] = {
            "model": ask.model,
            "messages": [{"role": "user", "content": echo(ask.draw.word(f"word{i}"))}],
        }
        if i:
            body["system"] = f"You are {ask.draw.word('name')}."
        if i > 1 and ask.declared.has("tools"):
            body["tools"] = [tool(tool_name(ask.draw, "tool"), word_schema(ask.draw, "schema"))]
        await ask(f"count{i}", post("/messages/count_tokens", body, VERSION))
        await ask(f"sent{i}", post("/messages", body | {"max_tokens": 8}, VERSION))


@scenario("messages.broken", dialect="messages", capability="faults")
async def broken(ask: Ask) -> None:
    """A stream that the declared model breaks in the middle."""
    await ask.messages("stream", COUNT, model=ask.declared.broken_model, stream=True)


def text_of(x: Exchange) -> str:
    """The text of an answer, whole or streamed."""
    if x.call.json.get("stream"):
        return "".join(d["delta"].get("text", "") for d in x.data if d.get("type") == "content_block_delta")
    return "".join(block.get("text", "") for block in dig(x, x.good, "content") if block.get("type") == "text")


def uses_of(x: Exchange) -> list[dict[str, Any]]:
    """The tool uses of an answer, whole or streamed (with `input` as the joined text)."""
    if not x.call.json.get("stream"):
        return [block for block in dig(x, x.good, "content") if block.get("type") == "tool_use"]
    found: dict[Any, dict[str, Any]] = {}
    for data in x.data:
        block = data.get("content_block") or {}
        if block.get("type") == "tool_use":
            found[data.get("index")] = block | {"input": ""}
        elif data.get("index") in found and data.get("type") == "content_block_delta":
            found[data.get("index")]["input"] += data["delta"].get("partial_json", "")
    return list(found.values())


def ending(x: Exchange) -> dict[str, Any]:
    """stop_reason, stop_sequence and usage, whole or streamed."""
    if not x.call.json.get("stream"):
        return x.good
    deltas = [data for data in x.data if data.get("type") == "message_delta"]
    if not deltas:
        raise Untestable(x.key, "no message_delta")
    found: dict[str, Any] = deltas[-1]["delta"] | {"usage": deltas[-1].get("usage") or {}}
    return found


@check("AM.1")
def schema(evidence: Evidence) -> Iterator[Trial]:
    for x in evidence.of("messages.echo"):
        yield shaped(x, x.good, "message")


@check("AM.2")
def needs_limit(evidence: Evidence) -> Iterator[Trial]:
    x = evidence["messages.edges/no limit"]
    yield expect(x.status == 400, x, "status", "400", x.describe())


@check("AM.3")
def version(evidence: Evidence) -> Iterator[Trial]:
    x = evidence["messages.edges/no version"]
    wanted = 400 if evidence.declared.anthropic_version == "required" else 200
    yield expect(
        x.status == wanted,
        x,
        "status",
        f"{wanted}, as the header is {evidence.declared.anthropic_version}",
        x.describe(),
    )


@check("AM.17", chance=NONCE)
def user_heard(evidence: Evidence) -> Iterator[Trial]:
    yield from _words(evidence, "messages.echo", "user")


@check("AM.18", chance=NONCE)
def system_heard(evidence: Evidence) -> Iterator[Trial]:
    yield from _words(evidence, "messages.echo", "system")


def _words(evidence: Evidence, scenario: str, kind: str) -> Iterator[Trial]:
    draw = evidence.draw(scenario)
    for x in [x for x in evidence.of(scenario) if f"/{kind}" in x.key]:
        yield said(x, text_of(x), draw.word(x.key.rpartition("/")[2]), "$.content[*].text")


def _streams(evidence: Evidence) -> list[Exchange]:
    return [evidence[f"messages.stream/{name}.stream"] for name in ("end", "cut")]


@check("AM.4")
def framed(evidence: Evidence) -> Iterator[Trial]:
    for x in _streams(evidence):
        types = [data.get("type") for data in x.data]
        names = [event.name for event in x.events]
        good = types[0] == "message_start" and types[-2:] == ["message_delta", "message_stop"] and types == names
        good = good and types.count("message_start") == types.count("message_stop") == 1
        yield expect(good, x, "$[*].type", "message_start ... message_delta, message_stop, named alike", types)


@check("AM.5")
def paired(evidence: Evidence) -> Iterator[Trial]:
    for x in _streams(evidence):
        open_block, expected, good = None, 0, True
        for data in x.data:
            kind, index = str(data.get("type")), data.get("index")
            if kind == "content_block_start":
                good = good and open_block is None and index == expected
                open_block = index
            elif kind == "content_block_delta":
                good = good and open_block is not None and index == open_block
            elif kind == "content_block_stop":
                good = good and open_block is not None and index == open_block
                open_block, expected = None, expected + 1
        seen = [(data.get("type"), data.get("index")) for data in x.data if "index" in data]
        yield expect(
            good and open_block is None, x, "$[*].index", "blocks numbered from 0, each opened and closed", seen
        )


@check("AM.6")
def counted_at_start(evidence: Evidence) -> Iterator[Trial]:
    for x in _streams(evidence):
        start = x.data[0]
        yield shaped(x, dig(x, start, "message") | {"stop_reason": "end_turn"}, "message", "$[0].message")
        seen = dig(x, start, "message", "usage").get("input_tokens", 0)
        yield expect(seen > 0, x, "$[0].message.usage.input_tokens", "above 0", seen)


@check("AM.7")
def stop_echoed(evidence: Evidence) -> Iterator[Trial]:
    if "messages.edges/stopped" not in evidence.exchanges:
        raise Untestable("messages.edges/free", "too little was said to stop it")
    x = evidence["messages.edges/stopped"]
    (word,) = x.call.json["stop_sequences"]
    seen = (x.good.get("stop_reason"), x.good.get("stop_sequence"))
    yield expect(seen == ("stop_sequence", word), x, "$.stop_sequence", f"stop_sequence, {word!r}", seen)
    yield expect(word not in text_of(x), x, "$.content[0].text", f"nothing from {word!r} on", text_of(x))


@check("AM.8")
def limit_told(evidence: Evidence) -> Iterator[Trial]:
    for name in ("cut.whole", "cut.stream"):
        x = evidence[f"messages.stream/{name}"]
        limit, seen = x.call.json["max_tokens"], ending(x)
        yield expect(seen.get("stop_reason") == "max_tokens", x, "$.stop_reason", "max_tokens", seen.get("stop_reason"))
        written = dig(x, seen, "usage", "output_tokens")
        yield expect(written <= limit, x, "$.usage.output_tokens", f"at most {limit}", written)


@check("AM.19")
def streamed_equal(evidence: Evidence) -> Iterator[Trial]:
    for name in ("end", "cut"):
        whole, x = evidence[f"messages.stream/{name}.whole"], evidence[f"messages.stream/{name}.stream"]
        yield expect(
            text_of(x) == text_of(whole), x, "$[*].delta.text", f"as not streamed: {text_of(whole)!r}", text_of(x)
        )


@check("AM.20")
def usage_equal(evidence: Evidence) -> Iterator[Trial]:
    for name in ("end", "cut"):
        whole, x = evidence[f"messages.stream/{name}.whole"], evidence[f"messages.stream/{name}.stream"]
        started = dig(x, x.data[0], "message", "usage")
        seen = (started.get("input_tokens"), dig(x, ending(x), "usage", "output_tokens"))
        told = (dig(whole, whole.good, "usage", "input_tokens"), dig(whole, whole.good, "usage", "output_tokens"))
        yield expect(seen == told, x, "$[*].usage", f"as not streamed: {told}", seen)


@check("AM.9")
def input_joins(evidence: Evidence) -> Iterator[Trial]:
    whole, x = evidence["messages.tools/tool.whole"], evidence["messages.tools/tool.stream"]
    uses = uses_of(x)
    if not uses or not uses_of(whole):
        raise Untestable(x.key, "no tool_use")
    try:
        seen = [(use["name"], json.loads(use["input"] or "{}")) for use in uses]
    except ValueError:
        seen = []
    told = [(use["name"], use["input"]) for use in uses_of(whole)]
    yield expect(seen == told, x, "$[*].delta.partial_json", f"as not streamed: {told}", seen or uses)


@check("AM.10", chance=NONCE)
def result_used(evidence: Evidence) -> Iterator[Trial]:
    yield from _words(evidence, "messages.result", "used")


@check("AM.11", chance=NONCE)
def mixed(evidence: Evidence) -> Iterator[Trial]:
    yield from _words(evidence, "messages.result", "mixed")


@check("AM.12")
def error_result(evidence: Evidence) -> Iterator[Trial]:
    x = evidence["messages.result/error"]
    yield expect(x.status == 200, x, "status", "200", x.describe())


@check("AM.13")
def choice_obeyed(evidence: Evidence) -> Iterator[Trial]:
    any_of, none, named = (evidence[f"messages.tools/{name}"] for name in ("any", "none", "tool.whole"))
    yield expect(uses_of(any_of), any_of, "$.content", "a tool_use", any_of.describe())
    yield expect(not uses_of(none), none, "$.content", "no tool_use", uses_of(none))
    wanted = named.call.json["tool_choice"]["name"]
    seen = [use.get("name") for use in uses_of(named)]
    yield expect(seen and set(seen) == {wanted}, named, "$.content[*].name", f"a tool_use of {wanted}", seen)
    for x in (any_of, named):
        reason = x.good.get("stop_reason")
        yield expect(reason == "tool_use", x, "$.stop_reason", "tool_use", reason)


@check("AM.14")
def counted(evidence: Evidence) -> Iterator[Trial]:
    for i in range(3):
        x, sent = evidence[f"messages.count/count{i}"], evidence[f"messages.count/sent{i}"]
        seen, told = dig(x, x.good, "input_tokens"), dig(sent, sent.good, "usage", "input_tokens")
        yield expect(seen == told, x, "$.input_tokens", f"{told}, as usage says of the same request", seen)


@check("AM.15")
def error_framed(evidence: Evidence) -> Iterator[Trial]:
    x = evidence["messages.broken/stream"]
    _ = x.data
    yield expect(x.events[-1].name == "error", x, "$[-1]", "an event called error", x.events[-1].name)
    yield shaped(x, x.data[-1], "anthropic_error", "$[-1]")


@check("AM.16")
def key_header(evidence: Evidence) -> Iterator[Trial]:
    right, wrong = evidence["messages.key/right"], evidence["messages.key/wrong"]
    yield expect(right.status == 200, right, "status", "200 for the right x-api-key", right.describe())
    yield expect(wrong.status == 401, wrong, "status", "401 for a wrong x-api-key", wrong.describe())
