"""Clients made to wear a gateway out: slow, silent, huge, or many. Each gets its status, the others never notice."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest

from freehold.gateway.service import Gateway
from tests.gateway import byte_model, fakes
from tests.gateway.fakes import Live, provider, recorded, response

CHAT = "/v1/chat/completions"
GOOD: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
BODY = json.dumps(GOOD).encode()
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
PATIENCE = 0.5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_model.write(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def live(model: Path) -> Iterator[Live]:
    with fakes.live(Gateway(fakes.core(model)), max_body_mb=2, client_seconds=PATIENCE) as found:
        yield found


def connect(live: Live) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(live.url.rsplit(":", 1)[1])), 20)


def everything(client: socket.socket) -> bytes:
    """What the server says until it hangs up; a server that holds on makes the test fail by its time limit."""
    said = b""
    try:
        while piece := client.recv(65536):
            said += piece
    except ConnectionResetError:
        pass
    return said


def well(live: Live) -> None:
    assert httpx2.post(live.url + CHAT, json=GOOD, timeout=30).status_code == 200


def rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize(
    "beginning", [b"", b"P", HEAD, HEAD + b"x-a: b\r\n" * 20], ids=["none", "one byte", "some", "many"]
)
def test_headers_that_never_end_have_a_deadline(live: Live, beginning: bytes) -> None:
    with connect(live) as client:
        began = time.monotonic()
        client.sendall(beginning)
        assert everything(client).startswith(b"HTTP/1.1 408 ")
        assert PATIENCE * 0.9 < time.monotonic() - began < 10
    well(live)


@pytest.mark.parametrize("beginning", [b"", HEAD + b"content-length: 1000\r\n\r\n"], ids=["headers", "body"])
def test_a_byte_now_and_then_does_not_move_the_deadline(live: Live, beginning: bytes) -> None:
    with connect(live) as client:
        client.sendall(beginning)
        client.settimeout(PATIENCE / 10)
        began, said = time.monotonic(), b""
        while not said and time.monotonic() - began < 10:
            client.sendall(b"P")
            try:
                said = client.recv(100)
            except TimeoutError:
                continue
        assert said.startswith(b"HTTP/1.1 4")


def test_a_second_request_on_the_same_connection_has_the_same_deadline(live: Live) -> None:
    with connect(live) as client:
        client.sendall(HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY + HEAD)
        said = everything(client)
        assert said.startswith(b"HTTP/1.1 200 ") and b"HTTP/1.1 408 " in said


@pytest.mark.parametrize("framing", [b"content-length: 100\r\n\r\n{", b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n"])
def test_a_body_that_does_not_come_has_a_deadline_and_an_envelope(live: Live, framing: bytes) -> None:
    with connect(live) as client:
        client.sendall(HEAD + framing)
        head, _, body = everything(client).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ") and b"connection: close" in head.lower()
    assert json.loads(body)["error"]["code"] == "request_timeout"
    well(live)


def test_an_answer_that_nobody_reads_is_given_up_and_the_provider_is_released(model: Path) -> None:
    """The provider sends without end; the client takes nothing: neither its bytes nor its connection may be kept."""
    chunk = b'data: {"choices":[{"index":0,"delta":{"content":"' + b"x" * 16000 + b'"}}]}\n\n'
    endless = [response(chunk), *[chunk] * 4000]  # 64 MB, more than any buffer between us
    with ExitStack() as stack:
        found = stack.enter_context(provider(endless))
        gateway = Gateway(fakes.core(model), [fakes.upstream(found.url, "one", "m")])
        live = stack.enter_context(fakes.live(gateway, client_seconds=PATIENCE))
        before = rss()
        with connect(live) as client:
            asked = json.dumps(GOOD | {"model": "one.m", "stream": True}).encode()
            client.sendall(HEAD + b"content-length: %d\r\n\r\n" % len(asked) + asked)
            live.until(lambda: found.gone == 1)
            assert rss() - before < 32 << 20
        well(live)


@pytest.mark.parametrize("framing", ["declared", "chunked"])
def test_ten_megabytes_are_refused_without_being_kept(live: Live, framing: str) -> None:
    big = b'{"model": "tiny", "messages": [{"role": "user", "content": "' + b"x" * (10 << 20) + b'"}]}'

    def pieces() -> Iterator[bytes]:
        for i in range(0, len(big), 65536):
            yield big[i : i + 65536]

    before = rss()
    for _ in range(8):
        answer = httpx2.post(live.url + CHAT, content=big if framing == "declared" else pieces(), timeout=30)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    assert rss() - before < 40 << 20
    well(live)


def test_the_refusal_of_a_large_body_is_on_the_wire_before_the_body_is(live: Live) -> None:
    with connect(live) as client:
        client.sendall(HEAD + b"content-length: 10485760\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 413 ")
        began = time.monotonic()
        assert b"408" not in everything(client)  # it has its answer; now it is let go
        assert time.monotonic() - began < 4  # by our deadline, not by the one between requests


@pytest.mark.parametrize("asked", ["x\r\nset-cookie: a=b", "x\nset-cookie: a=b", "tiny\u2028", "\x00", "é" * 200])
def test_names_from_a_body_make_no_headers(live: Live, asked: str) -> None:
    answer = httpx2.post(live.url + CHAT, json=GOOD | {"model": asked, "user": asked})
    assert answer.status_code == 404 and "set-cookie" not in answer.headers


def test_names_from_a_provider_make_no_headers(model: Path) -> None:
    said = recorded("openai_chat_stream.txt").replace(b"gpt-4o-mini", b"m\\r\\nset-cookie: a=b")
    with provider([response(said)]) as found:
        gateway = Gateway(fakes.core(model), [fakes.upstream(found.url, "one", "m")])
        with fakes.live(gateway) as live:
            answer = httpx2.post(live.url + CHAT, json=GOOD | {"model": "one.m"})
    assert answer.status_code == 200 and "set-cookie" not in answer.headers


def test_odd_headers_are_neither_obeyed_nor_fatal(live: Live) -> None:
    for extra in (
        b"x-freehold-session: " + b"s" * 20_000 + b"\r\n",
        b"x-freehold-session: \xff\xfe\r\n",
        b"x-request-id: forged\r\n",
        b"authorization: Bearer \xe9\r\n",
    ):
        with connect(live) as client:
            client.sendall(HEAD + extra + b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(BODY) + BODY)
            said = everything(client)
        assert said.startswith(b"HTTP/1.1 200 ") and b"forged" not in said


def test_a_thousand_idle_connections_hold_nobody_up(model: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2500  # both ends live in this process
    if soft < wanted:
        if hard != resource.RLIM_INFINITY and hard < wanted:
            pytest.skip(f"only {hard} open files are allowed here")
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    try:
        with fakes.live(Gateway(fakes.core(model)), client_seconds=2.0) as live, ExitStack() as stack:
            before = rss()
            idle = [stack.enter_context(connect(live)) for _ in range(1000)]
            began = time.monotonic()
            well(live)
            assert time.monotonic() - began < 5
            assert rss() - before < 64 << 20
            assert all(everything(client).startswith(b"HTTP/1.1 408 ") for client in idle)
            well(live)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_hundred_clients_that_leave_in_the_middle_leave_nothing_behind(model: Path) -> None:
    core = fakes.core(model, "a long answer", held=True)
    engine = core.engine
    assert isinstance(engine, fakes.FakeEngine)
    with fakes.live(Gateway(core)) as live:

        async def leave() -> None:
            port = int(live.url.rsplit(":", 1)[1])
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            asked = json.dumps(GOOD | {"stream": True}).encode()
            writer.write(HEAD + b"content-length: %d\r\n\r\n" % len(asked) + asked)
            await reader.readuntil(b"data: ")
            writer.transport.abort()

        async def all_leave() -> None:
            await asyncio.gather(*[leave() for _ in range(100)])

        asyncio.run(all_leave())
        live.until(lambda: len(engine.left) == 100)
        live.loop.soon(engine.release)
        well(live)
