"""The server process: binds, serves with uvicorn, says when it is ready, drains when told to stop.

Knows sockets, signals and the log; nothing of requests.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn

from freehold.errors import FreeholdError, SettingError
from freehold.gateway.app import create_app
from freehold.gateway.loopback import is_loopback
from freehold.gateway.patience import impatient
from freehold.gateway.policy import Policy, PolicyFile
from freehold.gateway.service import Gateway
from freehold.process_memory import few_arenas, give_back
from freehold.progress import Progress
from freehold.settings import ServerSettings, Settings

MAX_PORT = 65535
DRAIN_SECONDS = 30
"""How long running answers may take to end after a stop signal."""

GIVE_BACK_SECONDS = 20.0
"""How often memory that is free goes back to the system."""

SWITCH_SECONDS = 0.0005
"""How long the threads of the ledger and the database may keep the event loop from Python at a time; Python's own is 5 ms."""

COLLECT_AT = (20_000, 50, 100)
"""Thresholds of Python's cycle collector: at its own (700, 10, 10) a request makes enough objects to set it off, and one in
fifty waits for it."""

log = logging.getLogger("freehold.gateway")


def serve(
    settings: Settings, *, progress: Progress | None = None, announce: Callable[[str], None] | None = None
) -> None:
    """Serves until SIGINT or SIGTERM.

    Args:
        settings: what is served, and where.
        progress: told about downloads.
        announce: gets each line for the user; stderr when None.

    Raises:
        SettingError: an address others can reach, without a key; or one that can't be bound.
        FreeholdError: the model can't be found or loaded.
    """
    check_reach(settings.server)
    announce = announce or _to_stderr
    with bind(settings.server) as listener:
        gateway = Gateway.build(settings, progress=progress, accounts=True)
        announce(f"loading {settings.engine.model} ...")
        asyncio.run(serve_on(listener, settings, gateway, announce))


class _Server(uvicorn.Server):
    """uvicorn that tells when it listens and when it stops."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[str], None]) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()
        self._announce = announce

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """As uvicorn's; a person who pressed Ctrl-C learns what it still waits for."""
        again = "; once more ends them now" if sig == signal.SIGINT else ""
        words = "ending now" if self.should_exit else f"stopping: answers get {DRAIN_SECONDS} s to end{again}"
        # By the loop: a signal may come in the middle of a line to stderr, or stderr may be gone.
        asyncio.get_running_loop().call_soon_threadsafe(self._announce, words)
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, then says so."""
        await super().startup(sockets)
        self.listening.set()

    async def stop_at(self, event: asyncio.Event) -> None:
        """Drains when the event comes, as after SIGTERM."""
        await event.wait()
        self.should_exit = True


async def serve_on(
    listener: socket.socket,
    settings: Settings,
    gateway: Gateway,
    announce: Callable[[str], None],
    stop: asyncio.Event | None = None,
) -> None:
    """Serves on a socket that is already bound, until a signal or `stop`; returns after draining."""
    few_arenas()
    app = create_app(settings, gateway)
    config = uvicorn.Config(
        app,
        http=impatient(settings.server.client_seconds),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    server = _Server(config, announce)
    reloading = _reload_routes(settings, gateway)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    stopping = asyncio.create_task(server.stop_at(stop or asyncio.Event()))
    tidying = asyncio.create_task(_give_back())
    thresholds, interval = gc.get_threshold(), sys.getswitchinterval()
    gc.set_threshold(*COLLECT_AT)
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        await _announce_when_ready(server, serving, app.state, listener.getsockname()[1], settings.server, announce)
    except FreeholdError:
        server.should_exit = True
        await serving
        raise
    else:
        await serving
    finally:
        gc.set_threshold(*thresholds)
        sys.setswitchinterval(interval)
        tidying.cancel()
        stopping.cancel()
        if reloading is not None:
            reloading.cancel()


async def _give_back() -> None:
    while True:
        await asyncio.sleep(GIVE_BACK_SECONDS)
        await asyncio.to_thread(give_back)


def _reload_routes(settings: Settings, gateway: Gateway) -> asyncio.Task[None] | None:
    """Follows the settings file, if there is one: at its interval, and at SIGHUP."""
    if settings.file is None:
        return None

    def told(problem: str | None) -> None:
        gateway.router.problem = problem

    found = PolicyFile(settings.file, lambda changed: gateway.router.use(Policy.of(changed)), told)
    if threading.current_thread() is threading.main_thread():  # only there Python takes signals
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, found.read)
    seconds = settings.router.reload_seconds
    return asyncio.create_task(found.watch(seconds)) if seconds else None


async def _announce_when_ready(
    server: _Server,
    serving: asyncio.Task[None],
    state: Any,
    port: int,
    settings: ServerSettings,
    announce: Callable[[str], None],
) -> None:
    """Waits for the model and prints what to paste; raises what loading raised."""
    listening = asyncio.create_task(server.listening.wait())
    await asyncio.wait([serving, listening], return_when=asyncio.FIRST_COMPLETED)
    listening.cancel()
    if serving.done():
        return
    await asyncio.wait([serving, state.starting], return_when=asyncio.FIRST_COMPLETED)
    if state.starting.done() and not state.starting.cancelled():
        state.starting.result()
        announce("ready; Ctrl-C stops")
        for line in invitation(settings, port):
            announce(line)


def invitation(settings: ServerSettings, port: int) -> list[str]:
    """The lines a user pastes to point clients of OpenAI and Anthropic here."""
    host = settings.host
    if host in ("0.0.0.0", "::", ""):  # noqa: S104  (compared, not bound)
        host = socket.gethostname()
    shown = f"[{host}]" if ":" in host else host
    key = "..." if settings.api_key else "none"  # SDKs refuse to start without one
    return [
        f"export OPENAI_BASE_URL=http://{shown}:{port}/v1",
        f"export OPENAI_API_KEY={key}",
        f"export ANTHROPIC_BASE_URL=http://{shown}:{port} ANTHROPIC_API_KEY={key}",
    ]


def check_reach(settings: ServerSettings) -> None:
    """Refuses to serve other machines without a key."""
    if settings.api_key or is_loopback(settings.host):
        return
    raise SettingError(
        f"server.host {settings.host!r} can be reached by others, but no api_key is set",
        hint="set FREEHOLD_API_KEY, or listen on 127.0.0.1",
    )


def bind(settings: ServerSettings) -> socket.socket:
    """A listening socket; port 0 picks a free one."""
    where = f"{settings.host}:{settings.port}"
    if settings.port > MAX_PORT:  # getaddrinfo would take it modulo 65536
        raise SettingError(f"can't listen on {where}: expected a port of at most {MAX_PORT}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # With the protocol named, asyncio turns Nagle's algorithm off: without, each answer waits 40 ms for an ACK.
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise SettingError(f"can't listen on {where}: {error}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        hint = "another server may be running there; choose another --port (0 = any free one)"
        raise SettingError(f"can't listen on {where}: {error.strerror}", hint=hint) from None
    return listener


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
