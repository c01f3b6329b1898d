"""Responses that clients may come back to: `GET /v1/responses/{id}`, and conversations by `previous_response_id`.

Bounded: the ones that were used longest ago go first. Each belongs to the key that made it; nobody else finds it. The
store here forgets all when the process ends; `stored_in_database` has the one that does not. Knows JSON objects only, no
dialect's fields but `id`, `output` and `previous_response_id`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from freehold.gateway.failures import RequestError

MAX_RESPONSES = 10_000
MAX_BYTES = 64 << 20
LONGEST_CHAIN = 1_000


@dataclass(frozen=True, slots=True)
class Stored:
    """A response, as JSON, with the items that were its input.

    Args:
        owner: id of the key that asked; empty = the owner of the gateway.
        previous: the response that it goes on from.
    """

    id: str
    owner: str
    response: bytes
    input: bytes
    previous: str | None = None

    @property
    def size(self) -> int:
        """Bytes it takes, roughly."""
        return len(self.response) + len(self.input) + len(self.id) + len(self.owner)


class Store(Protocol):
    """Where responses are kept.

    `blocks`: reading waits for a disk or a network, so it must not be done on an event loop. `put` never waits.
    """

    blocks: bool

    def put(self, stored: Stored) -> None:
        """Keeps it."""

    def get(self, id: str, owner: str) -> Stored | None:
        """The response of that owner; None when there is none."""

    def chain(self, id: str, owner: str) -> list[Stored]:
        """A response and those before it, newest first; ends where one is missing, or after `LONGEST_CHAIN`."""

    def delete(self, id: str, owner: str) -> bool:
        """Forgets it; whether it was there."""


class MemoryStore:
    """A store that forgets what was not used for longest.

    Args:
        responses, size: most entries and bytes that are kept.
    """

    blocks = False

    def __init__(self, responses: int = MAX_RESPONSES, size: int = MAX_BYTES) -> None:
        self._limit = responses
        self._most = size
        self._size = 0
        self._kept: OrderedDict[str, Stored] = OrderedDict()

    def put(self, stored: Stored) -> None:
        """Keeps it, unless it is larger than everything together may be."""
        self._remove(stored.id)
        if stored.size > self._most:
            return
        self._kept[stored.id] = stored
        self._size += stored.size
        while len(self._kept) > self._limit or self._size > self._most:
            self._remove(next(iter(self._kept)))

    def get(self, id: str, owner: str) -> Stored | None:
        """The response of that owner; it counts as used."""
        found = self._kept.get(id)
        if found is None or found.owner != owner:
            return None
        self._kept.move_to_end(id)
        return found

    def chain(self, id: str, owner: str) -> list[Stored]:
        """See `Store.chain`."""
        return linked(id, lambda name: self.get(name, owner))

    def delete(self, id: str, owner: str) -> bool:
        """Forgets it; whether it was there."""
        found = self._kept.get(id)
        if found is None or found.owner != owner:
            return False
        self._remove(id)
        return True

    def _remove(self, id: str) -> None:
        if (found := self._kept.pop(id, None)) is not None:
            self._size -= found.size


def linked(id: str, find: Callable[[str], Stored | None]) -> list[Stored]:
    """Follows `previous` from a response on; see `Store.chain`."""
    found: list[Stored] = []
    following: str | None = id
    while following is not None and len(found) < LONGEST_CHAIN and (stored := find(following)) is not None:
        found.append(stored)
        following = stored.previous
    return found


class Library:
    """One owner's view of a store."""

    def __init__(self, store: Store, owner: str) -> None:
        self._store = store
        self._owner = owner

    def keep(self, response: dict[str, Any], given: list[dict[str, Any]]) -> None:
        """Stores a finished response and its input."""
        encode = msgspec.json.encode
        previous = response["previous_response_id"]
        self._store.put(Stored(response["id"], self._owner, encode(response), encode(given), previous))

    def response(self, id: str) -> dict[str, Any]:
        """A response by its id.

        Raises:
            RequestError: 404, there is none.
        """
        found: dict[str, Any] = msgspec.json.decode(self._find(id).response)
        return found

    def input(self, id: str) -> list[dict[str, Any]]:
        """All items that led to a response, those of earlier responses first.

        Raises:
            RequestError: 404, there is none.
        """
        stored = self._find(id)
        items: list[dict[str, Any]] = msgspec.json.decode(stored.input)
        return [*(self.recall(stored.previous) if stored.previous else []), *items]

    def recall(self, id: str) -> list[dict[str, Any]]:
        """All items of the conversation up to and with a response.

        Raises:
            RequestError: a response of the chain is not there.
        """
        chain = self._store.chain(id, self._owner)
        missing = chain[-1].previous if chain else id
        if missing is not None:
            raise RequestError(
                f"Previous response with id '{missing[:100]}' not found.",
                param="previous_response_id",
                code="previous_response_not_found",
            )
        items: list[dict[str, Any]] = []
        for stored in reversed(chain):
            items += msgspec.json.decode(stored.input)
            items += msgspec.json.decode(stored.response)["output"]
        return items

    def item(self, id: str) -> dict[str, Any] | None:
        """A stored item by its id, which names its response: `msg_REQUEST_0` is of `resp_REQUEST`."""
        kind, _, rest = id.partition("_")
        stored = self._store.get("resp_" + rest.rpartition("_")[0], self._owner)
        if not kind or stored is None:
            return None
        items = [*msgspec.json.decode(stored.response)["output"], *msgspec.json.decode(stored.input)]
        return next((item for item in items if item.get("id") == id), None)

    def delete(self, id: str) -> None:
        """Forgets a response.

        Raises:
            RequestError: 404, there is none.
        """
        if not self._store.delete(id, self._owner):
            raise _not_found(id)

    def _find(self, id: str) -> Stored:
        found = self._store.get(id, self._owner)
        if found is None:
            raise _not_found(id)
        return found


def _not_found(id: str) -> RequestError:
    return RequestError(f"Response with id '{id[:100]}' not found.", code="response_not_found", status=404)
