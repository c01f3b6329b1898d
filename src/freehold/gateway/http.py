"""HTTP chores of the endpoints: bounded bodies, streams that end with their client, errors in the dialect of their path.

Knows no backend, no model and no route.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from freehold.gateway.conversation import Event, Failed
from freehold.gateway.dialects import Encoder, anthropic_errors
from freehold.gateway.dialects.errors import Envelope, envelope
from freehold.gateway.failures import RequestError

log = logging.getLogger("freehold.gateway")

T = TypeVar("T")
CLIENT_GONE = 499  # nobody reads it; the number nginx gave it is for the log
ANTHROPIC_VERSION = "anthropic-version"


def speaks_anthropic(path: str, headers: Mapping[str, str]) -> bool:
    """Whether the client expects Anthropic's shapes: on its own endpoints, and on shared ones when it says so."""
    if path.startswith("/v1/models"):
        return ANTHROPIC_VERSION in headers
    return path == "/v1/messages" or path.startswith("/v1/messages/")


def in_dialect(found: Envelope, path: str, headers: Mapping[str, str], request_id: str) -> tuple[int, bytes]:
    """Status and body of an error, as the client of that path expects it."""
    if speaks_anthropic(path, headers):
        return anthropic_errors.status(found), anthropic_errors.body(found, request_id)
    return found.status, found.body()


def refusal(found: Envelope, http: Request) -> Response:
    """An envelope as a response."""
    status, body = in_dialect(found, http.url.path, http.headers, getattr(http.state, "request_id", ""))
    return Response(body, status, headers=found.headers, media_type="application/json")


def failure(error: Exception, http: Request, field: str = "messages") -> Response:
    """Any exception as a response; those that are not ours go to the log."""
    found = envelope(error, field=field)
    if found.code == "internal_error":
        log.error("unexpected error", exc_info=error)
    return refusal(found, http)


async def read_body(http: Request, limit: int) -> bytes:
    """The body, refused as soon as it is known to be larger than `limit` bytes."""
    declared = http.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    pieces, size = [], 0
    async for piece in http.stream():
        size += len(piece)
        if size > limit:
            raise _too_large(limit)
        pieces.append(piece)
    return b"".join(pieces)


def _too_large(limit: int) -> RequestError:
    return RequestError(f"Request body is larger than {limit} bytes.", code="request_too_large", status=413)


class EventStream(Response):
    """A stream of server-sent events that ends, and ends its backend's work, as soon as the client is gone."""

    def __init__(self, events: AsyncGenerator[Event, None], encoder: Encoder, headers: dict[str, str]) -> None:
        self.status_code = 200
        self.background = None
        self.body = b""
        self.init_headers(headers | {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"})
        del self.headers["content-length"]
        self._events = events
        self._encoder = encoder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends until the events end or the client leaves."""
        async with aclosing(self._events):
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await _first(self._send(send), _gone(receive))

    async def _send(self, send: Send) -> None:
        complete = True
        async for event in self._events:
            complete = complete and not isinstance(event, Failed)
            if data := self._encoder.chunk(event):
                await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": self._encoder.end() if complete else b""})


async def _gone(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(http: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client leaves before it is there."""
    result = await _first(work, _gone(http.receive))
    if result is None:
        raise ClientDisconnect
    return result


async def _first(work: Coroutine[Any, Any, T], leaving: Coroutine[Any, Any, None]) -> T | None:
    """Runs both until one ends, ends the other, and returns what `work` returned, if it did."""
    tasks: tuple[asyncio.Task[T], asyncio.Task[None]] = (asyncio.create_task(work), asyncio.create_task(leaving))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    return None if tasks[0].cancelled() else tasks[0].result()
