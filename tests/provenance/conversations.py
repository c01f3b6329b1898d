"""Conversations as clients have them: some all local, some answered by a standby in the middle, some quoting one.

What each record must be judged is worked out here by the plain rule, turn by turn, not by the code under test.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from freehold.provenance.exchanges import Begun, Ended
from tests.provenance.made import exchange

WORDS = (
    *(
        "river",
        "stone",
        "winter",
        "lamp",
        "harbour",
        "paper",
        "garden",
        "copper",
        "window",
        "market",
        "bread",
        "signal",
    ),
    *("valley", "ladder", "engine", "cloud", "needle", "orchard", "silver", "bridge", "candle", "forest", "thread"),
    *("island", "kettle", "mirror", "saddle", "timber", "anchor", "basket"),
)


@dataclass(frozen=True, slots=True)
class Turn:
    """One exchange of a conversation and whether training on it is safe."""

    begun: Begun
    ended: Ended
    safe: bool
    text: str


def sentence(r: random.Random, count: int = 24) -> str:
    """Words in an order that does not repeat."""
    return " ".join(f"{r.choice(WORDS)}{r.randrange(10_000)}" for _ in range(count)) + "."


def conversations(count: int, seed: int = 7) -> Iterator[list[Turn]]:
    """`count` conversations of one to five exchanges."""
    r = random.Random(seed)
    closed: list[str] = []
    for _ in range(count):
        turns: list[Turn] = []
        history: list[tuple[str, str]] = []
        tainted = False
        for _ in range(r.randrange(1, 6)):
            question = sentence(r, 12)
            if closed and r.random() < 0.08:
                question += " Rewrite: " + r.choice(closed)
                tainted = True
            history.append(("user", question))
            who = r.choices(("local", "openai", "deepseek", "nobody"), (80, 8, 8, 4))[0]
            answer = sentence(r)
            begun, ended = exchange(list(history), answer, who=who)
            tainted = tainted or who in ("openai", "nobody")
            turns.append(Turn(begun, ended, not tainted, answer))
            if tainted:
                closed.append(answer)
            history.append(("assistant", answer))
        yield turns


def flat(given: Sequence[Sequence[Turn]]) -> list[Turn]:
    """All turns, conversation after conversation."""
    return [turn for turns in given for turn in turns]
