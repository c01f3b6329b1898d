"""Traces of requests and of each backend's part in them, for OpenTelemetry. An extra: `pip install freehold[otel]`.

The environment's standard variables say whether, where and how much (`OTEL_EXPORTER_OTLP_ENDPOINT`,
`OTEL_TRACES_EXPORTER`, `OTEL_TRACES_SAMPLER`, `OTEL_SERVICE_NAME` ...); without them nothing of OpenTelemetry is
imported. Spans tell who answered, how long it took and how much was used; never what was asked or answered. Knows no
dialect and no database.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import freehold
from freehold.errors import SettingError
from freehold.gateway import tracing_names as names
from freehold.gateway.backends import Backend
from freehold.gateway.conversation import (
    EmbeddingRequest,
    Embeddings,
    Event,
    Finished,
    ReasoningDelta,
    Request,
    Started,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from freehold.gateway.failures import kind_of
from freehold.settings import UpstreamSettings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

    from freehold.gateway.exchange import Record

T = TypeVar("T")
log = logging.getLogger("freehold.gateway")

Stream = Callable[[Backend, Request], AsyncGenerator[Event, None]]
GROUP = "opentelemetry_traces_exporter"
LEFT = "left"  # error.type of an answer that nobody waited for


def wanted(environment: Mapping[str, str]) -> bool:
    """Whether the environment asks for traces: by naming an exporter, or where to export to."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    return exporter != "none" and bool(exporter or any(environment.get(name) for name in endpoints))


class Tracing:
    """What makes spans.

    Args:
        provider: exports them; shut down by `close`.
        upstreams: whose providers are named; every other backend is the local engine.
    """

    def __init__(self, provider: TracerProvider, upstreams: Sequence[UpstreamSettings] = ()) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("freehold", freehold.__version__)
        self._providers = {u.name: names.PROVIDERS.get(_kind(u), u.name) for u in upstreams}

    @classmethod
    def of(cls, environment: Mapping[str, str], upstreams: Sequence[UpstreamSettings] = ()) -> Tracing | None:
        """As the environment says; None when it says nothing, or the extra is not installed (the log says so).

        Raises:
            SettingError: an exporter that is not installed.
        """
        if not wanted(environment):
            return None
        try:
            import opentelemetry.sdk.trace  # noqa: F401
        except ModuleNotFoundError:
            log.warning("OTEL_* asks for traces, but they are not installed: pip install 'freehold[otel]'")
            return None
        return cls(_provider(environment), upstreams)

    def traced(self, inner: Stream) -> Stream:
        """The same streams, each with a span."""

        def stream(backend: Backend, request: Request) -> AsyncGenerator[Event, None]:
            return self._stream(inner, backend, request)

        return stream

    async def embedding(
        self, request: EmbeddingRequest, work: Awaitable[tuple[Record, Embeddings]]
    ) -> tuple[Record, Embeddings]:
        """The result of `work`, with a span."""
        span = self._span(names.EMBEDDINGS, request.model, "")
        try:
            record, found = await work
            told: dict[str, Any] = {
                names.RESPONSE_MODEL: found.model,
                names.INPUT_TOKENS: found.prompt_tokens,
                names.BACKEND: record.backend,
            }
            if found.vectors:
                told[names.DIMENSIONS] = len(found.vectors[0])
            span.set_attributes(told | {names.PROVIDER: self._providers.get(record.backend, names.OURS)})
            return record, found
        except BaseException as error:
            failed(span, kind_of(error) if isinstance(error, Exception) else LEFT)
            raise
        finally:
            span.end()

    async def close(self) -> None:
        """Exports what waits, then stops."""
        await asyncio.to_thread(self._provider.shutdown)

    def server(self, scope: Scope) -> Span:
        """The span of an HTTP request, below the client's own when it sent one (`traceparent`)."""
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind

        above = extract(Headers(scope=scope))
        told = {names.METHOD: scope["method"], names.PATH: scope["path"], names.SCHEME: scope["scheme"]}
        return self._tracer.start_span(scope["method"], above, SpanKind.SERVER, told)

    async def _stream(self, inner: Stream, backend: Backend, request: Request) -> AsyncGenerator[Event, None]:
        operation = names.COMPLETION if request.prompts else names.CHAT
        span = self._span(operation, request.model or backend.model, backend.name)
        span.set_attributes(_asked(request))
        heard = _Heard(time.monotonic())
        try:
            async with aclosing(inner(backend, request)) as events:
                async for event in events:
                    heard.note(event)
                    yield event
            heard.error = heard.error or (None if heard.reasons else LEFT)
        except GeneratorExit:
            heard.error = None if heard.reasons else LEFT
            raise
        except BaseException as error:
            heard.error = kind_of(error) if isinstance(error, Exception) else LEFT
            raise
        finally:
            span.set_attributes(heard.told())
            if heard.error is not None:
                failed(span, heard.error)
            span.end()

    def _span(self, operation: str, model: str, backend: str) -> Span:
        from opentelemetry.trace import SpanKind

        remote = backend in self._providers
        told = {names.OPERATION: operation, names.REQUEST_MODEL: model}
        if backend:
            told |= {names.BACKEND: backend, names.PROVIDER: self._providers.get(backend, names.OURS)}
        kind = SpanKind.CLIENT if remote else SpanKind.INTERNAL
        return self._tracer.start_span(f"{operation} {model}".strip(), kind=kind, attributes=told)


class _Heard:
    """What a stream's events say about it, without what they say."""

    def __init__(self, began: float) -> None:
        self.error: str | None = None
        self.reasons: dict[int, str] = {}
        self._began = began
        self._told: dict[str, Any] = {}

    def note(self, event: Event) -> None:
        match event:
            case Started():
                self._told[names.RESPONSE_MODEL] = event.model
            case TextDelta() | ReasoningDelta() | ToolCallDelta():
                self._told.setdefault(names.FIRST_CHUNK, time.monotonic() - self._began)
            case Finished():
                self.reasons[event.index] = event.reason
            case Usage():
                self._told |= {
                    names.INPUT_TOKENS: event.prompt_tokens,
                    names.OUTPUT_TOKENS: event.completion_tokens,
                    names.CACHED_TOKENS: event.cached_tokens,
                    names.CACHE_WRITE_TOKENS: event.cache_write_tokens,
                    names.REASONING_TOKENS: event.reasoning_tokens,
                }

    def told(self) -> dict[str, Any]:
        reasons = [self.reasons[index] for index in sorted(self.reasons)]
        return self._told | ({names.FINISH_REASONS: reasons} if reasons else {})


class Traced:
    """ASGI around the door: a span for each request, which those of backends are children of."""

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):  # health and metrics are polled
            await self._app(scope, receive, send)
            return
        from opentelemetry.trace import use_span

        status = 0

        async def reply(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        span = self._tracing.server(scope)
        try:
            with use_span(span, record_exception=False, set_status_on_exception=False):
                await self._app(scope, receive, reply)
        finally:
            _end(span, scope, status)


def _end(span: Span, scope: Scope, status: int) -> None:
    """What is known of a request at its end."""
    state = scope.get("state", {})
    told: dict[str, Any] = {names.REQUEST_ID: state.get("request_id", "")}
    if status:
        told[names.STATUS] = status
    if (route := getattr(scope.get("route"), "path", None)) is not None:
        told[names.ROUTE] = route
        span.update_name(f"{scope['method']} {route}")
    if state.get("key_id"):
        told[names.KEY_ID] = state["key_id"]
    record, failure = state.get("record"), None
    if record is not None:
        told |= {names.BACKEND: record.backend, names.REASON: record.reason, names.RESPONSE_MODEL: record.model}
        told |= {names.DROPPED: list(record.dropped), names.CONTINUED_BY: list(record.continued)}
        told |= {} if record.ttft is None else {names.FIRST_CHUNK: record.ttft}
        failure = record.failure or (None if record.finished else LEFT)
    span.set_attributes(told)
    if status >= 500 or failure is not None or not status:
        failed(span, failure or (str(status) if status else LEFT))
    span.end()


def failed(span: Span, kind: str) -> None:
    """Marks a span by the kind of its failure; its words may quote a prompt."""
    from opentelemetry.trace import StatusCode

    span.set_attribute(names.ERROR, kind)
    span.set_status(StatusCode.ERROR)


def _asked(request: Request) -> dict[str, Any]:
    given = {f"{names.SAMPLING}{name}": getattr(request.sampling, name) for name in names.SAMPLED}
    given |= {
        names.REQUEST_ID: request.id,
        names.REQUEST_STREAM: request.stream,
        names.MAX_TOKENS: request.max_tokens,
        names.CHOICES: request.choices if request.choices > 1 else None,
        names.CONVERSATION: request.session or None,
        names.OUTPUT_TYPE: "json" if _wants_json(request) else "text",
        names.CONTINUES: True if request.continue_from else None,
    }
    return {name: value for name, value in given.items() if value is not None}


def _wants_json(request: Request) -> bool:
    return request.response_format is not None and request.response_format.get("type") != "text"


def _kind(upstream: UpstreamSettings) -> str:
    """Which provider an upstream is, as far as the settings say; a server of one's own is none of those known."""
    if upstream.provider:
        return upstream.provider
    return upstream.dialect if upstream.dialect in ("anthropic", "azure") else upstream.name


def _provider(environment: Mapping[str, str]) -> TracerProvider:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    own = {"service.version": freehold.__version__}
    if not environment.get("OTEL_SERVICE_NAME") and "service.name" not in environment.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    ):
        own["service.name"] = "freehold"
    provider = TracerProvider(resource=Resource.create(own), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(_exporter(environment)))
    return provider


def _exporter(environment: Mapping[str, str]) -> Any:
    """The exporter by its standard name, from whichever package brings it."""
    name = environment.get("OTEL_TRACES_EXPORTER", "").strip().lower() or "otlp"
    if name == "otlp":
        protocol = environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environment.get(
            "OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"
        )
        name = "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"
    found = next(iter(importlib.metadata.entry_points(group=GROUP, name=name)), None)
    if found is None:
        known = ", ".join(sorted(one.name for one in importlib.metadata.entry_points(group=GROUP)))
        hint = "install the package that brings it, or use OTLP over HTTP: OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf"
        raise SettingError(f"traces: expected an exporter among {known}, found '{name}'", hint=hint)
    return found.load()()
