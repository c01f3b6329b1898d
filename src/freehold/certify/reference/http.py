"""The reference server's HTTP: h11 over asyncio streams, one request a connection.

A reply is JSON or a list of events, each flushed by itself. Knows no dialect.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import h11


@dataclass
class Incoming:
    """A request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    raw: bytes
    body: Any = None


@dataclass
class Outgoing:
    """A reply under construction; faults may change anything of it before it is written.

    Args:
        body: JSON, or bytes as they are.
        events: (event name or "", JSON or text) of a stream; None = not a stream.
        refused: the tag of the refusal, where it is one.
        portions: the bytes of a stream as they will be flushed, once they are made.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None
    events: list[tuple[str, Any]] | None = None
    refused: str = ""
    portions: list[bytes] = field(default_factory=list)
    cut: bool = False  # break off without an end


Handler = Callable[[Incoming], Awaitable[Outgoing]]


def event_bytes(name: str, data: Any) -> bytes:
    """One server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return (f"event: {name}\n" if name else "").encode() + f"data: {text}\n\n".encode()


@asynccontextmanager
async def serving(handler: Handler, gone: Callable[[], None]) -> AsyncIterator[int]:
    """Serve on a free loopback port, which is given.

    Args:
        gone: told when a client left in the middle of a stream.
    """
    open_tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            open_tasks.add(task)
        try:
            await _exchange(handler, gone, reader, writer)
        except (OSError, h11.RemoteProtocolError, asyncio.CancelledError):
            pass  # the client has left or broken the protocol, or the server is closing
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
            if task is not None:
                open_tasks.discard(task)

    server = await asyncio.start_server(connected, "127.0.0.1", 0, limit=1 << 20)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(open_tasks):
            task.cancel()
        await asyncio.gather(*open_tasks, return_exceptions=True)


async def _exchange(
    handler: Handler, gone: Callable[[], None], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    wire = h11.Connection(h11.SERVER)
    incoming = await _request(wire, reader)
    if incoming is None:
        return
    reply = await handler(incoming)
    head = [("content-type", "text/event-stream" if reply.events is not None else "application/json")]
    headers = dict(head) | reply.headers | {"connection": "close"}
    if reply.events is None:
        body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body, ensure_ascii=False).encode()
        headers["content-length"] = str(len(body))
        reply.portions = [body]
    writer.write(wire.send(h11.Response(status_code=reply.status, headers=list(headers.items()))))
    try:
        for portion in reply.portions:
            writer.write(wire.send(h11.Data(data=portion)))
            await writer.drain()
            await asyncio.sleep(0)  # each portion travels by itself
    except OSError:
        gone()
        raise
    if not reply.cut:
        writer.write(wire.send(h11.EndOfMessage()))
        await writer.drain()


async def _request(wire: h11.Connection, reader: asyncio.StreamReader) -> Incoming | None:
    incoming: Incoming | None = None
    while True:
        event = wire.next_event()
        if event is h11.NEED_DATA:
            wire.receive_data(await reader.read(1 << 16))
        elif isinstance(event, h11.Request):
            headers = {name.decode().lower(): value.decode("latin-1") for name, value in event.headers}
            incoming = Incoming(event.method.decode(), event.target.decode().partition("?")[0], headers, b"")
        elif isinstance(event, h11.Data) and incoming is not None:
            incoming.raw += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            return incoming
        else:
            return None
