"""The gateway's HTTP client: a proxy's password reaches the proxy and nobody else."""

from __future__ import annotations

import asyncio
import base64

import pytest

from freehold.gateway.backends.http import FAILURES, HttpClient


async def refused(scheme: str, form: str, monkeypatch: pytest.MonkeyPatch) -> tuple[bytes, str]:
    """What a proxy that wants another password was sent, and the error's words."""
    heads: list[bytes] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        monkeypatch.setenv(f"{scheme}_proxy", form.format(f"{host}:{port}"))
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        client, said = HttpClient(f"{scheme}://provider.example/v1"), ""
        try:
            async with client.stream("GET", f"{scheme}://provider.example/v1/models", {}) as response:
                said = f"status {response.status}"
        except FAILURES as error:
            said = f"{error} {error!r}"
        finally:
            await client.close()
    return heads[0], said


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("form", ["http://someone:p%40ss@{}", "someone:p%40ss@{}"])
def test_a_proxys_password_reaches_the_proxy_and_no_error(
    monkeypatch: pytest.MonkeyPatch, scheme: str, form: str
) -> None:
    head, said = asyncio.run(refused(scheme, form, monkeypatch))
    assert b"Proxy-Authorization: Basic " + base64.b64encode(b"someone:p@ss") in head
    assert "407" in said and "p@ss" not in said and "p%40ss" not in said
