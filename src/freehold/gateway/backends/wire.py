"""What an upstream's wire format must offer, so that one piece of HTTP serves every provider. Knows no HTTP itself."""

from __future__ import annotations

from typing import Any, Protocol

from freehold.gateway.backends.sse import ServerEvent
from freehold.gateway.classify import one_line
from freehold.gateway.conversation import Event, Request

MAX_NAME = 256  # characters; models' names have some dozens


def plain_name(given: str | None) -> str | None:
    """A name that a provider gives, fit for logs, labels and headers."""
    return given if given is None else one_line(given[:MAX_NAME])


class InStreamError(Exception):
    """The provider reported an error inside the stream; `payload` is what it said."""

    def __init__(self, payload: Any) -> None:
        super().__init__("error inside the stream")
        self.payload = payload


class AnswerReader(Protocol):
    """Server-sent events of one answer in, neutral events out."""

    @property
    def complete(self) -> bool:
        """Whether the answer has ended, so that nothing more needs to be read."""

    def read(self, event: ServerEvent) -> list[Event]:
        """Neutral events of one server-sent event.

        Raises:
            InStreamError: it is an error.
            UpstreamError: it makes no sense.
            msgspec.DecodeError: it is not JSON, or of another shape.
        """

    def end(self) -> list[Event]:
        """The last events, once; raises UpstreamError when the stream was cut."""


class Wire(Protocol):
    """A provider's way to ask."""

    def check(self, request: Request) -> None:
        """Raises CapabilityError when the wire format has no way to ask for this."""

    def path(self, request: Request) -> str:
        """Below the base URL, with the query."""

    def headers(self, key: str) -> dict[str, str]:
        """Those that carry the key (which may be empty) and the version."""

    def body(self, request: Request) -> bytes:
        """The request as the provider wants it, always streamed."""

    def reader(self, request: Request) -> AnswerReader:
        """What reads the answer."""

    def dropped(self, request: Request) -> tuple[str, ...]:
        """What the client asked for that the provider will not hear of."""
