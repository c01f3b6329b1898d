"""A choice's events as a sequence of items (texts, thinking, tool calls), each opened, grown and closed in turn.

Anthropic's blocks and the Responses API's output items come one after the other, while neutral deltas of parallel tool
calls may be mixed: what belongs to a later item waits until the call before it is whole. Knows no wire format.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import msgspec

from freehold.gateway.conversation import ReasoningDelta, TextDelta, TokenLogprob, ToolCallDelta

Piece: TypeAlias = TextDelta | ReasoningDelta | ToolCallDelta


@dataclass(slots=True)
class Item:
    """One block of an answer.

    Args:
        index: its place in the answer.
        call: number of the tool call; `id` and `name` are its own.
        signature: the provider's seal on thinking; `redacted`, thinking that only the provider can read.
        complete: False for the one that a limit cut.
    """

    kind: Literal["text", "reasoning", "call"]
    index: int
    call: int = -1
    id: str = ""
    name: str = ""
    signature: str | None = None
    redacted: str | None = None
    complete: bool = True
    pieces: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All of its text (a call's arguments) so far."""
        return "".join(self.pieces)


@dataclass(frozen=True, slots=True)
class Opened:
    """An item begins."""

    item: Item


@dataclass(frozen=True, slots=True)
class Grown:
    """An item has more text."""

    item: Item
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Closed:
    """An item is over; the next one may begin."""

    item: Item


Step: TypeAlias = Opened | Grown | Closed


class Items:
    """Puts one choice's pieces in order.

    Args:
        request_id: names tool calls whose provider gave them no id.
    """

    def __init__(self, request_id: str) -> None:
        self.all: list[Item] = []
        self._request_id = request_id
        self._open: Item | None = None
        self._held: list[Piece] = []

    def push(self, piece: Piece) -> Iterator[Step]:
        """The steps that a piece allows."""
        waiting = deque([piece])
        while waiting:
            following, current = waiting.popleft(), self._open
            if current is not None and _belongs(following, current):
                yield from self._grow(current, following)
                if self._held and _is_whole(current):
                    waiting.extendleft(reversed(self._held))
                    self._held = []
            elif self._held or (current is not None and not _is_whole(current)):
                self._held.append(following)
            else:
                yield from self._next(following)

    def close(self, *, complete: bool) -> Iterator[Step]:
        """The last steps; `complete`: the answer ended by itself, not at a limit."""
        while self._held:
            (first, *rest), self._held = self._held, []
            yield from self._next(first)
            for piece in rest:
                if self._open is not None and _belongs(piece, self._open):
                    yield from self._grow(self._open, piece)
                else:
                    self._held.append(piece)
        if self._open is not None:
            self._open.complete = complete
            yield Closed(self._open)
            self._open = None

    def _next(self, piece: Piece) -> Iterator[Step]:
        """Closes what is open and opens the item of `piece`."""
        if _is_empty(piece):
            return
        if isinstance(piece, ToolCallDelta) and any(item.call == piece.call for item in self.all):
            return  # the call is closed, so its arguments are whole: only white space can follow whole JSON
        if self._open is not None:
            yield Closed(self._open)
        item = self._new(piece)
        self.all.append(item)
        self._open = item
        yield Opened(item)
        yield from self._grow(item, piece)

    def _new(self, piece: Piece) -> Item:
        index = len(self.all)
        match piece:
            case TextDelta():
                return Item("text", index)
            case ReasoningDelta():
                return Item("reasoning", index, redacted=piece.redacted)
            case ToolCallDelta():
                own = piece.id or f"call_{self._request_id}_{piece.call}"
                return Item("call", index, call=piece.call, id=own, name=piece.name or "")

    def _grow(self, item: Item, piece: Piece) -> Iterator[Step]:
        text = piece.arguments if isinstance(piece, ToolCallDelta) else piece.text
        logprobs = piece.logprobs if isinstance(piece, TextDelta) else ()
        if isinstance(piece, ReasoningDelta) and piece.signature is not None:
            item.signature = piece.signature
        if text or logprobs:
            item.pieces.append(text)
            item.logprobs.extend(logprobs)
            yield Grown(item, text, logprobs)


def _belongs(piece: Piece, item: Item) -> bool:
    match piece:
        case TextDelta():
            return item.kind == "text"
        case ReasoningDelta():
            sealed = item.signature is not None or item.redacted is not None
            return item.kind == "reasoning" and not sealed and piece.redacted is None
        case ToolCallDelta():
            return item.call == piece.call


def _is_empty(piece: Piece) -> bool:
    match piece:
        case TextDelta():
            return not piece.text and not piece.logprobs
        case ReasoningDelta():
            return not piece.text and piece.signature is None and piece.redacted is None
        case ToolCallDelta():
            return False


def _is_whole(item: Item) -> bool:
    """Whether something else may follow: a call's arguments must be a whole JSON object first."""
    if item.kind != "call":
        return True
    if not item.pieces or not item.pieces[-1].rstrip().endswith("}"):
        return False
    try:
        msgspec.json.decode(item.text)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True
