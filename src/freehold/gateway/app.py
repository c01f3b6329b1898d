"""The HTTP face: routes, bodies, headers and disconnects. Everything it knows about a request it passes on unread.

Knows dialects by their modules and the gateway by `Gateway.answer`; no backend, no model, no token.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from freehold.gateway.access import Door
from freehold.gateway.conversation import Event, Failed
from freehold.gateway.dialects import Dialect, Encoder
from freehold.gateway.dialects.errors import INVALID, Envelope, envelope
from freehold.gateway.dialects.openai_chat import DIALECT as CHAT
from freehold.gateway.dialects.openai_completions import DIALECT as COMPLETIONS
from freehold.gateway.failures import RequestError
from freehold.gateway.metrics import CONTENT_TYPE
from freehold.gateway.router import unknown_model
from freehold.gateway.service import Answer, Gateway
from freehold.settings import Settings

log = logging.getLogger("freehold.gateway")

T = TypeVar("T")
CLIENT_GONE = 499  # nobody reads it; the number nginx gave it is for the log


def create_app(settings: Settings, gateway: Gateway | None = None) -> Starlette:
    """The ASGI application. Its lifespan starts the gateway in the background and closes it at the end.

    `app.state.starting` is the task that ends when every backend is ready; until then `/health` says 503 and standbys
    answer.

    Args:
        settings: what is served, and how.
        gateway: built from the settings when None.

    Raises:
        FreeholdError: the settings name a model or key that is not there.
    """
    gateway = gateway or Gateway.build(settings)
    face = _Face(gateway, int(settings.server.max_body_mb * 2**20))
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", face.endpoint(CHAT), methods=["POST"]),
            Route("/v1/completions", face.endpoint(COMPLETIONS), methods=["POST"]),
            Route("/v1/models", face.models, methods=["GET"]),
            Route("/v1/models/{model:path}", face.model, methods=["GET"]),
            Route("/health", face.health, methods=["GET"]),
            Route("/metrics", face.metrics, methods=["GET"]),
        ],
        middleware=[Middleware(Door, api_key=settings.server.api_key)],
        exception_handlers={HTTPException: _http_error, Exception: _crash},
        lifespan=_lifespan(gateway),
    )
    app.router.redirect_slashes = False
    return app


def _lifespan(gateway: Gateway) -> Callable[[Starlette], Any]:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        app.state.starting = starting = asyncio.create_task(gateway.start())
        starting.add_done_callback(_report)
        try:
            yield
        finally:
            starting.cancel()
            await asyncio.wait([starting])
            await gateway.close()

    return lifespan


def _report(starting: asyncio.Task[None]) -> None:
    if not starting.cancelled() and (error := starting.exception()) is not None:
        log.error("a backend could not be started: %s", error)


class _Face:
    """The endpoints."""

    def __init__(self, gateway: Gateway, max_body: int) -> None:
        self._gateway = gateway
        self._max_body = max_body

    def endpoint(self, dialect: Dialect) -> Callable[[Request], Awaitable[Response]]:
        """The endpoint that speaks a dialect."""

        async def serve(http: Request) -> Response:
            try:
                body = await self._body(http)
                request, encoder = dialect.decode(body, http.state.request_id)
                answer = await _unless_gone(http, self._gateway.answer(request))
            except ClientDisconnect:
                return Response(status_code=CLIENT_GONE)
            except Exception as error:
                return _error(error, dialect.prompt_field)
            http.state.record = answer.record
            headers = _headers(answer)
            if request.stream:
                return EventStream(answer.events, encoder, headers)
            async with aclosing(answer.events) as events:
                whole = encoder.whole([event async for event in events])
            return Response(whole, media_type="application/json", headers=headers)

        return serve

    async def models(self, http: Request) -> Response:
        """`GET /v1/models`."""
        return JSONResponse({"object": "list", "data": [self._card(*item) for item in self._gateway.router.models()]})

    async def model(self, http: Request) -> Response:
        """`GET /v1/models/{model}`."""
        known = dict(self._gateway.router.models())
        name = http.path_params["model"]
        if name not in known:
            return _error(unknown_model(name, list(known)))
        return JSONResponse(self._card(name, known[name]))

    async def health(self, http: Request) -> Response:
        """`GET /health`: 200 when somebody can answer."""
        health = self._gateway.health()
        return JSONResponse(health, status_code=200 if health["status"] in ("ok", "degraded") else 503)

    async def metrics(self, http: Request) -> Response:
        """`GET /metrics`."""
        return Response(self._gateway.metrics.text(), headers={"content-type": CONTENT_TYPE})

    def _card(self, name: str, owner: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._gateway.created, "owned_by": owner}

    async def _body(self, http: Request) -> bytes:
        """The body, refused as soon as it is known to be too large."""
        declared = http.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > self._max_body:
            raise self._too_large()
        pieces, size = [], 0
        async for piece in http.stream():
            size += len(piece)
            if size > self._max_body:
                raise self._too_large()
            pieces.append(piece)
        return b"".join(pieces)

    def _too_large(self) -> RequestError:
        text = f"Request body is larger than {self._max_body} bytes."
        return RequestError(text, code="request_too_large", status=413)


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


async def _unless_gone(http: Request, work: Coroutine[Any, Any, T]) -> T:
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


def _headers(answer: Answer) -> dict[str, str]:
    record = answer.record
    headers = {"x-freehold-backend": record.backend, "x-freehold-reason": record.reason}
    if record.dropped:
        headers["x-freehold-dropped"] = ",".join(record.dropped)
    return {name: value.encode("ascii", "replace").decode() for name, value in headers.items()}


def _error(error: Exception, field: str = "messages") -> Response:
    """Any exception as a response; those that are not ours go to the log."""
    found = envelope(error, field=field)
    if found.code == "internal_error":
        log.error("unexpected error", exc_info=error)
    return _response(found)


def _response(found: Envelope) -> Response:
    return Response(found.body(), found.status, headers=found.headers, media_type="application/json")


async def _crash(http: Request, error: Exception) -> Response:
    """A bug of ours: the client learns no more than that."""
    return _error(error)


async def _http_error(http: Request, error: Exception) -> Response:
    """Starlette's own refusals (404, 405) in the envelope."""
    assert isinstance(error, HTTPException)  # noqa: S101  (registered for it)
    headers = dict(error.headers or {})
    asked = f"{http.method} {http.url.path[:200]}"
    if error.status_code == 404:
        text = f"Unknown request URL: {asked}. Please check the URL for typos."
        return _response(Envelope(404, text, INVALID, code="unknown_url", headers=headers))
    if error.status_code == 405:
        text = f"Not allowed to {asked}. Perhaps you meant to use a different HTTP method?"
        return _response(Envelope(405, text, INVALID, code="method_not_supported", headers=headers))
    return _response(Envelope(error.status_code, str(error.detail), INVALID, headers=headers))
