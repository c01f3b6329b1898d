"""The frame of the command line: the table of verbs, lazy loading, errors into words and exit codes.

It knows the verbs by name only. It is not in the package's `__init__`, where verbs named `list` and `eval` would shadow
the builtins as soon as they are imported.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from freehold import __version__
from freehold.cli.output import printable
from freehold.errors import FreeholdError, UsageError

__all__ = ["VERBS", "app", "main"]

# One line each, kept here so that --help need not import a verb; tests hold them equal to the verbs' own first lines.
VERBS = {
    "run": "Answer one prompt, streamed to stdout.",
    "chat": "Talk with a model.",
    "serve": "Serve the OpenAI API from this machine.",
    "pull": "Fetch a model into the store.",
    "list": "List the models in the store.",
    "show": "Show what is known of a model.",
    "rm": "Remove a model from the store.",
    "compress": "Compress a model, spending a budget of bits where they count, and report what it cost.",
    "bench": "Measure a model's speed against this machine's limits.",
    "eval": "Compare compressed models with their original.",
    "drill": "Practise the loss of each provider, and report who answered.",
    "route": "Say which backends would be asked, in which order and why.",
    "audit": "Judge the licences of a model, data set or package for a purpose.",
    "bom": "Write a bill of materials of a model, data set or package.",
    "key": "Make, limit and revoke keys for those who share this gateway.",
    "cost": "Report what was spent, and what it would have cost elsewhere.",
    "ledger": "Show, verify and prove what was recorded.",
    "export": "Write recorded chats as training data, without what terms forbid.",
    "trace": "Find where a text may be from, in a corpus of yours.",
    "certify": "Judge whether an endpoint is interchangeable, and sign a certificate.",
    "verify": "Judge a certificate again, offline.",
    "doctor": "Check this machine and say what was chosen and why.",
    "config": "Show, write and check the settings.",
    "completion": "Print the completion script of a shell.",
}
BUG, INTERRUPTED, BROKEN_PIPE = 70, 130, 141


class Verbs(click.Group):
    """A group that imports a verb's module (`freehold.cli.<verb>`, its `command`) when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every verb, in the order of the table."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb's command, or None."""
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"freehold.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The verbs with their lines from the table, without importing them."""
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, but an unknown verb brings the nearest known one along."""
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], VERBS, n=1)
            hint = f"did you mean `freehold {near[0]}`?" if near else "`freehold --help` lists the verbs"
            raise UsageError(f"no verb {args[0]!r}", hint=hint)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb; a reader that went away ends it without a word."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            # Python would complain again when it flushes stdout at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise click.exceptions.Exit(BROKEN_PIPE) from None
        return result


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, "-V", "--version", message="freehold %(version)s")
@click.option("--debug", is_flag=True, envvar="FREEHOLD_DEBUG", help="Show the traceback when something goes wrong.")
def app(debug: bool) -> None:
    """Own your AI instead of renting it.

    Compress an open model, serve it from your own machine behind the OpenAI API, and keep closed providers as a
    standby.
    """


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code.

    Args:
        argv: words after the program's name; sys.argv's by default.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = app.main(args=words, prog_name="freehold", standalone_mode=False)
    except click.Abort:
        code = INTERRUPTED
    except click.exceptions.NoArgsIsHelpError as error:  # its message is the whole help, as it should look
        click.echo(error.format_message(), err=True)
        code = error.exit_code
    except click.ClickException as error:
        code = _complain(error.format_message(), _hint(error), error.exit_code, words)
    except FreeholdError as error:
        code = _complain(error.message, error.hint, error.exit_code, words)
    except Exception as error:
        hint = (
            "this is a bug of ours; please report it with the output of the same command run as `freehold --debug ...`"
        )
        code = _complain(f"unexpected {type(error).__name__}: {error}", hint, BUG, words)
    sys.exit(code if isinstance(code, int) else 0)


def _hint(error: click.ClickException) -> str | None:
    context = getattr(error, "ctx", None)
    return f"`{context.command_path} --help` explains the options" if context else None


def _complain(message: str, hint: str | None, code: int, words: list[str]) -> int:
    """Write an error as `error:` and `hint:` lines (to stderr) and give its exit code back."""
    if "--debug" in words or os.environ.get("FREEHOLD_DEBUG", "") not in ("", "0", "false"):
        import traceback

        traceback.print_exc()
    # Messages quote names from files and servers: one line each, and nothing that could drive the terminal.
    lines = [f"error: {printable(message)}"] + ([f"hint: {printable(hint)}"] if hint else [])
    try:
        click.echo("\n".join(lines), err=True)
    except OSError:  # stderr is closed: the exit code is all that is left to say
        return code
    return code
