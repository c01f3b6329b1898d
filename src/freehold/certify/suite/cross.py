"""XP: what two dialects of one server must agree on, and what the official SDKs make of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from freehold.certify.draw import Draw
from freehold.certify.evidence import Ask, Evidence, check, expect, scenario
from freehold.certify.suite import messages, responses
from freehold.certify.suite.common import calls_of, dig, finish_of, function, text_of, tool_name
from freehold.certify.suite.errors import prompt_tokens
from freehold.certify.suite.sdk import parsed
from freehold.certify.suite.tools import LIMIT, word_schema
from freehold.certify.suite.transport import speak
from freehold.certify.transcript import Exchange, Untestable
from freehold.certify.verdict import Trial

TEXTS = ("Hello", "The quick brown fox jumps over the lazy dog.", "naïve café 日本 🦊")


@scenario("cross.text", level=3)
async def texts(ask: Ask) -> None:
    """The same texts in each dialect."""
    for i, text in enumerate((*TEXTS, ask.draw.word("word"))):
        for dialect in ask.declared.dialects:
            await speak(ask, f"{dialect}.{i}", text, tokens=16, dialect=dialect)


@scenario("cross.tool", level=3, capability="tools")
async def tool(ask: Ask) -> None:
    """The same forced call in each dialect."""
    name, schema, prompt = _tool(ask.draw)
    if "chat" in ask.declared.dialects:
        named: dict[str, Any] = {"type": "function", "function": {"name": name}}
        await ask.chat("chat", prompt, tools=[function(name, schema)], tool_choice=named, max_tokens=LIMIT)
    if "responses" in ask.declared.dialects:
        offered, named = [responses.tool(name, schema)], {"type": "function", "name": name}
        await ask.responses("responses", prompt, tools=offered, tool_choice=named, max_output_tokens=LIMIT)
    if "messages" in ask.declared.dialects:
        offered, named = [messages.tool(name, schema)], {"type": "tool", "name": name}
        await ask.messages("messages", prompt, tools=offered, tool_choice=named, max_tokens=LIMIT)


def _tool(draw: Draw) -> tuple[str, dict[str, Any], str]:
    name = tool_name(draw, "tool")
    return name, word_schema(draw, "schema"), f"Use the tool {name} with the word {draw.word('schema/1')}."


@check("XP.1")
def same_count(evidence: Evidence) -> Iterator[Trial]:
    for i in range(len(TEXTS) + 1):
        found = {dialect: evidence[f"cross.text/{dialect}.{i}"] for dialect in evidence.declared.dialects}
        counts = {dialect: prompt_tokens(x) for dialect, x in found.items()}
        x = next(iter(found.values()))
        yield expect(len(set(counts.values())) == 1, x, "$.usage", "as many prompt tokens in each dialect", counts)


@check("XP.2")
def same_call(evidence: Evidence) -> Iterator[Trial]:
    found = {dialect: _call(dialect, evidence[f"cross.tool/{dialect}"]) for dialect in evidence.declared.dialects}
    x = evidence[f"cross.tool/{evidence.declared.dialects[0]}"]
    same = len({json.dumps(call, sort_keys=True) for call in found.values()}) == 1
    yield expect(same, x, "$", "the same tool with the same arguments at temperature 0", found)


def _call(dialect: str, x: Exchange) -> tuple[str, Any]:
    """Name and arguments of the first call."""
    if dialect == "messages":
        uses = messages.uses_of(x)
        found = [(use["name"], use["input"]) for use in uses]
    else:
        calls = calls_of(x) if dialect == "chat" else responses.calls_of(x)
        try:
            found = [(call["name"], json.loads(call["arguments"])) for call in calls]
        except ValueError:
            raise Untestable(x.key, "arguments that are no JSON") from None
    if not found:
        raise Untestable(x.key, "no call")
    return found[0]


@check("XP.4")
def same_finish(evidence: Evidence) -> Iterator[Trial]:
    """Which end an answer has, in one word."""
    for i in range(len(TEXTS) + 1):
        found = {
            dialect: _finish(dialect, evidence[f"cross.text/{dialect}.{i}"]) for dialect in evidence.declared.dialects
        }
        x = evidence[f"cross.text/{evidence.declared.dialects[0]}.{i}"]
        yield expect(len(set(found.values())) == 1, x, "$", "the same end at temperature 0", found)


def _finish(dialect: str, x: Exchange) -> str:
    if dialect == "chat":
        return "length" if finish_of(x) == "length" else "stop"
    told = dig(x, x.good, "status" if dialect == "responses" else "stop_reason")
    return "length" if told in ("incomplete", "max_tokens") else "stop"


SHOWN = {
    "chat": ("chat.echo", "chat.stream", "tools.choice", "logprobs"),
    "responses": ("responses.forms", "responses.stream", "responses.tools"),
    "messages": ("messages.echo", "messages.stream", "messages.tools"),
}


@check("XP.3")
def sdks_parse(evidence: Evidence) -> Iterator[Trial]:
    for dialect in evidence.declared.dialects:
        made = [name for name in SHOWN[dialect] if any(key.startswith(name + "/") for key in evidence.exchanges)]
        for x in evidence.of(*made):
            told = TEXT[dialect](x)
            try:
                seen = parsed(dialect, x)
            except Untestable:
                raise
            except Exception as error:  # whatever an SDK raises is what its users meet
                seen = f"{type(error).__name__}: {error}"
            yield expect(seen == told, x, "$", f"the official SDK for {dialect} reads {told!r}", seen)


def _response_text(x: Exchange) -> str:
    return responses.text_of(responses.final(x) if x.call.json.get("stream") else x.good)


TEXT = {"chat": text_of, "responses": _response_text, "messages": messages.text_of}
