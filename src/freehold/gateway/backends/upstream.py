"""An upstream as a backend: always streamed, so that a silent provider is noticed early.

Knows HTTP, keys and failures; how the provider is asked and answers is its `Wire`'s. Knows neither the client's dialect
nor other backends. Time limits other than connecting are the relay's. What comes back is hostile: nothing is
decompressed, and lines, events, errors and whole answers are bounded.
"""

from __future__ import annotations

import asyncio
import logging
import time
import zlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from urllib.parse import urlsplit

import msgspec

from freehold.errors import SettingError, UpstreamError
from freehold.gateway.backends.http import FAILURES, HttpClient, Response, pieces
from freehold.gateway.backends.keyring import KeyRing, KeyState
from freehold.gateway.backends.keys import Key, read_keys
from freehold.gateway.backends.sse import EventReader, ServerEvent
from freehold.gateway.backends.wire import AnswerReader, InStreamError, Wire
from freehold.gateway.classify import classify, one_line, told_delay
from freehold.gateway.conversation import Event, Request
from freehold.gateway.failures import CapabilityError
from freehold.gateway.loopback import is_loopback
from freehold.gateway.rates import RateState, retry_after
from freehold.settings import GuardSettings, UpstreamSettings

log = logging.getLogger("freehold.gateway")

MAX_ERROR_BODY = 64 << 10
MAX_MESSAGE = 500  # characters of a provider's words that are passed on
MAX_ANSWER = 64 << 20
"""Bytes of one choice's stream: a chunk of some 300 bytes for each of 200,000 tokens. Logprobs take four times as much."""
REFUSALS = frozenset({401, 402, 403, 408, 429})
"""Statuses to a ping that a request would get too; others (404: no list of models here) are a sign of life."""
DRAIN_SECONDS = 0.1  # the end of a response travels with its last event; a new connection costs about as much


class UpstreamBackend:
    """One provider.

    Args:
        upstream: its settings, complete; keys are read now, so that a missing one is an error at start.
        guards: `ttft_seconds` bounds connecting.
        wire: its way to ask and answer.
        keys: when the caller has them already; else read as the settings say.
    """

    guards: GuardSettings | None = None  # the relay's limits for it; None = as for everybody

    def __init__(
        self, upstream: UpstreamSettings, guards: GuardSettings, wire: Wire, keys: Sequence[Key] | None = None
    ) -> None:
        self.name = upstream.name
        self.model = upstream.model
        self.wire = wire
        self.keys = KeyRing(read_keys(upstream) if keys is None else keys)
        self._base = checked_url(upstream, bool(self.keys))
        self._http = HttpClient(self._base, guards.ttft_seconds)

    @property
    def state(self) -> str:
        """An upstream is ready until it fails: what it did lately is the router's to remember."""
        return "ready"

    @property
    def rates(self) -> tuple[RateState, ...]:
        """What the provider said is left for each key."""
        return self.keys.rates

    def limited_until(self) -> float | None:
        """When the provider takes requests again, on the monotonic clock; None when it has not said that it doesn't."""
        return self.keys.limited_until()

    def dropped(self, request: Request) -> tuple[str, ...]:
        """What the client asked for that this provider will not hear of."""
        return self.wire.dropped(request)

    async def start(self) -> None:
        """Nothing to do: connections are made when needed."""

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.close()

    def check(self, request: Request) -> None:
        """Needs a model to ask for; what the model can do, the provider says."""
        if not request.model:
            raise CapabilityError(f"The upstream '{self.name}' has no model configured.", param="model")
        self.wire.check(request)

    async def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        """The provider's answer; see `Backend.stream`. A key that is refused gives way to the next."""
        self.check(request)
        path, body = self.wire.path(request), self.wire.body(request)
        states = list(self.keys.order())
        for state in states:
            begun = False
            try:
                async with aclosing(self._asked(state, path, body, request)) as events:
                    async for event in events:
                        begun = True
                        yield event
                return
            except UpstreamError as error:
                if not self._next_key(state, error) or begun or state is states[-1]:
                    raise

    async def whole(self, path: str, body: bytes, limit: int) -> bytes:
        """The JSON body of an answer that is not streamed; a key that is refused gives way to the next.

        Raises:
            UpstreamError: refused, failed, not JSON, or longer than `limit` bytes.
        """
        states = list(self.keys.order())
        for state in states[:-1]:
            try:
                return await self._fetched(state, path, body, limit)
            except UpstreamError as error:
                if not self._next_key(state, error):
                    raise
        try:
            return await self._fetched(states[-1], path, body, limit)
        except UpstreamError as error:
            self._next_key(states[-1], error)
            raise

    def _next_key(self, state: KeyState, error: UpstreamError) -> bool:
        """Notes a failure; True when it was the key's, so that another may do better."""
        if not self.keys.refused(state, error.kind, error.retry_after):
            return False
        log.warning("%s: key %d of %d was refused (%s)", self.name, state.number, len(self.keys.states), error.kind)
        return True

    async def _fetched(self, state: KeyState, path: str, body: bytes, limit: int) -> bytes:
        async with self.opened(state, path, body, accept="application/json") as response:
            if (found := media_type(response)) != "application/json":
                raise self.error(f"status 200 with content type '{found}' instead of JSON")
            answer = bytearray()
            async with aclosing(pieces(response)) as said:
                async for piece in said:
                    answer += piece
                    if len(answer) > limit:
                        raise self.error(f"an answer of more than {limit} bytes")
            self.keys.worked(state)
            return bytes(answer)

    async def _asked(self, state: KeyState, path: str, body: bytes, request: Request) -> AsyncGenerator[Event, None]:
        """The answer to one attempt with one key."""
        async with self.opened(state, path, body) as response:
            self._expect_stream(response)
            self.keys.worked(state)
            async with aclosing(self._events(response, request)) as events:
                async for event in events:
                    yield event

    async def ping(self) -> None:
        """A sign of life, for no tokens: asks for the list of models.

        Raises:
            UpstreamError: there is none, or only a refusal that a request would get too.
        """
        state = next(iter(self.keys.order()))
        headers = self.wire.headers(state.key.reveal()) | {"accept": "application/json"}
        try:
            async with self._http.stream("GET", self._base + "/models", headers) as response:
                if response.status >= 500 or response.status in REFUSALS:
                    raise self.error(f"status {response.status} to a ping", status=response.status)
        except FAILURES as error:
            raise self.error(f"{type(error).__name__}: {error}") from None

    @asynccontextmanager
    async def opened(
        self, state: KeyState, path: str, body: bytes, accept: str = "text/event-stream"
    ) -> AsyncGenerator[Response, None]:
        """A response with status 200, its body not yet read; transport failures and refusals become UpstreamErrors."""
        headers = {"content-type": "application/json", "accept": accept} | self.wire.headers(state.key.reveal())
        try:
            async with self._http.stream("POST", self._base + path, headers, body) as response:
                self.keys.heard(state, response.headers)
                if response.status != 200:
                    raise await self._refusal(response)
                if (encoding := response.headers.get("content-encoding", "identity").strip().lower()) != "identity":
                    raise self.error(f"a body with content encoding '{encoding[:80]}', which was not asked for")
                yield response
        except FAILURES as error:
            raise self.error(f"{type(error).__name__}: {error}") from None

    async def _events(self, response: Response, request: Request) -> AsyncGenerator[Event, None]:
        reader, answer = EventReader(), self.wire.reader(request)
        left = MAX_ANSWER * request.choices * (1 if request.logprobs is None else 4)
        async with aclosing(pieces(response)) as body:
            async for piece in body:
                left -= len(piece)
                if left < 0:
                    raise self.error("an answer without end")
                for server_event in reader.push(piece):
                    for event in self._read(answer, server_event):
                        yield event
                    if answer.complete:
                        for event in answer.end():
                            yield event
                        await _drain(body)
                        return
        for event in answer.end():  # some providers omit the closing mark; what counts is that every choice finished
            yield event

    def _read(self, answer: AnswerReader, event: ServerEvent) -> list[Event]:
        try:
            return answer.read(event)
        except InStreamError as error:
            kind, text = classify(200, msgspec.json.encode({"error": error.payload}))
            raise self.error(f"an error inside the stream: {text}", kind) from None
        except (msgspec.DecodeError, RecursionError) as problem:
            raise self.error(f"a chunk that is not as documented ({problem})") from None

    def _expect_stream(self, response: Response) -> None:
        content_type = media_type(response)
        if content_type != "text/event-stream":
            raise self.error(f"status 200 with content type '{content_type}' instead of an event stream")

    async def _refusal(self, response: Response) -> UpstreamError:
        """What a status other than 200 means."""
        body = _plain(await _head(response), response.headers.get("content-encoding", "").strip().lower())
        kind, text = classify(response.status, body)
        wait = retry_after(response.headers, time.time())
        wait = told_delay(body) if wait is None else wait
        return self.error(f"status {response.status}: {text}", kind, response.status, wait)

    def error(
        self, found: str, kind: str = "transport", status: int | None = None, wait: float | None = None
    ) -> UpstreamError:
        """A failure of this upstream, told in words that are safe to log."""
        hint = f"check the key of upstream '{self.name}'" if kind == "auth" else None
        told = one_line(self.keys.redact(found))[:MAX_MESSAGE]  # in this order: half a key would not be recognized
        return UpstreamError(f"{self.name}: {told}", kind=kind, status=status, retry_after=wait, hint=hint)


def checked_url(upstream: UpstreamSettings, has_key: bool) -> str:
    """The base URL without a trailing slash.

    Raises:
        SettingError: no address, credentials in it, or one to which a key would travel in the open.
    """
    where = f"base_url of [[upstream]] {upstream.name}"
    try:
        parts = urlsplit(upstream.base_url)
        host = parts.hostname or ""
    except ValueError:
        raise SettingError(f"{where}: expected http(s)://host/path, found something else") from None
    if parts.scheme not in ("http", "https") or not host:
        raise SettingError(f"{where}: expected http(s)://host/path, found '{parts.scheme}://{host}'")
    if parts.username or parts.password or parts.query or parts.fragment:
        hint = "keys go into key_env or key_file"
        raise SettingError(f"{where}: expected neither credentials nor a query in the URL", hint=hint)
    if has_key and parts.scheme == "http" and not is_loopback(host):
        raise SettingError(f"{where}: expected https, because a key would travel unencrypted to {host}")
    return upstream.base_url.rstrip("/")


def media_type(response: Response) -> str:
    """The content type without its parameters, short enough to be shown."""
    header: str = response.headers.get("content-type", "")
    return header.partition(";")[0].strip().lower()[:80]


async def _drain(body: AsyncGenerator[bytes, None]) -> None:
    """Reads the end of the response, so that its connection can serve the next request; a provider that stalls loses it."""
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            async for piece in body:
                if len(piece) > MAX_ERROR_BODY:
                    return


def _plain(body: bytes, encoding: str) -> bytes:
    """The beginning of an error that was compressed though we did not ask for it: a ban may hide in it. Bounded."""
    if encoding not in ("gzip", "deflate"):
        return body
    try:
        return zlib.decompressobj(wbits=zlib.MAX_WBITS | 32).decompress(body, MAX_ERROR_BODY)
    except zlib.error:
        return b""


async def _head(response: Response) -> bytes:
    """The beginning of an error's body."""
    head = b""
    async with aclosing(pieces(response)) as body:
        async for piece in body:
            head += piece
            if len(head) >= MAX_ERROR_BODY:
                break
    return head[:MAX_ERROR_BODY]
