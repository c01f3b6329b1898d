"""The breakers of one gateway with all that belongs to them: remembered quarantines, alerts, pings.

Puts together what `breaker`, `quarantine`, `alerts` and `pings` do; knows no request.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from freehold.gateway.alerts import Alerts
from freehold.gateway.backends.webhook import Webhook
from freehold.gateway.breaker import Breaker
from freehold.gateway.pings import Pings
from freehold.gateway.quarantine import QuarantineStore
from freehold.settings import AlertSettings, BreakerSettings


class Watch:
    """Watches over backends.

    Args:
        settings: when to leave a backend alone.
        alerts: who is told.
        store: keeps quarantines across restarts; None = they end with the process.
        count: called with backend and event of each alert.
        backends: those that can be pinged.

    Raises:
        SettingError: the webhook's address is none.
    """

    def __init__(
        self,
        settings: BreakerSettings | None = None,
        alerts: AlertSettings | None = None,
        store: QuarantineStore | None = None,
        *,
        count: Callable[[str, str], None] = lambda backend, event: None,
        backends: Callable[[], Iterable[Any]] = tuple,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        settings, told = settings or BreakerSettings(), alerts or AlertSettings()
        send = Webhook(told.webhook_url, told.webhook_seconds) if told.webhook_url else None
        self.alerts = Alerts(count, send, told.webhook_seconds)
        self.breaker = Breaker(settings, store, self.alerts, clock=clock)
        self.pings = Pings(self.breaker, backends, settings.ping_seconds)

    async def close(self) -> None:
        """Stops pinging; waits for alerts under way."""
        await self.pings.close()
        await self.alerts.close()
