"""Backends: whoever can answer a request, all behind one protocol, so that the router can't tell local from remote.

A backend takes a neutral `Request` and yields `Event`s. It knows no dialect of the client, no other backend and no
policy.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from freehold.gateway.conversation import Event, Request


class Backend(Protocol):
    """One source of answers."""

    @property
    def name(self) -> str:
        """Unique among the backends: `local`, or the upstream's name in the settings."""

    @property
    def model(self) -> str:
        """The model it answers with unless asked for another; may be empty for an upstream."""

    @property
    def state(self) -> str:
        """`ready`, or why it can't answer now: `starting`, `restarting`, `down`."""

    def check(self, request: Request) -> None:
        """Raises `CapabilityError` when this backend can't serve such a request."""

    def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        """The answer: Started, deltas, one Finished for each index, Usage. Closing the generator cancels.

        Raises:
            FreeholdError: the backend refused, failed, or ended without finishing.
        """

    async def start(self) -> None:
        """Makes it ready; returns when it is, raises when it can't be."""

    async def close(self) -> None:
        """Gives back processes and connections."""


def lost(backend: Backend, request: Request) -> tuple[str, ...]:
    """What the client asked for that does not reach this backend's model; a backend that relays bodies tells by itself."""
    own = getattr(backend, "dropped", None)
    return request.dropped if own is None else tuple(own(request))
