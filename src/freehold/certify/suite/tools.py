"""TL: function calling in Chat Completions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from freehold.certify.draw import Draw
from freehold.certify.evidence import Ask, Evidence, check, expect, scenario
from freehold.certify.suite.common import (
    NONCE,
    TRIES,
    calls_of,
    echo,
    finish_of,
    fits,
    function,
    recalled,
    text_of,
    tool_name,
    until_heard,
)  # fmt: skip
from freehold.certify.transcript import Exchange, Untestable
from freehold.certify.verdict import Trial

HALF = 0.2
"""How often a model that decides by chance is granted to be right: five of five tries pass, or four."""
MARKUP = ("<tool_call", "</tool_call", "<|python_tag|>", "[TOOL_CALLS]", "<function=", "<|tool", "<｜tool")
LIMIT = 160
TAG = "a </tool_call> b"


def word_schema(draw: Draw, name: str) -> dict[str, Any]:
    """One field with three words to choose from."""
    words = [draw.word(f"{name}/{i}") for i in range(3)]
    field = {"type": "string", "enum": words}
    return {"type": "object", "properties": {"word": field}, "required": ["word"], "additionalProperties": False}


def offered(draw: Draw, count: int = 3) -> list[dict[str, Any]]:
    """Drawn tools, each with a drawn schema."""
    return [function(tool_name(draw, f"tool{i}"), word_schema(draw, f"schema{i}")) for i in range(count)]


def name_of(tool: dict[str, Any]) -> str:
    """The name of a chat tool."""
    return str(tool["function"]["name"])


@scenario("tools.auto", dialect="chat", level=2, capability="agentic")
async def auto(ask: Ask) -> None:
    """Questions that a tool is there for, and some that none is there for."""
    for i in range(TRIES):
        name = tool_name(ask.draw, f"tool{i}")
        tools = [function(name, word_schema(ask.draw, f"schema{i}"), "Finds what a word means.")]
        word = tools[0]["function"]["parameters"]["properties"]["word"]["enum"][0]
        await ask.chat(f"relevant{i}", f"Use the tool {name} to find what {word} means.", tools=tools, max_tokens=96)
        await ask.chat(f"irrelevant{i}", echo(ask.draw.word(f"word{i}")), tools=tools, max_tokens=96)


@scenario("tools.choice", dialect="chat", level=2, capability="tools")
async def choice(ask: Ask) -> None:
    """Every form of tool_choice."""
    tools = offered(ask.draw)
    last = name_of(tools[-1])
    prompt = f"Use the tool {last}."
    await ask.chat("none", prompt, tools=tools, tool_choice="none", max_tokens=24)
    for i in range(3):
        fields: dict[str, Any] = {"tools": tools, "tool_choice": "required", "parallel_tool_calls": False}
        await ask.chat(f"required{i}", echo(ask.draw.word(f"word{i}")), max_tokens=LIMIT, **fields)
    named = {"type": "function", "function": {"name": last}}
    await ask.chat("named.whole", prompt, tools=tools, tool_choice=named, max_tokens=LIMIT)
    await ask.chat("named.stream", prompt, tools=tools, tool_choice=named, max_tokens=LIMIT, stream=True)
    other = {"type": "function", "function": {"name": name_of(tools[1])}}
    await ask.chat("other.whole", prompt, tools=tools, tool_choice=other, max_tokens=LIMIT)


@scenario("tools.schemas", dialect="chat", level=2, capability="tools")
async def schemas(ask: Ask) -> None:
    """Arguments for drawn schemas."""
    for i in range(6):
        tool = function(tool_name(ask.draw, f"tool{i}"), ask.draw.schema(f"schema{i}"))
        tool["function"]["strict"] = True
        named = {"type": "function", "function": {"name": name_of(tool)}}
        await ask.chat(
            f"{i}", "Fill in the form with any of the options.", tools=[tool], tool_choice=named, max_tokens=LIMIT
        )


@scenario("tools.result", dialect="chat", level=2, capability="tools")
async def result(ask: Ask) -> None:
    """What a tool brought, to be told on."""

    async def make(i: int) -> Exchange:
        tool = function(tool_name(ask.draw, f"tool{i}"), word_schema(ask.draw, f"schema{i}"))
        called = {"name": name_of(tool), "arguments": json.dumps({"word": "x"})}
        call = {"id": f"call_{ask.draw.word(f'id{i}')}", "type": "function", "function": called}
        turns = [
            {"role": "user", "content": "What is the code word? Ask the tool and tell me its answer."},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": call["id"], "content": f"The code word is {ask.draw.word(f'word{i}')}."},
        ]
        return await ask.chat(f"{i}", messages=turns, tools=[tool], max_tokens=48)

    await until_heard(make, lambda i: ask.draw.word(f"word{i}"), text_of)


@scenario("tools.several", dialect="chat", level=2, capability="tools")
async def several(ask: Ask) -> None:
    """Two calls wanted: allowed, and not allowed."""
    tools = offered(ask.draw, 2)
    prompt = f"Use the tool {name_of(tools[0])} and the tool {name_of(tools[1])}."
    fields: dict[str, Any] = {"tools": tools, "tool_choice": "required", "max_tokens": LIMIT}
    await ask.chat("parallel", prompt, stream=True, parallel_tool_calls=True, **fields)
    for i in range(3):
        await ask.chat(f"single{i}", prompt, parallel_tool_calls=False, **fields)


@scenario("tools.tag", dialect="chat", level=2, capability="tools")
async def tag(ask: Ask) -> None:
    """An argument that looks like the end of a call."""
    field = {"type": "string", "enum": [TAG]}
    schema = {"type": "object", "properties": {"text": field}, "required": ["text"], "additionalProperties": False}
    tool = function(tool_name(ask.draw, "tool"), schema)
    named = {"type": "function", "function": {"name": name_of(tool)}}
    fields: dict[str, Any] = {"tools": [tool], "tool_choice": named, "max_tokens": LIMIT}
    await ask.chat("whole", f"Call the tool with the text '{TAG}'.", **fields)
    await ask.chat("stream", f"Call the tool with the text '{TAG}'.", stream=True, **fields)


@scenario("tools.wrong", dialect="chat", level=2, capability="tools")
async def wrong(ask: Ask) -> None:
    """Requests that contradict themselves."""
    await ask.chat("required", "Hello", tool_choice="required", max_tokens=16)
    orphan = {"role": "tool", "tool_call_id": f"call_{ask.draw.word('id')}", "content": "42"}
    await ask.chat(
        "orphan", messages=[{"role": "user", "content": "Hello"}, orphan], tools=offered(ask.draw, 1), max_tokens=16
    )


CALLS = "$.choices[0].message.tool_calls"
EVERY = ("tools.choice", "tools.schemas", "tools.several", "tools.tag")


def _calling(evidence: Evidence, *scenarios: str) -> Iterator[tuple[Exchange, dict[str, Any]]]:
    """Every call in the answers of these scenarios that had to have one."""
    for x in evidence.of(*scenarios):
        if x.key.endswith("/none"):
            continue
        calls = calls_of(x)
        if not calls:
            raise Untestable(x.key, f"no call, found {text_of(x)[:80]!r}")
        if finish_of(x) == "length":
            continue  # cut by its limit: nothing to parse
        yield from ((x, call) for call in calls)


@check("TL.1", chance=HALF)
def relevant(evidence: Evidence) -> Iterator[Trial]:
    for i in range(TRIES):
        x = evidence[f"tools.auto/relevant{i}"]
        good = [call["name"] for call in calls_of(x)] == [name_of(x.call.json["tools"][0])]
        yield expect(good, x, CALLS, "one call of the tool that was asked for", calls_of(x) or text_of(x))


@check("TL.2", chance=HALF)
def irrelevant(evidence: Evidence) -> Iterator[Trial]:
    for i in range(TRIES):
        x = evidence[f"tools.auto/irrelevant{i}"]
        yield expect(not calls_of(x), x, CALLS, "no call", calls_of(x))


@check("TL.3")
def none_obeyed(evidence: Evidence) -> Iterator[Trial]:
    x = evidence["tools.choice/none"]
    yield expect(not calls_of(x), x, CALLS, "no call", calls_of(x))
    yield expect(finish_of(x) in ("stop", "length"), x, "$.choices[0].finish_reason", "stop or length", finish_of(x))


@check("TL.4")
def required_obeyed(evidence: Evidence) -> Iterator[Trial]:
    for i in range(3):
        x = evidence[f"tools.choice/required{i}"]
        names = {name_of(tool) for tool in x.call.json["tools"]}
        good = bool(calls_of(x)) and all(call["name"] in names for call in calls_of(x))
        yield expect(good, x, CALLS, "at least one call, of offered tools only", calls_of(x) or text_of(x))


@check("TL.5")
def named_obeyed(evidence: Evidence) -> Iterator[Trial]:
    for name in ("named.whole", "named.stream", "other.whole"):
        x = evidence[f"tools.choice/{name}"]
        wanted = x.call.json["tool_choice"]["function"]["name"]
        good = bool(calls_of(x)) and all(call["name"] == wanted for call in calls_of(x))
        yield expect(good, x, CALLS, f"a call of {wanted}", calls_of(x) or text_of(x))
    whole, x = evidence["tools.choice/named.whole"], evidence["tools.choice/named.stream"]
    good = finish_of(x) == finish_of(whole)
    yield expect(good, x, "$[*].choices[0].finish_reason", f"{finish_of(whole)}, as not streamed", finish_of(x))


@check("TL.6")
def arguments_parse(evidence: Evidence) -> Iterator[Trial]:
    for x, call in _calling(evidence, *EVERY):
        yield fits(x, call["arguments"], {"type": "object"}, f"{CALLS}[*].function.arguments")


@check("TL.7")
def arguments_fit(evidence: Evidence) -> Iterator[Trial]:
    for x, call in _calling(evidence, "tools.schemas"):
        yield fits(
            x, call["arguments"], x.call.json["tools"][0]["function"]["parameters"], f"{CALLS}[0].function.arguments"
        )


@check("TL.8", chance=NONCE)
def result_used(evidence: Evidence) -> Iterator[Trial]:
    yield from recalled(evidence, "tools.result")


@check("TL.9")
def parallel_distinct(evidence: Evidence) -> Iterator[Trial]:
    x = evidence["tools.several/parallel"]
    calls = calls_of(x)
    indices, ids = [call["index"] for call in calls], [call["id"] for call in calls]
    if not calls:
        raise Untestable(x.key, "no call")
    good = indices == list(range(len(calls))) and all(ids) and len(set(ids)) == len(ids)
    good = good and all(json_or_cut(call["arguments"], finish_of(x)) for call in calls)
    yield expect(good, x, "$[*].choices[0].delta.tool_calls", "indices from 0 up, each with an id of its own", calls)


def json_or_cut(text: str, finish: str | None) -> bool:
    """Whether a text is JSON, or was cut by its limit."""
    try:
        json.loads(text)
    except ValueError:
        return finish == "length"
    return True


@check("TL.10")
def single_only(evidence: Evidence) -> Iterator[Trial]:
    for i in range(3):
        x = evidence[f"tools.several/single{i}"]
        yield expect(len(calls_of(x)) <= 1, x, CALLS, "at most one call", calls_of(x))


@check("TL.11")
def streamed_equal(evidence: Evidence) -> Iterator[Trial]:
    whole, x = evidence["tools.choice/named.whole"], evidence["tools.choice/named.stream"]
    seen = [[(call["name"], call["arguments"]) for call in calls_of(y)] for y in (whole, x)]
    if not seen[0]:
        raise Untestable(whole.key, "no call")
    yield expect(seen[0] == seen[1], x, "$[*].choices[0].delta.tool_calls", f"as not streamed: {seen[0]}", seen[1])


@check("TL.12")
def tag_survives(evidence: Evidence) -> Iterator[Trial]:
    for x, call in _calling(evidence, "tools.tag"):
        try:
            value = json.loads(call["arguments"])
        except ValueError:
            value = call["arguments"]
        yield expect(
            value == {"text": TAG}, x, f"{CALLS}[0].function.arguments", json.dumps({"text": TAG}), call["arguments"]
        )


@check("TL.13")
def no_markup(evidence: Evidence) -> Iterator[Trial]:
    for x in evidence.of(*EVERY):
        found = [mark for mark in MARKUP if mark in text_of(x)]
        yield expect(not found, x, "$.choices[0].message.content", "no markup of calls", text_of(x))


@check("TL.14")
def needs_tools(evidence: Evidence) -> Iterator[Trial]:
    x = evidence["tools.wrong/required"]
    yield expect(x.status == 400, x, "status", "400", x.describe())


@check("TL.15")
def orphan(evidence: Evidence) -> Iterator[Trial]:
    x = evidence["tools.wrong/orphan"]
    yield expect(x.status == 400, x, "status", "400", x.describe())
