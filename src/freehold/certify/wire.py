"""HTTP/1.1 without anything normalized away: each portion of a body as it arrived, and when.

One connection a request, so that no answer can lean on another. Knows no dialect.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

import h11

from freehold.certify.transcript import REDACTED, Answer, Call
from freehold.errors import UpstreamError, UsageError

READ = 1 << 20
LARGEST = 64 << 20

SHORTEST_SECRET = 8
"""Characters: shorter keys ("none", "EMPTY") are no secrets, and words of answers that look like one are left in."""


@dataclass(frozen=True)
class Endpoint:
    """Where the server is and which keys open it.

    Args:
        url: of the API; `/v1` is put behind it unless it ends so.
        keys: by name: good, limited. A bad one is made up.
        seconds: longest wait for one answer.
    """

    url: str
    keys: dict[str, str] = field(default_factory=dict, repr=False)
    seconds: float = 120.0

    @property
    def base(self) -> SplitResult:
        """The base URL, ending in /v1.

        Raises:
            UsageError: not an http(s) URL.
        """
        parts = urlsplit(self.url if "://" in self.url else f"http://{self.url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(
                f"expected the URL of an API, found {self.url!r}", hint="for example http://127.0.0.1:7411"
            )
        if "@" in parts.netloc:  # it would stand in the certificate
            raise UsageError("expected a URL without a password", hint="name the key's variable with --key-env")
        path = parts.path.rstrip("/")
        return parts._replace(path=path if path.endswith("/v1") else path + "/v1", query="", fragment="")

    async def send(self, call: Call) -> Answer:
        """The answer to a call; a server that breaks off or stays silent is an answer too.

        Raises:
            UpstreamError: nobody listens there.
        """
        begin = time.monotonic_ns()
        try:
            reader, writer = await asyncio.wait_for(self._connect(), 10)
        except (OSError, TimeoutError) as error:
            raise UpstreamError(
                f"can't connect to {self.base.geturl()}: {error or 'no answer'}",
                kind="transport",
                hint="is the server running?",
            ) from None
        exchange = _Reading(begin, tuple(key.encode() for key in self.keys.values() if len(key) >= SHORTEST_SECRET))
        try:
            await asyncio.wait_for(exchange.run(reader, writer, self._head(call), call), self.seconds)
        except TimeoutError:
            exchange.end = "timeout"
        finally:
            writer.transport.abort()
            with suppress(OSError):
                await writer.wait_closed()
        return exchange.answer()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        base = self.base
        secure = base.scheme == "https"
        context = ssl.create_default_context() if secure else None
        return await asyncio.open_connection(base.hostname, base.port or (443 if secure else 80), ssl=context)

    def _head(self, call: Call) -> h11.Request:
        base = self.base
        headers = [("host", base.netloc), ("connection", "close"), ("accept-encoding", "identity")]
        headers += [("user-agent", "freehold-certify"), *call.headers]
        if call.body or call.method == "POST":
            headers += [("content-length", str(len(call.body)))]
            if not any(name == "content-type" for name, _ in call.headers):
                headers += [("content-type", "application/json")]
        key = self._key(call)
        if key:
            headers.append(("x-api-key", key) if call.style == "x-api-key" else ("authorization", f"Bearer {key}"))
        return h11.Request(method=call.method, target=base.path + call.path, headers=headers)

    def _key(self, call: Call) -> str:
        if call.auth == "bad":
            return "sk-certify-this-key-is-wrong"
        return "" if call.auth == "none" else self.keys.get(call.auth, "")


class _Reading:
    """One exchange under way."""

    def __init__(self, begin: int, secrets: tuple[bytes, ...]) -> None:
        self._begin = begin
        self._secrets = secrets
        self._status = 0
        self._headers: tuple[tuple[str, str], ...] = ()
        self._portions: list[tuple[int, bytes]] = []
        self._size = 0
        self.end = "no answer"

    async def run(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: h11.Request, call: Call
    ) -> None:
        wire = h11.Connection(h11.CLIENT, max_incomplete_event_size=256 << 10)
        try:
            writer.write(wire.send(head))
            if call.body:
                writer.write(wire.send(h11.Data(data=call.body)))
            writer.write(wire.send(h11.EndOfMessage()))
            sending = asyncio.ensure_future(writer.drain())
            try:
                await self._receive(wire, reader, call.hang_up)
            finally:
                sending.cancel()  # a server may refuse a body before it has read it
        except (OSError, h11.RemoteProtocolError):
            self.end = "cut" if self._status else "no answer"

    async def _receive(self, wire: h11.Connection, reader: asyncio.StreamReader, hang_up: int | None) -> None:
        while True:
            event = wire.next_event()
            if event is h11.NEED_DATA:
                wire.receive_data(await reader.read(READ))
            elif isinstance(event, h11.Response):
                self._status = event.status_code
                self._headers = tuple((k.decode("latin-1"), v.decode("latin-1")) for k, v in event.headers.raw_items())
                self.end = "cut"
            elif isinstance(event, h11.Data):
                self._take(bytes(event.data))
                if hang_up is not None and len(self._portions) >= hang_up:
                    self.end = "hung up"
                    return
            elif isinstance(event, h11.EndOfMessage):
                self.end = "complete"
                return
            elif isinstance(event, h11.ConnectionClosed):
                return

    def _take(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > LARGEST:
            raise OSError("an answer without end")
        at = (time.monotonic_ns() - self._begin) // 1000
        if self._portions and at == self._portions[-1][0]:
            at += 1
        self._portions.append((at, data))

    def answer(self) -> Answer:
        portions = tuple((at, self._strike(data)) for at, data in self._portions)
        headers = tuple((name, self._strike(value.encode()).decode()) for name, value in self._headers)
        return Answer(self._status, headers, portions, self.end, (time.monotonic_ns() - self._begin) // 1000)

    def _strike(self, data: bytes) -> bytes:
        for secret in self._secrets:
            data = data.replace(secret, REDACTED)
        return data
