"""`make run`: fetch a real model, compress it, serve it, ask it one question over HTTP, stop.

Uses the commands a person would type and, as a client, nothing but the standard library. What is done already is not
done again. Exit 1 when the answer is not the one every model must know.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MODEL, COMPRESSED = "smollm2", "smollm2-int4"
QUESTION, EXPECTED = "What is the capital of France?", "Paris"
FREEHOLD = str(Path(sys.executable).with_name("freehold"))
READY_SECONDS = 120


def main() -> int:
    """Run the phases; 0 when the answer holds the expected word."""
    stored = {model["name"] for model in json.loads(output("list", "--json"))}
    phase(f"pull: fetching {MODEL}, or finding it fetched")
    subprocess.run([FREEHOLD, "pull", MODEL], check=True, stdout=subprocess.DEVNULL)
    if COMPRESSED in stored:
        phase(f"compress: {COMPRESSED} is there already")
    else:
        phase(f"compress: {MODEL} to int4, as {COMPRESSED}")
        subprocess.run([FREEHOLD, "compress", MODEL, "--name", COMPRESSED], check=True)
    phase(f"serve: {COMPRESSED} behind the OpenAI API on a free loopback port")
    with serving() as base_url:
        phase(f"ask: POST {base_url}/chat/completions")
        answer = ask(base_url)
    print(f"\n   {QUESTION}\n   {answer}\n", flush=True)
    seconds = time.time() - float(os.environ.get("FREEHOLD_STARTED", time.time()))
    phase(f"done in {seconds:.0f} s; now try: .venv/bin/freehold chat -m {COMPRESSED}")
    return 0 if EXPECTED in answer else 1


def phase(text: str) -> None:
    """Say what comes next."""
    print(f"== {text}", flush=True)


def output(*words: str) -> str:
    """What `freehold WORDS` prints."""
    return subprocess.run([FREEHOLD, *words], check=True, stdout=subprocess.PIPE, text=True).stdout


@contextmanager
def serving() -> Iterator[str]:
    """A server for as long as the block lasts; gives its base URL once it is ready."""
    command = [FREEHOLD, "serve", "--model", COMPRESSED, "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        yield base_url_of(server)
    finally:
        server.terminate()
        server.wait(timeout=30)


def base_url_of(server: subprocess.Popen[str]) -> str:
    """Wait for the line that names the address, and for /health to say that the model is loaded."""
    assert server.stderr is not None
    said = []
    for line in server.stderr:
        said.append(line)
        if match := re.search(r"OPENAI_BASE_URL=\"?'?(http\S+?)[\"']?$", line.strip()):
            wait_ready(match[1].removesuffix("/v1") + "/health")
            return match[1]
    sys.exit("".join(["the server ended before it was ready:\n", *said]))


def wait_ready(url: str) -> None:
    """Poll until the server answers 200."""
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError as error:
            if time.monotonic() > deadline:
                sys.exit(f"the server was not ready after {READY_SECONDS} s: {error}")
            time.sleep(0.1)


def ask(base_url: str) -> str:
    """The model's answer to the question, over HTTP."""
    body = {
        "model": COMPRESSED,
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 48,
        "temperature": 0,
    }
    request = urllib.request.Request(
        f"{base_url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        return str(json.load(response)["choices"][0]["message"]["content"]).strip()


if __name__ == "__main__":
    sys.exit(main())
