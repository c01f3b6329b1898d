"""Several keys of one upstream: which to use now, and what is known of each.

A key that was refused rests while another works; the rate that a provider grants is remembered for each. Knows no HTTP:
statuses come in as kinds, headers as a mapping.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from freehold.gateway.backends.keys import Key
from freehold.gateway.rates import RateState, rate_state

REST_SECONDS: Mapping[str, float] = {"auth": 1800.0, "banned": 1800.0, "billing": 1800.0, "rate": 5.0}
"""How long a refused key rests, by the kind of refusal, while another is there; these kinds are a key's own fault."""

NOTHING_TOLD = RateState()


@dataclass(slots=True)
class KeyState:
    """A key and what its last answers told. Times are on the ring's clock.

    Args:
        number: its place in the settings, from 1: logs name a key by it.
        rates: what the provider said is left.
        told_until: when the provider said to come back.
        resting_until: until then another key goes first.
    """

    key: Key
    number: int
    rates: RateState = NOTHING_TOLD
    told_until: float = 0.0
    resting_until: float = 0.0

    def limited_until(self, now: float) -> float | None:
        """When the provider will take this key again, as far as it said so."""
        until = max(self.rates.limited_until(now) or 0.0, self.told_until)
        return until if until > now else None

    def ready_at(self, now: float) -> float:
        """When it should be used again; in the past for one in good standing."""
        return max(self.limited_until(now) or 0.0, self.resting_until)


class KeyRing:
    """The keys of one upstream.

    Args:
        keys: in order of preference; an empty key means that none is needed.
        clock: seconds, monotonic.
        wall: seconds since the epoch.
    """

    def __init__(
        self,
        keys: Sequence[Key],
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.states = tuple(KeyState(key, number) for number, key in enumerate(keys or [Key("")], start=1))
        self._clock = clock
        self._wall = wall

    def __bool__(self) -> bool:
        """Whether there is any secret in it."""
        return any(state.key for state in self.states)

    def order(self) -> Iterator[KeyState]:
        """Keys worth trying now, best first: those in good standing, or else the one that will be first."""
        now = self._clock()
        ready = [state for state in self.states if state.ready_at(now) <= now]
        yield from ready or [min(self.states, key=lambda state: state.ready_at(now))]

    def heard(self, state: KeyState, headers: Mapping[str, str]) -> None:
        """Takes note of the rate that an answer's headers tell."""
        state.rates = rate_state(headers, self._clock(), self._wall()) or NOTHING_TOLD

    def refused(self, state: KeyState, kind: str, retry_after: float | None) -> bool:
        """Takes note of a refusal; True when it was the key's fault and another may do better."""
        now = self._clock()
        if retry_after is not None:
            state.told_until = max(state.told_until, now + retry_after)
        state.resting_until = now + REST_SECONDS.get(kind, 0.0)
        return kind in REST_SECONDS

    def worked(self, state: KeyState) -> None:
        """Takes note that it was accepted."""
        state.told_until = state.resting_until = 0.0

    def limited_until(self) -> float | None:
        """When the first key is allowed again, if the provider has said of every key that it is not."""
        now = self._clock()
        until = [state.limited_until(now) for state in self.states]
        told = [moment for moment in until if moment is not None]
        return min(told) if len(told) == len(until) else None

    @property
    def rates(self) -> tuple[RateState, ...]:
        """What is left for each key."""
        return tuple(state.rates for state in self.states)

    def redact(self, text: str) -> str:
        """`text` without any of the keys."""
        for state in self.states:
            text = state.key.redact(text)
        return text
