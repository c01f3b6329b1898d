"""Exchanges as the gateway hands them over, made by hand, and terms for their sources."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from freehold.database import Database
from freehold.provenance.exchanges import Begun, Ended, Message, Part
from freehold.provenance.ledger import Ledger
from freehold.provenance.records import new_id
from freehold.provenance.terms import Source, Terms
from freehold.settings import ProvenanceSettings

Turns = Sequence[tuple[str, str]]
NOW = 1_750_000_000.0


def terms(source: Source, at: datetime) -> Terms:
    """The local engine and `deepseek` may be learned from, `openai` may not; nothing is known of others."""
    if source.local or source.provider == "deepseek":
        return Terms("allowed", "a" * 64, "a test says so")
    if source.provider == "openai":
        return Terms("barred", "b" * 64, "its terms bar training")
    return Terms("unknown", None, "no terms are known")


def part(who: str = "local", **given: Any) -> Part:
    local = who == "local"
    model = "tiny" if local else f"{who}-large"
    values = {"request_id": None if local else f"chatcmpl-{who}", "heard": True, "finished": True} | given
    return Part(who, local, "" if local else who, model, round(NOW * 1_000_000), **values)


def exchange(
    prompt: str | Turns,
    answer: str | Message = "An answer.",
    *parts: Part,
    who: str = "local",
    outcome: Any = "finished",
    **given: Any,
) -> tuple[Begun, Ended]:
    """An exchange: a prompt (one user's turn, or (role, text) pairs), its answer, and who wrote it."""
    turns = [("user", prompt)] if isinstance(prompt, str) else prompt
    messages = tuple(given.pop("messages", ())) or tuple(Message(role, text) for role, text in turns)
    said = answer if isinstance(answer, Message) else Message("assistant", answer)
    did = parts or (part(who),)
    at = round(NOW * 1_000_000)
    begun = Begun(
        new_id(NOW), given.pop("request_id", "req-1"), at, given.pop("kind", "chat"), "openai_chat", "tiny", "",
        messages, given.pop("tools", ""), (),
    )  # fmt: skip
    finish = given.pop("finish", ("stop",))
    ended = Ended(begun.id, at + 1000, outcome, given.pop("answers", (said,)), finish, did)
    assert not given, given
    return begun, ended


@contextmanager
def ledger(database: Database, directory: Path, *, keep: bool = True, **settings: Any) -> Iterator[Ledger]:
    """An open ledger that keeps texts and signs no head by itself."""
    chosen = ProvenanceSettings(**({"keep_content": keep, "head_seconds": 0.0} | settings))
    opened = Ledger(database, chosen, directory=directory, terms=terms, now=lambda: NOW).open()
    try:
        yield opened
    finally:
        opened.close()


def add(ledger: Ledger, *exchanges: tuple[Begun, Ended]) -> list[str]:
    """Hands exchanges over, waits until they are written, and gives their ids."""
    for begun, ended in exchanges:
        ledger.begin(begun)
        ledger.end(ended)
    ledger.flush()
    return [begun.id for begun, _ in exchanges]


def body(ledger: Ledger, id: str) -> dict[str, Any]:
    """A record's JSON."""
    from freehold.provenance.reading import find

    return ledger.database.now(lambda t: find(t, id)).body


def state(ledger: Ledger, id: str) -> str:
    """What an exchange was judged."""
    found: str = body(ledger, id)["training"]["state"]
    return found
