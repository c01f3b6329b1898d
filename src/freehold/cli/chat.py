"""`freehold chat`: a conversation in the terminal, or line by line from a pipe."""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import click

from freehold.cli.asking import answer, make_request, open_gateway, request_flags, turn, writer
from freehold.cli.options import with_settings
from freehold.cli.output import printable, say
from freehold.errors import FreeholdError
from freehold.settings import Settings

if TYPE_CHECKING:
    import asyncio

    from freehold.gateway import Gateway
    from freehold.gateway.conversation import Turn

HELP = """/help           this list
/system TEXT    set the system message (none = remove it) and begin anew
/clear          forget the conversation, keep the system message
/exit, /bye     leave; so does Ctrl-D. Ctrl-C stops an answer"""


@click.command("chat")
@with_settings("engine.model", "engine.threads", "engine.isa", "engine.max_context", "cost")
@request_flags
def command(settings: Settings, **values: Any) -> None:
    """Talk with a model.

    /help lists what can be typed besides text. Piped in, each line is a message, and an error ends the conversation.
    """
    import asyncio  # here, so that --help stays light

    terminal = sys.stdin.isatty()
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        gateway = runner.run(stack.enter_async_context(open_gateway(settings)))
        try:
            if terminal:
                import readline  # noqa: F401 - importing it gives input() its line editing and history

                say(f"{printable(settings.engine.model)}; /help for help")
            Chat(runner, gateway, settings, values, forgiving=terminal).loop()
        finally:
            runner.run(stack.aclose())


class Chat:
    """The conversation so far, and how it goes on.

    Args:
        forgiving: go on after an answer that failed (a person is watching) instead of raising.
    """

    def __init__(
        self, runner: asyncio.Runner, gateway: Gateway, settings: Settings, values: dict[str, Any], *, forgiving: bool
    ) -> None:
        self.runner = runner
        self.gateway = gateway
        self.settings = settings
        self.values = values
        self.forgiving = forgiving
        self.system: str | None = values["system"]
        self.turns: list[Turn] = []

    def loop(self) -> None:
        """Read a line, obey or answer it, until the end."""
        while (line := self._read()) is not None:
            if line.startswith("/"):
                if not self._obey(line):
                    return
            elif line.strip():
                self._answer(line)

    def _read(self) -> str | None:
        if not self.forgiving:
            line = sys.stdin.readline()
            return line.rstrip("\n") if line else None
        try:
            return input("> ")
        except EOFError:
            say("")
            return None

    def _obey(self, line: str) -> bool:
        """Do what a /command says; False to leave."""
        name, _, rest = line.partition(" ")
        if name in ("/exit", "/bye", "/quit"):
            return False
        if name == "/clear":
            self.turns.clear()
        elif name == "/system":
            self.system = rest.strip() or None
            self.turns.clear()
        elif name == "/help":
            say(HELP)
        else:
            say(f"no command {printable(name)}\n{HELP}")
        return True

    def _answer(self, line: str) -> None:
        """One exchange; it becomes part of the conversation only when it is complete."""
        question = turn("user", line)
        first = (turn("system", self.system),) if self.system else ()
        request = make_request(self.settings, (*first, *self.turns, question), self.values)
        try:
            given = self.runner.run(answer(self.gateway, request, self.settings, writer()))
        except KeyboardInterrupt:
            if not self.forgiving:
                raise
            say("\n(stopped; this exchange is forgotten)")
        except FreeholdError as error:
            if not self.forgiving:
                raise
            say(f"\nerror: {printable(error.message)}" + (f"\nhint: {printable(error.hint)}" if error.hint else ""))
        else:
            self.turns += [question, turn("assistant", given.text)]
            sys.stdout.write("\n")
            sys.stdout.flush()
            say(given.line())
