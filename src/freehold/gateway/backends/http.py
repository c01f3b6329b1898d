"""The gateway's HTTP client: streams of answers from providers, and posts to webhooks. The only owner of aiohttp.

aiohttp reads a short stream in a quarter of httpx2's time (docs/log.md), and that is on every request's way. What comes
back is hostile: nothing is decompressed, no redirect is followed (a key goes to the host that the user named and to no
other), no cookie is kept, header lines are bounded. Knows no provider and no key.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

import freehold

Response = aiohttp.ClientResponse
FAILURES = (aiohttp.ClientError, OSError)
"""What goes wrong on the way to a server and back; time limits among it."""

MAX_CONNECTIONS = 512
KEEPALIVE_SECONDS = 30.0
PIECE = 1 << 16  # bytes read ahead of whoever reads; twice that pauses the sender


class HttpClient:
    """Connections to one address, made when needed and kept for the next request.

    Args:
        url: decides, with the environment's `*_proxy` and `no_proxy`, whether a proxy is asked instead.
        connect_seconds: longest wait for a connection; 0 = none.
    """

    def __init__(self, url: str, connect_seconds: float = 0.0) -> None:
        self._proxy, self._proxy_headers = _proxy(url)
        self._timeout = aiohttp.ClientTimeout(total=None, connect=connect_seconds or None)
        self._session: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def stream(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> AsyncGenerator[Response, None]:
        """A response, its body not yet read. Leaving early hangs up.

        Raises:
            One of `FAILURES`, here or where the body is read.
        """
        asked = self._open().request(
            method, url, headers=headers, data=body, allow_redirects=False, timeout=self._timeout,
            proxy=self._proxy, proxy_headers=self._proxy_headers,
        )  # fmt: skip
        async with asked as response:
            yield response

    async def close(self) -> None:
        """Closes the connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _open(self) -> aiohttp.ClientSession:
        """The session; made inside the event loop that uses it."""
        if self._session is None:
            headers = {"user-agent": f"freehold/{freehold.__version__}", "accept-encoding": "identity"}
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=MAX_CONNECTIONS, keepalive_timeout=KEEPALIVE_SECONDS),
                headers=headers,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                read_bufsize=PIECE,
                loop=asyncio.get_running_loop(),
            )
        return self._session


async def pieces(response: Response) -> AsyncGenerator[bytes, None]:
    """The body as it comes in, whatever the server's chunks were."""
    async for piece in response.content.iter_any():
        yield piece


def _proxy(url: str) -> tuple[str | None, dict[str, str]]:
    """The proxy that the environment names for an address, and apart from it its password: errors quote the address."""
    parts = urlsplit(url)
    proxies = getproxies()
    found = proxies.get(parts.scheme) or proxies.get("all")
    if found is None or proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None, {}
    proxy = urlsplit(found if "://" in found else f"http://{found}")
    address = proxy._replace(netloc=proxy.netloc.rpartition("@")[2]).geturl()
    if proxy.username is None:
        return address, {}
    secret = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return address, {"authorization": f"Basic {base64.b64encode(secret.encode()).decode()}"}
