"""A reader of server-sent events that gives the same events however the bytes were cut.

Follows https://html.spec.whatwg.org/multipage/server-sent-events.html (9.2.6): LF, CR or CRLF end a line, a byte-order
mark is skipped, lines starting with a colon are comments, an event without data is none. Unlike a browser it refuses
bytes that are not UTF-8, and lines or events without end. Knows no HTTP and no JSON.
"""

from __future__ import annotations

from dataclasses import dataclass

from freehold.errors import UpstreamError

MAX_EVENT = 4 << 20
"""Bytes of one event. A chunk of an answer has some hundred bytes; this leaves room for whole tool calls."""


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event; `name` is empty unless the stream gave one."""

    data: str
    name: str = ""


class EventReader:
    """Push bytes, get the events that are complete."""

    def __init__(self, max_event: int = MAX_EVENT) -> None:
        self._max = max_event
        self._tail = (
            bytearray()
        )  # of a line that has not ended; grows in place, or small pieces would cost their square
        self._inside = False  # the tail holds no line end, nor half of one
        self._size = 0
        self._data: list[str] = []
        self._name = ""
        self._first = True

    def push(self, data: bytes) -> list[ServerEvent]:
        """Events that end within `data`.

        Raises:
            UpstreamError: not UTF-8, or an event longer than allowed.
        """
        if self._inside and b"\n" not in data and b"\r" not in data:
            self._tail += data
            self._check_size()
            return []
        buffer = bytes(self._tail + data)
        if self._first and len(buffer) < 3 and b"\xef\xbb\xbf".startswith(buffer):
            self._tail[:] = buffer
            return []
        if self._first:
            self._first = False
            buffer = buffer.removeprefix(b"\xef\xbb\xbf")
        lines, rest = _lines(buffer)
        self._tail[:] = rest
        self._inside = not rest.endswith(b"\r")
        self._check_size()
        return [event for line in lines if (event := self._line(line)) is not None]

    def _check_size(self) -> None:
        if self._size + len(self._tail) > self._max:
            raise _transport(f"an event of more than {self._max} bytes")

    def _line(self, raw: bytes) -> ServerEvent | None:
        if not raw:
            return self._dispatch()
        self._size += len(raw)
        if self._size > self._max:
            raise _transport(f"an event of more than {self._max} bytes")
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise _transport("a line that is not UTF-8") from None
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            self._data.append(value)
        elif field == "event":
            self._name = value
        return None

    def _dispatch(self) -> ServerEvent | None:
        event = ServerEvent("\n".join(self._data), self._name) if self._data else None
        self._data, self._name, self._size = [], "", 0
        return event


def _lines(buffer: bytes) -> tuple[list[bytes], bytes]:
    """Complete lines and the rest. A CR at the very end waits: it may be half of a CRLF."""
    waiting = b"\r" if buffer.endswith(b"\r") else b""
    whole = buffer[: len(buffer) - len(waiting)].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    lines = whole.split(b"\n")
    return lines[:-1], lines[-1] + waiting


def _transport(found: str) -> UpstreamError:
    return UpstreamError(f"expected server-sent events from the provider, found {found}", kind="transport")
