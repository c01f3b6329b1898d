"""Connections of clients that dawdle: headers, bodies that never end, and answers that nobody reads have a deadline.

uvicorn bounds only the silence between two requests. Without more, a thousand connections that send a byte a minute
(https://en.wikipedia.org/wiki/Slowloris_(cyber_attack)), or take nothing off us, would be held for ever. Knows HTTP
connections; no request.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from freehold.gateway.dialects.errors import INVALID, Envelope


class ImpatientProtocol(H11Protocol):
    """One connection."""

    patience = 0.0
    _arriving: asyncio.TimerHandle | None = None  # the client has to send
    _leaving: asyncio.TimerHandle | None = None  # the client has to read

    def connection_made(self, transport: Any) -> None:
        """A new connection has to say what it wants."""
        super().connection_made(transport)
        self._expect()

    def data_received(self, data: bytes) -> None:
        """Headers that begin start the clock, headers that end start it anew, a complete request stops it."""
        asking = self._asking()
        super().data_received(data)
        if self.conn.their_state is h11.DONE:
            self._expect_nothing()
            return
        if self._asking() and not asking:
            self._expect_nothing()
        self._expect()

    def on_response_complete(self) -> None:
        """The rest of a refused body is read and forgotten, so that its sender hears why; but not for ever."""
        super().on_response_complete()
        unread = self.conn.their_state is h11.SEND_BODY or self.conn.trailing_data[0]
        if unread and not self._asking():
            self._expect()

    def pause_writing(self) -> None:
        """The client takes nothing; it has so long to go on."""
        super().pause_writing()
        _cancel(self._leaving)
        self._leaving = self.loop.call_later(self.patience, self.transport.abort)

    def resume_writing(self) -> None:
        """It goes on."""
        super().resume_writing()
        _cancel(self._leaving)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing left to wait for."""
        self._expect_nothing()
        _cancel(self._leaving)
        super().connection_lost(exc)

    def _asking(self) -> bool:
        """Whether a request's headers have come and its answer is not complete."""
        return self.cycle is not None and not self.cycle.response_complete

    def _expect(self) -> None:
        if self._arriving is None:
            self._arriving = self.loop.call_later(self.patience, self._too_late)

    def _expect_nothing(self) -> None:
        _cancel(self._arriving)
        self._arriving = None

    def _too_late(self) -> None:
        if self.transport.is_closing():
            return
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # nothing of an answer has been sent
            self.transport.write(_timed_out(self.patience))
        self.transport.close()


def _timed_out(seconds: float) -> bytes:
    text = f"The request was not complete after {seconds:g} seconds."
    body = Envelope(408, text, INVALID, code="request_timeout").body()
    head = "HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def impatient(seconds: float) -> type[asyncio.Protocol]:
    """A protocol for uvicorn; 0 seconds = patient for ever."""
    return type("Impatient", (ImpatientProtocol,), {"patience": seconds}) if seconds else H11Protocol
