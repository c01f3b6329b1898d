"""`freehold run` and `freehold chat`, answered by a small real provider on the loopback address."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from freehold.cli.asking import Answer

Run = Callable[..., "subprocess.CompletedProcess[str]"]


class Provider(ThreadingHTTPServer):
    """Streams `pieces` to every chat; remembers what it was asked. `status` other than 200 refuses; `gate` holds back."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pieces = ["Par", "is."]
        self.status = 200
        self.asked: list[dict[str, Any]] = []
        self.gate = threading.Event()
        self.gate.set()


class Handler(BaseHTTPRequestHandler):
    server: Provider

    def do_POST(self) -> None:
        self.server.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.server.status)
        if self.server.status != 200:
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(b'{"error": {"message": "no", "type": "server_error", "param": null, "code": null}}')
            return
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        deltas = [{"role": "assistant", "content": ""}, *({"content": piece} for piece in self.server.pieces)]
        for delta in deltas:
            self.event([{"index": 0, "delta": delta, "finish_reason": None}])
        self.server.gate.wait(60)
        self.event([{"index": 0, "delta": {}, "finish_reason": "stop"}])
        self.event([], usage={"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7})
        self.wfile.write(b"data: [DONE]\n\n")

    def event(self, choices: list[dict[str, Any]], **more: Any) -> None:
        chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m-1", "choices": choices, **more}
        self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.flush()

    def log_message(self, *args: Any) -> None:
        return


@pytest.fixture
def provider(home: dict[str, str]) -> Iterator[Provider]:
    """A provider that the settings file of `home` names `fake`."""
    with Provider() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        file = Path(home["XDG_CONFIG_HOME"]) / "freehold" / "config.toml"
        file.parent.mkdir(parents=True)
        address = f"http://127.0.0.1:{server.server_port}/v1"
        file.write_text(f'[[upstream]]\nname = "fake"\nbase_url = "{address}"\nmodel = "m"\n')
        yield server
        server.gate.set()
        server.shutdown()
        thread.join()


def test_run_gives_text_on_stdout_and_its_account_as_one_line_on_stderr(freehold: Run, provider: Provider) -> None:
    done = freehold("run", "-m", "fake.m", "Capital of France?")
    assert (done.returncode, done.stdout) == (0, "Paris.\n")
    assert done.stderr.startswith("fake · 2 tokens · ") and done.stderr.count("\n") == 1
    assert done.stderr.endswith(" · bits n/a · cost n/a\n")


def test_run_as_json_gives_the_account_as_one_object_and_nothing_else(freehold: Run, provider: Provider) -> None:
    done = freehold("run", "-m", "fake.m", "Capital of France?", "--json")
    told = json.loads(done.stdout)
    assert (done.stderr, told["text"], told["backend"], told["finish"]) == ("", "Paris.", "fake", "stop")
    assert (told["prompt_tokens"], told["completion_tokens"]) == (5, 2)
    assert told["seconds"] > 0 and told["cost_usd"] is None


@pytest.mark.parametrize("words", [[], ["-"]], ids=["no argument", "-"])
def test_run_reads_a_piped_prompt(words: list[str], freehold: Run, provider: Provider) -> None:
    assert freehold("run", "-m", "fake.m", *words, input="Grüße,\nzwei Zeilen").returncode == 0
    assert provider.asked[0]["messages"] == [{"role": "user", "content": "Grüße,\nzwei Zeilen"}]


def test_run_passes_its_flags_on(freehold: Run, provider: Provider) -> None:
    flags = "--system S --max-tokens 7 --temperature 0 --top-p 0.5 --seed 3 --presence-penalty 1 --frequency-penalty -1"
    freehold("run", "-m", "fake.m", *flags.split(), "--stop", "END", "--stop", "\n\n", "hi")
    asked = provider.asked[0]
    assert [message["role"] for message in asked["messages"]] == ["system", "user"]
    assert asked.get("max_completion_tokens", asked.get("max_tokens")) == 7
    sampling = ("temperature", "top_p", "seed", "presence_penalty", "frequency_penalty")
    assert [asked[name] for name in sampling] == [0, 0.5, 3, 1, -1]
    assert asked["stop"] == ["END", "\n\n"]


def test_run_leaves_out_what_was_not_given(freehold: Run, provider: Provider) -> None:
    freehold("run", "-m", "fake.m", "hi")
    assert (
        not {"temperature", "top_p", "seed", "stop", "max_tokens", "max_completion_tokens"} & provider.asked[0].keys()
    )


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_run_refuses_an_empty_prompt(prompt: str, freehold: Run) -> None:
    done = freehold("run", input=prompt)
    assert (done.returncode, done.stderr) == (2, "error: the prompt is empty\n")


def test_run_refuses_a_prompt_that_is_not_utf_8(home: dict[str, str]) -> None:
    command = [sys.executable, "-m", "freehold", "run"]
    done = subprocess.run(command, env=home, input=b"ab\xff", capture_output=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == b"error: the prompt on stdin must be UTF-8, found a bad byte at 2\n"


def test_run_reports_a_refusal_of_the_provider_as_one_error(freehold: Run, provider: Provider) -> None:
    provider.status = 500
    done = freehold("run", "-m", "fake.m", "hi")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr


def test_ctrl_c_during_an_answer_ends_run_with_130(home: dict[str, str], provider: Provider) -> None:
    provider.gate.clear()
    command = [sys.executable, "-m", "freehold", "run", "-m", "fake.m", "hi"]
    running = subprocess.Popen(command, env=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
    assert running.stdout is not None and running.stderr is not None
    assert running.stdout.read(3) == b"Par"
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130
    assert errors.strip() == b""


def test_chat_from_a_pipe_answers_each_line_with_what_was_said_before(freehold: Run, provider: Provider) -> None:
    done = freehold("chat", "-m", "fake.m", "--system", "S", input="one\n\ntwo\n")
    assert (done.returncode, done.stdout) == (0, "Paris.\nParis.\n")
    roles = [[message["role"] for message in asked["messages"]] for asked in provider.asked]
    assert roles == [["system", "user"], ["system", "user", "assistant", "user"]]
    assert provider.asked[1]["messages"][2]["content"] == "Paris."


def test_chat_obeys_its_commands(freehold: Run, provider: Provider) -> None:
    done = freehold("chat", "-m", "fake.m", input="one\n/clear\ntwo\n/system T\nthree\n/nonsense\n/exit\nfour\n")
    messages = [[message["content"] for message in asked["messages"]] for asked in provider.asked]
    assert messages == [["one"], ["two"], ["T", "three"]]
    assert "no command /nonsense" in done.stderr and "/help" in done.stderr


def test_a_failed_answer_ends_a_piped_chat_with_its_error(freehold: Run, provider: Provider) -> None:
    provider.status = 500
    done = freehold("chat", "-m", "fake.m", input="one\ntwo\n")
    assert done.returncode == 3 and len(provider.asked) >= 1
    assert done.stderr.count("error: ") == 1


def test_an_answer_cannot_drive_the_terminal(home: dict[str, str], provider: Provider) -> None:
    provider.pieces = ["\x1b]0;owned\x07\x1b[2J", "fine\n", "\ttab"]
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "freehold", "run", "-m", "fake.m", "hi"]
    done = subprocess.run(command, env=home, stdout=theirs, stderr=subprocess.PIPE, timeout=60)
    os.close(theirs)
    shown = os.read(ours, 4096)
    os.close(ours)
    assert done.returncode == 0
    assert b"\x1b" not in shown and b"\x07" not in shown
    assert b"fine\r\n\ttab" in shown


def test_piped_text_is_passed_on_as_it_is(freehold: Run, provider: Provider) -> None:
    provider.pieces = ["\x1b[1mbold"]
    assert freehold("run", "-m", "fake.m", "hi").stdout == "\x1b[1mbold\n"


def account(**values: Any) -> Answer:
    known: dict[str, Any] = {"text": "", "backend": "local", "model": "m", "reason": "core", "finish": "stop"}
    known |= {"prompt_tokens": 1, "completion_tokens": 42, "seconds": 1.0, "first_token_seconds": 0.1}
    return Answer(**known | {"tokens_per_second": 35.125, "bits_per_weight": 4.5, "cost_usd": 0.00001} | values)


def test_the_account_names_backend_tokens_speed_bits_and_cost() -> None:
    assert account().line() == "local · 42 tokens · 35.1 tok/s · 4.50 bits · cost $0.00001000"


def test_the_account_never_invents_what_is_not_known() -> None:
    nothing = account(tokens_per_second=None, bits_per_weight=None, cost_usd=None)
    assert nothing.line() == "local · 42 tokens · tok/s n/a · bits n/a · cost n/a"
