"""Text as it comes, read by generators: a parser asks for what it needs next and is resumed when more text is there.

Bounded: what is kept unread is at most one mark, one key or one name; arguments pass through. Knows JSON's shape and
nothing of families.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

MAX_HEAD = 4096
"""Characters of a call before its name is known; more is no call."""
CHANCE = 4
"""Characters of a mark with which a text may end by chance."""

T = TypeVar("T")
Reads: TypeAlias = Generator[None, None, T]


@dataclass(frozen=True, slots=True)
class Text:
    """Text outside of calls."""

    text: str


@dataclass(frozen=True, slots=True)
class Call:
    """A call begins."""

    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """More of the current call's arguments, JSON as the model wrote it."""

    text: str


Piece: TypeAlias = Text | Call | Arguments


class Malformed(Exception):
    """What follows is no call."""


class Ended(Exception):
    """The text ended inside a call."""


class Source:
    """Unread text and the pieces found so far."""

    def __init__(self) -> None:
        self.unread = ""
        self.ended = False
        self.outside = True
        self.calls = 0
        self.out: list[Piece] = []
        self._taken = ""

    def text(self, text: str) -> None:
        """Text outside of calls."""
        if text:
            self.out.append(Text(text))

    def until(self, marks: Sequence[str]) -> Reads[str | None]:
        """Passes text on up to the first of the marks, and gives that one; None when the text has ended.

        White space right before a mark belongs to the mark.
        """
        self.outside = True
        while True:
            found = [(place, mark) for mark in marks if (place := self.unread.find(mark)) >= 0]
            if found:
                place, mark = min(found)
                self.text(self.unread[:place].rstrip())
                self.unread = self.unread[place + len(mark) :]
                self.outside, self._taken = False, ""
                return mark
            part = max((begun(self.unread, mark) for mark in marks), default=0)
            if self.ended:
                self.text(self.unread[: len(self.unread) - part].rstrip() if self._cut(part) else self.unread)
                self.unread = ""
                return None
            keep = len(self.unread) - part
            keep = len(self.unread[:keep].rstrip())
            self.text(self.unread[:keep])
            self.unread = self.unread[keep:]
            yield

    def _cut(self, part: int) -> bool:
        """Whether the text's end is a mark that a limit cut: after a call, or when it is too long for chance."""
        return part > 0 and (self.calls > 0 or part > CHANCE)

    def space(self) -> Reads[None]:
        """Skips white space."""
        while True:
            rest = self.unread.lstrip()
            self._take(len(self.unread) - len(rest))
            if self.unread or self.ended:
                return
            yield

    def begins(self, literal: str) -> Reads[bool]:
        """Whether the text goes on with `literal`, which is then skipped; a part of it at the very end is skipped too."""
        while len(self.unread) < len(literal) and literal.startswith(self.unread) and not self.ended:
            yield
        if self.ended and literal.startswith(self.unread):
            self._take(len(self.unread))
        if not self.unread.startswith(literal):
            return False
        self._take(len(literal))
        return True

    def peek(self) -> Reads[str]:
        """The next character; "" at the end."""
        while not self.unread and not self.ended:
            yield
        return self.unread[:1]

    def upto(self, *stops: str) -> Reads[str]:
        """Text up to the first of `stops`, which stays unread."""
        while True:
            places = [place for stop in stops if (place := self.unread.find(stop)) >= 0]
            if places:
                return self._take(min(places))
            if len(self.unread) > MAX_HEAD:
                raise Malformed
            yield from self._more()

    def need(self, literal: str) -> Reads[None]:
        """Skips `literal`.

        Raises:
            Malformed: the text goes on otherwise.
        """
        if not (yield from self.begins(literal)):
            raise Ended if self.ended and literal.startswith(self.unread) else Malformed

    def value(self, emit: Callable[[str], None]) -> Reads[None]:
        """One JSON value, handed to `emit` piece by piece."""
        first = yield from self.peek()
        if first == "":
            raise Ended
        if first not in '{["-0123456789tfn':
            raise Malformed
        shape = _Shape()
        while True:
            count = shape.feed(self.unread)
            if count:
                emit(self._take(count))
            if shape.done:
                return
            yield from self._more()

    def whole(self, limit: int = MAX_HEAD) -> Reads[str]:
        """One JSON value, complete."""
        pieces: list[str] = []

        def gather(piece: str) -> None:
            pieces.append(piece)
            if sum(map(len, pieces)) > limit:
                raise Malformed

        yield from self.value(gather)
        return "".join(pieces)

    def call(self, name: str) -> None:
        """A call begins."""
        self.calls += 1
        self.out.append(Call(name))

    def recover(self, mark: str, calls: int) -> None:
        """After Malformed: what was taken since the mark is text after all, unless there are more calls than then."""
        if self.calls == calls:
            self.text(mark + self._taken)
        self._taken = ""

    def _more(self) -> Reads[None]:
        if self.ended:
            raise Ended
        yield

    def _take(self, count: int) -> str:
        taken, self.unread = self.unread[:count], self.unread[count:]
        if len(self._taken) <= MAX_HEAD:
            self._taken += taken
        return taken


class _Shape:
    """Where one JSON value ends: counts brackets outside of strings."""

    def __init__(self) -> None:
        self.done = False
        self._depth = 0
        self._string = False
        self._escaped = False
        self._scalar = False

    def feed(self, text: str) -> int:
        """Characters of `text` that belong to the value."""
        for place, character in enumerate(text):
            if self._string:
                self._inside(character)
            elif self._scalar:
                if character in ",]} \n\t\r":
                    self.done = True
                    return place
            elif character == '"':
                self._string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                self.done = self._depth == 0
            elif self._depth == 0 and not character.isspace():
                self._scalar = True
            if self.done:
                return place + 1
        return len(text)

    def _inside(self, character: str) -> None:
        if self._escaped:
            self._escaped = False
        elif character == "\\":
            self._escaped = True
        elif character == '"':
            self._string = False
            self.done = self._depth == 0


def begun(text: str, mark: str) -> int:
    """Length of the longest end of `text` that begins the mark."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:n])), 0)


def call_object(source: Source, arguments: Sequence[str]) -> Reads[None]:
    """`{"name": ..., ARGUMENTS: ...}`, keys in any order; the arguments pass through once the name is known."""
    name: str | None = None
    waiting: str | None = None
    passed = False
    yield from source.need("{")
    while True:
        yield from source.space()
        if (yield from source.begins("}")):
            break
        key = _string((yield from source.whole()))
        yield from source.space()
        yield from source.need(":")
        yield from source.space()
        if key == "name":
            name = _string((yield from source.whole()))
            source.call(name)
            if waiting is not None:
                source.out.append(Arguments(waiting))
        elif key in arguments and name is not None:
            yield from call_arguments(source)
            passed = True
        elif key in arguments:
            waiting = yield from source.whole(1 << 20)
        else:
            yield from source.value(lambda piece: None)
        yield from source.space()
        yield from source.begins(",")
    if name is None:
        raise Malformed
    if not passed and waiting is None:
        source.out.append(Arguments("{}"))


def call_arguments(source: Source) -> Reads[None]:
    """Arguments as they come; those that are JSON inside a JSON string are unwrapped, whole."""
    if (yield from source.peek()) == '"':
        text = _string((yield from source.whole(1 << 20)))
        source.out.append(Arguments(text))
    else:
        yield from source.value(lambda piece: source.out.append(Arguments(piece)))


def _string(raw: str) -> str:
    try:
        value = json.loads(raw)
    except ValueError:
        raise Malformed from None
    if not isinstance(value, str):
        raise Malformed
    return value
