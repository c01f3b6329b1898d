"""Dialects: how clients speak on the wire, translated to and from the neutral conversation.

Each dialect is a module with a `DIALECT`. It knows no backend and no socket.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from freehold.gateway.conversation import Event, Request


class Encoder(Protocol):
    """Turns the events of one request into the wire form of its dialect."""

    def chunk(self, event: Event) -> bytes:
        """The wire form of one event; empty when the dialect shows nothing for it."""

    def end(self) -> bytes:
        """What closes a complete stream."""

    def whole(self, events: Sequence[Event]) -> bytes:
        """The body of an answer that is not streamed; raises the error of a `Failed`."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """One wire format.

    Args:
        decode: body and request id in; a neutral request and the encoder for its answer out. Raises `RequestError`
            naming the field at fault.
        prompt_field: the field that holds the prompt.
        name: what `Request.dialect` says.
        waits: decoding may wait for a disk, so it is not done on the event loop.
    """

    decode: Callable[[bytes, str], tuple[Request, Encoder]]
    prompt_field: str
    name: str
    waits: bool = False
