"""Delivers alerts to the user's webhook over HTTP. Knows nothing of what they say."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urlsplit

import msgspec

from freehold.errors import SettingError
from freehold.gateway.backends.http import FAILURES, HttpClient


class Webhook:
    """One receiver.

    Args:
        url: http(s); its path or query may be a secret, so it appears in no error and no log.
    """

    def __init__(self, url: str, seconds: float) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SettingError("webhook_url: expected http(s)://host/path, found something else")
        self._url = url
        self._seconds = seconds

    async def __call__(self, told: dict[str, Any]) -> None:
        """Posts one alert.

        Raises:
            OSError: it was not taken.
        """
        client, headers = HttpClient(self._url), {"content-type": "application/json"}
        try:
            async with asyncio.timeout(self._seconds):
                async with client.stream("POST", self._url, headers, msgspec.json.encode(told)) as response:
                    status = response.status
        except FAILURES as error:
            raise OSError(type(error).__name__) from None  # its own words may name the address
        finally:
            await client.close()
        if not 200 <= status < 300:
            raise OSError(f"status {status}")
