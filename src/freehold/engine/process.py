"""The engine in a process of its own, seen from asyncio: start, generate, cancel, watch, restart, stop.

When the process dies, every open iterator raises EngineDownError at once and a new process is started, after 0.1 s at
first, doubling to 5 s while it keeps dying young. One that hangs without dying (see `pulse.py`) is killed and counts as
dead from that moment.

This module knows no HTTP or text, and nothing of what runs inside.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

from freehold.engine import wire
from freehold.engine.connection import Connection, while_alive
from freehold.engine.pulse import Pulse
from freehold.engine.request import EngineStats, GenerateRequest, ModelFacts, TokenOutput, limit_of
from freehold.errors import EngineDownError, FreeholdError, UsageError
from freehold.settings import EngineSettings

State = Literal["starting", "ready", "restarting", "down"]

LOAD_PATIENCE = 6
"""How many times longer than usual a worker may stand still while it loads a model: a slow disk leaves little to compute."""

STOP_SECONDS = 5.0
"""How long the process may take to stop before it is killed."""

DIED = "it died"
"""Why a process is gone that closed its end of the socket."""

_log = logging.getLogger("freehold.engine")


class Backoff:
    """Waits between restarts: 0.1 s, doubled up to 5 s, from the start again after a healthy minute."""

    FIRST, MOST, HEALTHY = 0.1, 5.0, 60.0

    def __init__(self) -> None:
        self._next = self.FIRST

    def after(self, lived: float) -> float:
        """Seconds to wait now that a process has died after so many seconds of service."""
        if lived >= self.HEALTHY:
            self._next = self.FIRST
        wait, self._next = self._next, min(self._next * 2, self.MOST)
        return wait


class EngineProcess:
    """Owns the engine process.

    Args:
        model: a Hugging Face directory or a .gguf file.
        settings: passed on to the engine.
    """

    def __init__(self, model: Path, settings: EngineSettings) -> None:
        self.state: State = "down"
        self.facts: ModelFacts | None = None
        self._model = model
        self._settings = settings
        self._stats = EngineStats()
        self._restarts = 0
        self._reason = "it has not been started"
        self._connection: Connection | None = None
        self._supervisor: asyncio.Task[None] | None = None
        # by a number of our own: a late word about a closed request must not reach the next one of the same id
        self._open: dict[str, asyncio.Queue[TokenOutput | FreeholdError]] = {}
        self._numbers: dict[str, str] = {}
        self._requests = 0

    @property
    def stats(self) -> EngineStats:
        """The engine's state after its last step; how often it was restarted."""
        return replace(self._stats, restarts=self._restarts)

    async def start(self) -> ModelFacts:
        """Start the process and load the model.

        Raises:
            FreeholdError: what loading said; EngineDownError when the process died without a word.
        """
        if self._supervisor is not None:
            raise UsageError("the engine is already started")
        self.state = "starting"
        try:
            connection, facts = await self._connect()
        except BaseException as error:
            self.state, self._reason = "down", str(error)
            raise
        self._supervisor = asyncio.create_task(self._supervise(connection))
        return facts

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[TokenOutput, None]:
        """Tokens of one request as they come; the last one has a finish. Closing the iterator cancels the request.

        Raises:
            ContextLengthError, OverloadedError, UsageError: the engine refused the request.
            EngineDownError: the process is not ready, or died meanwhile.
        """
        connection = self._connection
        if connection is None or self.state != "ready":
            raise self._down()
        if self.facts is not None:
            limit_of(request, self.facts.context)  # refused here: a hundred choices would be a hundred huge frames
        if request.id in self._numbers:
            raise UsageError(f"a request with id {request.id!r} is already running")
        self._requests += 1
        number = self._numbers[request.id] = str(self._requests)
        # bounded by what a request may generate: the context
        queue: asyncio.Queue[TokenOutput | FreeholdError] = asyncio.Queue()
        self._open[number] = queue
        finished = False
        try:
            self._send(connection, wire.Add(replace(request, id=number)))
            await connection.drained()
            while not finished:
                item = await queue.get()
                finished = isinstance(item, FreeholdError) or item.finish is not None
                if isinstance(item, FreeholdError):
                    raise item
                if item.refused:
                    raise UsageError(item.error or "the engine refused the request")
                yield replace(item, id=request.id)
        finally:
            del self._open[number], self._numbers[request.id]
            if not finished:
                connection.send(wire.Cancel(number))

    async def cancel(self, request_id: str) -> None:
        """Ask the engine to drop a request; its iterator then ends with finish "cancelled". Unknown ids are ignored."""
        if self._connection is not None and request_id in self._numbers:
            self._connection.send(wire.Cancel(self._numbers[request_id]))
            await self._connection.drained()

    async def stop(self) -> None:
        """Stop the process and its supervision; open iterators raise EngineDownError. May be called twice."""
        self.state, self._reason = "down", "it was stopped"
        self._fail_open()
        connection, self._connection = self._connection, None
        if self._supervisor is not None:
            self._supervisor.cancel()
            with suppress(asyncio.CancelledError):
                await self._supervisor
            self._supervisor = None
        if connection is not None:
            connection.send(wire.Stop())
            await connection.close(seconds=STOP_SECONDS)
        self.state = "down"

    def _send(self, connection: Connection, message: wire.ToEngine) -> None:
        try:
            connection.send(message)
        except wire.FrameError as error:
            raise UsageError(f"the request is too large: {error}") from None

    async def _connect(self) -> tuple[Connection, ModelFacts]:
        """A worker with the model loaded."""
        connection = await Connection.open()
        try:
            connection.send(wire.load_message(self._model, self._settings, "stored"))
            stall = self._settings.stall_seconds * LOAD_PATIENCE
            pulse = Pulse(connection.process.pid, replace(self._settings, step_seconds=0, stall_seconds=stall))
            message = await while_alive(connection.receive(), connection, pulse)
        except BaseException as error:
            await connection.close()
            if isinstance(error, wire.FrameError):
                raise EngineDownError(f"the engine process talked nonsense while loading: {error}") from None
            raise
        if isinstance(message, wire.Ready):
            self._connection, self.facts, self._stats = connection, message.facts, message.stats
            self.state = "ready"
            return connection, message.facts
        ending = await connection.close(seconds=0.0 if isinstance(message, str) else STOP_SECONDS)
        if isinstance(message, str):
            raise EngineDownError(f"the engine process hung while loading the model: {message}")
        if isinstance(message, wire.Failure):
            raise message.error()
        raise EngineDownError(
            f"the engine process died while loading the model ({ending})", hint="its last words are in the log"
        )

    async def _supervise(self, connection: Connection) -> None:
        """Keep a worker alive until told otherwise; whatever ends this, nobody is left waiting."""
        try:
            await self._keep_alive(connection)
        except Exception as error:
            self._reason = f"its supervisor failed: {type(error).__name__}: {error}"
            _log.exception("the supervisor of the engine process failed")
        finally:
            self.state = "down"
            self._fail_open()

    async def _keep_alive(self, connection: Connection) -> None:
        """Listen until the worker dies, fail its requests, start another; for ever, or until starting is refused."""
        backoff = Backoff()
        while True:
            began = time.monotonic()
            reason = await self._until_lost(connection)
            self._lose(reason)
            # a dead process closes its socket just before it can be waited for, and killing it then would lose its status
            ending = await connection.close(seconds=STOP_SECONDS if reason == DIED else 0.0)
            self._reason = f"{reason} ({ending})"
            _log.error("the engine process is gone: %s; restarting", self._reason)
            restarted = await self._restart(backoff, lambda began=began: time.monotonic() - began)  # type: ignore[misc]
            if restarted is None:
                return
            connection = restarted

    async def _until_lost(self, connection: Connection) -> str:
        """Listen and watch; returns when and why there will be no more."""
        pulse = Pulse(connection.process.pid, self._settings)
        return await while_alive(self._listen(connection, pulse), connection, pulse)

    async def _listen(self, connection: Connection, pulse: Pulse) -> str:
        """Hand out what the worker says; returns when and why there will be no more."""
        while True:
            try:
                message = await connection.receive()
            except wire.FrameError as error:
                return f"it talked nonsense: {error}"
            if message is None:
                return DIED
            pulse.heard()
            self._hand_out(message)

    def _hand_out(self, message: wire.FromEngine) -> None:
        if isinstance(message, wire.Outputs):
            self._stats = message.stats
            for output in message.outputs:
                if output.id in self._open:
                    self._open[output.id].put_nowait(output)
        elif isinstance(message, wire.Failure) and message.id in self._open:
            self._open[message.id].put_nowait(message.error())

    async def _restart(self, backoff: Backoff, lived: Callable[[], float]) -> Connection | None:
        """A new worker, tried until there is one; None when the model is refused, which trying again won't change."""
        age = lived()
        while True:
            await asyncio.sleep(backoff.after(age))
            self._restarts += 1
            try:
                connection, _ = await self._connect()
            except EngineDownError as error:
                self._reason, age = error.message, 0.0
                _log.error("%s", error.message)
            except FreeholdError as error:
                self._reason = error.message
                _log.error("the engine can't be restarted: %s", error.message)
                return None
            else:
                return connection

    def _lose(self, reason: str) -> None:
        self._connection, self.state, self._reason = None, "restarting", reason
        self._stats = EngineStats(kv_pages_total=self._stats.kv_pages_total)
        self._fail_open()

    def _fail_open(self) -> None:
        for queue in self._open.values():
            queue.put_nowait(self._down())

    def _down(self) -> EngineDownError:
        hint = "it is being restarted; try again in a moment" if self.state in ("starting", "restarting") else None
        return EngineDownError(f"the engine process is not running: {self._reason}", hint=hint)
