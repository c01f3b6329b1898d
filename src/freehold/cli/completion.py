"""`freehold completion`: the completion script of a shell."""

from __future__ import annotations

import click

from freehold.cli.output import emit


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the completion script of a shell.

    For bash: freehold completion bash > ~/.local/share/bash-completion/completions/freehold
    """
    from click.shell_completion import get_completion_class

    from freehold.cli import app

    completer = get_completion_class(shell)
    if completer is None:  # a choice click does not know would be a bug in the list above
        raise LookupError(shell)
    emit(completer(app, {}, "freehold", "_FREEHOLD_COMPLETE").source())
