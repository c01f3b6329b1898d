"""What the gateway costs, against an instant mock provider and beside LiteLLM's proxy on the same mock.

    python bench/gateway.py [--rounds 5] [--requests 200] [--chunks 400] [--litellm PYTHON | --no-litellm] [--json] [--check]

Four processes: the mock, our gateway (no engine), LiteLLM's proxy, and this client with one connection. In every round
each target runs each figure once, in an order that rotates; a figure is the median of the rounds. "Added" is over the
mock asked directly: p50 over its p50, p99 over its p50 too, so that no slow request of the mock hides one of ours.

LiteLLM runs in an environment of its own, `.venv-litellm` unless `--litellm` names an interpreter; it is made with pip when
it is not there. When it can't be installed, the run says so and the `openai` package against the mock stands in its place.
The last table is the upstream client: httpx2 (ours) and aiohttp reading the same streams from the mock.

`--check` exits 1 when a target of `TARGETS` is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
HERE = Path(__file__)
TARGETS = {
    "added_p99_ms": ("<=", 2.5),
    "added_ttft_ms": ("<=", 3.0),
    "ms_per_chunk": ("<=", 0.3),
    "rps_vs_litellm": (">=", 2.0),
    "idle_rss_mib": ("<=", 120.0),
}
WORD = "tokenword"
KEY = os.environ.setdefault("BENCH_KEY", "sk-" + secrets.token_hex(32))
"""Both gateways check it: LiteLLM's proxy does not start without one."""

AUTH = f"authorization: Bearer {KEY}\r\n"
SHORT = 8
"""Pieces of a short answer."""


# --- the mock: answers at once, in one write ---------------------------------------------------------------------------


def _chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    body = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "mock", "choices": [choice]}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def answer(request: dict[str, Any]) -> bytes:
    """The whole HTTP response to a chat request; `max_tokens` pieces."""
    count = int(request.get("max_tokens") or request.get("max_completion_tokens") or SHORT)
    usage = {"prompt_tokens": 5, "completion_tokens": count, "total_tokens": 5 + count}
    if not request.get("stream"):
        message = {"role": "assistant", "content": (WORD + " ") * count}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        whole = {"id": "1", "object": "chat.completion", "created": 1, "model": "mock", "choices": [choice]}
        body = json.dumps(whole | {"usage": usage}).encode()
        return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    last = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "mock", "choices": []}
    wanted = (request.get("stream_options") or {}).get("include_usage")
    # Every piece differs: LiteLLM ends a stream that repeats itself.
    pieces = b"".join(_chunk({"content": f"{WORD}{i} "}) for i in range(count))
    body = _chunk({"role": "assistant", "content": ""}) + pieces + _chunk({}, "stop")
    body += b"data: " + json.dumps(last | {"usage": usage}).encode() + b"\n\n" if wanted else b""
    body += b"data: [DONE]\n\n"
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    return head + b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"


class Mock(asyncio.Protocol):
    """One connection; answers are made once for each kind of request."""

    made: dict[tuple[Any, ...], bytes] = {}  # noqa: RUF012  (shared on purpose)

    def connection_made(self, transport: Any) -> None:
        self.transport, self.buffer = transport, b""
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
            if len(self.buffer) < end + 4 + length:
                return
            body, self.buffer = self.buffer[end + 4 : end + 4 + length], self.buffer[end + 4 + length :]
            request = json.loads(body) if body else {}
            key = (request.get("stream"), request.get("max_tokens"), str(request.get("stream_options")))
            if key not in self.made:
                self.made[key] = answer(request)
            self.transport.write(self.made[key])


async def _mock() -> None:
    server = await asyncio.get_running_loop().create_server(Mock, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


# --- the gateway, without an engine -----------------------------------------------------------------------------------


def _gateway(upstream: str) -> None:
    from freehold.gateway.backends.openai import OpenAIBackend
    from freehold.gateway.server import bind, serve_on
    from freehold.gateway.service import Gateway
    from freehold.settings import ServerSettings, Settings, UpstreamSettings

    found = UpstreamSettings(name="mock", base_url=upstream, model="mock")
    settings = Settings(server=ServerSettings(port=0, api_key=os.environ["BENCH_KEY"]), upstreams=(found,))
    gateway = Gateway(None, [OpenAIBackend(found, settings.guards)], settings.guards)
    with bind(settings.server) as listener:
        port = listener.getsockname()[1]
        asyncio.run(serve_on(listener, settings, gateway, lambda line: print(port, flush=True)))


# --- the client -------------------------------------------------------------------------------------------------------


class Client:
    """One connection, blocking, nothing between us and the socket."""

    def __init__(self, port: int, headers: str = "") -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.headers = headers

    def ask(self, stream: bool, count: int) -> tuple[float, float]:
        """Seconds until the first content and until the end."""
        sent: dict[str, Any] = {"model": "mock", "messages": [{"role": "user", "content": "hi"}], "max_tokens": count}
        body = json.dumps(sent | ({"stream": True} if stream else {})).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{self.headers}"
        )
        began = time.perf_counter()
        self.socket.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        said, first, ended = b"", 0.0, False
        while not ended:
            piece = self.socket.recv(1 << 20)
            if not piece:
                raise SystemExit(f"the connection was closed after {said[:500]!r}")
            said += piece
            if not first and WORD.encode() in said:
                first = time.perf_counter() - began
            ended = _complete(said)
        seconds = time.perf_counter() - began
        if not said.startswith(b"HTTP/1.1 200") or said.count(WORD.encode()) != count:
            raise SystemExit(f"not the answer that was asked for: {said[:300]!r} ... {said[-500:]!r}")
        return first, seconds


def _complete(said: bytes) -> bool:
    head, found, body = said.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" in head.lower():
        return body.endswith(b"0\r\n\r\n")
    return bool(found) and len(body) >= int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])


def figures(port: int, headers: str, requests: int, chunks: int) -> dict[str, float]:
    """One round of one target: milliseconds, and requests per second over 1 and 16 connections."""
    client = Client(port, headers)
    each = []
    began = time.perf_counter()
    whole = [client.ask(False, SHORT)[1] * 1e3 for _ in range(requests)]
    alone = requests / (time.perf_counter() - began)
    first = [client.ask(True, SHORT)[0] * 1e3 for _ in range(requests)]
    for _ in range(5):
        each.append(client.ask(True, chunks)[1] * 1e3 / chunks)
    client.socket.close()
    cut = statistics.quantiles(whole, n=100)
    return {
        "p50_ms": statistics.median(whole),
        "p99_ms": cut[98],
        "ttft_ms": statistics.median(first),
        "ms_per_chunk": statistics.median(each),
        "rps": alone,
        "rps_16": _together(port, headers, requests),
    }


def _together(port: int, headers: str, requests: int, connections: int = 16) -> float:
    clients = [Client(port, headers) for _ in range(connections)]
    each = max(1, requests // connections)
    threads = [threading.Thread(target=lambda c=c: [c.ask(False, SHORT) for _ in range(each)]) for c in clients]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    for client in clients:
        client.socket.close()
    return each * connections / seconds


# --- httpx2 or aiohttp ------------------------------------------------------------------------------------------------


async def _read_with(library: str, url: str, requests: int, chunks: int) -> None:
    """Prints ms for a short stream and ms per chunk of a long one."""
    body = {"model": "mock", "messages": [], "stream": True}
    if library == "aiohttp":
        import aiohttp

        async with aiohttp.ClientSession() as session:

            async def ask(count: int) -> int:
                async with session.post(url, json=body | {"max_tokens": count}) as response:
                    return sum([len(piece) async for piece in response.content.iter_any()])

            await _time(ask, requests, chunks)
    else:
        import httpx2

        async with httpx2.AsyncClient() as client:

            async def ask(count: int) -> int:
                async with client.stream("POST", url, json=body | {"max_tokens": count}) as response:
                    return sum([len(piece) async for piece in response.aiter_raw()])

            await _time(ask, requests, chunks)


async def _time(ask: Callable[[int], Any], requests: int, chunks: int) -> None:
    await ask(SHORT)
    short, long = [], []
    for _ in range(requests):
        began = time.perf_counter()
        await ask(SHORT)
        short.append((time.perf_counter() - began) * 1e3)
    for _ in range(10):
        began = time.perf_counter()
        await ask(chunks)
        long.append((time.perf_counter() - began) * 1e3 / chunks)
    print(json.dumps({"short_ms": statistics.median(short), "ms_per_chunk": statistics.median(long)}))


# --- the run ----------------------------------------------------------------------------------------------------------


@contextmanager
def _process(*words: str, **given: Any) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, **given) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def _port_of(process: subprocess.Popen[str]) -> int:
    assert process.stdout
    line = process.stdout.readline()
    if not line.strip().isdigit():
        raise SystemExit(f"expected a port from {process.args!r}, found {line!r}")
    return int(line)


def _rss(pid: int) -> float:
    """MiB of a process and everything it started."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    own = next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return own + sum(_rss(int(child)) for child in children)


def litellm_python(named: str | None) -> str | None:
    """An interpreter that has LiteLLM's proxy; makes `.venv-litellm` when there is none; None when that fails."""
    if named:
        return named
    home = ROOT / ".venv-litellm"
    python = home / "bin" / "python"
    if not python.exists():
        print("making .venv-litellm (this takes a minute)", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
    has = subprocess.run([str(python), "-c", "import litellm.proxy"], capture_output=True, check=False)
    if has.returncode:
        done = subprocess.run([str(python), "-m", "pip", "install", "-q", "litellm[proxy]"], check=False)
        if done.returncode:
            return None
    return str(python)


@contextmanager
def _litellm(python: str, upstream: str) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    parameters = f"{{model: openai/mock, api_base: '{upstream}', api_key: none}}"
    text = f"model_list:\n  - model_name: mock\n    litellm_params: {parameters}\n"
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory, "config.yaml")
        config.write_text(text)
        environment = os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MASTER_KEY": KEY}
        command = str(Path(python).parent / "litellm")
        words = (command, "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1")
        with (
            Path(directory, "log").open("w") as log,
            _process(*words, env=environment, stderr=log, cwd=directory) as process,
        ):
            threading.Thread(target=process.stdout.read, daemon=True).start()  # type: ignore[union-attr]
            _await_port(port, process, Path(directory, "log"))
            yield port, process


def _await_port(port: int, process: subprocess.Popen[str], log: Path, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        try:
            Client(port, AUTH).ask(False, SHORT)
            return
        except OSError:
            time.sleep(0.5)
    raise SystemExit(f"LiteLLM's proxy did not answer: {log.read_text()[-2000:]}")


def _sdk_rps(url: str, requests: int) -> float:
    """Requests per second of the `openai` package against the mock, with nothing between."""
    import openai

    with openai.OpenAI(base_url=url, api_key="none") as client:
        began = time.perf_counter()
        for _ in range(requests):
            client.chat.completions.create(model="mock", messages=[{"role": "user", "content": "hi"}], max_tokens=SHORT)
        return requests / (time.perf_counter() - began)


def run(rounds: int, requests: int, chunks: int, litellm: str | None) -> dict[str, Any]:
    """Every figure, by target."""
    with ExitStack() as stack:
        mock = _port_of(stack.enter_context(_process(sys.executable, str(HERE), "--mock")))
        upstream = f"http://127.0.0.1:{mock}/v1"
        ours = stack.enter_context(_process(sys.executable, str(HERE), "--gateway", upstream))
        ports = {"direct": mock, "freehold": _port_of(ours)}
        idle = {"freehold": _rss(ours.pid)}
        if litellm:
            ports["litellm"], theirs = stack.enter_context(_litellm(litellm, upstream))
            idle["litellm"] = _rss(theirs.pid)
        for port in ports.values():
            figures(port, AUTH, 40, 40)  # warm: imports, connections, caches
        found: dict[str, list[dict[str, float]]] = {name: [] for name in ports}
        names = list(ports)
        for i in range(rounds):
            for name in names[i % len(names) :] + names[: i % len(names)]:
                found[name].append(figures(ports[name], AUTH, requests, chunks))
        clients = _clients(f"{upstream}/chat/completions", litellm, requests, chunks)
        sdk = _sdk_rps(upstream, requests)
    medians = {name: {key: statistics.median(r[key] for r in each) for key in each[0]} for name, each in found.items()}
    for name, mib in idle.items():
        medians[name]["idle_rss_mib"] = mib
    return {"figures": medians, "clients": clients, "openai_sdk_rps": sdk} | _verdicts(medians)


def _clients(url: str, litellm: str | None, requests: int, chunks: int) -> dict[str, Any]:
    """httpx2 in our environment, aiohttp where it is: ours, or LiteLLM's, which depends on it."""
    found = {}
    for library, python in (("httpx2", sys.executable), ("aiohttp", litellm or sys.executable)):
        words = [python, str(HERE), "--read-with", library, url, str(requests), str(chunks)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        found[library] = json.loads(done.stdout) if done.returncode == 0 else None
    return found


def _verdicts(medians: dict[str, dict[str, float]]) -> dict[str, Any]:
    direct, ours = medians["direct"], medians["freehold"]
    values: dict[str, float | None] = {
        "added_p50_ms": ours["p50_ms"] - direct["p50_ms"],
        "added_p99_ms": ours["p99_ms"] - direct["p50_ms"],
        "added_ttft_ms": ours["ttft_ms"] - direct["ttft_ms"],
        "ms_per_chunk": ours["ms_per_chunk"] - direct["ms_per_chunk"],
        "rps_vs_litellm": ours["rps"] / medians["litellm"]["rps"] if "litellm" in medians else None,
        "idle_rss_mib": ours["idle_rss_mib"],
    }
    targets = {}
    for name, (sign, bound) in TARGETS.items():
        value = values[name]
        good = None if value is None else (value <= bound if sign == "<=" else value >= bound)
        targets[name] = {"value": value, "target": f"{sign} {bound:g}", "pass": good}
    return {"added_p50_ms": values["added_p50_ms"], "targets": targets}


def report(found: dict[str, Any]) -> str:
    """The tables."""
    keys = ("p50_ms", "p99_ms", "ttft_ms", "ms_per_chunk", "rps", "rps_16", "idle_rss_mib")
    lines = ["target".ljust(10) + "".join(key.rjust(14) for key in keys)]
    for name, values in found["figures"].items():
        lines.append(name.ljust(10) + "".join(_shown(values.get(key)).rjust(14) for key in keys))
    lines += ["", f"openai package against the mock, nothing between: {found['openai_sdk_rps']:.0f} requests/s", ""]
    for name, target in found["targets"].items():
        verdict = {
            True: "pass",
            False: "FAIL",
            None: "not measured: ran without LiteLLM's proxy",
        }
        lines.append(f"{name:16}{_shown(target['value']):>10}  {target['target']:8}{verdict[target['pass']]}")
    lines += ["", "reading a stream from the mock".ljust(34) + "short, ms".rjust(12) + "per chunk, ms".rjust(16)]
    for name, values in found["clients"].items():
        shown = (
            ("not installed", "") if values is None else (_shown(values["short_ms"]), _shown(values["ms_per_chunk"]))
        )
        lines.append(name.ljust(34) + shown[0].rjust(12) + shown[1].rjust(16))
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--chunks", type=int, default=400)
    parser.add_argument("--litellm", metavar="PYTHON", default=os.environ.get("LITELLM_PYTHON"))
    parser.add_argument("--no-litellm", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--mock", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--gateway", help=argparse.SUPPRESS)
    parser.add_argument("--read-with", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.mock:
        asyncio.run(_mock())
    elif given.gateway:
        _gateway(given.gateway)
    elif given.read_with:
        library, url, requests, chunks = given.read_with
        asyncio.run(_read_with(library, url, int(requests), int(chunks)))
    else:
        found = run(
            given.rounds, given.requests, given.chunks, None if given.no_litellm else litellm_python(given.litellm)
        )
        machine = {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
        }
        print(json.dumps({"machine": machine} | found, indent=2) if given.json else report(found))
        return int(given.check and any(target["pass"] is False for target in found["targets"].values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
