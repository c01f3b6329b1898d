"""The engine's own process: `python -m freehold.engine.worker FD PARENT`. Started by `process.EngineProcess` only.

One thread: take what the owner says, do one step, send its tokens in one frame. It ends when the owner says so, when
the owner is gone (end of file, or the kernel's parent-death signal while it is deep in a step), and by itself when
steps keep failing, so that it is started afresh.
"""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from freehold.engine import wire
from freehold.engine.request import TokenOutput
from freehold.engine.runner import Engine, StepError
from freehold.errors import FreeholdError

MAX_FAILED_STEPS = 3
"""Steps that may fail in a row before the engine counts as broken."""

EXIT_BROKEN, EXIT_LOAD, EXIT_PROTOCOL = 70, 71, 72

_PR_SET_PDEATHSIG = 1  # linux/prctl.h

_log = logging.getLogger("freehold.engine.worker")


class _Gone(Exception):
    """The owner closed its end or said stop."""


class Worker:
    """One engine at one end of a socket pair."""

    def __init__(self, owner: socket.socket, load: Callable[[wire.Load], Engine]) -> None:
        self._owner = owner
        self._load = load
        self._buffer = wire.FrameBuffer()
        self._inbox: list[bytes] = []

    def run(self) -> int:
        """Serve until the owner is gone; the exit code."""
        try:
            engine = self._start()
            return EXIT_LOAD if engine is None else self._serve(engine)
        except (_Gone, BrokenPipeError, ConnectionResetError):
            return 0
        except wire.FrameError as error:
            _log.error("%s", error)
            return EXIT_PROTOCOL

    def _start(self) -> Engine | None:
        while not self._inbox:
            self._receive()
        first = wire.decode_to_engine(self._inbox.pop(0))
        if not isinstance(first, wire.Load):
            raise wire.FrameError(f"expected Load first, got {type(first).__name__}")
        try:
            engine = self._load(first)
        except FreeholdError as error:
            self._send(wire.Failure.of("", error))
            return None
        self._send(wire.Ready(engine.facts, engine.stats))
        return engine

    def _serve(self, engine: Engine) -> int:
        failed = 0
        while True:
            outputs = self._listen(engine)
            if engine.has_work:
                try:
                    outputs += engine.step()
                    failed = 0
                except StepError as error:
                    _log.exception("a step failed")
                    outputs += error.outputs
                    failed += 1
            if outputs:
                self._send(wire.Outputs(outputs, engine.stats))
            if failed >= MAX_FAILED_STEPS:
                _log.error("%d steps failed in a row; the engine gives up and wants to be started afresh", failed)
                return EXIT_BROKEN

    def _listen(self, engine: Engine) -> list[TokenOutput]:
        """Take in what the owner said; waits only when there is nothing else to do."""
        while not self._inbox and not engine.has_work:
            self._receive()
        while select.select([self._owner], [], [], 0)[0]:
            self._receive()
        outputs: list[TokenOutput] = []
        while self._inbox:
            outputs += self._obey(engine, wire.decode_to_engine(self._inbox.pop(0)))
        return outputs

    def _obey(self, engine: Engine, message: wire.ToEngine) -> list[TokenOutput]:
        if isinstance(message, wire.Add):
            try:
                engine.add(message.request)
            except FreeholdError as error:
                self._send(wire.Failure.of(message.request.id, error))
        elif isinstance(message, wire.Cancel):
            cancelled = engine.cancel(message.id)
            return [cancelled] if cancelled else []
        elif isinstance(message, wire.Ping):
            self._send(wire.Pong())
        elif isinstance(message, wire.Stop):
            raise _Gone
        else:
            raise wire.FrameError("a model is already loaded")
        return []

    def _receive(self) -> None:
        data = self._owner.recv(1 << 16)
        if not data:
            raise _Gone
        self._inbox += self._buffer.feed(data)

    def _send(self, message: wire.FromEngine) -> None:
        self._owner.sendall(wire.encode(message))


def load_engine(message: wire.Load) -> Engine:
    """The engine that the owner asked for."""
    engine = Engine.load(Path(message.model), message.settings, precision=message.precision)  # type: ignore[arg-type]
    engine.warm()
    return engine


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its parent dies; exits if that has happened already."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit(0)


def main(arguments: list[str]) -> int:
    """Serve on the inherited socket."""
    descriptor, parent = int(arguments[0]), int(arguments[1])
    if sys.platform == "linux":
        die_with_parent(parent)
    # Signals to the whole group (Ctrl-C, a supervisor's SIGTERM) are the owner's business: it lets answers end, then us.
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
    faulthandler.enable()  # a crash in native code leaves its Python stack in the log
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    with socket.socket(fileno=descriptor) as owner:
        return Worker(owner, load_engine).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
