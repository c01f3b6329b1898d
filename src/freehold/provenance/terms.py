"""What the ledger asks about the terms a backend answers under, and what it takes when nobody knows better.

The knowledge itself (licences, providers' terms by date) is data of its own; whoever has it hands over a function of this
shape. The default knows a few licences of open weights by name and nothing of any provider.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

Training = Literal["allowed", "barred", "unknown"]

OPEN = frozenset({"apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "openmdw-1.0", "isc"})
"""Licences (SPDX) that say nothing against training on what the model writes."""


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


def default_terms(source: Source, at: datetime) -> Terms:
    """Open weights by their declared licence; everything else is unknown (R10)."""
    if not source.local:
        return Terms("unknown", None, f"no terms of {source.provider or 'this provider'} are known")
    licence = (source.licence or "").lower()
    if licence in OPEN:
        return Terms("allowed", None, f"the model declares {licence}")
    return Terms("unknown", None, f"the model declares {licence}" if licence else "the model declares no licence")
