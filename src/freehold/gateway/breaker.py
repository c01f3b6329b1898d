"""Who must be left alone, and when to try again: one circuit breaker for each backend (or key of one).

    closed --failure--> open --wait over, or a ping answered--> half-open: one request --> closed, or open for longer
    any    --banned, billing, region, auth--> quarantined: one request per interval, remembered across restarts

Waits double from `first_wait_seconds` to `longest_wait_seconds`, so a minute of outage costs the provider five requests
(after 0, 2, 6, 14 and 30 seconds). A ping (no prompt, no tokens) finds a provider that is back before the next wait is
over. Knows names and kinds of failures; no backend, no request and no network.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from freehold.gateway.quarantine import Quarantine, QuarantineStore
from freehold.settings import BreakerSettings

log = logging.getLogger("freehold.gateway")

QUARANTINING = frozenset({"banned", "billing", "region", "auth"})
OPENING = frozenset({"rate", "overload", "transport"})
LONGEST_REST = 300.0
"""A provider may send us away for so many seconds at a time, however large the number it names."""

State = Literal["closed", "resting", "open", "half-open", "quarantined"]
Event = Literal["quarantined", "restored"]


class Listener(Protocol):
    """Who is told of quarantines: once when one begins, once when it ends."""

    def __call__(self, event: Event, backend: str, kind: str, next_probe_seconds: float, /) -> None: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a backend may be asked now.

    Args:
        reason: why not, in a few safe words.
        final: it must not be asked even when nobody else is left.
        wait: seconds until it may be.
        trial: it may, but only by whoever gets `Breaker.probe`.
    """

    allowed: bool
    reason: str = ""
    final: bool = False
    wait: float = 0.0
    trial: bool = False


CLOSED = Verdict(True)


@dataclass(slots=True)
class _Circuit:
    """What is remembered of a backend that has failed. Times on the monotonic clock."""

    kind: str = ""
    failures: int = 0  # in a row
    trials: int = 0  # requests it was tried with since it opened, all of which failed
    opened: bool = False
    until: float = 0.0
    rests: bool = False  # it said itself how long to stay away: no ping can know better
    probing: bool = False
    late: bool = False  # it breaks after its first token, so a first token proves nothing
    misleading: bool = False  # it answered a ping and then failed: pings prove nothing during this outage


class Breaker:
    """The breakers of all backends, by name; a name never heard of is closed.

    Args:
        store: keeps quarantines; None = in memory only.
        listener: told of quarantines.
        clock: seconds, monotonic; `wall` is for what outlives the process.
    """

    def __init__(
        self,
        settings: BreakerSettings | None = None,
        store: QuarantineStore | None = None,
        listener: Listener = lambda event, backend, kind, next_probe_seconds: None,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings or BreakerSettings()
        self._store = store
        self._listener = listener
        self._clock = clock
        self._wall = wall
        self._circuits: dict[str, _Circuit] = {}
        self._quarantines: dict[str, Quarantine] = {} if store is None else store.load()
        self._resting: dict[str, float] = {}

    def allows(self, name: str) -> Verdict:
        """Whether a request may go to a backend; changes nothing."""
        found = self._quarantines.get(name)
        circuit = self._circuits.get(name)
        if found is not None:
            wait = self._until_probe(found)
            if wait > 0 or (circuit is not None and circuit.probing):
                text = f"quarantined ({found.kind}), next probe in {_spoken(wait)}"
                return Verdict(False, text, final=True, wait=wait)
            return Verdict(True, f"quarantined ({found.kind}), this is the probe", trial=True)
        rest = self._resting.get(name, 0.0) - self._clock()
        if rest > 0:
            return Verdict(False, f"out of its rate for {_spoken(rest)}", final=True, wait=rest)
        return CLOSED if circuit is None or not circuit.opened else self._opened(circuit)

    def _opened(self, circuit: _Circuit) -> Verdict:
        wait = circuit.until - self._clock()
        if wait > 0:
            final = circuit.rests
            return Verdict(False, f"open ({circuit.kind}), next try in {_spoken(wait)}", final=final, wait=wait)
        if circuit.probing:
            return Verdict(False, f"open ({circuit.kind}), one request is trying it")
        return Verdict(True, f"half-open ({circuit.kind})", trial=True)

    def state(self, name: str) -> State:
        """One word for people and metrics."""
        verdict = self.allows(name)
        if name in self._quarantines:
            return "quarantined"
        if verdict.trial:
            return "half-open"
        circuit = self._circuits.get(name)
        if circuit is not None and circuit.opened:
            return "open"
        return "closed" if verdict.allowed else "resting"

    def failing(self, name: str) -> str | None:
        """The kind of failure for which it is left alone; None when it is not."""
        if name in self._quarantines:
            return self._quarantines[name].kind
        circuit = self._circuits.get(name)
        return circuit.kind if circuit is not None and circuit.opened else None

    def probe(self, name: str) -> bool:
        """Asks leave for one request, right before it is sent: in a half-open breaker only one gets it at a time.

        Whoever gets leave says `succeeded`, `failed` or `abandoned` afterwards.
        """
        verdict = self.allows(name)
        if verdict.trial:
            self._circuit(name).probing = True
            if name in self._quarantines:  # written down before it is sent: a crash must not send it twice
                self._postpone(name)
        return verdict.allowed

    def failed(
        self, name: str, kind: str, retry_after: float | None = None, *, trial: bool = False, late: bool = False
    ) -> None:
        """Notes a failure.

        Args:
            kind: as `failures.kind_of` has it; kinds that are the request's own fault change nothing.
            retry_after: seconds the provider asked for.
            trial: the request had the leave of a half-open breaker.
            late: it broke after its first token.
        """
        circuit = self._circuit(name)
        circuit.probing = circuit.probing and not trial
        if kind in QUARANTINING:
            self._confine(name, kind)
        elif kind in OPENING and name not in self._quarantines:
            circuit.kind, circuit.failures = kind, circuit.failures + 1
            circuit.late = circuit.late or late
            circuit.rests = retry_after is not None
            self._open(name, circuit, trial, retry_after)
        self._forget_if_well(name)

    def heard(self, name: str) -> None:
        """Notes a first token: whoever did not answer at all does so again, and everybody may ask it."""
        circuit = self._circuits.get(name)
        if circuit is not None and circuit.probing and not circuit.late:
            self.succeeded(name)

    def succeeded(self, name: str) -> None:
        """Notes a complete answer: the breaker closes."""
        found = self._quarantines.pop(name, None)
        circuit = self._circuits.pop(name, None)
        if found is not None:
            self._save()
            self._listener("restored", name, found.kind, 0.0)
        elif circuit is not None and circuit.opened:
            log.info("%s answers again", name)

    def abandoned(self, name: str) -> None:
        """Gives back the leave of `probe`: the request ended for reasons that say nothing about the backend."""
        if name in self._circuits:
            self._circuits[name].probing = False
            self._forget_if_well(name)

    def rest(self, name: str, seconds: float) -> None:
        """Notes that a provider's own headers leave nothing of its rate for so long: asked again only then."""
        self._resting[name] = self._clock() + min(max(seconds, 0.0), LONGEST_REST)

    def pingable(self) -> list[str]:
        """Backends of which a ping could tell whether they are back."""
        now = self._clock()
        return [
            name
            for name, circuit in self._circuits.items()
            if circuit.opened and circuit.until > now and not (circuit.rests or circuit.probing or circuit.misleading)
            and name not in self._quarantines
        ]  # fmt: skip

    def reachable(self, name: str) -> None:
        """Notes an answered ping: the next request may try the backend at once."""
        circuit = self._circuits.get(name)
        if circuit is not None and circuit.opened and not circuit.rests and not circuit.misleading:
            circuit.until = self._clock()
            circuit.misleading = True  # until a request proves it right

    def _circuit(self, name: str) -> _Circuit:
        return self._circuits.setdefault(name, _Circuit())

    def _open(self, name: str, circuit: _Circuit, trial: bool, retry_after: float | None) -> None:
        circuit.trials += trial
        if not circuit.opened and circuit.failures < self._settings.open_after and retry_after is None:
            return
        if not circuit.opened:
            log.warning("%s is left alone (%s)", name, circuit.kind)
        circuit.opened = True
        wait = min(
            self._settings.first_wait_seconds * 2.0 ** min(circuit.trials, 32), self._settings.longest_wait_seconds
        )
        if retry_after is not None:
            wait = min(max(retry_after, 0.0), LONGEST_REST)
        # Requests that were under way when it opened must not push the next try away.
        now = self._clock()
        circuit.until = now + wait if trial or retry_after is not None or circuit.until <= now else circuit.until

    def _confine(self, name: str, kind: str) -> None:
        known = self._quarantines.get(name)
        now = self._wall()
        since = now if known is None else known.since
        self._quarantines[name] = Quarantine(kind, since, now + self._settings.quarantine_seconds)
        self._save()
        if known is None:
            self._listener("quarantined", name, kind, self._settings.quarantine_seconds)

    def _postpone(self, name: str) -> None:
        found = self._quarantines[name]
        next_probe = self._wall() + self._settings.quarantine_seconds
        self._quarantines[name] = Quarantine(found.kind, found.since, next_probe)
        self._save()

    def _until_probe(self, found: Quarantine) -> float:
        """Seconds; never more than the interval, wherever the wall clock was set meanwhile."""
        return min(found.next_probe - self._wall(), self._settings.quarantine_seconds)

    def _forget_if_well(self, name: str) -> None:
        circuit = self._circuits.get(name)
        if circuit is not None and not circuit.opened and not circuit.failures and not circuit.probing:
            del self._circuits[name]

    def _save(self) -> None:
        if self._store is not None:
            self._store.save(self._quarantines)


def _spoken(seconds: float) -> str:
    """`45 s`, `30 min`."""
    seconds = max(seconds, 0.0)
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
