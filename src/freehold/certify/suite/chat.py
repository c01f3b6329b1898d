"""CC and CS: Chat Completions, whole and streamed."""

from __future__ import annotations

from collections.abc import Iterator

from freehold.certify.evidence import Ask, Evidence, check, expect, scenario
from freehold.certify.suite.common import (
    NONCE,
    TRIES,
    choices,
    deltas,
    dig,
    echo,
    finish_of,
    middle_word,
    recalled,
    shaped,
    text_of,
    told,
    until_heard,
    usage_of,
)  # fmt: skip
from freehold.certify.transcript import Exchange, Untestable
from freehold.certify.verdict import Trial

COUNT = "Count from 1 to 40."
QUESTION = "What is the code word?"


@scenario("chat.echo", dialect="chat")
async def echoes(ask: Ask) -> None:
    """A word to say again."""

    async def make(i: int) -> Exchange:
        return await ask.chat(f"{i}", told(ask.draw.word(f"word{i}"), i), max_tokens=24)

    await until_heard(make, lambda i: ask.draw.word(f"word{i}"), text_of, least=TRIES)


@scenario("chat.system", dialect="chat")
async def system(ask: Ask) -> None:
    """A word that only the system's message has."""

    async def make(i: int) -> Exchange:
        rule = {"role": "system", "content": f"The code word is {ask.draw.word(f'word{i}')}. Tell it to whoever asks."}
        return await ask.chat(f"{i}", messages=[rule, {"role": "user", "content": QUESTION}], max_tokens=32)

    await until_heard(make, lambda i: ask.draw.word(f"word{i}"), text_of)


@scenario("chat.memory", dialect="chat")
async def memory(ask: Ask) -> None:
    """A word that only an earlier turn has."""

    async def make(i: int) -> Exchange:
        turns = [
            {"role": "user", "content": f"The code word is {ask.draw.word(f'word{i}')}. Remember it."},
            {"role": "assistant", "content": "I will remember it."},
            {"role": "user", "content": QUESTION},
        ]
        return await ask.chat(f"{i}", messages=turns, max_tokens=32)

    await until_heard(make, lambda i: ask.draw.word(f"word{i}"), text_of)


@scenario("chat.forms", dialect="chat")
async def forms(ask: Ask) -> None:
    """The same text as a string and as parts; other roles; fields nobody knows."""
    text = echo(ask.draw.word("word"))
    await ask.chat("string", text, max_tokens=8)
    await ask.chat("parts", [{"type": "text", "text": text}], max_tokens=8)
    await ask.chat("unknown", text, max_tokens=8, **{f"x_{ask.draw.word('field')}": {"a": [1]}})
    developer = {"role": "developer", "content": "Be brief."}
    await ask.chat("developer", messages=[developer, {"role": "user", "content": text}], max_tokens=8)


@scenario("chat.limits", dialect="chat")
async def limits(ask: Ask) -> None:
    """Limits of length, under both names."""
    limit = 4 + ask.draw.number("limit", 5)
    await ask.chat("max_tokens", COUNT, max_tokens=limit)
    await ask.chat("max_completion_tokens", COUNT, max_completion_tokens=limit)


@scenario("chat.stop", dialect="chat")
async def stop(ask: Ask) -> None:
    """A stop string out of what the model says by itself."""
    free = await ask.chat("free", COUNT, max_tokens=48)
    word = middle_word(text_of(free))
    if word:
        await ask.chat("stopped", COUNT, max_tokens=48, stop=[word])


@scenario("chat.n", dialect="chat")
async def several(ask: Ask) -> None:
    """Two choices."""
    await ask.chat("two", echo(ask.draw.word("word")), max_tokens=12, n=2, temperature=1)


@scenario("chat.seed", dialect="chat", level=2, capability="seed")
async def seed(ask: Ask) -> None:
    """The same seed twice."""
    for name in ("first", "second"):
        await ask.chat(name, "Tell me a story.", max_tokens=24, temperature=1, seed=ask.draw.number("seed", 1 << 30))


@scenario("chat.bias", dialect="chat", level=2, capability="logit_bias")
async def bias(ask: Ask) -> None:
    """A token that is forced, then one that is banned in favour of another."""
    one, two = 300 + ask.draw.number("one", 2000), 2400 + ask.draw.number("two", 2000)
    await ask.chat("forced", "Hello", max_tokens=1, logit_bias={f"{one}": 100})
    await ask.chat("banned", "Hello", max_tokens=1, logit_bias={f"{one}": -100, f"{two}": 100})
    await ask.chat("other", "Hello", max_tokens=1, logit_bias={f"{two}": 100})


@scenario("chat.stream", dialect="chat")
async def stream(ask: Ask) -> None:
    """The same greedy request whole and streamed; with an end, and cut by its limit; with usage and without."""
    counted = {"stream": True, "stream_options": {"include_usage": True}}
    for name, prompt, limit in (("end", echo(ask.draw.word("word")), 48), ("cut", COUNT, 6)):
        await ask.chat(f"{name}.whole", prompt, max_tokens=limit)
        await ask.chat(f"{name}.stream", prompt, max_tokens=limit, **counted)
    await ask.chat("bare.stream", echo(ask.draw.word("word")), max_tokens=48, stream=True)


@scenario("chat.broken", dialect="chat", capability="faults")
async def broken(ask: Ask) -> None:
    """A stream that the declared model breaks in the middle."""
    await ask.chat("stream", COUNT, model=ask.declared.broken_model, stream=True)


@check("CC.1")
def schema(evidence: Evidence) -> Iterator[Trial]:
    for x in evidence.of("chat.echo"):
        yield shaped(x, x.good, "chat")


@check("CC.2")
def unique_ids(evidence: Evidence) -> Iterator[Trial]:
    seen: set[str] = set()
    for x in evidence.of("chat.echo"):
        id = dig(x, x.good, "id")
        yield expect(id not in seen, x, "$.id", "an id no other answer has", id)
        seen.add(id)


@check("CC.3", chance=NONCE)
def user_heard(evidence: Evidence) -> Iterator[Trial]:
    yield from recalled(evidence, "chat.echo")


@check("CC.4", chance=NONCE)
def system_heard(evidence: Evidence) -> Iterator[Trial]:
    yield from recalled(evidence, "chat.system")


@check("CC.5", chance=NONCE)
def past_heard(evidence: Evidence) -> Iterator[Trial]:
    yield from recalled(evidence, "chat.memory")


@check("CC.6")
def forms_equal(evidence: Evidence) -> Iterator[Trial]:
    string, parts = evidence["chat.forms/string"], evidence["chat.forms/parts"]
    counts = [usage_of(x).get("prompt_tokens") for x in (string, parts)]
    yield expect(counts[0] == counts[1], parts, "$.usage.prompt_tokens", f"{counts[0]}, as for the string", counts[1])


@check("CC.7")
def limit_kept(evidence: Evidence) -> Iterator[Trial]:
    for x in evidence.of("chat.limits"):
        limit = x.call.json.get("max_tokens") or x.call.json.get("max_completion_tokens")
        written = usage_of(x).get("completion_tokens", 0)
        yield expect(written <= limit, x, "$.usage.completion_tokens", f"at most {limit}", written)
        yield expect(finish_of(x) == "length", x, "$.choices[0].finish_reason", "length", finish_of(x))


@check("CC.8")
def stopped(evidence: Evidence) -> Iterator[Trial]:
    if "chat.stop/stopped" not in evidence.exchanges:
        raise Untestable("chat.stop/free", f"too little was said to stop it: {evidence['chat.stop/free'].describe()}")
    x = evidence["chat.stop/stopped"]
    (word,) = x.call.json["stop"]
    yield expect(word not in text_of(x), x, "$.choices[0].message.content", f"nothing from {word!r} on", text_of(x))
    yield expect(finish_of(x) == "stop", x, "$.choices[0].finish_reason", "stop", finish_of(x))


@check("CC.9")
def two_choices(evidence: Evidence) -> Iterator[Trial]:
    x = evidence["chat.n/two"]
    if x.status == 400:
        yield shaped(x, x.json, "openai_error")
        return
    indices = [choice.get("index") for choice in dig(x, x.good, "choices")]
    yield expect(
        sorted(map(str, indices)) == ["0", "1"], x, "$.choices[*].index", "0 and 1, or a refusal with 400", indices
    )


@check("CC.10")
def seed_repeats(evidence: Evidence) -> Iterator[Trial]:
    first, second = evidence["chat.seed/first"], evidence["chat.seed/second"]
    same = text_of(first) == text_of(second)
    yield expect(same, second, "$.choices[0].message.content", f"again {text_of(first)!r}", text_of(second))


@check("CC.11")
def banned(evidence: Evidence) -> Iterator[Trial]:
    forced, ban, other = (evidence[f"chat.bias/{name}"] for name in ("forced", "banned", "other"))
    path = "$.choices[0].message.content"
    yield expect(
        text_of(forced) != text_of(other), forced, path, "another token than the other bias gives", text_of(forced)
    )
    yield expect(text_of(ban) != text_of(forced), ban, path, f"not the banned {text_of(forced)!r}", text_of(ban))
    yield expect(text_of(ban) == text_of(other), ban, path, f"the favoured {text_of(other)!r}", text_of(ban))


@check("CC.12")
def unknown_field(evidence: Evidence) -> Iterator[Trial]:
    x = evidence["chat.forms/unknown"]
    yield expect(0 < x.status < 500, x, "status", "an answer, or a refusal by 4xx", x.describe())


@check("CC.13")
def developer(evidence: Evidence) -> Iterator[Trial]:
    x = evidence["chat.forms/developer"]
    yield expect(x.status in (200, 400), x, "status", "200 or 400", x.describe())


def _streams(evidence: Evidence) -> list[Exchange]:
    return [x for x in evidence.of("chat.stream") if x.call.json.get("stream")]


@check("CS.1")
def constant(evidence: Evidence) -> Iterator[Trial]:
    for x in _streams(evidence):
        yield from (trial for chunk in x.data if not (trial := shaped(x, chunk, "chat_chunk")).good)
        for name in ("id", "model", "created"):
            seen = {str(chunk.get(name)) for chunk in x.data}
            yield expect(len(seen) == 1, x, f"$[*].{name}", "the same in every chunk", sorted(seen))


@check("CS.2")
def role_first(evidence: Evidence) -> Iterator[Trial]:
    for x in _streams(evidence):
        roles = [delta.get("role") for delta in deltas(x)]
        good = roles[:1] == ["assistant"] and not any(roles[1:])
        yield expect(good, x, "$[*].choices[0].delta.role", "assistant in the first chunk only", roles)


@check("CS.3")
def one_finish(evidence: Evidence) -> Iterator[Trial]:
    for x in _streams(evidence):
        reasons = [choice["finish_reason"] for choice in choices(x) if choice.get("finish_reason")]
        yield expect(len(reasons) == 1, x, "$[*].choices[0].finish_reason", "one finish reason", reasons)


@check("CS.4")
def done(evidence: Evidence) -> Iterator[Trial]:
    for x in _streams(evidence):
        last = x.events[-1].data if x.events else ""
        count = sum(event.data == "[DONE]" for event in x.events)
        yield expect(last == "[DONE]" and count == 1, x, "$[-1]", "data: [DONE] once, as the last event", last)


@check("CS.5")
def same_text(evidence: Evidence) -> Iterator[Trial]:
    for name in ("end", "cut"):
        whole, x = evidence[f"chat.stream/{name}.whole"], evidence[f"chat.stream/{name}.stream"]
        path = "$[*].choices[0].delta.content"
        yield expect(text_of(x) == text_of(whole), x, path, f"as not streamed: {text_of(whole)!r}", text_of(x))


@check("CS.6")
def usage_last(evidence: Evidence) -> Iterator[Trial]:
    for name in ("end", "cut"):
        x = evidence[f"chat.stream/{name}.stream"]
        last = x.data[-1]
        good = last.get("choices") == [] and isinstance(last.get("usage"), dict)
        yield expect(good, x, "$[-1]", "a last chunk with usage and without choices", last)


@check("CS.7")
def usage_only_there(evidence: Evidence) -> Iterator[Trial]:
    for x in _streams(evidence):
        chunks = x.data if x.key.endswith("bare.stream") else [chunk for chunk in x.data if chunk.get("choices")]
        seen = [chunk["usage"] for chunk in chunks if chunk.get("usage") is not None]
        yield expect(not seen, x, "$[*].usage", "null or absent in every other chunk", seen[:1])


@check("CS.8")
def same_finish(evidence: Evidence) -> Iterator[Trial]:
    for name in ("end", "cut"):
        whole, x = evidence[f"chat.stream/{name}.whole"], evidence[f"chat.stream/{name}.stream"]
        good = finish_of(x) == finish_of(whole)
        yield expect(good, x, "$[*].choices[0].finish_reason", f"{finish_of(whole)}, as not streamed", finish_of(x))


@check("CS.9")
def error_framed(evidence: Evidence) -> Iterator[Trial]:
    x = evidence["chat.broken/stream"]
    last = x.data[-1]
    yield shaped(x, last, "openai_error", "$[-1]")
