"""HTTP as it is on the wire: portions, broken answers, keys that are struck out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from freehold.certify.transcript import Answer, Call
from freehold.certify.wire import Endpoint
from freehold.errors import UpstreamError, UsageError

Reply = Callable[[asyncio.StreamReader, asyncio.StreamWriter], "asyncio.Future[None]"]


@asynccontextmanager
async def server(*portions: bytes, hold: bool = False) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Answers every connection with these bytes; `hold` keeps it open afterwards until the client leaves."""
    heads: list[bytes] = []
    over = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await speak(reader, writer)
        except OSError:
            pass  # the client has left
        finally:
            writer.transport.abort()
            over.set()

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        for portion in portions:
            writer.write(portion)
            await writer.drain()
            await asyncio.sleep(0)
        if hold:
            await reader.read(1)
        else:
            writer.write_eof()
            await reader.read(1)

    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", heads
        await over.wait()
        await asyncio.sleep(0)


async def asked(*portions: bytes, call: Call | None = None, hold: bool = False, **rest: object) -> tuple[Answer, bytes]:
    async with server(*portions, hold=hold) as (url, heads):
        endpoint = Endpoint(url, **rest)  # type: ignore[arg-type]
        answer = await endpoint.send(call or Call("GET", "/models"))
        return answer, heads[0]


CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n"


def test_each_portion_is_kept_with_its_time_and_headers_keep_their_letters() -> None:
    answer, head = asyncio.run(asked(CHUNKED, b"2\r\nab\r\n", b"1\r\nc\r\n0\r\n\r\n"))
    assert (answer.status, answer.body, answer.end) == (200, b"abc", "complete")
    assert [data for _, data in answer.portions] == [b"ab", b"c"]
    assert sorted({at for at, _ in answer.portions}) == [at for at, _ in answer.portions]
    assert ("Content-Type", "text/plain") in answer.headers
    assert head.startswith(b"GET /v1/models HTTP/1.1\r\n") and b"accept-encoding: identity" in head


@pytest.mark.parametrize(
    ("portions", "end", "status"),
    [
        ([CHUNKED, b"5\r\nab"], "cut", 200),
        ([b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nab"], "cut", 200),
        ([b"nonsense\r\n\r\n"], "no answer", 0),
        ([], "no answer", 0),
    ],
)
def test_a_broken_answer_is_an_answer_too(portions: list[bytes], end: str, status: int) -> None:
    answer, _ = asyncio.run(asked(*portions))
    assert (answer.end, answer.status) == (end, status)


def test_a_silent_server_is_left_after_the_limit_and_a_client_that_is_to_leave_leaves() -> None:
    answer, _ = asyncio.run(asked(CHUNKED, b"1\r\na\r\n", hold=True, seconds=0.05))
    assert (answer.end, answer.body) == ("timeout", b"a")
    left, _ = asyncio.run(asked(CHUNKED, b"1\r\na\r\n", b"1\r\nb\r\n", hold=True, call=Call("GET", "/x", hang_up=1)))
    assert (left.end, left.body) == ("hung up", b"a")


def test_a_key_that_is_no_secret_takes_no_words_out_of_answers() -> None:
    body = b'HTTP/1.1 200 OK\r\ncontent-length: 22\r\n\r\n{"tool_choice":"none"}'
    answer, head = asyncio.run(asked(body, keys={"good": "none"}))
    assert b"authorization: Bearer none" in head
    assert answer.body == b'{"tool_choice":"none"}'


def test_keys_are_sent_as_the_call_says_and_are_in_no_answer() -> None:
    secret = "sk-very-secret"
    body = b"HTTP/1.1 401 No\r\nx-echo: sk-very-secret\r\ncontent-length: 18\r\n\r\nkey sk-very-secret"
    answer, head = asyncio.run(asked(body, keys={"good": secret}))
    assert b"authorization: Bearer sk-very-secret" in head
    assert answer.body == b"key [redacted]" and ("x-echo", "[redacted]") in answer.headers
    _, head = asyncio.run(asked(body, keys={"good": secret}, call=Call("GET", "/", style="x-api-key")))
    assert b"x-api-key: sk-very-secret" in head and b"authorization" not in head
    for auth in ("bad", "none"):
        _, head = asyncio.run(asked(body, keys={"good": secret}, call=Call("GET", "/", auth=auth)))
        assert secret.encode() not in head


def test_nobody_at_the_address_and_no_address_are_errors() -> None:
    with pytest.raises(UpstreamError, match="can't connect"):
        asyncio.run(Endpoint("http://127.0.0.1:1").send(Call("GET", "/models")))
    with pytest.raises(UsageError, match="expected the URL"):
        _ = Endpoint("ftp://x").base
    with pytest.raises(UsageError, match="without a password") as error:
        _ = Endpoint("http://user:hunter2@a.example").base
    assert "hunter2" not in error.value.message
    assert Endpoint("localhost:8000/v1/").base.geturl() == "http://localhost:8000/v1"
    assert Endpoint("https://a.example/api").base.geturl() == "https://a.example/api/v1"


def test_a_record_gives_back_the_answer_byte_for_byte() -> None:
    answer = Answer(200, (("A", "b"),), ((1, b"\xff\x00"), (2, "é".encode())), "complete", 3)
    assert Answer.read(answer.record()) == answer
