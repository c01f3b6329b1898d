"""How much a model agrees with itself: its answer compared with others it gave to the same question.

A model that knows says the same again; one that guesses says something else (self-consistency, Wang et al. 2022,
https://arxiv.org/abs/2203.11171). Calls and JSON are the same or not; texts are as alike as the words they share (F1 over
words, as SQuAD is scored: Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250). Knows events; runs nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from freehold.gateway.conversation import Event, TextDelta, ToolCallDelta

_WORD = re.compile(r"\w+")


@dataclass(slots=True)
class Said:
    """What the first choice of an answer says."""

    text: str = ""
    calls: dict[int, tuple[str, str]] = field(default_factory=dict)  # name and arguments

    def note(self, event: Event) -> None:
        """Takes one event into account."""
        if isinstance(event, TextDelta) and event.index == 0:
            self.text += event.text
        elif isinstance(event, ToolCallDelta) and event.index == 0:
            name, arguments = self.calls.get(event.call, ("", ""))
            self.calls[event.call] = (name + (event.name or ""), arguments + event.arguments)


def agreement(answer: Said, others: Sequence[Said]) -> float | None:
    """From 0 (nothing in common) to 1 (all the same); None without others."""
    return sum(alike(answer, other) for other in others) / len(others) if others else None


def alike(one: Said, other: Said) -> float:
    """How alike two answers are."""
    if one.calls or other.calls:
        return float(_called(one) == _called(other))
    parsed, theirs = _json(one.text), _json(other.text)
    if isinstance(parsed, dict | list) or isinstance(theirs, dict | list):
        return float(parsed == theirs)
    return f1(one.text, other.text)


def f1(one: str, other: str) -> float:
    """Harmonic mean of the shares of each text's words that the other has; case and punctuation count for nothing."""
    mine, theirs = Counter(_WORD.findall(one.casefold())), Counter(_WORD.findall(other.casefold()))
    both, total = (mine & theirs).total(), mine.total() + theirs.total()
    return 2 * both / total if total else float(one.strip() == other.strip())


def _called(said: Said) -> list[tuple[str, Any]]:
    return [(name, _json(arguments)) for _, (name, arguments) in sorted(said.calls.items())]


def _json(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
        return text
