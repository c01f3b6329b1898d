"""Small real servers and a scripted engine: what the gateway meets in its tests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from freehold.engine.request import EngineStats, GenerateRequest, ModelFacts, TokenOutput
from freehold.errors import EngineDownError
from freehold.formats.tokenizer import Tokenizer
from freehold.gateway.backends.local import LocalBackend, load_text_side
from freehold.gateway.backends.openai import OpenAIBackend
from freehold.gateway.server import bind, serve_on
from freehold.gateway.service import Gateway
from freehold.settings import GuardSettings, ServerSettings, Settings, UpstreamSettings

VECTORS = Path(__file__).parent.parent / "vectors" / "providers"
Reply = Callable[[str, GenerateRequest], str]

FACTS = ModelFacts(
    architecture="fake", context=4096, vocabulary=260, parameters=1, bits_per_weight=8.0, weight_bytes=1, precision="f32",
    isa="none", isa_reason="fake", threads=1, threads_reason="fake", kv_dtype="f32", kv_pages=1, load_seconds=0.0, pid=0,
)  # fmt: skip


class FakeEngine:
    """Answers with scripted text, one token per byte, through the face of EngineProcess.

    Args:
        reply: prompt text and request in, answer out.
        held: tokens after the first wait for `release` or `kill`.
    """

    def __init__(self, tokenizer: Tokenizer, reply: Reply | str, *, held: bool = False) -> None:
        self.tokenizer = tokenizer
        self.state = "down"
        self.facts: ModelFacts | None = FACTS
        self.stats = EngineStats(running=3, waiting=2, kv_pages_used=1, kv_pages_total=4, restarts=5, preemptions=6)
        self.requests: list[GenerateRequest] = []
        self.left: list[str] = []  # ids of requests that were closed before they finished
        self.error: Exception | None = None
        self._reply = reply if callable(reply) else lambda prompt, request: reply
        self._held = held
        self._released = asyncio.Event()
        self._killed = asyncio.Event()

    async def start(self) -> ModelFacts:
        self.state = "ready"
        assert self.facts is not None
        return self.facts

    async def stop(self) -> None:
        self.state = "down"

    def release(self) -> None:
        self._released.set()

    def kill(self) -> None:
        """Every open iterator raises, as when the process dies."""
        self.state = "restarting"
        self._killed.set()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[TokenOutput, None]:
        self.requests.append(request)
        if self.error is not None:
            raise self.error
        prompt = self.tokenizer.decode(request.prompt, skip_special=False) + request.begin
        text = request.begin + self._reply(prompt, request)
        ids = self.tokenizer.encode(text)
        limit = request.sampling.max_tokens or len(ids) + 1
        end = min(self.tokenizer.eos)
        finished = False
        try:
            for i, token in enumerate([*ids, end][:limit]):
                if i and self._held:
                    await self._wait()
                last = i == limit - 1
                finish = "stop" if token == end else "length" if last else None
                finished = finish is not None
                yield self._output(request, token, finish)
                await asyncio.sleep(0)
        finally:
            if not finished:
                self.left.append(request.id)

    def _output(self, request: GenerateRequest, token: int, finish: str | None) -> TokenOutput:
        wanted = request.sampling.logprobs
        top = [(token, -0.5), (0, -2.0), (1, -3.0)][: wanted or 0]
        logprob = None if wanted is None else -0.5
        return TokenOutput(request.id, token, logprob, top, finish, len(request.prompt), 1)

    async def _wait(self) -> None:
        waits = [asyncio.create_task(event.wait()) for event in (self._released, self._killed)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if self._killed.is_set():
            raise EngineDownError("the engine process is not running: it died", hint="try again in a moment")


def core(directory: Path, reply: Reply | str = "Hello!", **options: Any) -> LocalBackend:
    """A local backend on a scripted engine, called `tiny`."""
    tokenizer, template = load_text_side(directory)
    return LocalBackend(FakeEngine(tokenizer, reply, **options), tokenizer, template, "tiny")


class Loop:
    """An event loop in a thread of its own, where servers live while tests use blocking clients."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)

    def __enter__(self) -> Loop:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()

    def run(self, work: Awaitable[Any], seconds: float = 60) -> Any:
        async def bounded() -> Any:
            async with asyncio.timeout(seconds):
                return await work

        return asyncio.run_coroutine_threadsafe(bounded(), self.loop).result()

    def soon(self, function: Callable[[], None]) -> None:
        self.loop.call_soon_threadsafe(function)


@dataclass
class Live:
    """A gateway that is being served."""

    gateway: Gateway
    url: str
    lines: list[str]
    loop: Loop

    def until(self, condition: Callable[[], bool], seconds: float = 30) -> None:
        """Waits for what another task is about to do."""

        async def wait() -> None:
            while not condition():  # noqa: ASYNC110  (what is watched has no event)
                await asyncio.sleep(0.002)

        self.loop.run(wait(), seconds)


@contextmanager
def live(
    gateway: Gateway, *, ready: bool = True, upstreams: Sequence[UpstreamSettings] = (), **server: Any
) -> Iterator[Live]:
    """Serves on a free port as `serve` does; `ready` waits for the invitation."""
    settings = Settings(server=ServerSettings(**({"port": 0} | server)), upstreams=tuple(upstreams))
    said: list[str] = []
    with Loop() as loop, bind(settings.server) as listener:
        port = listener.getsockname()[1]
        stop = asyncio.Event()

        running = asyncio.run_coroutine_threadsafe(serve_on(listener, settings, gateway, said.append, stop), loop.loop)
        found = Live(gateway, f"http://127.0.0.1:{port}", said, loop)
        try:
            if ready:
                found.until(lambda: len(said) > 0 or running.done())
                if running.done():
                    running.result()
            yield found
        finally:
            loop.soon(stop.set)
            running.result(60)


@dataclass
class Provider:
    """An HTTP server that plays recorded bytes to whoever connects.

    Args:
        script: for the n-th request (the last one repeats): pieces to send; None in it = say nothing more, keep open.
    """

    script: Sequence[Sequence[bytes | None]]
    url: str = ""
    requests: list[tuple[bytes, bytes]] = field(default_factory=list)  # head and body
    gone: int = 0  # clients that left while we were silent
    _open: dict[asyncio.Task[Any] | None, asyncio.StreamWriter] = field(default_factory=dict)

    async def close(self) -> None:
        """Hangs up on everybody."""
        tasks = [task for task in self._open if task is not None]
        for writer in self._open.values():
            writer.transport.abort()
        await asyncio.gather(*tasks)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open[asyncio.current_task()] = writer
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                (
                    int(line.split(b":")[1])
                    for line in head.split(b"\r\n")
                    if line.lower().startswith(b"content-length")
                ),
                0,
            )
            self.requests.append((head, await reader.readexactly(length)))
            pieces = self.script[min(len(self.requests), len(self.script)) - 1]
            for piece in pieces:
                if piece is None:
                    await reader.read()
                    self.gone += 1
                else:
                    writer.write(piece)
                    await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            self.gone += 1
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
            del self._open[asyncio.current_task()]


@contextmanager
def provider(*script: Sequence[bytes | None]) -> Iterator[Provider]:
    """A provider on loopback."""
    found = Provider(script)
    with Loop() as loop:
        server = loop.run(asyncio.start_server(found.serve, "127.0.0.1", 0))
        found.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        try:
            yield found
        finally:
            loop.soon(server.close)  # in the loop's own thread, where connections end too
            loop.run(found.close())


def response(body: bytes, status: str = "200 OK", content_type: str = "text/event-stream", extra: str = "") -> bytes:
    """A whole HTTP response that ends when the connection does."""
    return f"HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\n{extra}connection: close\r\n\r\n".encode() + body


def recorded(name: str) -> bytes:
    """A body from tests/vectors/providers."""
    return (VECTORS / name).read_bytes()


def upstream(url: str, name: str = "openai", model: str = "gpt-4o-mini", **guards: float) -> OpenAIBackend:
    """A backend for a provider, without a key."""
    settings = UpstreamSettings(name=name, base_url=url, model=model)
    return OpenAIBackend(settings, GuardSettings(**guards))
