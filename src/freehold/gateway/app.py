"""The HTTP face: which path speaks which dialect. Everything it knows about a request it passes on unread.

Knows dialects by their modules and the gateway by `Gateway.answer`; no backend, no model, no token.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

import freehold
from freehold.gateway.access import Door
from freehold.gateway.conversation import Request as Asked
from freehold.gateway.counting import count_tokens
from freehold.gateway.dialects import Dialect, Encoder, anthropic_messages, openai_embeddings
from freehold.gateway.dialects.anthropic_messages import DIALECT as MESSAGES
from freehold.gateway.dialects.errors import INVALID, Envelope
from freehold.gateway.dialects.openai_chat import DIALECT as CHAT
from freehold.gateway.dialects.openai_completions import DIALECT as COMPLETIONS
from freehold.gateway.exchange import Answer, Record
from freehold.gateway.failures import kind_of
from freehold.gateway.http import CLIENT_GONE, EventStream, failure, read_body, refusal, speaks_anthropic, unless_gone
from freehold.gateway.metrics import CONTENT_TYPE
from freehold.gateway.models import anthropic_card, anthropic_list, openai_card, openai_list
from freehold.gateway.router import unknown_model
from freehold.gateway.service import Gateway
from freehold.gateway.shelf import Shelf, key_of
from freehold.gateway.stored import MemoryStore, Store
from freehold.gateway.stored_in_database import DatabaseStore
from freehold.gateway.tracing import Traced, Tracing
from freehold.gateway.truncate import without_oldest
from freehold.gateway.virtual_keys import KeyRing, Limits
from freehold.settings import Settings

log = logging.getLogger("freehold.gateway")

SESSION_HEADER = "x-freehold-session"

WELCOME = f"""Freehold {freehold.__version__} is running.

OpenAI clients:     base URL http://THIS_ADDRESS/v1   (chat/completions, responses, completions, embeddings, models)
Anthropic clients:  base URL http://THIS_ADDRESS      (v1/messages, v1/messages/count_tokens)
Whether it is well: /health
"""

Endpoint = Callable[[Request], Awaitable[Response]]


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
    gateway = gateway or Gateway.build(settings, accounts=True)
    face = _Face(gateway, int(settings.server.max_body_mb * 2**20))
    shelf = Shelf(_store(gateway, settings))
    tracing = Tracing.of(os.environ, settings.upstreams)
    door = Middleware(Door, api_key=settings.server.api_key, ring=_ring(gateway))
    if tracing is not None:
        gateway.trace(tracing)
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", face.endpoint(lambda http: CHAT), methods=["POST"]),
            Route("/v1/completions", face.endpoint(lambda http: COMPLETIONS), methods=["POST"]),
            Route("/v1/messages", face.endpoint(lambda http: MESSAGES), methods=["POST"]),
            Route("/v1/messages/count_tokens", face.count, methods=["POST"]),
            Route("/v1/responses", face.endpoint(shelf.dialect), methods=["POST"]),
            Route("/v1/responses/{id}", shelf.response, methods=["GET"]),
            Route("/v1/responses/{id}", shelf.delete, methods=["DELETE"]),
            Route("/v1/responses/{id}/input_items", shelf.input_items, methods=["GET"]),
            Route("/v1/embeddings", face.embeddings, methods=["POST"]),
            Route("/v1/models", face.models, methods=["GET"]),
            Route("/v1/models/{model:path}", face.model, methods=["GET"]),
            Route("/", _welcome, methods=["GET"]),
            Route("/health", face.health, methods=["GET"]),
            Route("/metrics", face.metrics, methods=["GET"]),
        ],
        middleware=[door] if tracing is None else [Middleware(Traced, tracing=tracing), door],
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
    """The endpoints that answer from a model."""

    def __init__(self, gateway: Gateway, max_body: int) -> None:
        self._gateway = gateway
        self._max_body = max_body

    def endpoint(self, spoken: Callable[[Request], Dialect]) -> Endpoint:
        """The endpoint that speaks a dialect; `spoken` gives it for one HTTP request."""

        async def serve(http: Request) -> Response:
            dialect = spoken(http)
            try:
                body = await read_body(http, self._max_body)
                request, encoder = await _decoded(dialect, body, http.state.request_id)
                session = http.headers.get(SESSION_HEADER, "")
                request = replace(request, key_id=key_of(http), session=session)
                answer = await unless_gone(http, self._answer(request))
            except ClientDisconnect:
                return Response(status_code=CLIENT_GONE)
            except Exception as error:
                return failure(error, http, dialect.prompt_field)
            http.state.record = answer.record
            headers = _headers(answer.record)
            if request.stream:
                return EventStream(answer.events, encoder, headers)
            async with aclosing(answer.events) as events:
                whole = encoder.whole([event async for event in events])
            return Response(whole, media_type="application/json", headers=headers)

        return serve

    async def _answer(self, request: Asked) -> Answer:
        """The answer; without the oldest turns, if need be and allowed."""
        while True:
            try:
                return await self._gateway.answer(request)
            except Exception as error:
                shorter = without_oldest(request, error) if request.truncate and kind_of(error) == "context" else None
                if shorter is None:
                    raise
                request = shorter

    async def count(self, http: Request) -> Response:
        """`POST /v1/messages/count_tokens`."""
        try:
            body = await read_body(http, self._max_body)
            request = anthropic_messages.decode_count(body, http.state.request_id)
            tokens = await unless_gone(http, count_tokens(self._gateway.router, request))
        except ClientDisconnect:
            return Response(status_code=CLIENT_GONE)
        except Exception as error:
            return failure(error, http)
        return JSONResponse({"input_tokens": tokens})

    async def embeddings(self, http: Request) -> Response:
        """`POST /v1/embeddings`."""
        try:
            body = await read_body(http, self._max_body)
            request, encoding = openai_embeddings.decode(body, http.state.request_id)
            asked = replace(request, key_id=key_of(http))
            record, found = await unless_gone(http, self._gateway.embed(asked))
            http.state.record = record
        except ClientDisconnect:
            return Response(status_code=CLIENT_GONE)
        except Exception as error:
            return failure(error, http, "input")
        headers = _headers(record)
        return Response(openai_embeddings.encode(found, encoding), media_type="application/json", headers=headers)

    async def models(self, http: Request) -> Response:
        """`GET /v1/models`, in the dialect of the one who asks."""
        known, created = self._known(http), self._gateway.created
        if not speaks_anthropic(http.url.path, http.headers):
            return JSONResponse(openai_list(known, created))
        try:
            return JSONResponse(anthropic_list(known, created, http.query_params))
        except Exception as error:
            return failure(error, http)

    async def model(self, http: Request) -> Response:
        """`GET /v1/models/{model}`."""
        known = dict(self._known(http))
        name = http.path_params["model"]
        if name not in known:
            return failure(unknown_model(name, list(known)), http)
        if speaks_anthropic(http.url.path, http.headers):
            return JSONResponse(anthropic_card(name, self._gateway.created))
        return JSONResponse(openai_card(name, known[name], self._gateway.created))

    def _known(self, http: Request) -> list[tuple[str, str]]:
        """The models that the one who asks may use, and whose they are."""
        limits: Limits | None = getattr(http.state, "limits", None)
        models = self._gateway.router.models()
        return models if limits is None else [(name, owner) for name, owner in models if limits.allows_model(name)]

    async def health(self, http: Request) -> Response:
        """`GET /health`: 200 when somebody can answer."""
        health = self._gateway.health()
        return JSONResponse(health, status_code=200 if health["status"] in ("ok", "degraded") else 503)

    async def metrics(self, http: Request) -> Response:
        """`GET /metrics`."""
        return Response(self._gateway.metrics.text(), headers={"content-type": CONTENT_TYPE})


async def _welcome(http: Request) -> Response:
    """`GET /`, for whoever opens the address in a browser."""
    return PlainTextResponse(WELCOME)


async def _decoded(dialect: Dialect, body: bytes, request_id: str) -> tuple[Asked, Encoder]:
    if dialect.waits:
        return await asyncio.to_thread(dialect.decode, body, request_id)
    return dialect.decode(body, request_id)


def _store(gateway: Gateway, settings: Settings) -> Store:
    """Where responses are kept: in the database, where there is one."""
    if gateway.accounts is None:
        return MemoryStore()
    return DatabaseStore(gateway.accounts.budget.database, settings.responses)


def _ring(gateway: Gateway) -> KeyRing | None:
    return None if gateway.accounts is None else gateway.accounts.budget.ring


def _headers(record: Record) -> dict[str, str]:
    """Who answered, why, and what of the request did not reach them."""
    headers = {"x-freehold-backend": record.backend}
    if record.reason:
        headers["x-freehold-reason"] = record.reason
    if record.provenance:
        headers["x-freehold-provenance"] = record.provenance
    if record.dropped:
        headers["x-freehold-dropped"] = ",".join(record.dropped)
    headers |= record.rates
    return {name: value.encode("ascii", "replace").decode() for name, value in headers.items()}


async def _crash(http: Request, error: Exception) -> Response:
    """A bug of ours: the client learns no more than that."""
    return failure(error, http)


async def _http_error(http: Request, error: Exception) -> Response:
    """Starlette's own refusals (404, 405) in the envelope."""
    assert isinstance(error, HTTPException)  # noqa: S101  (registered for it)
    headers = dict(error.headers or {})
    asked = f"{http.method} {http.url.path[:200]}"
    if error.status_code == 404:
        text = f"Unknown request URL: {asked}. Please check the URL for typos."
        return refusal(Envelope(404, text, INVALID, code="unknown_url", headers=headers), http)
    if error.status_code == 405:
        text = f"Not allowed to {asked}. Perhaps you meant to use a different HTTP method?"
        return refusal(Envelope(405, text, INVALID, code="method_not_supported", headers=headers), http)
    return refusal(Envelope(error.status_code, str(error.detail), INVALID, headers=headers), http)
