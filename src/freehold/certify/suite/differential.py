"""DF: whether a server behaves as a reference does, by the same probes with the same seed.

Only what the reference itself does right is compared: its departures from the specification are no behaviour to be matched.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from freehold.certify.evidence import CHECKS, VERSION, Ask, Evidence, check, expect, post, scenario
from freehold.certify.suite.common import calls_of, dig, finish_of, function, text_of, tool_name, usage_of
from freehold.certify.suite.structured import wanted
from freehold.certify.suite.tools import LIMIT, name_of, offered, word_schema
from freehold.certify.transcript import Exchange, Untestable
from freehold.certify.verdict import Trial, wilson

PROMPTS, DELTA, PERMUTATIONS = 12, 0.25, 400
ALIKE = 0.5
"""Share of greedy answers that must begin alike. Measured: see docs/certify.md."""
BEGINNING = 16
TOPICS = (
    "the sea",
    "winter",
    "bread",
    "a clock",
    "the moon",
    "a river",
    "horses",
    "paper",
    "the city",
    "music",
    "trees",
    "salt",
)


@scenario("df.texts", dialect="chat", level=4)
async def texts(ask: Ask) -> None:
    """Greedy answers to open questions."""
    for i, topic in enumerate(TOPICS):
        await ask.chat(f"{i}", f"Tell me about {topic} and {ask.draw.choice(f'other{i}', TOPICS)}.", max_tokens=24)


@scenario("df.trigger", dialect="chat", level=4, capability="tools")
async def trigger(ask: Ask) -> None:
    """Questions with a tool at hand, half of them made for it; each twice."""
    for i in range(8):
        name = tool_name(ask.draw, f"tool{i}")
        tools = [function(name, word_schema(ask.draw, f"schema{i}"), "Finds what a word means.")]
        prompt = f"Use the tool {name} now." if i % 2 else f"Tell me about {ask.draw.choice(f'topic{i}', TOPICS)}."
        for turn in ("first", "second"):
            await ask.chat(f"{turn}{i}", prompt, tools=tools, max_tokens=48)


@scenario("df.json", dialect="chat", level=4, capability="structured")
async def loose(ask: Ask) -> None:
    """Schemas that are not strict."""
    for i in range(8):
        schema = ask.draw.schema(f"schema{i}")
        schema.pop("additionalProperties")
        format = wanted(schema)
        format["json_schema"]["strict"] = False
        await ask.chat(
            f"{i}", "Fill in the form in JSON, with any of the options.", response_format=format, max_tokens=LIMIT
        )


@scenario("df.handover", dialect="chat", level=4, capability="tools")
async def handover(ask: Ask) -> None:
    """A conversation that the reference began (or this server, where there is none) with a call."""
    tools = offered(ask.draw, 1)
    prompt = f"Use the tool {name_of(tools[0])}."
    named = {"type": "function", "function": {"name": name_of(tools[0])}}
    asked = await ask.chat("call", prompt, tools=tools, tool_choice=named, max_tokens=LIMIT)
    begun = ask.reference["df.handover/call"] if ask.reference is not None else asked
    message = dig(begun, begun.good, "choices", 0, "message")
    calls = message.get("tool_calls") or []
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "42"} for call in calls]
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": None, "tool_calls": calls}, *results]
    await ask.chat("result", messages=turns, tools=tools, max_tokens=16)


@scenario("df.prefill", dialect="messages", level=4, capability="prefill")
async def prefill(ask: Ask) -> None:
    """An answer that the reference began and this server is to go on with."""
    question = {"role": "user", "content": "Count from 1 to 40."}
    body: dict[str, Any] = {"model": ask.model, "max_tokens": 24, "temperature": 0, "messages": [question]}
    asked = await ask("begun", post("/messages", body, VERSION))
    begun = ask.reference["df.prefill/begun"] if ask.reference is not None else asked
    said = "".join(block.get("text", "") for block in dig(begun, begun.good, "content")).rstrip()
    if said:
        body["messages"] = [question, {"role": "assistant", "content": said}]
        await ask("continued", post("/messages", body, VERSION))


def _reference(evidence: Evidence) -> Evidence:
    if evidence.reference is None:
        raise Untestable("", "no reference")
    return evidence.reference


def _right(evidence: Evidence, id: str) -> bool:
    """Whether the reference itself meets a requirement."""
    try:
        trials = list(CHECKS[id].check(_reference(evidence)))
    except Untestable:
        return False
    return bool(trials) and all(trial.good for trial in trials)


ERRORS = {"malformed": "ER.1", "missing": "ER.2", "type": "ER.3", "model": "ER.4"}


@check("DF.1")
def error_class(evidence: Evidence) -> Iterator[Trial]:
    reference = _reference(evidence)
    for x in [x for key, x in evidence.exchanges.items() if key.startswith(("errors/", "errors.size/"))]:
        id = ERRORS.get(x.key.rpartition(".")[2], "ER.6")
        if x.key in reference.exchanges and _right(evidence, id):
            told = reference[x.key]
            yield expect(x.status == told.status, x, "status", f"{told.status}, as the reference", x.status)
    yield Trial(True)


FINISHES = {"chat.limits/max_tokens": "CC.7", "chat.stream/cut.whole": "CS.8", "chat.stop/stopped": "CC.8",
            "tools.choice/none": "TL.3", "tools.choice/named.whole": "TL.5", "json.edges/cut": "SO.4"}  # fmt: skip


@check("DF.2")
def finish_class(evidence: Evidence) -> Iterator[Trial]:
    reference = _reference(evidence)
    for key, id in FINISHES.items():
        if key in reference.exchanges and key in evidence.exchanges and _right(evidence, id):
            told, seen = _class(reference[key]), _class(evidence[key])
            yield expect(seen == told, evidence[key], "$.choices[0].finish_reason", f"{told}, as the reference", seen)


def _class(x: Exchange) -> str | None:
    """stop and length are one class where nothing forces one of them."""
    found = finish_of(x)
    return "stop or length" if x.key == "tools.choice/none" and found in ("stop", "length") else found


def _triggered(evidence: Evidence, turn: str) -> list[bool]:
    return [bool(calls_of(evidence[f"df.trigger/{turn}{i}"])) for i in range(8)]


def f1(seen: list[bool], told: list[bool]) -> float:
    """F1 of decisions; 1 where neither ever decides for it."""
    both = sum(a and b for a, b in zip(seen, told, strict=True))
    total = sum(seen) + sum(told)
    return 1.0 if total == 0 else 2 * both / total


@check("DF.3")
def triggers_alike(evidence: Evidence) -> Iterator[Trial]:
    told = _triggered(_reference(evidence), "first")
    itself = f1(_triggered(_reference(evidence), "second"), told)
    seen = f1(_triggered(evidence, "first"), told)
    x = evidence["df.trigger/first0"]
    yield expect(seen >= itself - DELTA, x, "$", f"F1 of at least {itself:.2f} - {DELTA}", f"{seen:.2f}")


def _valid(evidence: Evidence) -> dict[str, Any]:
    """By exchange of df.json: the object, where the answer is one that has the required keys."""
    found = {}
    for x in evidence.of("df.json"):
        schema = x.call.json["response_format"]["json_schema"]["schema"]
        try:
            value = json.loads(text_of(x))
        except ValueError:
            continue
        if isinstance(value, dict) and all(name in value for name in schema["required"]):
            found[x.key] = value
    return found


@check("DF.4")
def validity_alike(evidence: Evidence) -> Iterator[Trial]:
    ours, theirs = (wilson(len(_valid(e)), len(e.of("df.json"))) for e in (evidence, _reference(evidence)))
    x = evidence["df.json/0"]
    yield expect(ours[1] >= theirs[0], x, "$", f"valid objects within the reference's {theirs}", ours)


@check("DF.5")
def keys_alike(evidence: Evidence) -> Iterator[Trial]:
    ours, theirs = _valid(evidence), _valid(_reference(evidence))
    common = [key for key in ours if key in theirs]
    if not common:
        raise Untestable("df.json/0", "no answer is an object in both")
    for key in common:
        good = set(ours[key]) == set(theirs[key])
        yield expect(good, evidence[key], "$", f"the keys {sorted(theirs[key])}", sorted(ours[key]))


@check("DF.6")
def usage_map(evidence: Evidence) -> Iterator[Trial]:
    key = "chat.echo/0"
    told, seen = _fields(usage_of(_reference(evidence)[key])), _fields(usage_of(evidence[key]))
    yield expect(told <= seen, evidence[key], "$.usage", f"every field of the reference: {sorted(told)}", sorted(seen))


KNOWN = ("prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens", "reasoning_tokens")


def _fields(usage: dict[str, Any]) -> set[str]:
    """The documented fields of a usage that count something."""
    inner = [details for details in usage.values() if isinstance(details, dict)]
    return {name for part in [usage, *inner] for name in part if name in KNOWN}


@check("DF.7")
def ids_taken(evidence: Evidence) -> Iterator[Trial]:
    _ = _reference(evidence)
    x = evidence["df.handover/result"]
    yield expect(x.status == 200, x, "status", "200 for a conversation with the reference's call ids", x.describe())


@check("DF.8")
def goes_on(evidence: Evidence) -> Iterator[Trial]:
    begun = _reference(evidence)["df.prefill/begun"]
    said = "".join(block.get("text", "") for block in dig(begun, begun.good, "content")).rstrip()
    x = evidence["df.prefill/continued"]
    more = "".join(block.get("text", "") for block in dig(x, x.good, "content"))
    again = len(said) > 8 and more.lstrip().startswith(said[:8])
    yield expect(more and not again, x, "$.content[0].text", f"what comes behind {said[-24:]!r}, not it again", more)


@check("DF.9")
def outputs_alike(evidence: Evidence) -> Iterator[Trial]:
    """A permutation test on the distance between the trigram counts of the two sets of answers."""
    ours, theirs = ([text_of(x) for x in e.of("df.texts")] for e in (evidence, _reference(evidence)))
    seen, both = _distance(ours, theirs), ours + theirs
    chance, larger = random.Random(evidence.seed), 0
    for _ in range(PERMUTATIONS):
        mixed = chance.sample(both, len(both))
        larger += _distance(mixed[: len(ours)], mixed[len(ours) :]) >= seen
    p = (larger + 1) / (PERMUTATIONS + 1)
    yield expect(p > 0.01, evidence["df.texts/0"], "$", "no difference at the 1% level", f"p = {p:.3f}")


def _distance(ours: list[str], theirs: list[str]) -> float:
    counts = [Counter(text[i : i + 3] for text in texts for i in range(len(text) - 2)) for texts in (ours, theirs)]
    sizes = [max(1, sum(count.values())) for count in counts]
    return sum(abs(counts[0][gram] / sizes[0] - counts[1][gram] / sizes[1]) for gram in counts[0] | counts[1])


@check("DF.10")
def tokenizer_alike(evidence: Evidence) -> Iterator[Trial]:
    told, seen = (_steps(e) for e in (_reference(evidence), evidence))
    x = evidence["usage.growing/0"]
    yield expect(seen == told, x, "$.usage.prompt_tokens", f"counts that grow as the reference's: {told}", seen)


def _steps(evidence: Evidence) -> list[int]:
    counts = [usage_of(x).get("prompt_tokens", 0) for x in evidence.of("usage.growing")]
    return [b - a for a, b in pairwise(counts)]


@check("DF.11")
def weights_alike(evidence: Evidence) -> Iterator[Trial]:
    reference = _reference(evidence)
    alike = [text_of(x)[:BEGINNING] == text_of(reference[x.key])[:BEGINNING] for x in evidence.of("df.texts")]
    share = sum(alike) / len(alike)
    x = next((x for x, same in zip(evidence.of("df.texts"), alike, strict=True) if not same), evidence["df.texts/0"])
    seen = f"{share:.2f}; {text_of(x)[:40]!r} where the reference says {text_of(reference[x.key])[:40]!r}"
    yield expect(
        share >= ALIKE, x, "$.choices[0].message.content", f"at least {ALIKE:.0%} of the answers begin alike", seen
    )
