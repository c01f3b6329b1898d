"""Other people's tools against the gateway, with nothing changed but the base URL.

    python bench/clients.py [--python PYTHON] [--claude CLAUDE] [--codex CODEX] [--json]

`llm` (streamed and whole), `pydantic-ai` and the OpenAI Agents SDK (agents that call a tool and answer from its result)
run in an environment of their own, `.venv-clients` unless `--python` names an interpreter that has them; it is made with
pip when it is not there. Claude Code and Codex (streaming tool loops that read a file) are tried when an option or the
PATH has them: `npm install @anthropic-ai/claude-code @openai/codex`. The gateway is a real server; a script stands in place
of the engine, so that each tool's answer is known. Exit code 1 when one of them does not get it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from freehold.engine.request import EngineStats
from freehold.gateway.conversation import Event, Finished, Request, Started, TextDelta, ToolCallDelta, Usage
from freehold.gateway.server import bind, serve_on
from freehold.gateway.service import Gateway
from freehold.settings import ServerSettings, Settings

ROOT = Path(__file__).parent.parent
PACKAGES = ("llm", "pydantic-ai-slim[openai]", "openai-agents")
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


AGENTS = """
import asyncio
from agents import Agent, Runner, function_tool, set_tracing_disabled, set_default_openai_api, SQLiteSession
set_tracing_disabled(True)
@function_tool
def weather(city: str) -> str:
    return f"rain in {city}"
async def main():
    for api in ("responses", "chat_completions"):
        set_default_openai_api(api)
        agent = Agent(name="reporter", instructions="Be brief.", model="scripted", tools=[weather])
        print((await Runner.run(agent, "What is the weather in Paris?")).final_output)
        run = Runner.run_streamed(agent, "What is the weather in Paris?")
        async for event in run.stream_events():
            pass
        print(run.final_output)
    set_default_openai_api("responses")
    agent = Agent(name="reporter", model="scripted")
    first = await Runner.run(agent, "hello")
    again = await Runner.run(agent, "hello again", previous_response_id=first.last_response_id)
    print(again.final_output)
asyncio.run(main())
"""


NOTE = "rain in Paris"
READERS: dict[str, Callable[[str], dict[str, Any]]] = {
    "Read": lambda path: {"file_path": path},
    "exec_command": lambda path: {"cmd": f"cat {path}"},
    "shell": lambda path: {"command": ["cat", path]},
    "shell_command": lambda path: {"command": f"cat {path}"},
}
"""Tools of coding agents by which a file can be read."""


class ScriptedCore:
    """Calls a tool it is offered, and answers from its result; without tools, one sentence.

    The tool is the one that reads files, when the question names a file, else the first, which is told a city.
    """

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
            name, arguments = self._call(request)
            if name in READERS:
                yield TextDelta("I'll look.")  # as models do; pydantic-ai would take it for the answer
            yield ToolCallDelta(0, "call_1", name, "")
            for i in range(0, len(arguments), 7):
                yield ToolCallDelta(0, arguments=arguments[i : i + 7])
            yield Finished("tool_calls")
        else:
            heard = NOTE if result is not None and NOTE in result else result
            text = ANSWER if heard is None else f"I hear of {heard}."
            for i, word in enumerate(text.split(" ")):
                yield TextDelta(word if i == 0 else " " + word)
            yield Finished("stop")
        yield Usage(9, 9)

    @staticmethod
    def _call(request: Request) -> tuple[str, str]:
        said = " ".join(turn.text for turn in request.turns if turn.role == "user")
        file = re.search(r"/\S+/note\.txt", said)
        for tool in request.tools if file else ():
            if tool.name in READERS:
                return tool.name, json.dumps(READERS[tool.name](file.group()))  # type: ignore[union-attr]
        return request.tools[0].name, json.dumps({"city": "Paris"})


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
        "OpenAI Agents SDK, tool loops over Responses and Chat, a stored conversation": (
            [str(python), "-c", AGENTS],
            "\n".join([agreed] * 4 + [ANSWER]),
        ),
    }
    found = {}
    for name, (words, wanted) in asked.items():
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120, check=False)
        good = done.returncode == 0 and done.stdout.strip() == wanted
        found[name] = {"pass": good, "said": done.stdout.strip(), "stderr": "" if good else done.stderr[-1500:]}
    return found


def claude_code(claude: str, url: str, home: Path) -> dict[str, Any]:
    """Claude Code reads a file."""
    environment = {"CLAUDE_CONFIG_DIR": str(home / "claude"), "ANTHROPIC_API_KEY": "none"}
    environment |= {"ANTHROPIC_BASE_URL": url.removesuffix("/v1")}
    environment |= dict.fromkeys(("ANTHROPIC_MODEL", "ANTHROPIC_SMALL_FAST_MODEL"), "scripted")
    environment |= dict.fromkeys(("DISABLE_AUTOUPDATER", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC"), "1")
    return coding_agent([claude, "-p", "--allowedTools", "Read", "--"], environment, home)


def codex(program: str, url: str, home: Path) -> dict[str, Any]:
    """Codex reads a file."""
    (home / "codex").mkdir()
    lines = ['model = "scripted"', 'model_provider = "mine"', "[model_providers.mine]", 'name = "mine"']
    lines += [f'base_url = "{url}"', 'wire_api = "responses"', 'env_key = "OPENAI_API_KEY"']
    (home / "codex" / "config.toml").write_text("\n".join(lines) + "\n")
    environment = {"CODEX_HOME": str(home / "codex"), "OPENAI_API_KEY": "none"}
    return coding_agent([program, "exec", "--skip-git-repo-check", "-s", "danger-full-access"], environment, home)


def coding_agent(words: list[str], environment: dict[str, str], home: Path) -> dict[str, Any]:
    """A coding agent with a home of its own, so that nobody's settings or account come into it."""
    note = home / "note.txt"
    note.write_text(NOTE + "\n")
    environment |= {"PATH": os.environ["PATH"], "HOME": str(home)}
    words = [*words, f"What does {note} say?"]
    done = subprocess.run(
        words,
        env=environment,
        cwd=home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    good = done.returncode == 0 and done.stdout.strip() == f"I hear of {NOTE}."
    return {"pass": good, "said": done.stdout.strip(), "stderr": "" if good else done.stderr[-1500:]}


def run(python: Path, agents: dict[str, tuple[Callable[..., dict[str, Any]], str | None]]) -> dict[str, dict[str, Any]]:
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
            url = f"http://127.0.0.1:{ports[0]}/v1"
            found = trials(python, url, Path(home))
            for name, (agent, program) in agents.items():
                if program is not None:
                    found[f"{name}, streaming tool loop"] = agent(program, url, Path(home))
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join()
            loop.close()
    found["both ways were used"] = {"pass": {True, False} <= set(core.streamed), "said": "", "stderr": ""}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=os.environ.get("CLIENTS_PYTHON"))
    parser.add_argument("--claude", default=shutil.which("claude"), help="Claude Code; not tried when it is not there")
    parser.add_argument("--codex", default=shutil.which("codex"), help="Codex; not tried when it is not there")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    agents = {"Claude Code": (claude_code, given.claude), "Codex": (codex, given.codex)}
    found = run(interpreter(given.python), agents)
    if given.json:
        print(json.dumps(found, indent=2))
    else:
        for name, result in found.items():
            print(f"{'pass' if result['pass'] else 'FAIL'}  {name}  {result['said']!r}{result['stderr']}")
    return int(not all(result["pass"] for result in found.values()))


if __name__ == "__main__":
    sys.exit(main())
