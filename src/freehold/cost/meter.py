"""From a finished exchange to rows of usage: what each backend that worked on it counted, and what that cost.

Plain functions over plain dataclasses: no database, no clock of its own, no request. Tokens are the provider's own count
where it sent one; of a stream that was cut or left they are estimated, and the row says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from freehold.cost.prices import NANOS, Price, Tokens

BYTES_PER_TOKEN = 4
"""For what nobody counted. OpenAI's rule of thumb for English:
https://help.openai.com/en/articles/4936856-what-are-tokens-and-how-to-count-them"""

LOCAL = "local"
UNKNOWN = "unknown"


@dataclass(slots=True)
class Part:
    """What one backend did for an exchange; most exchanges have one part, those that moved on have more.

    Args:
        at: when it was asked; aware.
        prompt_estimate: tokens of the prompt, roughly; used when the backend did not count.
        text_bytes: UTF-8 bytes of what it said.
        heard: whether anything came from it.
        tokens: its own count.
        seconds: it took; for the local engine its share of the machine, see `MachineClock`.
        failure: one word, when it failed.
        upstream_id: the provider's own name for its answer.
    """

    backend: str
    model: str
    at: datetime
    local: bool = False
    prompt_estimate: int = 0
    text_bytes: int = 0
    heard: bool = False
    tokens: Tokens | None = None
    seconds: float = 0.0
    finished: bool = False
    failure: str | None = None
    upstream_id: str | None = None

    def counted(self) -> tuple[Tokens, bool]:
        """Its tokens, and whether they are an estimate. Who refused before a word came charges nothing."""
        if self.tokens is not None:
            return self.tokens.sane(), False
        if self.failure is not None and not self.heard:
            return Tokens(), False
        return Tokens(self.prompt_estimate, -(-self.text_bytes // BYTES_PER_TOKEN)), True


@dataclass(frozen=True, slots=True)
class UsageRow:
    """One row of usage. `nanos` is None when the price was not known; `price_snapshot` names the prices it came from."""

    request_id: str
    part: int
    at: int  # microseconds since 1970
    key_id: str
    backend: str
    provider: str
    model: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    estimated: int
    seconds: float
    finished: int
    failure: str | None
    nanos: int | None
    price_snapshot: str

    @property
    def tokens(self) -> Tokens:
        """As the prices take them."""
        return Tokens(
            self.prompt_tokens,
            self.completion_tokens,
            self.cached_tokens,
            self.cache_write_tokens,
            self.reasoning_tokens,
        )


def row_of(
    part: Part, number: int, *, request_id: str, key_id: str, price: Price | None, machine_usd_per_hour: float
) -> UsageRow:
    """The row of one part.

    Args:
        price: of the backend's model at the time; not used for the local engine.
        machine_usd_per_hour: of the machine the local engine runs on; 0 = not known.
    """
    tokens, estimated = part.counted()
    if part.local:
        nanos, snapshot = local_cost(part.seconds, machine_usd_per_hour)
    elif tokens == Tokens() and not estimated:
        nanos, snapshot = 0, UNKNOWN if price is None else price.snapshot
    elif price is None:
        nanos, snapshot = None, UNKNOWN
    else:
        nanos, snapshot = price.cost(tokens), price.snapshot
    return UsageRow(
        request_id, number, microseconds(part.at), key_id, part.backend,
        LOCAL if part.local else (UNKNOWN if price is None else price.provider), part.model,
        tokens.prompt, tokens.completion, tokens.cached, tokens.cache_write, tokens.reasoning,
        int(estimated), part.seconds, int(part.finished), part.failure, nanos, snapshot,
    )  # fmt: skip


def local_cost(seconds: float, usd_per_hour: float) -> tuple[int | None, str]:
    """Measured seconds at the machine's hourly price, and that price as a snapshot id."""
    if not usd_per_hour:
        return None, UNKNOWN
    return round(seconds * usd_per_hour * NANOS / 3600), f"machine:{usd_per_hour!r}/h"


def microseconds(at: datetime) -> int:
    """Since 1970."""
    return round(at.timestamp() * 1_000_000)


class MachineClock:
    """Shares the machine's time among the exchanges that run on it at once: their shares add up to the time it was busy.

    Without it, 32 streams of a second each in one batch would be billed 32 seconds of a machine that ran for one.

    Args:
        now: seconds, monotonic.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._running = 0
        self._shared = 0.0  # what an exchange that ran all the time would have been given
        self._at = 0.0

    def enter(self) -> float:
        """An exchange begins; give what this returns to `leave`."""
        self._advance()
        self._running += 1
        return self._shared

    def leave(self, mark: float) -> float:
        """An exchange ends; its share in seconds."""
        self._advance()
        self._running -= 1
        return self._shared - mark

    def _advance(self) -> None:
        now = self._now()
        if self._running:
            self._shared += (now - self._at) / self._running
        self._at = now
