"""How fast backends have been lately, and who answered which conversation: what the router remembers of answers.

Knows names and numbers; no backend, no policy.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from freehold.gateway.conversation import Request

WEIGHT = 0.2
"""Of the newest answer in an average: about the last ten count."""

FRESH_SECONDS = 300.0
"""After this long without an answer a measurement is forgotten, so that a backend that was slow once is tried again."""

SILENT_TTFTS, LEAST_SILENCE = 3.0, 0.5
"""A backend is silent when a call waits for content for so many of its usual times to first token, and so many seconds."""

MOST_CONVERSATIONS = 10_000


@dataclass(slots=True)
class Speed:
    """Moving averages of one backend. Times in seconds, the rate in tokens per second."""

    ttft: float
    seconds: float
    rate: float | None = None
    at: float = 0.0


class Measures:
    """Speeds by backend.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._speeds: dict[str, Speed] = {}
        self._waiting: dict[str, dict[object, float]] = {}  # calls that wait for content, the oldest first

    def note(self, backend: str, ttft: float, seconds: float, tokens: int) -> None:
        """Takes a finished answer into account."""
        rate = (tokens - 1) / (seconds - ttft) if tokens > 1 and seconds > ttft else None
        found = self.of(backend)
        if found is None:
            self._speeds[backend] = Speed(ttft, seconds, rate, self._clock())
            return
        found.ttft += WEIGHT * (ttft - found.ttft)
        found.seconds += WEIGHT * (seconds - found.seconds)
        if rate is not None:
            found.rate = rate if found.rate is None else found.rate + WEIGHT * (rate - found.rate)
        found.at = self._clock()

    def of(self, backend: str) -> Speed | None:
        """What is known of it and still fresh."""
        found = self._speeds.get(backend)
        return found if found is not None and self._clock() - found.at <= FRESH_SECONDS else None

    def predicted(self, backend: str, tokens: int) -> float | None:
        """Seconds until an answer of so many tokens would be complete; None when not measured lately."""
        found = self.of(backend)
        if found is None:
            return None
        return found.ttft + (tokens / found.rate if found.rate else 0.0)

    def waits(self, backend: str) -> object:
        """Notes a call that waits for content; give what comes back to `got`."""
        call = object()
        self._waiting.setdefault(backend, {})[call] = self._clock()
        return call

    def got(self, backend: str, call: object) -> None:
        """The call has content, or waits no longer."""
        self._waiting.get(backend, {}).pop(call, None)

    def longest_silence(self, backend: str) -> float | None:
        """Seconds without content that would be unusual; None when it was not measured lately."""
        found = self.of(backend)
        return None if found is None else max(LEAST_SILENCE, SILENT_TTFTS * found.ttft)

    def silent(self, backend: str) -> float | None:
        """Seconds its oldest call has waited for content, when that is unusual."""
        began = next(iter(self._waiting.get(backend, {}).values()), None)
        limit = self.longest_silence(backend)
        if began is None or limit is None:
            return None
        waited = self._clock() - began
        return waited if waited >= limit else None

    def wait(self, backend: str, waiting: int, running: int) -> float | None:
        """Seconds in its queue: each of `running` places is free again after the average answer's time."""
        found = self.of(backend)
        return None if found is None else waiting * found.seconds / max(1, running)


class Conversations:
    """Who answered last, by conversation; bounded, the oldest are forgotten first."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: OrderedDict[bytes, tuple[str, float]] = OrderedDict()

    def note(self, key: bytes, backend: str) -> None:
        """It answered."""
        self._last[key] = (backend, self._clock())
        self._last.move_to_end(key)
        while len(self._last) > MOST_CONVERSATIONS:
            self._last.popitem(last=False)

    def who(self, key: bytes, seconds: float) -> str | None:
        """Who answered within the last `seconds`."""
        backend, at = self._last.get(key, ("", 0.0))
        return backend if backend and self._clock() - at <= seconds else None


def conversation_key(request: Request, by: str) -> bytes | None:
    """What makes requests one conversation; None when this one does not say.

    Args:
        by: "prefix" (the system's words and the first user's), "user" or "header".
    """
    if by == "user":
        said = request.user
    elif by == "header":
        said = request.session
    else:
        said = _beginning(request)
    if not said:
        return None
    # A key of ours in front: two clients must not share a conversation by naming it alike.
    parts = (by, request.key_id, request.model, said)
    return hashlib.blake2b("\0".join(parts).encode("utf-8", "replace"), digest_size=16).digest()


def _beginning(request: Request) -> str:
    words: list[str] = []
    for turn in request.turns:
        words += (turn.role, turn.text)
        if turn.role == "user":
            break
    return "\0".join(words)
