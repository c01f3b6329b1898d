"""Any OpenAI-compatible upstream as a backend: always streamed, so that a silent provider is noticed early.

Knows the provider's wire format and its failures, not the client's dialect, other backends or policy. Time limits other
than connecting are the relay's.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from urllib.parse import urlsplit

import httpx2
import msgspec

import freehold
from freehold.errors import SettingError, UpstreamError
from freehold.gateway.backends.keys import Key, read_key
from freehold.gateway.backends.openai_wire import ChunkReader, ErrorChunk, encode
from freehold.gateway.backends.sse import EventReader
from freehold.gateway.classify import classify
from freehold.gateway.conversation import Event, Request
from freehold.gateway.failures import CapabilityError
from freehold.gateway.loopback import is_loopback
from freehold.settings import GuardSettings, UpstreamSettings

MAX_ERROR_BODY = 64 << 10
MAX_MESSAGE = 500  # characters of a provider's words that are passed on
DRAIN_SECONDS = 0.1  # the end of a response travels with its last event; a new connection costs about as much
CONNECTIONS = httpx2.Limits(max_connections=512, max_keepalive_connections=64, keepalive_expiry=30)


class OpenAIBackend:
    """One provider that speaks OpenAI's API.

    Args:
        upstream: its settings; the key is read now, so that a missing one is an error at start.
        guards: `ttft_seconds` bounds connecting.
        key: when the caller has it already; else read as the settings say.
    """

    def __init__(self, upstream: UpstreamSettings, guards: GuardSettings, *, key: Key | None = None) -> None:
        self.name = upstream.name
        self.model = upstream.model
        self._key = read_key(upstream) if key is None else key
        self._base = _checked_url(upstream, bool(self._key))
        # OpenAI's reasoning models refuse max_tokens; most others know only that, and would ignore the newer name.
        openai = (urlsplit(self._base).hostname or "").endswith((".openai.com", ".openai.azure.com"))
        self._limit_field = "max_completion_tokens" if openai else "max_tokens"
        headers = {"user-agent": f"freehold/{freehold.__version__}", "accept": "text/event-stream"}
        headers["accept-encoding"] = "identity"  # no bombs, and no event waits in a compressor
        if self._key:
            headers["authorization"] = f"Bearer {self._key.reveal()}"
        timeout = httpx2.Timeout(None, connect=guards.ttft_seconds or None, pool=guards.ttft_seconds or None)
        # Redirects are not followed: a key goes to the host that the user named and to no other.
        self._client = httpx2.AsyncClient(headers=headers, timeout=timeout, limits=CONNECTIONS, follow_redirects=False)

    @property
    def state(self) -> str:
        """An upstream is ready until it fails: what it did lately is the router's to remember."""
        return "ready"

    async def start(self) -> None:
        """Nothing to do: connections are made when needed."""

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    def check(self, request: Request) -> None:
        """Needs a model to ask for; what the model can do, the provider says."""
        if not request.model:
            raise CapabilityError(f"The upstream '{self.name}' has no model configured.", param="model")

    async def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        """The provider's answer; see `Backend.stream`."""
        self.check(request)
        path, body = encode(request, self._limit_field)
        try:
            async with self._client.stream(
                "POST", self._base + path, content=body, headers={"content-type": "application/json"}
            ) as response:
                await self._expect_stream(response)
                async with aclosing(self._events(response, request)) as events:
                    async for event in events:
                        yield event
        except (httpx2.HTTPError, httpx2.StreamError, OSError) as error:
            raise self._error(f"{type(error).__name__}: {error}", "transport") from None

    async def _events(self, response: httpx2.Response, request: Request) -> AsyncGenerator[Event, None]:
        reader, chunks = EventReader(), ChunkReader(request, self.name)
        async with aclosing(response.aiter_raw()) as pieces:
            async for piece in pieces:
                for server_event in reader.push(piece):
                    if server_event.data == "[DONE]":
                        for event in chunks.end():
                            yield event
                        await _drain(pieces)
                        return
                    for event in self._read(chunks, server_event.data):
                        yield event
        for event in chunks.end():  # some providers omit [DONE]; what counts is that every choice finished
            yield event

    def _read(self, chunks: ChunkReader, data: str) -> list[Event]:
        try:
            return chunks.read(data)
        except ErrorChunk as error:
            kind, text = classify(200, msgspec.json.encode({"error": error.payload}))
            raise self._error(f"an error inside the stream: {text}", kind) from None
        except (msgspec.DecodeError, RecursionError) as problem:
            raise self._error(f"a chunk that is not as documented ({problem})", "transport") from None

    async def _expect_stream(self, response: httpx2.Response) -> None:
        """Raises unless the provider said 200 and sends events."""
        content_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if response.status_code == 200 and content_type == "text/event-stream":
            return
        body = await _head(response)
        if response.status_code == 200:
            raise self._error(
                f"status 200 with content type '{content_type[:80]}' instead of an event stream", "transport"
            )
        kind, text = classify(response.status_code, body)
        safe = self._key.redact(body.decode("utf-8", "replace")).encode()
        error = self._error(f"status {response.status_code}: {text}", kind, response.status_code, safe)
        error.retry_after = _seconds(response.headers.get("retry-after"))
        raise error

    def _error(self, found: str, kind: str, status: int | None = None, body: bytes | None = None) -> ProviderError:
        hint = f"check the key of upstream '{self.name}'" if kind == "auth" else None
        told = self._key.redact(found)[:MAX_MESSAGE]  # in this order: half a key would not be recognized
        return ProviderError(f"{self.name}: {told}", kind=kind, status=status, body=body, hint=hint)


class ProviderError(UpstreamError):
    """An UpstreamError that may say when to come back (`retry_after`, seconds)."""

    retry_after: float | None = None


def _checked_url(upstream: UpstreamSettings, has_key: bool) -> str:
    """The base URL without a trailing slash."""
    where = f"base_url of [[upstream]] {upstream.name}"
    parts = urlsplit(upstream.base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingError(f"{where}: expected http(s)://host/path, found '{parts.scheme}://{parts.hostname or ''}'")
    if parts.username or parts.password or parts.query or parts.fragment:
        hint = "keys go into key_env or key_file"
        raise SettingError(f"{where}: expected neither credentials nor a query in the URL", hint=hint)
    if has_key and parts.scheme == "http" and not is_loopback(parts.hostname):
        raise SettingError(f"{where}: expected https, because a key would travel unencrypted to {parts.hostname}")
    return upstream.base_url.rstrip("/")


async def _drain(pieces: AsyncGenerator[bytes, None]) -> None:
    """Reads the end of the response, so that its connection can serve the next request; a provider that stalls loses it."""
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            async for _ in pieces:
                continue


async def _head(response: httpx2.Response) -> bytes:
    """The beginning of an error's body."""
    body = b""
    async with aclosing(response.aiter_raw()) as pieces:
        async for piece in pieces:
            body += piece
            if len(body) >= MAX_ERROR_BODY:
                break
    return body[:MAX_ERROR_BODY]


def _seconds(header: str | None) -> float | None:
    """Retry-After in seconds; dates are rare here and left out."""
    try:
        value = float(header) if header else math.nan
    except ValueError:
        return None
    return value if 0 <= value < math.inf else None
