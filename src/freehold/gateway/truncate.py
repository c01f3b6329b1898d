"""Conversations that no longer fit: leaves out the oldest turns, as `truncation: "auto"` of the Responses API asks.

Knows turns and the error that says how much is too much, no tokens.
"""

from __future__ import annotations

from dataclasses import replace

from freehold.errors import ContextLengthError
from freehold.gateway.conversation import Request, Turn

DROPPED = "input.oldest"
MARGIN = 0.05
"""More is left out than the numbers say, by this share: texts differ in how many tokens a character takes."""


def without_oldest(request: Request, error: Exception) -> Request | None:
    """The request without its oldest turns, never without its system turns, its last user's or its last; None when
    nothing can be left out. A tool's results leave with the call that asked for them."""
    units = _units(request.turns)
    users = [i for i, unit in enumerate(units) if unit[0].role == "user"]
    kept = {users[-1] if users else len(units) - 1, len(units) - 1}
    droppable = [i for i, unit in enumerate(units) if i not in kept and unit[0].role != "system"]
    if not droppable:
        return None
    share = 1 - error.limit / max(error.requested, 1) + MARGIN if isinstance(error, ContextLengthError) else 0.0
    excess = share * sum(map(_size, units))
    leaving: set[int] = set()
    for i in droppable:
        leaving.add(i)
        excess -= _size(units[i])
        if excess <= 0:
            break
    turns = tuple(turn for i, unit in enumerate(units) if i not in leaving for turn in unit)
    dropped = request.dropped if DROPPED in request.dropped else (*request.dropped, DROPPED)
    return replace(request, turns=turns, dropped=dropped, body=b"")


def _units(turns: tuple[Turn, ...]) -> list[list[Turn]]:
    """Turns that stay or leave together."""
    units: list[list[Turn]] = []
    for turn in turns:
        if turn.role == "tool" and units:
            units[-1].append(turn)
        else:
            units.append([turn])
    return units


def _size(unit: list[Turn]) -> int:
    return sum(len(turn.text) + sum(len(call.arguments) for call in turn.tool_calls) for turn in unit)
