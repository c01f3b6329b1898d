"""One choice's text as it grows: text that is safe to show, log probabilities beside theirs.

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

    @property
    def whole(self) -> bool: ...  # noqa: D102


class Content:
    """Text that is the answer: holds back possible stop strings, and lines log probabilities up with their text."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._matcher = StopMatcher(stops)
        self._waiting: deque[tuple[int, TokenLogprob]] = deque()
        self._seen = 0
        self._shown = 0

    @property
    def stopped(self) -> bool:
        """Whether a stop string completed: nothing more will be shown."""
        return self._matcher.hit is not None

    @property
    def stop(self) -> str | None:
        """The stop string that completed."""
        return self._matcher.hit

    def resume(self, text: str) -> int:
        """The answer goes on behind `text`, where a stop string may have begun; how much of it will come out again."""
        held = len(text) - len(self._matcher.push(text))
        if self.stopped:  # stop strings inside of what was there before mean nothing now
            self._matcher, held = StopMatcher(self._stops), 0
        self._seen += held
        return held

    def note(self, logprob: TokenLogprob) -> None:
        """A token that begins where the text now ends."""
        self._waiting.append((self._seen, logprob))

    def forget(self) -> None:
        """The tokens that begin where the text now ends were no text of the answer."""
        while self._waiting and self._waiting[-1][0] >= self._seen:
            self._waiting.pop()

    def feed(self, text: str) -> Shown:
        """What can be shown now that the text goes on, and the tokens that begin in it."""
        self._seen += len(text)
        return self._show(self._matcher.push(text))

    def end(self, text: str = "") -> Shown:
        """What was held back, at the end of the text, and `text` before it."""
        text = self._matcher.push(text)
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
