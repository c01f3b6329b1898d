"""Verbs that make models put that into the ledger; what can't be recorded is said, not refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from freehold.cli.options import load_settings
from freehold.cli.output import say
from freehold.errors import FreeholdError
from freehold.settings import Settings


def on_record(write: Callable[[Settings], str], config: Path | None = None) -> str | None:
    """The id of the record that `write` made; None when the ledger is off or can't be written."""
    settings = load_settings(config)
    if not settings.provenance.ledger:
        return None
    try:
        return write(settings)
    except FreeholdError as error:
        say(f"warning: this is not in the ledger: {error.message}")
        return None
