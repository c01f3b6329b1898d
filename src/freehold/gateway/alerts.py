"""Tells people that a backend was quarantined or is back: a log line, a metric, and a webhook if they have one.

Once per event, never per request. The webhook gets names, kinds and times only; it can neither delay nor fail an answer.
Knows no HTTP (the sender is handed in), no breaker and no backend.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

log = logging.getLogger("freehold.gateway")

Send = Callable[[dict[str, Any]], Awaitable[None]]
MAX_WAITING = 64
"""Webhook calls under way at most; with a dead receiver, later alerts reach the log and the metric only."""


class Alerts:
    """A breaker's listener.

    Args:
        count: called with backend and event, for the metric.
        send: delivers one alert; raises OSError or TimeoutError when it can't. None = no webhook.
        seconds: how long `send` may take.
    """

    def __init__(
        self,
        count: Callable[[str, str], None] = lambda backend, event: None,
        send: Send | None = None,
        seconds: float = 5.0,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._count = count
        self._send = send
        self._seconds = seconds
        self._wall = wall
        self._running: set[asyncio.Task[None]] = set()

    def __call__(self, event: str, backend: str, kind: str, next_probe_seconds: float) -> None:
        """Tells of one event."""
        if event == "quarantined":
            log.error("ALERT %s quarantined (%s): it gets one request per %.0f s", backend, kind, next_probe_seconds)
        else:
            log.warning("ALERT %s restored: it answers again after %s", backend, kind)
        self._count(backend, event)
        if self._send is None:
            return
        if len(self._running) >= MAX_WAITING:
            log.error("the alert webhook does not keep up: not told that %s is %s", backend, event)
            return
        told = {"event": event, "backend": backend, "kind": kind, "time": self._wall()}
        if event == "quarantined":
            told["next_probe"] = self._wall() + next_probe_seconds
        task = asyncio.get_running_loop().create_task(self._deliver(self._send, told))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _deliver(self, send: Send, told: dict[str, Any]) -> None:
        try:
            async with asyncio.timeout(self._seconds):
                await send(told)
        except (OSError, TimeoutError) as error:
            log.error(
                "the alert webhook did not take '%s %s': %s", told["backend"], told["event"], type(error).__name__
            )

    async def close(self) -> None:
        """Waits for calls under way; they are bounded."""
        if self._running:
            await asyncio.wait(set(self._running))
