"""Delivers alerts to the user's webhook over HTTP. Knows nothing of what they say."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import httpx2

from freehold.errors import SettingError


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
        try:
            async with httpx2.AsyncClient(timeout=self._seconds, follow_redirects=False) as client:
                response = await client.post(self._url, json=told)
        except httpx2.HTTPError as error:
            raise OSError(type(error).__name__) from None
        if not response.is_success:
            raise OSError(f"status {response.status_code}")
