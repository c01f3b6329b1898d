"""Server-sent events out of raw bytes, as https://html.spec.whatwg.org/multipage/server-sent-events.html (9.2.6) reads them.

Nothing is repaired: bytes that are no UTF-8 raise. It knows no dialect.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

_LINE_END = re.compile(rb"\r\n|\n|\r")


@dataclass(frozen=True, slots=True)
class Event:
    """One event: its type ("" where none was given) and its data."""

    name: str
    data: str


@dataclass(slots=True)
class Parser:
    """Events from bytes that arrive in any portions; the same events whatever the portions."""

    _rest: bytes = b""
    _name: str = ""
    _data: list[str] = field(default_factory=list)
    _started: bool = False

    def feed(self, portion: bytes) -> list[Event]:
        """The events completed by these bytes.

        Raises:
            UnicodeDecodeError: a line is not UTF-8.
        """
        self._rest += portion
        found: list[Event] = []
        while (line := self._line()) is not None:
            event = self._take(line)
            if event is not None:
                found.append(event)
        return found

    def _line(self) -> str | None:
        """The next complete line; a CR at the very end may yet become CR LF."""
        end = _LINE_END.search(self._rest)
        if end is None or (end.group() == b"\r" and end.end() == len(self._rest)):
            return None
        line, self._rest = self._rest[: end.start()], self._rest[end.end() :]
        if not self._started:
            self._started = True
            line = line.removeprefix(b"\xef\xbb\xbf")
        return line.decode("utf-8")

    def _take(self, line: str) -> Event | None:
        if not line:
            event = Event(self._name, "\n".join(self._data)) if self._data else None
            self._name, self._data = "", []
            return event
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._name = value
        return None


def parse(portions: Iterable[bytes]) -> list[Event]:
    """All complete events of a body; one that lacks its blank line at the end is not one.

    Raises:
        UnicodeDecodeError: the body is not UTF-8.
    """
    parser = Parser()
    found = [event for portion in portions for event in parser.feed(portion)]
    return found + parser.feed(b"\n" if parser._rest.endswith(b"\r") else b"")
