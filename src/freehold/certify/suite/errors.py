"""ER, and what depends on a declared size: a wrong request is refused, in the dialect's own way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from freehold.certify.evidence import VERSION, Ask, Evidence, check, expect, post, scenario
from freehold.certify.suite.common import dig, finish_of, shaped, text_of, usage_of
from freehold.certify.suite.transport import PATHS, speak
from freehold.certify.transcript import Exchange, Untestable
from freehold.certify.verdict import Trial

CONTENT = {"chat": "messages", "responses": "input", "messages": "messages"}
WRONG = ("malformed", "missing", "type", "model")


def _body(ask: Ask, dialect: str) -> dict[str, Any]:
    body: dict[str, Any] = {"model": ask.model}
    body |= {"input": "Hello"} if dialect == "responses" else {"messages": [{"role": "user", "content": "Hello"}]}
    return body | ({"max_tokens": 8} if dialect == "messages" else {})


@scenario("errors")
async def errors(ask: Ask) -> None:
    """Four wrong requests in each dialect."""
    for dialect in ask.declared.dialects:
        headers = (VERSION,) if dialect == "messages" else ()
        body, field = _body(ask, dialect), CONTENT[dialect]
        wrong = {
            "malformed": json.dumps(body).encode()[:-2],
            "missing": {key: value for key, value in body.items() if key != field},
            "type": body | {field: 7},
            "model": body | {"model": f"certify-{ask.draw.word('model')}"},
        }
        for name in WRONG:
            await ask(f"{dialect}.{name}", post(PATHS[dialect], wrong[name], *headers))


@scenario("errors.context", level=2, capability="context")
async def context(ask: Ask) -> None:
    """A prompt that is certainly longer than the declared context, by the server's own count of two shorter ones."""
    for dialect in ask.declared.dialects:
        counts = []
        for i, words in enumerate((50, 150)):
            counts.append(
                prompt_tokens(await speak(ask, f"{dialect}.{i}", " hello" * words, tokens=16, dialect=dialect))
            )
        each = max(0.25, (counts[1] - counts[0]) / 100)
        words = int((ask.declared.context + 1) / each) + 1
        await speak(ask, f"{dialect}.long", " hello" * words, tokens=16, dialect=dialect)


def prompt_tokens(x: Exchange) -> int:
    """Tokens of the prompt, in any dialect."""
    usage = dig(x, x.good, "usage")
    found = usage.get("prompt_tokens", usage.get("input_tokens"))
    if not isinstance(found, int):
        raise Untestable(x.key, "no count of the prompt's tokens")
    return found


@scenario("errors.size", level=1, capability="body_limit")
async def size(ask: Ask) -> None:
    """A body one byte larger than is declared."""
    for dialect in ask.declared.dialects:
        body = _body(ask, dialect) | {"metadata": {"x": ""}}
        short = len(json.dumps(body).encode())
        body["metadata"]["x"] = "x" * (ask.declared.max_body + 1 - short)
        await ask(dialect, post(PATHS[dialect], body, *((VERSION,) if dialect == "messages" else ())))


@scenario("errors.thinking", dialect="chat", level=2, capability="reasoning")
async def thinking(ask: Ask) -> None:
    """So little room that thinking takes it all; and enough of it."""
    model = ask.declared.thinker or ask.model
    await ask.chat("cut", "What is 17 times 23?", model=model, max_tokens=5)
    await ask.chat("whole", "What is 17 times 23?", model=model, max_tokens=512)


def _wrong(evidence: Evidence, name: str) -> list[tuple[str, Exchange]]:
    return [(dialect, evidence[f"errors/{dialect}.{name}"]) for dialect in evidence.declared.dialects]


def _refused(x: Exchange, status: int, kind: str) -> Iterator[Trial]:
    yield expect(x.status == status, x, "status", str(status), x.describe())
    if x.status == status:
        seen = dig(x, x.json, "error").get("type")
        yield expect(seen == kind, x, "$.error.type", kind, seen)


@check("ER.1")
def malformed(evidence: Evidence) -> Iterator[Trial]:
    for _, x in _wrong(evidence, "malformed"):
        yield from _refused(x, 400, "invalid_request_error")


@check("ER.2")
def missing(evidence: Evidence) -> Iterator[Trial]:
    for dialect, x in _wrong(evidence, "missing"):
        yield from _refused(x, 400, "invalid_request_error")
        yield from _names(dialect, x)


@check("ER.3")
def wrong_type(evidence: Evidence) -> Iterator[Trial]:
    for dialect, x in _wrong(evidence, "type"):
        yield from _refused(x, 400, "invalid_request_error")
        yield from _names(dialect, x)


def _names(dialect: str, x: Exchange) -> Iterator[Trial]:
    """The field at fault is named: in `param`, or in Anthropic's message."""
    if x.status != 400:
        return
    error, field = dig(x, x.json, "error"), CONTENT[dialect]
    place = "message" if dialect == "messages" else "param"
    seen = str(error.get(place))
    good = field in seen if dialect == "messages" else seen.startswith(field)
    yield expect(good, x, f"$.error.{place}", f"names {field}", seen)


@check("ER.4")
def unknown_model(evidence: Evidence) -> Iterator[Trial]:
    for dialect, x in _wrong(evidence, "model"):
        yield from _refused(x, 404, "not_found_error" if dialect == "messages" else "invalid_request_error")


@check("ER.5")
def too_long(evidence: Evidence) -> Iterator[Trial]:
    for dialect in evidence.declared.dialects:
        x = evidence[f"errors.context/{dialect}.long"]
        yield expect(
            x.status not in (200, 0) and x.status < 500, x, "status", "a refusal, not a truncated prompt", x.describe()
        )


@check("MD.4")
def context_kept(evidence: Evidence) -> Iterator[Trial]:
    for dialect in evidence.declared.dialects:
        x = evidence[f"errors.context/{dialect}.long"]
        yield from _refused(x, 400, "invalid_request_error")


@check("ER.6")
def too_large(evidence: Evidence) -> Iterator[Trial]:
    for x in evidence.of("errors.size"):
        yield expect(x.status in (400, 413), x, "status", "413 (or 400)", x.describe())


@check("ER.7")
def own_envelope(evidence: Evidence) -> Iterator[Trial]:
    for name in WRONG:
        for dialect, x in _wrong(evidence, name):
            if x.status < 400:
                continue  # not refused at all: another requirement's matter
            yield shaped(x, x.json, "anthropic_error" if dialect == "messages" else "openai_error")


@check("ER.8")
def emptied(evidence: Evidence) -> Iterator[Trial]:
    x = evidence["errors.thinking/cut"]
    good = bool(text_of(x)) or finish_of(x) == "length"
    yield expect(good, x, "$.choices[0].finish_reason", "length, as nothing is left to say", finish_of(x))


@check("US.7")
def reasoning_counted(evidence: Evidence) -> Iterator[Trial]:
    x = evidence["errors.thinking/whole"]
    usage = usage_of(x)
    seen = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
    good = 0 < seen <= usage.get("completion_tokens", 0)
    yield expect(
        good, x, "$.usage.completion_tokens_details.reasoning_tokens", "above 0, at most completion_tokens", seen
    )
