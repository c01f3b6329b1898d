"""Choices that broke off because the engine died: what it had written, so that the rest follows byte for byte.

Text alone would not do: written again as tokens it may be cut differently, and a different beginning has a different
end. Bounded; knows no engine.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from freehold.gateway.backends.prompting import Prepared
from freehold.gateway.backends.reading import Delta, Reading
from freehold.gateway.conversation import TextDelta

KEPT = 256
"""Choices remembered."""


@dataclass(slots=True)
class Cut:
    """One choice as far as it has come.

    Args:
        prepared: its prompt.
        already: text that the client had when this prompt was made.
        limit: most tokens of output from that prompt.
        ids: the output so far.
    """

    prepared: Prepared
    already: str
    limit: int | None
    ids: list[int] = field(default_factory=list)


class Unfinished:
    """Remembers cut choices by the id under which the rest is asked for."""

    def __init__(self) -> None:
        self._cuts: OrderedDict[str, Cut] = OrderedDict()

    def keep(self, key: str, cut: Cut) -> None:
        """Remember a choice that was cut, if it has said anything."""
        if cut.ids:
            self._cuts[key] = cut
            while len(self._cuts) > KEPT:
                self._cuts.popitem(last=False)

    def take(self, key: str, text: str) -> Cut | None:
        """The choice that was cut, if the client's text goes on from where its prompt ended."""
        cut = self._cuts.pop(key, None)
        return cut if cut is not None and text.startswith(cut.already) else None

    def replay(self, cut: Cut, reading: Reading, text: str) -> Iterator[Delta]:
        """Brings a reading to where the choice was cut; gives what the client lacks.

        Args:
            text: all that the client has.
        """
        if not cut.ids:
            return
        reading.have(len(text) - len(cut.already))
        for token in cut.ids:
            for delta in reading.push(token):
                if isinstance(delta, TextDelta) or not text:
                    yield delta
