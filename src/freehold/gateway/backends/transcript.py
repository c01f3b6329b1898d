"""One choice's text as it grows: tokens in, text that is safe to show out, log probabilities beside their text.

Knows no engine and no events; the detokenizer and the stop strings are handed in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

from freehold.gateway.conversation import TokenLogprob
from freehold.gateway.stops import StopMatcher

Shown = tuple[str, tuple[TokenLogprob, ...]]


class Detokenizer(Protocol):
    """Whole characters only; the rest of a split character waits inside."""

    def push(self, id: int, /) -> str: ...  # noqa: D102

    def flush(self) -> str: ...  # noqa: D102


class Transcript:
    """Detokenizes, holds back possible stop strings, and lines log probabilities up with the text they begin in."""

    def __init__(self, detokenizer: Detokenizer, stops: Sequence[str]) -> None:
        self._detokenizer = detokenizer
        self._matcher = StopMatcher(stops)
        self._waiting: deque[tuple[int, TokenLogprob]] = deque()
        self._seen = 0
        self._shown = 0

    @property
    def stopped(self) -> bool:
        """Whether a stop string completed: nothing more will be shown."""
        return self._matcher.hit is not None

    def push(self, token: int, logprob: TokenLogprob | None = None) -> Shown:
        """Text that can be shown now that `token` is known, and the tokens that begin in it."""
        if logprob is not None:
            self._waiting.append((self._seen, logprob))
        text = self._detokenizer.push(token)
        self._seen += len(text)
        return self._show(self._matcher.push(text))

    def close(self) -> Shown:
        """What was held back, at the end of the tokens."""
        text = self._matcher.push(self._detokenizer.flush())
        if not self.stopped:
            text += self._matcher.flush()
        shown, logprobs = self._show(text)
        if not self.stopped:  # tokens without text of their own
            logprobs += tuple(logprob for _, logprob in self._waiting)
            self._waiting.clear()
        return shown, logprobs

    def _show(self, text: str) -> Shown:
        self._shown += len(text)
        ready = []
        while self._waiting and self._waiting[0][0] < self._shown:
            ready.append(self._waiting.popleft()[1])
        return text, tuple(ready)
