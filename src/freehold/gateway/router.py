"""Which backends may answer a request, in which order, and why.

A route (by the model asked for) says who is in line; the line is ordered by policy, then by what is known right now:
who answered this conversation, how full the engine is, who has failed lately. `provider.model` addresses a standby
directly. The router looks at requests and backends only; it knows no HTTP and runs nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from freehold.errors import FreeholdError, SettingError, UpstreamError
from freehold.gateway.backends import Backend
from freehold.gateway.breaker import Breaker, Verdict
from freehold.gateway.confidence import Draft, DraftBackend, JudgedBackend
from freehold.gateway.conversation import Request, Sampling
from freehold.gateway.failures import CapabilityError, RequestError, UnavailableError, kind_of
from freehold.gateway.measures import Conversations, Measures, conversation_key
from freehold.gateway.policy import Policy, split_target
from freehold.gateway.ranking import (
    Candidate,
    Load,
    Prices,
    behind,
    by_price,
    by_speed,
    first,
    full,
    missing_ability,
    prompt_estimate,
    silent,
    too_small,
)
from freehold.settings import RouterSettings, RouteSettings, UpstreamSettings

__all__ = ["Candidate", "Decision", "Router", "describe", "unknown_model"]

ALIASES = ("local", "default")
"""Names that always mean the core's model."""


@dataclass(frozen=True, slots=True)
class Decision:
    """A plan and how it came about.

    Args:
        route: the route that applied; its `model` is empty when none matched.
        line: who will be asked, in order.
        refusals: who can't serve such a request, and why.
        left_alone: who could, but must not be asked now.
        prompt_tokens: an estimate.
    """

    route: RouteSettings
    line: list[Candidate]
    refusals: list[tuple[str, CapabilityError]]
    left_alone: list[tuple[str, Verdict]]
    prompt_tokens: int


class Router:
    """Plans requests and remembers who failed and who answered lately.

    Args:
        core: the local engine; None when there is none.
        standbys: upstreams in order of preference.
        clock: seconds, monotonic.
        policy: routes; may be replaced while running.
        upstreams: what is declared of the standbys.
        load: the engine's numbers now.
        prices: what an answer would cost; without it every price is unknown.
        breaker: knows who must be left alone.

    Raises:
        SettingError: two backends of one name, or a route that leads nowhere.
    """

    def __init__(
        self,
        core: Backend | None,
        standbys: Sequence[Backend] = (),
        *,
        clock: Callable[[], float] = time.monotonic,
        policy: Policy | None = None,
        upstreams: Sequence[UpstreamSettings] = (),
        load: Callable[[], Load] | None = None,
        prices: Prices = lambda backend, model, prompt, completion: None,
        breaker: Breaker | None = None,
    ) -> None:
        names = [backend.name for backend in standbys]
        for name in names:
            if names.count(name) > 1 or (core is not None and name == core.name):
                raise SettingError(f"expected every [[upstream]] to have a name of its own, found '{name}' twice")
        self.core = core
        self.standbys = tuple(standbys)
        self.measures = Measures(clock)
        self.problem: str | None = None  # with the settings file, since it changed
        self.prices = prices
        self._facts = {upstream.name: upstream for upstream in upstreams}
        self._load = load
        self._conversations = Conversations(clock)
        self.breaker = breaker or Breaker(clock=clock)
        self.policy = Policy()
        self.use(policy or self.policy)

    @property
    def backends(self) -> tuple[Backend, ...]:
        """All backends, the core first."""
        return self.standbys if self.core is None else (self.core, *self.standbys)

    def use(self, policy: Policy) -> None:
        """Routes by another policy from now on.

        Raises:
            SettingError: a route leads nowhere; the old policy stays.
        """
        policy.check([(backend.name, backend.model) for backend in self.backends])
        self.policy = policy

    def models(self) -> list[tuple[str, str]]:
        """Each model that can be asked for, with the backend that owns it."""
        shown = [] if self.core is None else [(self.core.model, self.core.name)]
        shown += [(f"{s.name}.{s.model}", s.name) for s in self.standbys if s.model]
        known = {name for name, _ in shown}
        return shown + [(name, "freehold") for name, _ in self.policy.aliases() if name not in known]

    def plan(self, request: Request) -> list[Candidate]:
        """Who may answer, best first; never empty.

        Raises:
            RequestError: nobody knows the model (404).
            CapabilityError: those who know it can't serve such a request.
        """
        decision = self.decide(request)
        if decision.line:
            return decision.line
        if decision.left_alone:
            told = "; ".join(f"{name}: {verdict.reason}" for name, verdict in decision.left_alone)
            soonest = max(1, math.ceil(min(verdict.wait for _, verdict in decision.left_alone)))
            hint = "add another [[upstream]], or try again later"
            raise UnavailableError(f"No backend may be asked now: {told}.", retry_after=soonest, hint=hint)
        if decision.refusals:
            raise decision.refusals[0][1]
        raise unknown_model(request.model, [name for name, _ in self.models()])

    def decide(self, request: Request) -> Decision:
        """The plan with what led to it; the line may be empty."""
        route = self.policy.route(request.model)
        able, refusals = self._able(self._line(request, route))
        prompt = prompt_estimate(request)
        if not any(candidate.direct for candidate in able):
            able = self._ordered(able, request, route.router, prompt)
        line, left_alone = self._allowed(able)
        return Decision(route, self._judged(line, request, route.router), refusals, left_alone, prompt)

    def failed(self, backend: Backend, error: Exception) -> None:
        """Notes a failure. The core is not left alone: its own state says whether it can answer."""
        if self.core is None or backend.name != self.core.name:
            wait = error.retry_after if isinstance(error, UpstreamError) else None
            self.breaker.failed(backend.name, kind_of(error), wait)

    def cooling(self, backend: Backend) -> str | None:
        """The kind of failure for which it is left alone, if it is."""
        return self.breaker.failing(backend.name)

    def answered(self, request: Request, backend: str) -> None:
        """Notes who took a request, for the conversation's next one. `request` is as the client sent it."""
        sticky = self.policy.route(request.model).router.sticky
        if sticky != "none" and (key := conversation_key(request, sticky)) is not None:
            self._conversations.note(key, backend)

    def _allowed(self, line: Sequence[Candidate]) -> tuple[list[Candidate], list[tuple[str, Verdict]]]:
        """Those who may be asked, those whose rest is over soon as a last resort, and those who must be left alone."""
        allowed, last, left_alone = [], [], []
        for candidate in line:
            verdict = self.breaker.allows(candidate.backend.name)
            if verdict.allowed:
                reason = f"{candidate.reason}, {verdict.reason}" if verdict.reason else candidate.reason
                allowed.append(replace(candidate, reason=reason))
            elif verdict.final:
                left_alone.append((candidate.backend.name, verdict))
            else:
                last.append(replace(candidate, reason=f"{candidate.reason}, {verdict.reason}"))
        return allowed + last, left_alone

    def _able(self, line: Sequence[Candidate]) -> tuple[list[Candidate], list[tuple[str, CapabilityError]]]:
        able, refusals = [], []
        for candidate in line:
            try:
                self._check(candidate)
            except CapabilityError as error:
                refusals.append((candidate.backend.name, error))
            else:
                able.append(replace(candidate, dropped=_lost(candidate)))
        return able, refusals

    def _check(self, candidate: Candidate) -> None:
        allowed = candidate.request.backends
        if allowed is not None and candidate.backend.name not in allowed:
            raise CapabilityError("This key may not use it, or has no money for it.", code="backend_not_allowed")
        facts = self._facts.get(candidate.backend.name)
        if facts is not None and (missing := missing_ability(candidate.request, facts)) is not None:
            text = f"The upstream '{facts.name}' is declared without '{missing}'."
            raise CapabilityError(text, code="unsupported_parameter", hint="see `abilities` in its [[upstream]]")
        candidate.backend.check(candidate.request)

    def _ordered(self, line: list[Candidate], request: Request, rules: RouterSettings, prompt: int) -> list[Candidate]:
        """By policy, then by what is known of this conversation and of the engine's room."""
        if rules.policy == "cheapest":
            line = by_price(line, prompt, self.prices)
        elif rules.policy == "fastest":
            line = by_speed(line, self.measures)
        if rules.sticky != "none" and (key := conversation_key(request, rules.sticky)) is not None:
            kept = self._conversations.who(key, rules.sticky_seconds)
            if kept is not None and line and line[0].backend.name != kept:
                line = first(line, kept, f"answered this {_STICKY[rules.sticky]} before")
        return behind(line, self._crowded(line, rules, prompt))

    def _crowded(self, line: Sequence[Candidate], rules: RouterSettings, prompt: int) -> dict[str, str]:
        """Who should be asked last, and why. When all should, nobody is."""
        reasons: dict[str, str] = {}
        for candidate in line:
            name = candidate.backend.name
            why = too_small(candidate, prompt, self._facts.get(name))
            if why is None and self.core is not None and name == self.core.name and self._load is not None:
                why = full(name, self._load(), self.measures, rules)
            if why is None and (self.core is None or name != self.core.name):
                why = silent(name, self.measures)
            if why is not None:
                reasons[name] = why
        return reasons if any(c.backend.name not in reasons for c in line) else {}

    def _judged(self, line: list[Candidate], request: Request, rules: RouterSettings) -> list[Candidate]:
        """The line with the core's answer judged, if the route asks for it and another could do better."""
        core = self.core
        position = next((i for i, c in enumerate(line) if core is not None and c.backend is core), len(line))
        judged = rules.escalate_below or rules.escalate_agreement
        if not judged or position >= len(line) - 1 or request.echo:
            return line
        if request.stream and not rules.escalate_streams:
            told = f"{line[position].reason}, streamed: not judged"
            return [*line[:position], replace(line[position], reason=told), *line[position + 1 :]]
        drafter = line[position]
        draft = Draft(drafter.backend.name)
        backend = JudgedBackend(drafter.backend, rules, draft)
        last = replace(
            drafter, backend=DraftBackend(draft, drafter.backend.model), reason="draft of the core", draft=draft
        )
        others = [replace(c, draft=draft) for c in line[position + 1 :]]
        return [*line[:position], replace(drafter, backend=backend, draft=draft), *others, last]

    def _line(self, request: Request, route: RouteSettings) -> list[Candidate]:
        """Everybody the model name can mean, in order, able or not."""
        if route.to:
            return self._portable_only(request, [self._target(name, request, route) for name in route.to])
        if self._means_core(request.model):
            return self._core_and_standbys(request)
        for standby in self.standbys:
            prefix = standby.name + "."
            if request.model.startswith(prefix) and len(request.model) > len(prefix):
                asked = replace(request, model=request.model.removeprefix(prefix))
                return [Candidate(standby, asked, "addressed by name", direct=True)]
        for standby in self.standbys:
            if standby.model and standby.model == request.model:
                return [Candidate(standby, request, "addressed by model", direct=True)]
        return self._core_and_standbys(request) if route.model else []

    def _target(self, target: str, request: Request, route: RouteSettings) -> Candidate:
        """One of a route's backends."""
        backends = {backend.name: backend for backend in self.backends}
        name, model = split_target(target, list(backends))
        if self.core is not None and name == self.core.name:
            return Candidate(self.core, request, f"core, route '{route.model}'")
        asked, dropped = _portable(request)
        asked = replace(asked, model=model or backends[name].model)
        return Candidate(backends[name], asked, f"route '{route.model}'", dropped=dropped)

    def _means_core(self, model: str) -> bool:
        if self.core is None:
            return model in ALIASES
        return model in (self.core.model, *ALIASES, f"{self.core.name}.{self.core.model}")

    def _core_and_standbys(self, request: Request) -> list[Candidate]:
        line = [] if self.core is None else [Candidate(self.core, request, "core")]
        for standby in self.standbys:
            if standby.model:
                asked, dropped = _portable(request)
                line.append(Candidate(standby, replace(asked, model=standby.model), "standby", dropped=dropped))
        return self._portable_only(request, line)

    def _portable_only(self, request: Request, line: list[Candidate]) -> list[Candidate]:
        """Without those who would not understand the prompt: token ids mean nothing to another model."""
        if all(isinstance(prompt, str) for prompt in request.prompts):
            return line
        return line[:1] if self.core is None else [candidate for candidate in line if candidate.backend is self.core]


_STICKY = {"prefix": "conversation", "user": "user", "header": "session"}


def unknown_model(model: str, known: Sequence[str]) -> RequestError:
    """OpenAI's answer for a model that does not exist, with those that do."""
    hint = "known models: " + ", ".join(known) if known else None
    return RequestError(f"The model '{model[:200]}' does not exist.", code="model_not_found", status=404, hint=hint)


def _portable(request: Request) -> tuple[Request, tuple[str, ...]]:
    """The request without what holds for the core only: token ids of its vocabulary, and extensions of OpenAI's API."""
    asked = request.sampling
    extensions = ("top_k", "min_p", "repetition_penalty")
    dropped = [name for name in extensions if getattr(asked, name) is not None]
    dropped += ["logit_bias"] if asked.logit_bias else []
    kept: Sampling = replace(asked, top_k=None, min_p=None, repetition_penalty=None, logit_bias={})
    return replace(request, sampling=kept), tuple(dropped)


def _lost(candidate: Candidate) -> tuple[str, ...]:
    """Names of everything the client said that this backend will not hear of."""
    told = getattr(candidate.backend, "dropped", None)
    lost = candidate.request.dropped if told is None else told(candidate.request)
    return tuple(dict.fromkeys((*candidate.dropped, *lost)))


def describe(failures: Sequence[tuple[Candidate, FreeholdError]]) -> str:
    """Who failed and how, in a few safe words for a header: `local: engine_down, openai: rate`."""
    return ", ".join(f"{candidate.backend.name}: {kind_of(error)}" for candidate, error in failures)
