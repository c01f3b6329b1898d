"""In which order able backends are asked, and the words that say why.

Pure functions over candidates; each returns them in a new order, with reasons. Knows numbers and policy, runs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from freehold.gateway.backends import Backend
from freehold.gateway.confidence import Draft
from freehold.gateway.conversation import FilePart, ImagePart, Request
from freehold.gateway.measures import Measures
from freehold.settings import RouterSettings, UpstreamSettings

CHARACTERS_PER_TOKEN = 4
"""OpenAI's rule of thumb for English (https://help.openai.com/en/articles/4936856); good enough to order, not to refuse."""

USUAL_ANSWER = 256
"""Tokens an answer is taken to have when the client sets no limit; the same for all, so only the order depends on it."""

Prices = Callable[[str, str, int, int], float | None]
"""Backend, model, prompt tokens and completion tokens to USD; None when the price is not known."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A backend, the request as it would get it, and why it stands where it stands.

    Args:
        draft: what the core drafts for this request, when its confidence is judged.
    """

    backend: Backend
    request: Request
    reason: str
    direct: bool = False
    dropped: tuple[str, ...] = ()
    draft: Draft | None = None


class Load(Protocol):
    """The engine's numbers that say whether it has room."""

    @property
    def running(self) -> int: ...  # noqa: D102

    @property
    def waiting(self) -> int: ...  # noqa: D102

    @property
    def kv_pages_used(self) -> int: ...  # noqa: D102

    @property
    def kv_pages_total(self) -> int: ...  # noqa: D102


def prompt_estimate(request: Request) -> int:
    """Tokens of the prompt, roughly: exact where it is ids, else by characters; images are not counted."""
    exact = sum(len(prompt) for prompt in request.prompts if not isinstance(prompt, str))
    text = sum(len(turn.text) for turn in request.turns) + sum(len(p) for p in request.prompts if isinstance(p, str))
    return exact + -(-text // CHARACTERS_PER_TOKEN)


def missing_ability(request: Request, facts: UpstreamSettings) -> str | None:
    """What the request needs and the upstream is declared not to have."""
    if not facts.abilities:
        return None
    wanted = {
        "tools": request.wants_tools,
        "vision": any(isinstance(part, ImagePart) for turn in request.turns for part in turn.parts),
        "documents": any(isinstance(part, FilePart) for turn in request.turns for part in turn.parts),
        "json": request.response_format is not None and request.response_format.get("type") != "text",
    }
    return next((name for name, needed in wanted.items() if needed and name not in facts.abilities), None)


def by_price(line: Sequence[Candidate], prompt: int, prices: Prices) -> list[Candidate]:
    """The cheapest first; those without a known price last, in their old order."""
    priced = []
    for candidate in line:
        tokens = candidate.request.max_tokens or USUAL_ANSWER
        usd = prices(candidate.backend.name, candidate.request.model, prompt, tokens)
        words = "price unknown" if usd is None else f"about ${usd:.6f}"
        priced.append((float("inf") if usd is None else usd, replace(candidate, reason=f"cheapest: {words}")))
    return [candidate for _, candidate in sorted(priced, key=lambda pair: pair[0])]


def by_speed(line: Sequence[Candidate], measures: Measures) -> list[Candidate]:
    """The fastest first, by what was measured lately; those not measured before them, so that they get measured."""
    timed = []
    for candidate in line:
        seconds = measures.predicted(candidate.backend.name, candidate.request.max_tokens or USUAL_ANSWER)
        words = "not measured yet" if seconds is None else f"about {seconds:.3g} s"
        timed.append((-1.0 if seconds is None else seconds, replace(candidate, reason=f"fastest: {words}")))
    return [candidate for _, candidate in sorted(timed, key=lambda pair: pair[0])]


def full(core: str, load: Load, measures: Measures, rules: RouterSettings) -> str | None:
    """Why the engine has no room now, by the limits of the route; None when it has."""
    if rules.max_waiting and load.waiting >= rules.max_waiting:
        return f"{load.waiting} waiting, limit {rules.max_waiting}"
    wait = measures.wait(core, load.waiting, load.running)
    if rules.max_wait_seconds and wait is not None and wait >= rules.max_wait_seconds:
        return f"{wait:.3g} s to wait, limit {rules.max_wait_seconds:g}"
    used = load.kv_pages_used / load.kv_pages_total if load.kv_pages_total else 0.0
    if rules.max_kv_usage and used >= rules.max_kv_usage:
        return f"KV cache {used:.0%} full, limit {rules.max_kv_usage:.0%}"
    return None


def silent(upstream: str, measures: Measures) -> str | None:
    """Why an upstream probably has stopped answering, though no guard has fired yet; None when it has not.

    Requests that come meanwhile would all wait as long as the first.
    """
    seconds = measures.silent(upstream)
    return None if seconds is None else f"silent for {seconds:.3g} s"


def too_small(candidate: Candidate, prompt: int, facts: UpstreamSettings | None) -> str | None:
    """Why the prompt probably does not fit the upstream's context; None when it may."""
    wanted = prompt + (candidate.request.max_tokens or 0)
    if facts is None or not facts.context or wanted <= facts.context:
        return None
    return f"about {wanted} tokens, its context is {facts.context}"


def behind(line: Sequence[Candidate], reasons: dict[str, str]) -> list[Candidate]:
    """Those with a reason to wait go behind the others, which learn of it; nobody leaves the line."""
    late = [
        replace(c, reason=f"{c.reason}, last: {reasons[c.backend.name]}") for c in line if c.backend.name in reasons
    ]
    told = "; ".join(f"{name}: {why}" for name, why in reasons.items())
    early = [c for c in line if c.backend.name not in reasons]
    passed = line[0].backend.name in reasons if line else False
    return [replace(c, reason=f"{c.reason} ({told})") if passed else c for c in early] + late


def first(line: Sequence[Candidate], backend: str, why: str) -> list[Candidate]:
    """One backend before all others, when it is in the line."""
    kept = [replace(c, reason=why) for c in line if c.backend.name == backend]
    return kept + [c for c in line if c.backend.name != backend]
