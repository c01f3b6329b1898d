"""Providers' terms by date: which version was in force when a text was generated (rule R11).

Knows the knowledge base only. The gateway's ledger asks `terms_in_force` and keeps the digest.
"""

from __future__ import annotations

import datetime as dt
import functools
import hashlib
import re
from dataclasses import dataclass

import msgspec

from freehold.provenance.knowledge import Citation, Licence, Provider, Version, knowledge


@dataclass(frozen=True, slots=True)
class Terms:
    """A provider's terms at a moment.

    Attributes:
        provider: as the knowledge base calls it.
        version: the entry that was in force.
        digest: SHA-256 of the entry's canonical JSON: names what was known of the terms, to the letter.
        stale: asked for a day after the entry was last checked, so newer terms may have come.
    """

    provider: str
    version: Version
    digest: str
    stale: bool

    @property
    def id(self) -> str:
        """The version's name, "openai-business-terms-2023-11-14"."""
        return self.version.id

    @property
    def trains(self) -> str:
        """Whether outputs may train other models: "free", "barred", or "contested" where a person has to read."""
        for trait, word in (("outputs-barred", "barred"), ("outputs-contested", "contested"), ("outputs-free", "free")):
            if trait in self.version.traits:
                return word
        return "contested"

    def as_licence(self) -> Licence:
        """The terms in the form that rules read."""
        version = self.version
        cite = Citation(version.document, version.url, version.since)
        return Licence(
            f"LicenseRef-{version.id}", version.document, "provider-terms", cite, version.traits, version.duties
        )


def terms_in_force(provider: str, at: dt.date | dt.datetime) -> Terms | None:
    """The terms of a provider at a time; None when the provider or that time is not in the knowledge base.

    Args:
        provider: its name ("openai"), or a model of it ("gpt-4o", "claude-...").
        at: when the text was generated; of a datetime the day in UTC counts (naive ones are taken as UTC).
    """
    known = provider_of(provider)
    if known is None:
        return None
    if isinstance(at, dt.datetime):
        at = (at if at.tzinfo else at.replace(tzinfo=dt.UTC)).astimezone(dt.UTC).date()
    for version in known.terms:
        if version.since <= at and (version.until is None or at <= version.until):
            return Terms(known.provider, version, _digest(version), at > version.checked)
    return None


def terms_before(provider: str, at: dt.date) -> Terms | None:
    """For a day before every version that is known: the oldest one, which was not in force yet; else None.

    Its bar becomes a doubt: what the terms of that day said is not encoded, so they are unknown; the next ones bar it.
    """
    known = versions(provider)
    if not known or at >= known[0].since:
        return None
    first = known[0]
    clause = first.traits.get("outputs-barred")
    doubt = f"terms before {first.since} are not encoded; those from that day bar it in {clause}"
    traits = {"unknown": f"terms before {first.since} are not encoded"} | (
        {"outputs-contested": doubt} if clause else {}
    )
    earlier = msgspec.structs.replace(
        first, id=f"{first.id}-or-earlier", document=f"{first.document} or earlier", traits=traits, duties=()
    )
    return Terms(provider, earlier, _digest(first), stale=False)


def versions(provider: str) -> tuple[Version, ...]:
    """Every known version of a provider's terms, oldest first."""
    known = provider_of(provider)
    return known.terms if known else ()


@functools.lru_cache(1024)
def provider_of(name: str) -> Provider | None:
    """The provider of that name or alias."""
    plain = name.strip().lower()
    for provider in knowledge().providers:
        if plain == provider.provider or any(re.fullmatch(alias, plain) for alias in provider.aliases):
            return provider
    return None


def _digest(version: Version) -> str:
    return hashlib.sha256(msgspec.json.encode(version, order="sorted")).hexdigest()
