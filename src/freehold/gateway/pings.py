"""Asks failed upstreams whether they are there again, without a prompt, so that nobody's request has to find out.

Runs while somebody is being left alone and sleeps otherwise. Knows the breaker and backends that have `ping`; no request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any

from freehold.errors import FreeholdError
from freehold.gateway.breaker import Breaker


class Pings:
    """The task that pings.

    Args:
        backends: those with an `async def ping()` are asked; it raises FreeholdError while they are down.
        seconds: between two pings of one backend, and how long one may take; 0 = never ask.
    """

    def __init__(self, breaker: Breaker, backends: Callable[[], Iterable[Any]], seconds: float) -> None:
        self._breaker = breaker
        self._backends = backends
        self._seconds = seconds
        self._task: asyncio.Task[None] | None = None

    def wake(self) -> None:
        """Starts asking, if somebody can be asked and nobody is at it; called after a failure."""
        if self._seconds and self._breaker.pingable() and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while names := set(self._breaker.pingable()):
            asked = [backend for backend in self._backends() if backend.name in names and hasattr(backend, "ping")]
            if not asked:
                return
            await asyncio.sleep(self._seconds)
            await asyncio.gather(*[self._ask(backend.name, backend.ping()) for backend in asked])

    async def _ask(self, name: str, ping: Awaitable[None]) -> None:
        with suppress(FreeholdError, TimeoutError):  # still down: the next round asks again
            async with asyncio.timeout(self._seconds):
                await ping
            self._breaker.reachable(name)

    async def close(self) -> None:
        """Stops asking."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
