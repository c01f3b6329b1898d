"""The server process: where it may listen, what it prints, who may knock, and how it stops."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import uvicorn
from tests.gateway import fakes

from freehold.errors import SettingError
from freehold.gateway.server import _Server, bind, check_reach, invitation
from freehold.gateway.service import Gateway
from freehold.settings import ServerSettings

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.7", "example.org"])
def test_others_may_reach_the_server_only_with_a_key(host: str) -> None:
    with pytest.raises(SettingError, match="no api_key") as caught:
        check_reach(ServerSettings(host=host))
    assert caught.value.hint and "FREEHOLD_API_KEY" in caught.value.hint
    check_reach(ServerSettings(host=host, api_key="k"))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    check_reach(ServerSettings(host=host))


def test_a_taken_port_is_one_clear_error() -> None:
    with bind(ServerSettings(port=0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingError, match=f"can't listen on 127.0.0.1:{port}: Address already in use"):
            bind(ServerSettings(port=port))
    with pytest.raises(SettingError, match="can't listen"):
        bind(ServerSettings(port=70_000))
    with pytest.raises(SettingError, match="can't listen"):
        bind(ServerSettings(host="no such host"))


def test_answers_do_not_wait_for_acknowledgements() -> None:
    """With Nagle's algorithm each waits 40 ms, which is what a client's system delays its ACK by; asyncio turns it off only
    for sockets that say they are TCP."""

    class Noted(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            accepted = transport.get_extra_info("socket")
            options.set_result(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            transport.close()

    async def option(listener: socket.socket) -> int:
        nonlocal options
        options = asyncio.get_running_loop().create_future()
        async with await asyncio.get_running_loop().create_server(Noted, sock=listener):
            with socket.create_connection(listener.getsockname()):
                return await options

    options: asyncio.Future[int]
    with bind(ServerSettings(port=0)) as listener:
        assert asyncio.run(option(listener)) == 1


def test_the_invitation_names_the_real_port_and_never_the_key() -> None:
    assert invitation(ServerSettings(port=0), 7411) == [
        "export OPENAI_BASE_URL=http://127.0.0.1:7411/v1", "export OPENAI_API_KEY=none",
        "export ANTHROPIC_BASE_URL=http://127.0.0.1:7411 ANTHROPIC_API_KEY=none",
    ]  # fmt: skip
    lines = invitation(ServerSettings(host="::1", api_key="sk-secret"), 80)
    assert lines[0] == "export OPENAI_BASE_URL=http://[::1]:80/v1" and "sk-secret" not in "".join(lines)
    everywhere = invitation(ServerSettings(host="0.0.0.0", api_key="k"), 80)
    assert everywhere[0] == f"export OPENAI_BASE_URL=http://{socket.gethostname()}:80/v1"


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "evil.example:7411"},
        {"host": "127.0.0.1.evil.example"},
        {"host": "[::1"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost.evil.example"},
    ],
)
def test_without_a_key_web_pages_from_elsewhere_are_kept_out(directory: Path, headers: dict[str, str]) -> None:
    with fakes.live(Gateway(fakes.core(directory))) as live:
        answer = httpx2.post(live.url + CHAT, json=BODY, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden_origin")
        assert live.gateway.core.engine.requests == []  # type: ignore[union-attr]


def test_whoever_opens_the_address_learns_what_is_there_and_no_more(directory: Path) -> None:
    with fakes.live(Gateway(fakes.core(directory)), api_key="secret") as live:
        answer = httpx2.get(live.url + "/")
        assert answer.status_code == 200 and "is running" in answer.text and "/v1" in answer.text
        assert "tiny" not in answer.text and "secret" not in answer.text
        assert httpx2.get(live.url + "/v1/models").status_code == 401


def test_pages_on_this_machine_may_ask(directory: Path) -> None:
    with fakes.live(Gateway(fakes.core(directory))) as live:
        for headers in (
            {"origin": "http://localhost:3000"},
            {"host": "localhost:7411"},
            {"host": "[::1]:7411"},
            {"host": "127.8.8.8:7411"},  # any address that may be listened on without a key
        ):
            assert httpx2.post(live.url + CHAT, json=BODY, headers=headers).status_code == 200


def test_the_log_has_one_line_for_each_request_and_no_content(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "freehold.access")
    secret = BODY | {"messages": [{"role": "user", "content": "my secret question"}], "stream": True}
    with fakes.live(Gateway(fakes.core(directory))) as live:
        answer = httpx2.post(live.url + CHAT, json=secret)
        httpx2.post(live.url + CHAT + "?key=sk-in-the-query", content=b"{")
    lines = [json.loads(record.message) for record in caplog.records if record.name == "freehold.access"]
    good, bad = lines
    assert good["request_id"] == answer.headers["x-request-id"]
    assert (good["status"], good["backend"], good["model"], good["reason"]) == (200, "local", "tiny", "core")
    assert good["completion_tokens"] == 7 and good["prompt_tokens"] == 21 and good["finished"] == ["stop"]
    assert 0 <= good["ttft_ms"] <= good["ms"]
    assert (bad["method"], bad["path"], bad["status"]) == ("POST", CHAT, 400)
    assert "secret" not in caplog.text and "Hello" not in caplog.text and "sk-in" not in caplog.text


def test_a_running_answer_is_finished_when_the_server_is_told_to_stop(directory: Path) -> None:
    core = fakes.core(directory, "a long answer", held=True)
    engine = core.engine
    assert isinstance(engine, fakes.FakeEngine)
    live = fakes.live(Gateway(core))
    found = live.__enter__()
    with openai.OpenAI(base_url=found.url + "/v1", api_key="none", max_retries=0) as client:
        stream = iter(client.chat.completions.create(model="tiny", messages=BODY["messages"], stream=True))
        next(stream)

        def later() -> None:
            # called on the server's loop: what was asked first happens first
            found.loop.loop.call_later(0.2, engine.release)

        found.loop.soon(later)
        live.__exit__(None, None, None)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "a long answer"


def test_a_signal_stops_the_server_also_where_nobody_reads_its_words_any_more() -> None:
    told: list[str] = []

    def announce(line: str) -> None:
        told.append(line)
        raise BrokenPipeError

    async def stopped() -> list[dict[str, Any]]:
        problems: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: problems.append(context))
        server = _Server(uvicorn.Config("nothing:app"), announce)
        server.handle_exit(signal.SIGTERM, None)
        assert server.should_exit
        assert told == [], "words wait until the loop has its turn"
        await asyncio.sleep(0)
        return problems

    assert [type(problem["exception"]) for problem in asyncio.run(stopped())] == [BrokenPipeError]
    assert told == ["stopping: answers get 30 s to end"]


SERVE = """
import sys
from pathlib import Path
from freehold.gateway.server import bind, serve_on
from freehold.gateway.service import Gateway
from freehold.settings import EngineSettings, ServerSettings, Settings
import asyncio
from freehold.engine.process import EngineProcess
from freehold.gateway.backends.local import LocalBackend, load_text_side
directory = Path(sys.argv[1])
settings = Settings(engine=EngineSettings(threads=1, kv_memory_mb=16), server=ServerSettings(port=0))
core = LocalBackend(EngineProcess(directory, settings.engine), *load_text_side(directory), "tiny")
with bind(settings.server) as listener:
    asyncio.run(serve_on(listener, settings, Gateway(core), lambda line: print(line, file=sys.stderr, flush=True)))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_server_and_its_engine(directory: Path, number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", SERVE, str(directory)], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            assert process.stderr.readline() == "ready; Ctrl-C stops\n"
            line = process.stderr.readline()
            assert line.startswith("export OPENAI_BASE_URL=http://127.0.0.1:"), line
            url = line.strip().partition("=")[2]
            for _ in range(2):
                process.stderr.readline()
            assert httpx2.get(url + "/models").status_code == 200
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            assert len(children) == 1
            process.send_signal(number)
            code = process.wait(20)
        finally:
            process.kill()
        rest = process.stderr.read()
    assert code in ((-number, 0) if number == signal.SIGTERM else (-number, 0, 1, 130)), (code, rest)
    assert not os.path.exists(f"/proc/{children[0]}")  # noqa: PTH110
    assert "stopping: answers get 30 s to end" in rest
    assert ("once more ends them now" in rest) == (number == signal.SIGINT)
    if number == signal.SIGTERM:
        assert "Traceback" not in rest
