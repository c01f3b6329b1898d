"""The endpoints of stored responses, each key seeing only its own. Knows HTTP and the store, no model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from freehold.errors import FreeholdError
from freehold.gateway.dialects import Dialect, openai_responses
from freehold.gateway.dialects.openai_responses import Memory
from freehold.gateway.failures import RequestError
from freehold.gateway.http import failure
from freehold.gateway.stored import Library, Store

T = TypeVar("T")
MOST_ITEMS = 100
DEFAULT_ITEMS = 20  # OpenAI's, for input_items


def key_of(http: Request) -> str:
    """The id of the virtual key that asks; empty without keys."""
    return getattr(http.state, "key_id", "") or ""


class Shelf:
    """Stored responses over HTTP."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def _library(self, http: Request) -> Library:
        return Library(self._store, key_of(http))

    def dialect(self, http: Request) -> Dialect:
        """The Responses dialect with the memory of the one who asks."""
        library = self._library(http)
        keep = Memory(library.recall, library.item, lambda kept: library.keep(kept.response, kept.input))
        return replace(openai_responses.dialect(keep), waits=self._store.blocks)

    async def _aside(self, work: Callable[[], T]) -> T:
        """The result of `work`, which asks the store, without making the event loop wait for a disk."""
        return await asyncio.to_thread(work) if self._store.blocks else work()

    async def response(self, http: Request) -> Response:
        """`GET /v1/responses/{id}`."""
        try:
            if http.query_params.get("stream") == "true":
                raise RequestError(
                    "'stream' is not supported for stored responses.", param="stream", code="unsupported_parameter"
                )
            library, name = self._library(http), http.path_params["id"]
            return JSONResponse(await self._aside(lambda: library.response(name)))
        except FreeholdError as error:
            return failure(error, http)

    async def delete(self, http: Request) -> Response:
        """`DELETE /v1/responses/{id}`."""
        library, name = self._library(http), http.path_params["id"]
        try:
            await self._aside(lambda: library.delete(name))
        except FreeholdError as error:
            return failure(error, http)
        return JSONResponse({"id": name, "object": "response", "deleted": True})

    async def input_items(self, http: Request) -> Response:
        """`GET /v1/responses/{id}/input_items`: newest first unless `order=asc`; `limit` and `after` page."""
        try:
            library, name = self._library(http), http.path_params["id"]
            items = await self._aside(lambda: library.input(name))
            return JSONResponse(_page(items, dict(http.query_params)))
        except FreeholdError as error:
            return failure(error, http)


def _page(items: list[dict[str, Any]], query: dict[str, str]) -> dict[str, Any]:
    if query.get("order", "desc") != "asc":
        items = items[::-1]
    limit = page_size(query.get("limit"), DEFAULT_ITEMS, MOST_ITEMS)
    after = query.get("after")
    start = next((i + 1 for i, item in enumerate(items) if after is not None and item["id"] == after), 0)
    page = items[start : start + limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": start + limit < len(items),
    }


def page_size(given: str | None, default: int, most: int) -> int:
    """The `limit` of a query.

    Raises:
        RequestError: not a number from 1 to `most`.
    """
    if given is None:
        return default
    if not (given.isascii() and given.isdigit() and len(given) < 6 and 1 <= int(given) <= most):
        raise RequestError(
            f"Invalid 'limit': expected an integer from 1 to {most}.", param="limit", code="invalid_value"
        )
    return int(given)
