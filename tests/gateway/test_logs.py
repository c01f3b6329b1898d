"""The server's log: for people or as JSON, with the request's id, and never forged."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from tests.gateway import fakes
from tests.gateway.fakes import provider, response

from freehold.gateway.logs import JsonFormatter, configure
from freehold.gateway.service import Gateway


def test_a_json_line_is_one_line_whatever_is_logged() -> None:
    record = logging.LogRecord("freehold.x", logging.WARNING, "f", 1, "a\nb %s", ("\u2028\x1b[2J",), None)
    line = JsonFormatter().format(record)
    assert "\n" not in line
    found = json.loads(line)
    assert (found["level"], found["logger"], found["message"]) == ("WARNING", "freehold.x", "a\nb \u2028\x1b[2J")
    assert found["time"].endswith("+00:00") and "request_id" not in found


def test_every_line_written_for_a_request_carries_its_id(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.handler.setFormatter(JsonFormatter())
    caplog.set_level("INFO", "freehold")
    with provider([response(b"", "500 Internal Server Error")]) as found:
        gateway = Gateway(fakes.core(directory), [fakes.upstream(found.url, "one", "m")])
        with fakes.live(gateway) as live:
            asked = {"model": "one.m", "messages": [{"role": "user", "content": "my secret"}]}
            answers = [httpx2.post(live.url + "/v1/chat/completions", json=asked) for _ in range(2)]
    lines = [json.loads(line) for line in caplog.text.splitlines()]
    for answer in answers:
        ours = [line for line in lines if line.get("request_id") == answer.headers["x-request-id"]]
        assert {line["logger"] for line in ours} == {"freehold.gateway", "freehold.access"}
        assert [line["status"] for line in ours if line["logger"] == "freehold.access"] == [answer.status_code]
    assert "secret" not in caplog.text


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_log_goes_to_stderr_in_the_form_that_was_chosen(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, level = list(root.handlers), logging.getLogger("freehold").level
    try:
        configure(form)
        logging.getLogger("freehold.gateway").info("hello")
        logging.getLogger("other").info("not ours")
    finally:
        root.handlers = before
        logging.getLogger("freehold").setLevel(level)
    out, err = capsys.readouterr()
    assert out == "" and "not ours" not in err
    if form == "json":
        assert json.loads(err)["message"] == "hello"
    else:
        assert err.rstrip().endswith("INFO freehold.gateway hello")


SERVE = """
import asyncio, sys
from pathlib import Path
from freehold.gateway.backends.openai import OpenAIBackend
from freehold.gateway.policy import Policy
from freehold.gateway.logs import configure
from freehold.gateway.server import bind, serve_on
from freehold.gateway.service import Gateway
from freehold.settings_file import load
settings = load(Path(sys.argv[1]))
configure(settings.server.log_format)
gateway = Gateway(None, [OpenAIBackend(u, settings.guards) for u in settings.upstreams], policy=Policy.of(settings))
with bind(settings.server) as listener:
    asyncio.run(serve_on(listener, settings, gateway, lambda line: print(line, flush=True)))
"""
CONFIG = """
[server]
port = 0
log_format = "json"
[router]
reload_seconds = {seconds}
[[upstream]]
name = "one"
base_url = "http://127.0.0.1:9/v1"
model = "m"
[[route]]
model = "{alias}"
to = ["{to}"]
"""


@pytest.mark.parametrize("seconds", [0, 0.05], ids=["at SIGHUP", "by itself"])
def test_a_running_server_takes_new_routes_and_keeps_them_when_the_file_breaks(tmp_path: Path, seconds: float) -> None:
    file = tmp_path / "config.toml"
    file.write_text(CONFIG.format(seconds=seconds, alias="before", to="one"))
    running = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with running as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            url = next(line for line in process.stdout if "OPENAI_BASE_URL" in line).strip().partition("=")[2]
            known = [m["id"] for m in httpx2.get(url + "/models").json()["data"]]
            assert known == ["one.m", "before"]
            for alias, to, said in (("after", "one", "read again"), ("broken", "nobody", "stay as they were")):
                file.write_text(CONFIG.format(seconds=seconds, alias=alias, to=to))
                if not seconds:
                    os.kill(process.pid, signal.SIGHUP)
                while said not in (line := process.stderr.readline()):
                    assert line, "the server ended"
                assert json.loads(line)["logger"] == "freehold.gateway"
                assert [m["id"] for m in httpx2.get(url + "/models").json()["data"]] == ["one.m", "after"]
            health = httpx2.get(url.removesuffix("/v1") + "/health").json()
            assert "routes stay as they were" in health["problem"] and str(tmp_path) not in health["problem"]
        finally:
            process.terminate()
            process.communicate(timeout=20)
