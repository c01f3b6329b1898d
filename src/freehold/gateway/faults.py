"""A provider that fails on purpose: real sockets on loopback, OpenAI's or Anthropic's shapes, every fault of the drill.

Bodies are those that providers send (see `classify.py` for their sources). Knows nothing of the gateway.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

Shape = Literal["openai", "anthropic"]

SENTENCE = (
    "An open model at the core, a closed one as standby, and a plan for the day on which the standby is gone: "
    "that is what a drill is for, because whoever has never practised will find out too late what does not work."
)
PIECES = tuple(SENTENCE.replace(" ", " \n").split("\n"))
BEFORE_BREAK = 8
"""Pieces that are sent before a stream is broken in the middle."""

NOWHERE = "drill.invalid"
"""A name that resolves nowhere: https://www.rfc-editor.org/rfc/rfc6761 (6.4)."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A response that is no answer."""

    status: str
    body: bytes
    content_type: str = "application/json"
    headers: str = ""

    def bytes(self) -> bytes:
        """The whole response."""
        head = f"HTTP/1.1 {self.status}\r\ncontent-type: {self.content_type}\r\ncontent-length: {len(self.body)}\r\n"
        return (head + self.headers + "connection: close\r\n\r\n").encode() + self.body


def _error(shape: Shape, kind: str, message: str, code: str | None = None) -> bytes:
    if shape == "anthropic":
        return json.dumps({"type": "error", "error": {"type": kind, "message": message}}).encode()
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}).encode()


def _html(shape: Shape) -> Refusal:
    page = b"<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>"
    return Refusal("502 Bad Gateway", page, "text/html")


def _rate(shape: Shape, headers: str = "") -> Refusal:
    kind, code = ("rate_limit_error", None) if shape == "anthropic" else ("requests", "rate_limit_exceeded")
    return Refusal(
        "429 Too Many Requests", _error(shape, kind, "Rate limit reached for requests", code), headers=headers
    )


def _disabled(shape: Shape) -> Refusal:
    text = "This organization has been disabled."
    if shape == "openai":
        text = "Organization has been restricted. Please reach out to support if you believe this was in error."
    return Refusal("400 Bad Request", _error(shape, "invalid_request_error", text, "organization_restricted"))


def _region(shape: Shape) -> Refusal:
    if shape == "anthropic":
        return Refusal("403 Forbidden", _error(shape, "forbidden", "Request not allowed"))
    text = "Country, region, or territory not supported"
    return Refusal("403 Forbidden", _error(shape, "request_forbidden", text, "unsupported_country_region_territory"))


def _deactivated(shape: Shape) -> Refusal:
    kind = "authentication_error" if shape == "anthropic" else "invalid_request_error"
    text = "The account associated with this API key has been deactivated."
    return Refusal("401 Unauthorized", _error(shape, kind, text, "account_deactivated"))


REFUSALS: Mapping[str, Callable[[Shape], Refusal]] = {
    "500": lambda shape: Refusal(
        "500 Internal Server Error",
        _error(shape, "api_error" if shape == "anthropic" else "server_error", "Internal server error"),
    ),
    "502 html": _html,
    "503": lambda shape: Refusal(
        "503 Service Unavailable", _error(shape, "server_error", "The engine is currently overloaded")
    ),
    "529": lambda shape: Refusal("529 Overloaded", _error(shape, "overloaded_error", "Overloaded")),
    "429": _rate,
    "429 retry-after": lambda shape: _rate(shape, "retry-after: 20\r\n"),
    "402": lambda shape: Refusal(
        "402 Payment Required",
        _error(shape, "billing_error" if shape == "anthropic" else "unknown_error", "Insufficient Balance"),
    ),
    "ban 400": _disabled,
    "ban 401": _deactivated,
    "ban 403": _region,
}
ADDRESS_FAULTS = ("dns", "tls")
"""Faults of the address: a provider that is asked at another one can't take them in the middle of a run."""
FAULTS: tuple[str, ...] = (
    "refused", "reset", *ADDRESS_FAULTS, *REFUSALS,
    "silent 200", "ttft stall", "mid-stream cut", "mid-stream stall", "in-stream error",
)  # fmt: skip
"""The sixteen faults; rate limits and bans in each of the forms that are told apart."""


@dataclass
class FaultServer:
    """One provider on loopback, well until `fault` names what is wrong with it.

    Args:
        shape: which API it speaks.
    """

    shape: Shape = "openai"
    fault: str | None = None
    calls: int = 0  # requests for an answer
    pings: int = 0  # requests for the list of models
    _server: asyncio.Server | None = None
    _port: int = 0
    _open: set[asyncio.Task[Any]] = field(default_factory=set)

    @property
    def url(self) -> str:
        """The base URL; with a fault on the way, one that has it."""
        if self.fault == "dns":
            return f"https://{NOWHERE}/v1"
        scheme = "https" if self.fault == "tls" else "http"
        return f"{scheme}://127.0.0.1:{self._port}/v1"

    async def start(self) -> None:
        """Listens, unless connections are to be refused; on the same port as before."""
        if self._port == 0:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self._port = probe.getsockname()[1]
        if self.fault != "refused":
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)

    async def close(self) -> None:
        """Hangs up on everybody."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in self._open:
            task.cancel()
        if self._open:
            await asyncio.wait(set(self._open))

    async def turn(self, fault: str | None) -> None:
        """Fails in this way from now on; None = is well."""
        await self.close()
        self.fault = fault
        await self.start()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  (a server's callback runs in one)
        self._open.add(task)
        try:
            await self._answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError):
            _reset(writer)  # the other side has left, or we are closing
        finally:
            self._open.discard(task)
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.fault == "tls":  # not a word of TLS
            writer.write(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n")
            await writer.drain()
            return
        head = await reader.readuntil(b"\r\n\r\n")
        lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        body = await reader.readexactly(int(lengths[0])) if lengths else b""
        if head.startswith(b"GET "):
            self.pings += 1
        else:
            self.calls += 1
        await self._reply(reader, writer, {} if head.startswith(b"GET ") else json.loads(body))

    async def _reply(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: dict[str, Any]) -> None:
        fault = self.fault
        if fault == "reset":
            _reset(writer)
        elif fault is not None and fault in REFUSALS:
            writer.write(REFUSALS[fault](self.shape).bytes())
        elif not asked:
            writer.write(Refusal("200 OK", b'{"object": "list", "data": []}').bytes())
        else:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
            for chunk in _stream(self.shape, fault, str(asked.get("model", ""))):
                writer.write(chunk)
                await writer.drain()
                await asyncio.sleep(0)  # chunks travel one by one, as providers send them
            if fault in ("ttft stall", "mid-stream stall"):
                await reader.read()  # until the other side hangs up
        if not writer.is_closing():
            await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Ends a connection with RST instead of FIN."""
    found = writer.get_extra_info("socket")
    if found is not None and not writer.is_closing():
        with suppress(OSError):
            found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def _stream(shape: Shape, fault: str | None, model: str) -> Iterator[bytes]:
    """The chunks of an answer, as far as the fault lets them come."""
    if fault == "silent 200":
        return
    begin, piece, end = (_anthropic if shape == "anthropic" else _openai)(model)
    yield begin
    if fault == "ttft stall":
        return
    if fault == "in-stream error":
        error = _error(shape, "overloaded_error" if shape == "anthropic" else "server_error", "Overloaded")
        yield (b"event: error\n" if shape == "anthropic" else b"") + b"data: " + error + b"\n\n"
        return
    broken = fault in ("mid-stream cut", "mid-stream stall")
    for text in PIECES[:BEFORE_BREAK] if broken else PIECES:
        yield piece(text)
    if not broken:
        yield end


def _openai(model: str) -> tuple[bytes, Callable[[str], bytes], bytes]:
    head = {"id": "chatcmpl-drill", "object": "chat.completion.chunk", "created": 0, "model": model}

    def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return b"data: " + json.dumps(head | {"choices": [choice]}).encode() + b"\n\n"

    usage = {"prompt_tokens": 20, "completion_tokens": len(PIECES), "total_tokens": 20 + len(PIECES)}
    last = b"data: " + json.dumps(head | {"choices": [], "usage": usage}).encode() + b"\n\ndata: [DONE]\n\n"
    return (
        chunk({"role": "assistant", "content": ""}),
        lambda text: chunk({"content": text}),
        chunk({}, "stop") + last,
    )


def _anthropic(model: str) -> tuple[bytes, Callable[[str], bytes], bytes]:
    def event(name: str, **rest: Any) -> bytes:
        return f"event: {name}\ndata: {json.dumps({'type': name} | rest)}\n\n".encode()

    message: dict[str, Any] = {
        "id": "msg_drill", "type": "message", "role": "assistant", "model": model, "content": [], "stop_reason": None,
        "stop_sequence": None, "usage": {"input_tokens": 20, "output_tokens": 1},
    }  # fmt: skip
    begin = event("message_start", message=message)
    begin += event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    end = event("content_block_stop", index=0)
    delta = {"stop_reason": "end_turn", "stop_sequence": None}
    end += event("message_delta", delta=delta, usage={"output_tokens": len(PIECES)}) + event("message_stop")
    return begin, lambda text: event("content_block_delta", index=0, delta={"type": "text_delta", "text": text}), end
