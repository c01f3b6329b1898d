"""Stop strings in streamed text: holds back what might become one, so that no part of a stop string ever leaks.

Works on characters, so it gives the same answer however the text was cut into tokens. Knows no tokens and no events.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Feeds text through until the first stop string completes.

    Each stop string runs as a Knuth-Morris-Pratt automaton: constant time per character however long the string, and
    its state is exactly how much of the end of the text must be held back.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [(stop, _failure(stop)) for stop in stops]
        self._states = [0] * len(self._stops)
        self._held = ""
        self.hit: str | None = None

    def push(self, text: str) -> str:
        """Text that is now safe to show. After a hit: everything before the stop string, then nothing more."""
        if self.hit is not None:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        for position in range(len(self._held), len(text)):
            matched = self._advance(text[position])
            if matched:
                self.hit = text[position + 1 - matched : position + 1]
                self._held = ""
                return text[: position + 1 - matched]
        safe = len(text) - max(self._states)
        self._held = text[safe:]
        return text[:safe]

    def flush(self) -> str:
        """What was held back, now that no more text comes."""
        held, self._held = self._held, ""
        return held

    def _advance(self, character: str) -> int:
        """Moves every automaton by one character; the length of the longest stop string that completes, or 0."""
        matched = 0
        for i, (stop, failure) in enumerate(self._stops):
            state = self._states[i]
            while state and stop[state] != character:
                state = failure[state - 1]
            state += stop[state] == character
            self._states[i] = state
            if state == len(stop):
                matched = max(matched, state)
        return matched


def _failure(pattern: str) -> list[int]:
    """For each prefix, the length of its longest proper prefix that is also its suffix."""
    table = [0] * len(pattern)
    state = 0
    for i in range(1, len(pattern)):
        while state and pattern[i] != pattern[state]:
            state = table[state - 1]
        state += pattern[i] == pattern[state]
        table[i] = state
    return table
