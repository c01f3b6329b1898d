"""RS: OpenAI's Responses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from freehold.certify.evidence import Ask, Evidence, check, expect, scenario
from freehold.certify.suite.common import NONCE, dig, echo, said, shaped, told, tool_name, until_heard
from freehold.certify.suite.tools import LIMIT, word_schema
from freehold.certify.transcript import Exchange, Untestable
from freehold.certify.verdict import Trial

ENDS = ("response.completed", "response.incomplete", "response.failed")


def tool(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """A Responses tool."""
    return {"type": "function", "name": name, "description": f"Runs {name}.", "parameters": schema}


@scenario("responses.forms", dialect="responses")
async def forms(ask: Ask) -> None:
    """The same text as a string and as items."""

    async def make(i: int) -> Exchange:
        text = told(ask.draw.word(f"word{i}"), i)
        items = [{"role": "user", "content": [{"type": "input_text", "text": text}]}]
        await ask.responses(f"items{i}", items, max_output_tokens=32)
        return await ask.responses(f"string{i}", text, max_output_tokens=32)

    await until_heard(make, lambda i: ask.draw.word(f"word{i}"), lambda x: text_of(x.good))


@scenario("responses.stream", dialect="responses")
async def stream(ask: Ask) -> None:
    """Streams that end, are cut, and call a tool."""
    await ask.responses("end", echo(ask.draw.word("word")), max_output_tokens=64, stream=True)
    await ask.responses("cut", "Count from 1 to 100.", max_output_tokens=16, stream=True)


@scenario("responses.cut", dialect="responses")
async def cut(ask: Ask) -> None:
    """An answer that its limit cuts."""
    await ask.responses("whole", "Count from 1 to 100.", max_output_tokens=16)


@scenario("responses.stored", dialect="responses", level=2, capability="stored")
async def stored(ask: Ask) -> None:
    """A word that only the stored response has."""

    async def make(i: int) -> Exchange:
        text = f"The code word is {ask.draw.word(f'word{i}')}. Remember it."
        first = await ask.responses(f"first{i}", text, max_output_tokens=16)
        before = dig(first, first.good, "id")
        question = "What is the code word?"
        return await ask.responses(f"second{i}", question, previous_response_id=before, max_output_tokens=32)

    await until_heard(make, lambda i: ask.draw.word(f"word{i}"), lambda x: text_of(x.good))


@scenario("responses.tools", dialect="responses", level=2, capability="tools")
async def tools(ask: Ask) -> None:
    """Every form of tool_choice, and a call that goes round."""
    offered = [tool(tool_name(ask.draw, f"tool{i}"), word_schema(ask.draw, f"schema{i}")) for i in range(3)]
    prompt = f"Use the tool {offered[0]['name']}."
    fields: dict[str, Any] = {"tools": offered, "max_output_tokens": LIMIT, "parallel_tool_calls": False}
    await ask.responses("none", prompt, **fields | {"tool_choice": "none", "max_output_tokens": 32})
    required = await ask.responses("required", prompt, tool_choice="required", **fields)
    await ask.responses("required.stream", prompt, tool_choice="required", stream=True, **fields)
    named = {"type": "function", "name": offered[1]["name"]}
    await ask.responses("named", prompt, tool_choice=named, **fields)
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": offered[2]["name"]}]}
    await ask.responses("allowed", prompt, tool_choice=allowed, **fields)
    calls = calls_of(required)
    if calls:
        output = [
            {
                "type": "function_call_output",
                "call_id": call.get("call_id"),
                "output": f"The code word is {ask.draw.word('word')}.",
            }
            for call in calls
        ]
        await ask.responses(
            "round", [{"role": "user", "content": prompt}, *calls, *output], **fields | {"max_output_tokens": 48}
        )


@scenario("responses.broken", dialect="responses", capability="faults")
async def broken(ask: Ask) -> None:
    """A stream that the declared model breaks in the middle."""
    await ask.responses("stream", "Count from 1 to 40.", model=ask.declared.broken_model, stream=True)


def calls_of(x: Exchange) -> list[dict[str, Any]]:
    """The function calls of a whole response."""
    return [item for item in dig(x, x.good, "output") if item.get("type") == "function_call"]


def text_of(response: dict[str, Any]) -> str:
    """The text of a response."""
    parts = [part for item in response.get("output") or [] if item.get("type") == "message" for part in item["content"]]
    return "".join(part.get("text") or "" for part in parts)


def final(x: Exchange) -> dict[str, Any]:
    """The response in a stream's last event.

    Raises:
        Untestable: the last event has none.
    """
    found: dict[str, Any] = dig(x, x.data[-1], "response")
    return found


@check("RS.1")
def schema(evidence: Evidence) -> Iterator[Trial]:
    for x in evidence.of("responses.forms", "responses.cut"):
        yield shaped(x, x.good, "response")


@check("RS.2")
def forms_equal(evidence: Evidence) -> Iterator[Trial]:
    for items in [x for x in evidence.of("responses.forms") if "/items" in x.key]:
        string = evidence[items.key.replace("items", "string")]
        seen = [(dig(x, x.good, "usage", "input_tokens"), text_of(x.good)) for x in (string, items)]
        yield expect(
            seen[0] == seen[1], items, "$.usage.input_tokens, $.output", f"as for the string: {seen[0]}", seen[1]
        )


@check("RS.16", chance=NONCE)
def heard(evidence: Evidence) -> Iterator[Trial]:
    yield from _heard(evidence, "responses.forms", "string")


def _heard(evidence: Evidence, scenario: str, kind: str) -> Iterator[Trial]:
    """For each exchange of that kind, whether its drawn word came back."""
    draw = evidence.draw(scenario)
    for x in [x for x in evidence.of(scenario) if f"/{kind}" in x.key]:
        word = draw.word("word" + x.key.rpartition(kind)[2])
        yield said(x, text_of(x.good), word, "$.output[*].content[*].text")


def _streams(evidence: Evidence) -> list[Exchange]:
    return evidence.of("responses.stream")


@check("RS.3")
def names_agree(evidence: Evidence) -> Iterator[Trial]:
    for x in _streams(evidence):
        seen = [
            (e.name, d.get("type")) for e, d in zip([e for e in x.events if e.data != "[DONE]"], x.data, strict=True)
        ]
        bad = [pair for pair in seen if pair[0] != pair[1]]
        yield expect(not bad, x, "$[*].type", "the event's name is the type in its data", bad[:2])


@check("RS.4")
def numbered(evidence: Evidence) -> Iterator[Trial]:
    for x in _streams(evidence):
        seen = [data.get("sequence_number") for data in x.data]
        numbers = [n for n in seen if isinstance(n, int)]
        good = len(numbers) == len(seen) and all(a < b for a, b in pairwise(numbers))
        yield expect(good, x, "$[*].sequence_number", "growing numbers", seen[:12])


LEGAL = {
    "response.output_item.added": "A", "response.output_item.done": "Z", "response.content_part.added": "p",
    "response.content_part.done": "q", "response.output_text.delta": "t", "response.output_text.done": "T",
    "response.function_call_arguments.delta": "f", "response.function_call_arguments.done": "F",
    "response.created": "c", "response.queued": "u", "response.in_progress": "i",
}  # fmt: skip
ORDER = re.compile(r"cu?i?(A(p(t*T)?q|f*F|r)*Z)*E")


@check("RS.5")
def legal_order(evidence: Evidence) -> Iterator[Trial]:
    for x in _streams(evidence):
        types = [str(data.get("type")) for data in x.data]
        letters = "".join(
            LEGAL.get(kind, "E" if kind in ENDS else "r" if "reasoning" in kind else "?") for kind in types
        )
        yield expect(
            ORDER.fullmatch(letters), x, "$[*].type", "created, in_progress, items with their parts, the end", types
        )


@check("RS.6")
def deltas_join(evidence: Evidence) -> Iterator[Trial]:
    for x in _streams(evidence):
        joined = "".join(d.get("delta", "") for d in x.data if d.get("type") == "response.output_text.delta")
        told = "".join(d.get("text", "") for d in x.data if d.get("type") == "response.output_text.done")
        good = joined == told == text_of(final(x))
        yield expect(good, x, "$[*].delta", f"deltas = done ({told!r}) = final ({text_of(final(x))!r})", joined)


@check("RS.7")
def one_end(evidence: Evidence) -> Iterator[Trial]:
    for x in _streams(evidence):
        types = [data.get("type") for data in x.data]
        ends = [kind for kind in types if kind in ENDS]
        good = len(ends) == 1 and types[-1] == ends[0] == f"response.{final(x).get('status')}"
        yield expect(good, x, "$[-1].type", "one terminal event, the last, of the response's status", types[-2:])


@check("RS.8", chance=NONCE)
def recalls(evidence: Evidence) -> Iterator[Trial]:
    yield from _heard(evidence, "responses.stored", "second")


@check("RS.9")
def goes_round(evidence: Evidence) -> Iterator[Trial]:
    x = evidence["responses.tools/round"]
    good = x.status == 200 and bool(x.good.get("output"))
    yield expect(good, x, "$", "an answer to call and output by their call_id", x.describe())


@check("RS.10")
def allowed_only(evidence: Evidence) -> Iterator[Trial]:
    x = evidence["responses.tools/allowed"]
    wanted = x.call.json["tool_choice"]["tools"][0]["name"]
    seen = [call.get("name") for call in calls_of(x)]
    yield expect(seen and set(seen) == {wanted}, x, "$.output[*].name", f"calls of {wanted} only", seen)


@check("RS.11")
def incomplete(evidence: Evidence) -> Iterator[Trial]:
    x = evidence["responses.cut/whole"]
    reason = (x.good.get("incomplete_details") or {}).get("reason")
    told = (x.good.get("status"), reason)
    yield expect(told == ("incomplete", "max_output_tokens"), x, "$.status", "incomplete, for max_output_tokens", told)
    items = [item.get("status") for item in dig(x, x.good, "output") if item.get("type") == "message"]
    yield expect(items[-1:] == ["incomplete"], x, "$.output[-1].status", "incomplete", items)


@check("RS.12")
def not_truncated(evidence: Evidence) -> Iterator[Trial]:
    x = evidence["errors.context/responses.long"]
    yield expect(x.status == 400, x, "status", "400, as truncation is disabled by default", x.describe())
    if x.status == 400:
        code = dig(x, x.json, "error").get("code")
        yield expect(code == "context_length_exceeded", x, "$.error.code", "context_length_exceeded", code)


@check("RS.13")
def failed(evidence: Evidence) -> Iterator[Trial]:
    x = evidence["responses.broken/stream"]
    last = x.data[-1]
    good = last.get("type") == "response.failed" and (final(x).get("error") or {}).get("message")
    yield expect(good, x, "$[-1]", "response.failed with the error", last)


@check("RS.14")
def echoed(evidence: Evidence) -> Iterator[Trial]:
    x = evidence["responses.tools/required"]
    given = dig(x, x.good, "tools")
    names = [tool.get("name") for tool in given]
    wanted = [tool["name"] for tool in x.call.json["tools"]]
    yield expect(names == wanted, x, "$.tools[*].name", f"the tools of the request: {wanted}", names)
    for i, one in enumerate(given):
        missing = [name for name in ("type", "name", "parameters", "strict") if name not in one]
        yield expect(not missing, x, f"$.tools[{i}]", "every field, null where not given", f"without {missing}")


@check("RS.15")
def choice_obeyed(evidence: Evidence) -> Iterator[Trial]:
    none, required, named = (evidence[f"responses.tools/{name}"] for name in ("none", "required", "named"))
    yield expect(not calls_of(none), none, "$.output", "no call", calls_of(none))
    yield expect(calls_of(required), required, "$.output", "at least one call", text_of(required.good))
    wanted = named.call.json["tool_choice"]["name"]
    seen = [call.get("name") for call in calls_of(named)]
    yield expect(seen and set(seen) == {wanted}, named, "$.output[*].name", f"a call of {wanted}", seen)


@check("RS.17")
def arguments_join(evidence: Evidence) -> Iterator[Trial]:
    x = evidence["responses.tools/required.stream"]
    joined: dict[Any, str] = {}
    for data in x.data:
        if data.get("type") == "response.function_call_arguments.delta":
            joined[data.get("item_id")] = joined.get(data.get("item_id"), "") + data.get("delta", "")
    told = {i.get("id"): i.get("arguments") for i in final(x).get("output", []) if i.get("type") == "function_call"}
    if not told:
        raise Untestable(x.key, "no call")
    yield expect(joined == told, x, "$[*].delta", f"the final arguments {told}", joined)


@check("RS.18")
def usage_adds(evidence: Evidence) -> Iterator[Trial]:
    for x in evidence.of("responses.forms"):
        usage = dig(x, x.good, "usage")
        total = usage.get("input_tokens", 0) + usage.get("output_tokens", 0)
        yield expect(
            usage.get("total_tokens") == total, x, "$.usage.total_tokens", str(total), usage.get("total_tokens")
        )
