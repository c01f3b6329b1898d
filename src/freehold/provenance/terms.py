"""What the ledger asks about the terms a backend answers under, at the time it answers (R11).

The knowledge itself (licences, providers' terms by date) is data of its own; here it becomes one word for each source.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

from freehold.provenance import licences
from freehold.provenance.knowledge import FREE_CLASSES, Licence
from freehold.provenance.provider_terms import terms_in_force

Training = Literal["allowed", "barred", "unknown"]

_ORDER: Sequence[Training] = ("allowed", "unknown", "barred")
_CONDITIONS = frozenset(
    {"outputs-contested", "outputs-reach", "outputs-named", "nc", "use-restricted", "unknown", "unread"}
)
"""Traits that leave something to read, to name or to pass on: not free for everybody's training."""


@dataclass(frozen=True, slots=True)
class Source:
    """Who wrote something.

    Args:
        local: the engine on this machine.
        provider: its name or the host of its address; empty for the local engine.
        weights: digest of the model's files, of the local engine.
        licence: that its model card declares, SPDX or None.
    """

    local: bool
    provider: str
    model: str
    weights: str | None = None
    licence: str | None = None


@dataclass(frozen=True, slots=True)
class Terms:
    """What was in force.

    Args:
        training: whether others may be trained on what the source writes.
        digest: SHA-256 of the terms' or licence's text; None when no text is known.
        why: where that is from, in a few words.
    """

    training: Training
    digest: str | None
    why: str


class TermsInForce(Protocol):
    """Looks up the terms of a source at a time."""

    def __call__(self, source: Source, at: datetime) -> Terms: ...  # noqa: D102


def known_terms(source: Source, at: datetime) -> Terms:
    """What the knowledge base has: a provider's terms of that day, open weights by their declared licence.

    What nobody has written down is unknown (R10), and so is what somebody would have to read first.
    """
    return _of_weights(source.licence) if source.local else _of_provider(source.provider, at)


def _of_provider(provider: str, at: datetime) -> Terms:
    found = terms_in_force(provider, at)
    if found is None:
        return Terms("unknown", None, f"no terms of {provider or 'this provider'} are known for {at:%Y-%m-%d}")
    training: Training = "allowed" if found.trains == "free" else "barred" if found.trains == "barred" else "unknown"
    later = f", last checked {found.version.checked}" if found.stale else ""
    return Terms(training, found.digest, f"{found.version.document}, in force from {found.version.since}{later}")


@functools.lru_cache(256)  # asked for each exchange of the local engine
def _of_weights(declared: str | None) -> Terms:
    expression = licences.normalize(declared)
    if expression is None:
        return Terms("unknown", None, "the model declares no licence that is known")
    choices = [[licences.lookup(name) for name in choice] for choice in licences.alternatives(expression)]
    best = min((_strictest(choice) for choice in choices), key=_ORDER.index)
    return Terms(best, None, f"the model declares {expression}")


def _strictest(together: Sequence[Licence]) -> Training:
    """Of licences that all apply."""
    return max((_on_outputs(licence) for licence in together), key=_ORDER.index, default="unknown")


def _on_outputs(licence: Licence) -> Training:
    """What a licence of weights says about training on what the model writes."""
    if "outputs-barred" in licence.traits:
        return "barred"
    if _CONDITIONS & licence.traits.keys():
        return "unknown"
    free = "outputs-free" in licence.traits or licence.cls in FREE_CLASSES
    return "allowed" if free else "unknown"
