"""TR, MD, RL: what holds for HTTP, the list of models and limits, in whichever dialect."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Iterator
from urllib.parse import quote

from freehold.certify import sse
from freehold.certify.evidence import VERSION, Ask, Evidence, check, expect, post, scenario
from freehold.certify.suite.common import dig, echo, shaped
from freehold.certify.transcript import Call, Exchange, Untestable
from freehold.certify.verdict import Trial

PATHS = {"chat": "/chat/completions", "responses": "/responses", "messages": "/messages"}
SPLITS = 50


async def speak(ask: Ask, name: str, prompt: str, *, tokens: int = 24, hang_up: int | None = None, stream: bool = False,
                auth: str = "good", dialect: str = "") -> Exchange:  # fmt: skip
    """A question in the given dialect, by default the first that is declared."""
    dialect = dialect or ask.declared.dialects[0]
    limit = {"chat": "max_tokens", "responses": "max_output_tokens", "messages": "max_tokens"}[dialect]
    body = {"model": ask.model, "temperature": 0, limit: tokens, "stream": stream}
    body |= {"input": prompt} if dialect == "responses" else {"messages": [{"role": "user", "content": prompt}]}
    headers = (VERSION,) if dialect == "messages" else ()
    return await ask(name, post(PATHS[dialect], body, *headers, hang_up=hang_up, auth=auth))


@scenario("transport.crossing")
async def crossing(ask: Ask) -> None:
    """Eight at once, each with a word of its own."""
    words = [ask.draw.word(f"word{i}") for i in range(8)]
    await asyncio.gather(*(speak(ask, f"{i}", echo(word)) for i, word in enumerate(words)))


@scenario("transport.leave", alone=True)
async def leave(ask: Ask) -> None:
    """Eight who leave in the middle of a long answer, then one who stays."""
    prompt = "Count from 1 to 400."
    await speak(ask, "before", echo(ask.draw.word("before")))
    for i in range(8):
        await speak(ask, f"left{i}", prompt, tokens=512, hang_up=2, stream=True)
    await speak(ask, "after", echo(ask.draw.word("after")))


@scenario("transport.paths")
async def paths(ask: Ask) -> None:
    """A path that is not there, and a method that is not allowed."""
    await ask("unknown", Call("GET", f"/certify/{ask.draw.word('path')}"))
    for dialect in ask.declared.dialects:
        await ask(
            f"method.{dialect}", Call("DELETE", PATHS[dialect], headers=(VERSION,) if dialect == "messages" else ())
        )


@scenario("transport.key", capability="auth")
async def key(ask: Ask) -> None:
    """A key that is wrong."""
    for dialect in ask.declared.dialects:
        await speak(ask, dialect, "Hello", auth="bad", dialect=dialect)


@scenario("transport.stream")
async def stream(ask: Ask) -> None:
    """A stream in each dialect, with characters of several bytes in it."""
    prompt = f"Repeat this and nothing else: {ask.draw.word('word')} naïve café 日本 🦊 {ask.draw.word('end')}"
    for dialect in ask.declared.dialects:
        await speak(ask, dialect, prompt, tokens=48, stream=True, dialect=dialect)
        await speak(ask, f"{dialect}.whole", prompt, tokens=48, dialect=dialect)


@scenario("models")
async def models(ask: Ask) -> None:
    """The list, each of the first three entries, one that is not there."""
    listed = await ask("list", Call("GET", "/models"))
    for i, entry in enumerate(listed.good.get("data", [])[:3]):
        await ask(f"entry{i}", Call("GET", f"/models/{quote(str(entry.get('id')), safe='')}"))
    await ask("unknown", Call("GET", f"/models/certify-{ask.draw.word('model')}"))


@scenario("limits", capability="limits", alone=True)
async def limits(ask: Ask) -> None:
    """One request more than the limited key may make in a minute."""
    for i in range(ask.declared.requests_per_minute + 1):
        await speak(ask, f"{i}", "Hello", tokens=4, auth="limited")


def streams(evidence: Evidence) -> list[Exchange]:
    """The streams of the transport scenario."""
    return [x for x in evidence.of("transport.stream") if x.call.json["stream"]]


@check("TR.1")
def json_type(evidence: Evidence) -> Iterator[Trial]:
    found = [x for x in evidence.of("transport.stream") if not x.call.json["stream"]]
    for x in [*found, evidence["models/list"]]:
        _ = x.json
        yield expect(x.media_type == "application/json", x, "content-type", "application/json", x.media_type)


@check("TR.2")
def stream_type(evidence: Evidence) -> Iterator[Trial]:
    for x in streams(evidence):
        _ = x.events
        yield expect(x.media_type == "text/event-stream", x, "content-type", "text/event-stream", x.media_type)


@check("TR.3")
def any_split(evidence: Evidence) -> Iterator[Trial]:
    for x in streams(evidence):
        body = x.answer.body
        try:
            whole = sse.parse([body])
        except UnicodeDecodeError as error:
            yield expect(
                False, x, f"byte {error.start}", "UTF-8", body[max(0, error.start - 20) : error.end + 20].hex()
            )
            continue
        chance = random.Random(f"{evidence.seed}/{x.key}")
        same = all(sse.parse(_split(body, chance)) == whole for _ in range(SPLITS))
        yield expect(same and whole != [], x, "$", "the same events at any split", body[:80].decode())


def _split(body: bytes, chance: random.Random) -> list[bytes]:
    """The body cut at random places."""
    cuts = sorted(chance.randrange(len(body) + 1) for _ in range(chance.randrange(1, 12)))
    return [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]


@check("TR.4")
def flushed(evidence: Evidence) -> Iterator[Trial]:
    for x in streams(evidence):
        _ = x.events
        count = len(x.answer.portions)
        yield expect(count >= 2, x, "$", "an answer that arrives in at least two portions", f"{count} portion")


@check("TR.5")
def slot_is_free(evidence: Evidence) -> Iterator[Trial]:
    before, after = evidence["transport.leave/before"], evidence["transport.leave/after"]
    left = [x for x in evidence.of("transport.leave") if x.answer.end == "hung up"]
    if not left:
        raise Untestable(before.key, "no stream lasted long enough to be left")
    _ = before.good
    patience = max(10 * before.answer.took, before.answer.took + 10_000_000)
    good = after.status == 200 and after.answer.took <= patience
    seen = f"{after.describe()[:80]} after {after.answer.took / 1e6:.1f} s"
    yield expect(good, after, "$", f"an answer within {patience / 1e6:.1f} s of eight clients leaving", seen)


@check("TR.6")
def bad_key(evidence: Evidence) -> Iterator[Trial]:
    for x in evidence.of("transport.key"):
        yield expect(x.status == 401, x, "status", "401 for a wrong key", x.describe())
        if x.status == 401:
            yield shaped(x, x.json, "anthropic_error" if x.key.endswith("messages") else "openai_error")


@check("TR.7")
def never_cross(evidence: Evidence) -> Iterator[Trial]:
    found = evidence.of("transport.crossing")
    draw = evidence.draw("transport.crossing")
    own = 0
    for x in found:
        mine, text = x.key.rpartition("/")[2], json.dumps(x.good, ensure_ascii=False)
        own += draw.word(f"word{mine}") in text
        others = [word for i in range(8) if f"{i}" != mine and (word := draw.word(f"word{i}")) in text]
        yield expect(not others, x, "$", "no word of another request", others)
    if not own:
        raise Untestable(found[0].key, "no answer has any of the words, so crossing can't be told")


@check("TR.8")
def unknown_path(evidence: Evidence) -> Iterator[Trial]:
    x = evidence["transport.paths/unknown"]
    yield expect(x.status == 404, x, "status", "404", x.describe())


@check("TR.9")
def wrong_method(evidence: Evidence) -> Iterator[Trial]:
    for x in evidence.of("transport.paths"):
        if not x.key.endswith("unknown"):
            yield expect(x.status == 405, x, "status", "405", x.describe())


@check("MD.1")
def list_shape(evidence: Evidence) -> Iterator[Trial]:
    x = evidence["models/list"]
    yield shaped(x, x.good, "models")
    ids = [entry.get("id") for entry in dig(x, x.good, "data")]
    yield expect(len(ids) == len(set(ids)), x, "$.data[*].id", "each model once", ids)


@check("MD.2")
def entry_equal(evidence: Evidence) -> Iterator[Trial]:
    listed = dig(evidence["models/list"], evidence["models/list"].good, "data")
    for i, entry in enumerate(listed[:3]):
        x = evidence[f"models/entry{i}"]
        fields = ("id", "object", "created", "owned_by")
        same = x.status == 200 and all(x.good.get(name) == entry.get(name) for name in fields)
        yield expect(same, x, "$", f"the list's entry {entry}", x.describe())


@check("MD.3")
def unknown_entry(evidence: Evidence) -> Iterator[Trial]:
    x = evidence["models/unknown"]
    yield expect(x.status == 404, x, "status", "404", x.describe())


@check("MD.5")
def answered_by(evidence: Evidence) -> Iterator[Trial]:
    x = evidence["models/list"]
    known = {entry.get("id") for entry in dig(x, x.good, "data")} | set(evidence.declared.aliases)
    for x in evidence.of("transport.stream"):
        if not x.call.json["stream"]:
            model = x.good.get("model")
            yield expect(model in known, x, "$.model", f"one of {sorted(map(str, known))}", model)


@check("RL.1")
def limit_envelope(evidence: Evidence) -> Iterator[Trial]:
    x = _refused(evidence)
    yield shaped(x, x.json, "anthropic_error" if evidence.declared.dialects[0] == "messages" else "openai_error")


def _refused(evidence: Evidence) -> Exchange:
    found = evidence.of("limits")
    refused = [x for x in found if x.status == 429]
    if not refused:
        raise Untestable(found[-1].key, f"expected 429 beyond the declared limit, found {found[-1].describe()}")
    return refused[0]


@check("RL.2")
def retry_after(evidence: Evidence) -> Iterator[Trial]:
    x = _refused(evidence)
    value = x.header("retry-after") or ""
    good = value.isdigit() or re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", value) is not None
    yield expect(good, x, "retry-after", "seconds, or a date", value)


@check("RL.3")
def coherent(evidence: Evidence) -> Iterator[Trial]:
    limit = evidence.declared.requests_per_minute
    last = limit + 1
    for x in [x for x in evidence.of("limits") if x.status == 200]:
        kinds = ("limit", "remaining", "reset")
        seen = [
            x.header(f"x-ratelimit-{kind}-requests") or x.header(f"anthropic-ratelimit-requests-{kind}")
            for kind in kinds
        ]
        total, left, reset = seen
        good = total == str(limit) and left is not None and left.isdigit() and int(left) < last and bool(reset)
        last = int(left) if left is not None and left.isdigit() else last
        yield expect(good, x, "x-ratelimit-*-requests", f"limit {limit}, remaining below {last + 1}, a reset", seen)


@check("RL.4")
def request_ids(evidence: Evidence) -> Iterator[Trial]:
    seen: set[str] = set()
    for x in evidence.of("transport.stream", "transport.crossing"):
        value = x.header("x-request-id") or x.header("request-id") or ""
        yield expect(value != "" and value not in seen, x, "x-request-id", "an id of its own", value)
        seen.add(value)
