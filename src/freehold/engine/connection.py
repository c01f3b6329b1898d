"""One living engine worker: its process, its end of the socket, and whether it still answers.

Knows processes and frames; no requests, and not what happens when the worker is gone.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from freehold.engine import wire
from freehold.engine.pulse import Pulse
from freehold.errors import EngineDownError

T = TypeVar("T")

_LINE = 1 << 14
"""Longest line of the worker's output kept, in bytes."""

_INHERITED = (
    "PATH",
    "PYTHON",
    "LD_",
    "LANG",
    "LC_",
    "HOME",
    "TMPDIR",
    "VIRTUAL_ENV",
    "COVERAGE_",
    "ASAN_",
    "UBSAN_",
    "TSAN_",
)
"""Beginnings of the environment variables that the worker inherits."""

_worker_log = logging.getLogger("freehold.engine.output")


class Connection:
    """One living worker: its process, its socket and the tasks that read from it."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.process = process
        self._reader = reader
        self._writer = writer
        self._output = asyncio.create_task(_log_lines(process.stdout)) if process.stdout else None

    @classmethod
    async def open(cls) -> Connection:
        """Start a worker.

        Raises:
            EngineDownError: the system refuses.
        """
        ours, theirs = socket.socketpair()
        with theirs:  # ours must be the only other end, or its death would go unnoticed
            try:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-P",  # never import from the current directory
                    "-m",
                    "freehold.engine.worker",
                    str(theirs.fileno()),
                    str(os.getpid()),
                    pass_fds=[theirs.fileno()],
                    env=_environment(),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.STDOUT,
                )
            except OSError as error:
                ours.close()
                raise EngineDownError(f"the engine process could not be started: {error}") from None
        reader, writer = await asyncio.open_connection(sock=ours)
        return cls(process, reader, writer)

    def send(self, message: wire.ToEngine) -> None:
        """Hand a message over; into the void when the worker is gone. FrameError: it is too large."""
        if not self._writer.is_closing():
            self._writer.write(wire.encode(message))

    async def drained(self) -> None:
        """Wait until the worker has taken most of what was sent; a dead one is noticed by the reader."""
        with suppress(ConnectionError):
            await self._writer.drain()

    async def receive(self) -> wire.FromEngine | None:
        """The next message; None when the worker is gone."""
        try:
            header = await self._reader.readexactly(wire.HEADER.size)
            body = await self._reader.readexactly(wire.body_length(header))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        return wire.decode_from_engine(body)

    async def close(self, *, seconds: float = 0.0) -> str:
        """End the process, giving it so many seconds to end by itself; says how it ended."""
        self._writer.close()
        try:
            async with asyncio.timeout(seconds):
                code = await self.process.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                self.process.kill()
            code = await self.process.wait()
        if self._output:
            await self._output
        with suppress(ConnectionError):
            await self._writer.wait_closed()
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _environment() -> dict[str, str]:
    """What the worker needs of the environment, and no more: it reads models from strangers and has no use for keys."""
    return {name: value for name, value in os.environ.items() if name.startswith(_INHERITED)}


async def while_alive(work: Coroutine[Any, Any, T], connection: Connection, pulse: Pulse) -> T | str:
    """The result of `work`, or why the worker counts as hanging before there is one."""
    tasks: list[asyncio.Task[Any]] = [asyncio.create_task(work)]
    if pulse.wanted:
        tasks.append(asyncio.create_task(_watch(connection, pulse)))
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    found: T | str = min(done, key=tasks.index).result()
    return found


async def _watch(connection: Connection, pulse: Pulse) -> str:
    """Ask the worker for a word every beat; returns why it counts as hanging."""
    while True:
        if pulse.ask():
            connection.send(wire.Ping())
        await asyncio.sleep(pulse.beat)
        if (reason := pulse.look()) is not None:
            return reason


async def _log_lines(stream: asyncio.StreamReader) -> None:
    """What the worker writes, into the log, line by line; a line without end is cut."""
    rest = b""
    while data := await stream.read(_LINE):
        *lines, rest = (rest + data).split(b"\n")
        rest = rest[-_LINE:]
        for line in lines:
            _worker_log.info("%s", line.decode(errors="replace"))
    if rest:
        _worker_log.info("%s", rest.decode(errors="replace"))
