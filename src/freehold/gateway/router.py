"""Which backends may answer a request, in which order, and why.

Core first, then the standbys in the order of the settings file; `provider.model` addresses one of them directly. A
backend that has just failed cools down: it goes to the end of the line, never out of it. The router looks at requests
and backends only; it knows no HTTP and runs nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from freehold.errors import FreeholdError, SettingError
from freehold.gateway.backends import Backend
from freehold.gateway.conversation import Request, Sampling
from freehold.gateway.failures import CapabilityError, RequestError, kind_of

COOLDOWN_SECONDS: Mapping[str, float] = {
    "auth": 60.0,
    "banned": 60.0,
    "billing": 60.0,
    "region": 60.0,
    "rate": 5.0,
    "overload": 5.0,
    "transport": 5.0,
}
"""How long a backend goes last after a failure of each kind; failures of other kinds are the request's own."""

LONGEST_COOLDOWN = 300.0
ALIASES = ("local", "default")
"""Names that always mean the core's model."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A backend, the request as it would get it, and why it stands where it stands."""

    backend: Backend
    request: Request
    reason: str
    direct: bool = False
    dropped: tuple[str, ...] = ()


class Router:
    """Plans requests and remembers who failed lately.

    Args:
        core: the local engine; None when there is none.
        standbys: upstreams in order of preference.
        clock: seconds, monotonic.
    """

    def __init__(
        self, core: Backend | None, standbys: Sequence[Backend] = (), *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        names = [backend.name for backend in standbys]
        for name in names:
            if names.count(name) > 1 or (core is not None and name == core.name):
                raise SettingError(f"expected every [[upstream]] to have a name of its own, found '{name}' twice")
        self.core = core
        self.standbys = tuple(standbys)
        self._clock = clock
        self._cooling: dict[str, tuple[float, str]] = {}

    @property
    def backends(self) -> tuple[Backend, ...]:
        """All backends, the core first."""
        return self.standbys if self.core is None else (self.core, *self.standbys)

    def models(self) -> list[tuple[str, str]]:
        """Each model that can be asked for, with the backend that owns it."""
        shown = [] if self.core is None else [(self.core.model, self.core.name)]
        return shown + [(f"{s.name}.{s.model}", s.name) for s in self.standbys if s.model]

    def plan(self, request: Request) -> list[Candidate]:
        """Who may answer, best first; never empty.

        Raises:
            RequestError: nobody knows the model (404).
            CapabilityError: those who know it can't serve such a request.
        """
        able, refusal = [], None
        for candidate in self._line(request):
            try:
                candidate.backend.check(candidate.request)
                able.append(candidate)
            except CapabilityError as error:
                refusal = refusal or error
        if not able and refusal is not None:
            raise refusal
        if not able:
            raise unknown_model(request.model, [name for name, _ in self.models()])
        return sorted(able, key=lambda candidate: self.cooling(candidate.backend) is not None)

    def failed(self, backend: Backend, error: Exception) -> None:
        """Notes a failure. The core is not cooled: its own state says whether it can answer."""
        seconds = COOLDOWN_SECONDS.get(kind_of(error))
        if seconds is None or backend is self.core:
            return
        asked = getattr(error, "retry_after", None)
        until = self._clock() + min(max(seconds, asked or 0.0), LONGEST_COOLDOWN)
        self._cooling[backend.name] = (until, kind_of(error))

    def succeeded(self, backend: Backend) -> None:
        """Notes that it answers again."""
        self._cooling.pop(backend.name, None)

    def cooling(self, backend: Backend) -> str | None:
        """The kind of failure it is cooling down from, if it is."""
        until, kind = self._cooling.get(backend.name, (0.0, ""))
        return kind if until > self._clock() else None

    def _line(self, request: Request) -> list[Candidate]:
        """Everybody the model name can mean, in order, able or not."""
        if self._means_core(request.model):
            return self._core_and_standbys(request)
        for standby in self.standbys:
            prefix = standby.name + "."
            if request.model.startswith(prefix) and len(request.model) > len(prefix):
                asked = replace(request, model=request.model.removeprefix(prefix))
                return [Candidate(standby, asked, "addressed by name", direct=True)]
        return [
            Candidate(standby, request, "addressed by model", direct=True)
            for standby in self.standbys
            if standby.model and standby.model == request.model
        ][:1]

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
        return line if not _speaks_ids(request) else line[:1]


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


def _speaks_ids(request: Request) -> bool:
    """Whether the prompt is token ids, which mean nothing to another model."""
    return any(not isinstance(prompt, str) for prompt in request.prompts)


def describe(failures: Sequence[tuple[Candidate, FreeholdError]]) -> str:
    """Who failed and how, in a few safe words for a header: `local: engine_down, openai: rate`."""
    return ", ".join(f"{candidate.backend.name}: {kind_of(error)}" for candidate, error in failures)
