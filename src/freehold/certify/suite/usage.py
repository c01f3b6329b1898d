"""US: the counts of tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from freehold.certify.evidence import Ask, Evidence, check, expect, scenario
from freehold.certify.suite.common import usage_of
from freehold.certify.transcript import Exchange, Untestable
from freehold.certify.verdict import Trial

NEAR = 3


@scenario("usage.growing", dialect="chat")
async def growing(ask: Ask) -> None:
    """Prompts that only get longer."""
    text = "Hello"
    for i in range(4):
        await ask.chat(f"{i}", text, max_tokens=2)
        text += "".join(f" {ask.draw.word(f'word{i}/{j}')}" for j in range(4))


@scenario("usage.tokenizer", dialect="chat", level=2, capability="tokenizer")
async def tokenizer(ask: Ask) -> None:
    """Texts whose lengths are declared."""
    for i, (text, _) in enumerate(ask.declared.prompt_tokens):
        await ask.chat(f"{i}", text, max_tokens=2)


def _all(evidence: Evidence) -> Iterator[tuple[Exchange, dict[str, Any]]]:
    """Every usage of whole answers that were asked for here and there."""
    for x in evidence.of("usage.growing", "chat.echo", "chat.limits"):
        yield x, usage_of(x)


@check("US.1")
def adds_up(evidence: Evidence) -> Iterator[Trial]:
    for x, usage in _all(evidence):
        total = usage.get("prompt_tokens", 0) + usage.get("completion_tokens", 0)
        yield expect(
            usage.get("total_tokens") == total, x, "$.usage.total_tokens", str(total), usage.get("total_tokens")
        )


@check("US.2")
def grows(evidence: Evidence) -> Iterator[Trial]:
    before = 0
    for x in evidence.of("usage.growing"):
        seen = usage_of(x).get("prompt_tokens", 0)
        yield expect(seen > before, x, "$.usage.prompt_tokens", f"more than {before}", seen)
        before = seen


@check("US.3")
def near_reference(evidence: Evidence) -> Iterator[Trial]:
    declared = evidence.declared.prompt_tokens
    if len(declared) < 2:
        raise Untestable("usage.tokenizer", "two texts are needed, because the template's own tokens are not known")
    counts = [usage_of(x).get("prompt_tokens", 0) for x in evidence.of("usage.tokenizer")]
    frame = counts[0] - declared[0][1]
    for i, (_, tokens) in enumerate(declared[1:], 1):
        x = evidence[f"usage.tokenizer/{i}"]
        good = abs(counts[i] - frame - tokens) <= NEAR
        yield expect(good, x, "$.usage.prompt_tokens", f"{tokens + frame}, give or take {NEAR}", counts[i])


@check("US.4")
def reasoning_within(evidence: Evidence) -> Iterator[Trial]:
    yield from _within(evidence, "completion_tokens_details", "reasoning_tokens", "completion_tokens")


@check("US.5")
def cached_within(evidence: Evidence) -> Iterator[Trial]:
    yield from _within(evidence, "prompt_tokens_details", "cached_tokens", "prompt_tokens")


def _within(evidence: Evidence, details: str, part: str, whole: str) -> Iterator[Trial]:
    for x, usage in _all(evidence):
        seen = (usage.get(details) or {}).get(part) or 0
        good = 0 <= seen <= usage.get(whole, 0)
        yield expect(good, x, f"$.usage.{details}.{part}", f"at most {whole} ({usage.get(whole)})", seen)


@check("US.6")
def streamed_equal(evidence: Evidence) -> Iterator[Trial]:
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    for name in ("end", "cut"):
        whole, x = usage_of(evidence[f"chat.stream/{name}.whole"]), evidence[f"chat.stream/{name}.stream"]
        seen = [[usage.get(field) for field in names] for usage in (whole, usage_of(x))]
        yield expect(seen[0] == seen[1], x, "$[-1].usage", f"as not streamed: {seen[0]}", seen[1])
