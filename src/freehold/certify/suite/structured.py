"""SO and LP: structured output and log probabilities in Chat Completions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from freehold.certify.evidence import Ask, Evidence, check, expect, scenario
from freehold.certify.suite.common import calls_of, choices, dig, finish_of, fits, function, text_of
from freehold.certify.suite.tools import LIMIT, word_schema
from freehold.certify.transcript import Exchange, Untestable
from freehold.certify.verdict import Trial

SCHEMAS = 20
CONTENT = "$.choices[0].message.content"


def wanted(schema: dict[str, Any]) -> dict[str, Any]:
    """A strict response format."""
    return {"type": "json_schema", "json_schema": {"name": "form", "strict": True, "schema": schema}}


@scenario("json.object", dialect="chat", level=2, capability="structured")
async def objects(ask: Ask) -> None:
    """Any JSON object."""
    for i in range(3):
        prompt = f'Write a JSON object with the one key "word" and the value "{ask.draw.word(f"word{i}")}".'
        await ask.chat(f"{i}", prompt, response_format={"type": "json_object"}, max_tokens=LIMIT)


@scenario("json.schemas", dialect="chat", level=2, capability="structured")
async def schemas(ask: Ask) -> None:
    """Drawn schemas."""
    for i in range(SCHEMAS):
        format = wanted(ask.draw.schema(f"schema{i}"))
        await ask.chat(
            f"{i}", "Fill in the form in JSON, with any of the options.", response_format=format, max_tokens=LIMIT
        )


@scenario("json.edges", dialect="chat", level=2, capability="structured")
async def edges(ask: Ask) -> None:
    """A schema that is none, one cut short, one streamed, one beside tools."""
    prompt = "Fill in the form in JSON."
    broken = {
        "type": "object",
        "properties": {"a": {"type": ask.draw.word("type")}},
        "required": ["a"],
        "additionalProperties": False,
    }
    await ask.chat("broken", prompt, response_format=wanted(broken), max_tokens=16)
    format = wanted(ask.draw.schema("schema"))
    await ask.chat("cut", prompt, response_format=format, max_tokens=3)
    await ask.chat("whole", prompt, response_format=format, max_tokens=LIMIT)
    await ask.chat("stream", prompt, response_format=format, max_tokens=LIMIT, stream=True)
    tools = [function(f"find_{ask.draw.word('tool')}", word_schema(ask.draw, "tool"))]
    await ask.chat("tools", prompt, response_format=format, tools=tools, max_tokens=LIMIT)


@scenario("logprobs", dialect="chat", level=2, capability="logprobs")
async def logprobs(ask: Ask) -> None:
    """Log probabilities with alternatives, whole and streamed."""
    fields = {"logprobs": True, "top_logprobs": 2 + ask.draw.number("top", 3), "max_tokens": 12}
    prompt = f"Repeat this and nothing else: {ask.draw.word('word')} café"
    await ask.chat("whole", prompt, **fields)
    await ask.chat("stream", prompt, stream=True, **fields)


@check("SO.1")
def object_parses(evidence: Evidence) -> Iterator[Trial]:
    found = [x for x in evidence.of("json.object") if finish_of(x) == "stop"]
    if not found:
        raise Untestable("json.object/0", "every object was cut by its limit")
    for x in found:
        yield fits(x, text_of(x), {"type": "object"}, CONTENT)


@check("SO.2")
def schema_kept(evidence: Evidence) -> Iterator[Trial]:
    found = [x for x in evidence.of("json.schemas") if finish_of(x) != "length"]
    if len(found) < SCHEMAS * 3 // 4:
        raise Untestable("json.schemas/0", f"only {len(found)} of {SCHEMAS} answers were not cut by their limit")
    for x in found:
        yield fits(x, text_of(x), x.call.json["response_format"]["json_schema"]["schema"], CONTENT)


@check("SO.3")
def bad_schema(evidence: Evidence) -> Iterator[Trial]:
    x = evidence["json.edges/broken"]
    yield expect(x.status == 400, x, "status", "400", x.describe())
    if x.status == 400:
        param = str(dig(x, x.json, "error").get("param"))
        yield expect(param.startswith("response_format"), x, "$.error.param", "response_format", param)


@check("SO.4")
def cut_says_so(evidence: Evidence) -> Iterator[Trial]:
    x = evidence["json.edges/cut"]
    yield expect(finish_of(x) == "length", x, "$.choices[0].finish_reason", "length", finish_of(x))


@check("SO.5")
def stream_equal(evidence: Evidence) -> Iterator[Trial]:
    whole, x = evidence["json.edges/whole"], evidence["json.edges/stream"]
    yield expect(text_of(x) == text_of(whole), x, CONTENT, f"as not streamed: {text_of(whole)}", text_of(x))


@check("SO.6")
def beside_tools(evidence: Evidence) -> Iterator[Trial]:
    x = evidence["json.edges/tools"]
    if x.status == 400:
        yield Trial(True, x.key)
    elif calls_of(x):
        for call in calls_of(x):
            yield fits(
                x,
                call["arguments"],
                x.call.json["tools"][0]["function"]["parameters"],
                "$.choices[0].message.tool_calls",
            )
    else:
        yield fits(x, text_of(x), x.call.json["response_format"]["json_schema"]["schema"], CONTENT)


def tokens_of(x: Exchange) -> list[dict[str, Any]]:
    """The entries of logprobs.content, whole or streamed."""
    found = choices(x) if x.call.json.get("stream") else [dig(x, x.good, "choices", 0)]
    entries = [entry for choice in found for entry in (choice.get("logprobs") or {}).get("content") or []]
    if not entries:
        raise Untestable(x.key, "no logprobs.content")
    return entries


PLACE = "$.choices[0].logprobs.content"


@check("LP.1")
def tokens_join(evidence: Evidence) -> Iterator[Trial]:
    for x in evidence.of("logprobs"):
        joined = b"".join(_bytes(entry) for entry in tokens_of(x)).decode("utf-8", "replace")
        yield expect(joined == text_of(x), x, f"{PLACE}[*].token", f"the content {text_of(x)!r}", joined)


def _bytes(entry: dict[str, Any]) -> bytes:
    """A token's bytes; a token that is part of a character has no other true form."""
    given = entry.get("bytes")
    return bytes(given) if isinstance(given, list) else str(entry.get("token", "")).encode()


@check("LP.2")
def sorted_down(evidence: Evidence) -> Iterator[Trial]:
    for x in evidence.of("logprobs"):
        for i, entry in enumerate(tokens_of(x)):
            values = [top.get("logprob", 1) for top in entry.get("top_logprobs") or []]
            good = values == sorted(values, reverse=True) and all(
                value <= 1e-6 for value in [entry.get("logprob", 1), *values]
            )
            yield expect(good, x, f"{PLACE}[{i}]", "values of at most 0, the largest first", values)


@check("LP.3")
def as_many(evidence: Evidence) -> Iterator[Trial]:
    for x in evidence.of("logprobs"):
        count = x.call.json["top_logprobs"]
        for i, entry in enumerate(tokens_of(x)):
            seen = len(entry.get("top_logprobs") or [])
            yield expect(seen == count, x, f"{PLACE}[{i}].top_logprobs", f"{count} alternatives", seen)


@check("LP.4")
def bytes_decode(evidence: Evidence) -> Iterator[Trial]:
    for x in evidence.of("logprobs"):
        for i, entry in enumerate(tokens_of(x)):
            given, token = entry.get("bytes"), str(entry.get("token", ""))
            good = given is None or bytes(given).decode("utf-8", "replace") == token or "\ufffd" in token
            yield expect(good, x, f"{PLACE}[{i}].bytes", f"the bytes of {token!r}", given)


@check("LP.5")
def streamed_equal(evidence: Evidence) -> Iterator[Trial]:
    whole, x = evidence["logprobs/whole"], evidence["logprobs/stream"]
    seen = [[(entry.get("token"), round(entry.get("logprob", 1), 2)) for entry in tokens_of(y)] for y in (whole, x)]
    yield expect(seen[0] == seen[1], x, PLACE, f"as not streamed: {seen[0]}", seen[1])
