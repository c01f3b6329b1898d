"""Other people's tools against the gateway, with nothing changed but the base URL.

    python bench/clients.py [--python PYTHON] [--json]

`llm` (streamed and whole) and `pydantic-ai` (an agent that calls a tool and answers from its result, streamed and whole)
run in an environment of their own, `.venv-clients` unless `--python` names an interpreter that has them; it is made with
pip when it is not there. The gateway is a real server; a script stands in place of the engine, so that each tool's
answer is known. Exit code 1 when one of them does not get it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncGenerator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from freehold.engine.request import EngineStats
from freehold.gateway.conversation import Event, Finished, Request, Started, TextDelta, ToolCallDelta, Usage
from freehold.gateway.server import bind, serve_on
from freehold.gateway.service import Gateway
from freehold.settings import ServerSettings, Settings

ROOT = Path(__file__).parent.parent
PACKAGES = ("llm", "pydantic-ai-slim[openai]")
ANSWER = "Freehold answers, word by word."

AGENT = """
import asyncio, os
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
model = OpenAIChatModel("scripted", provider=OpenAIProvider(base_url=os.environ["OPENAI_BASE_URL"], api_key="none"))
agent = Agent(model)
@agent.tool_plain
def weather(city: str) -> str:
    return f"rain in {city}"
async def main():
    print((await agent.run("What is the weather in Paris?")).output)
    async with agent.run_stream("What is the weather in Paris?") as stream:
        print(await stream.get_output())
asyncio.run(main())
"""


class ScriptedCore:
    """Calls the first tool it is offered with a city, and answers from its result; without tools, one sentence."""

    name, model, state, continues = "local", "scripted", "ready", True

    def __init__(self) -> None:
        self.engine = SimpleNamespace(stats=EngineStats(), state="ready", facts=None)
        self.streamed: list[bool] = []

    def check(self, request: Request) -> None:
        """Takes everything."""

    async def start(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do."""

    async def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        self.streamed.append(request.stream)
        yield Started(self.model)
        result = next((turn.text for turn in request.turns if turn.role == "tool"), None)
        if request.wants_tools and result is None:
            yield ToolCallDelta(0, "call_1", request.tools[0].name, "")
            for piece in ('{"ci', 'ty": "Pa', 'ris"}'):
                yield ToolCallDelta(0, arguments=piece)
            yield Finished("tool_calls")
        else:
            text = ANSWER if result is None else f"I hear of {result}."
            for i, word in enumerate(text.split(" ")):
                yield TextDelta(word if i == 0 else " " + word)
            yield Finished("stop")
        yield Usage(9, 9)


def interpreter(named: str | None) -> Path:
    """A Python that has the tools."""
    python = Path(named) if named else ROOT / ".venv-clients" / "bin" / "python"
    if not python.exists():
        print("making .venv-clients (this takes a minute)", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(python.parents[1])], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PACKAGES], check=True)
    return python


def trials(python: Path, url: str, home: Path) -> dict[str, dict[str, Any]]:
    """What each tool said, and whether it is what it should have said."""
    models = [{"model_id": "mine", "model_name": "scripted", "api_base": url, "api_key_name": "freehold"}]
    (home / "extra-openai-models.yaml").write_text(json.dumps(models))  # JSON is YAML
    environment = os.environ | {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": "none", "LLM_USER_PATH": str(home)}
    llm = [str(python.parent / "llm"), "-m", "mine", "--key", "none", "hello"]
    agreed = "I hear of rain in Paris."
    asked = {
        "llm, streamed": (llm, ANSWER),
        "llm, whole": ([*llm, "--no-stream"], ANSWER),
        "pydantic-ai, tool loop whole and streamed": ([str(python), "-c", AGENT], f"{agreed}\n{agreed}"),
    }
    found = {}
    for name, (words, wanted) in asked.items():
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120, check=False)
        good = done.returncode == 0 and done.stdout.strip() == wanted
        found[name] = {"pass": good, "said": done.stdout.strip(), "stderr": "" if good else done.stderr[-1500:]}
    return found


def run(python: Path) -> dict[str, dict[str, Any]]:
    """Serves, and lets every tool ask."""
    core, ports, stop = ScriptedCore(), [], asyncio.Event()
    settings, ready, loop = Settings(server=ServerSettings(port=0)), threading.Event(), asyncio.new_event_loop()

    with bind(settings.server) as listener, tempfile.TemporaryDirectory() as home:
        ports.append(listener.getsockname()[1])
        gateway = Gateway(core)  # type: ignore[arg-type]
        serving = serve_on(listener, settings, gateway, lambda line: ready.set(), stop)
        thread = threading.Thread(target=lambda: loop.run_until_complete(serving))
        thread.start()
        try:
            ready.wait(30)
            found = trials(python, f"http://127.0.0.1:{ports[0]}/v1", Path(home))
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join()
            loop.close()
    found["both ways were used"] = {"pass": {True, False} <= set(core.streamed), "said": "", "stderr": ""}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=os.environ.get("CLIENTS_PYTHON"))
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = run(interpreter(given.python))
    if given.json:
        print(json.dumps(found, indent=2))
    else:
        for name, result in found.items():
            print(f"{'pass' if result['pass'] else 'FAIL'}  {name}  {result['said']!r}{result['stderr']}")
    return int(not all(result["pass"] for result in found.values()))


if __name__ == "__main__":
    sys.exit(main())
