"""What was read from an artefact: plain facts, no judgement.

Knows no files and no formats.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from freehold.provenance.lineage import Lineage


@dataclass(frozen=True, slots=True)
class Declaration:
    """A licence somebody states: as written, as an expression (None: nothing we know), and where."""

    label: str
    licence: str | None
    where: str


@dataclass(frozen=True, slots=True)
class Detection:
    """A licence found in a file.

    Attributes:
        licence: SPDX identifier or LicenseRef.
        how: "text", "similar", "reference" or "tag".
        score: containment of the licence's words, 1.0 for names and tags.
        file: path inside the artefact.
        sha256: of the file's exact bytes: the entity that was read.
        quote: words that named the licence.
        near: variants that the same words fit nearly as well.
        primary: the file is the artefact's own LICENSE, not one of a part of it.
    """

    licence: str
    how: str
    score: float
    file: str
    sha256: str
    quote: str = ""
    primary: bool = False
    near: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class File:
    """A file of the artefact; `sha256` is None where it was not read whole."""

    name: str
    size: int
    sha256: str | None = None


@dataclass(slots=True)
class Artefact:
    """Everything that was read of one reference.

    Attributes:
        reference: as asked for.
        kind: "model", "dataset" or "software".
        name, version: the artefact's own, version may be empty.
        lineage: the subject and what it says it was made from.
        declared, detected: licences stated and found.
        files: what it consists of.
        copyrights: lines of its legal files that say whose it is.
        facts: of its card or metadata, for bills of materials (description, author, url, language, architecture ...).
        notes: what a reader has to know, of what could not be read for instance.
        unread: why files that may hold licences were not read: such an artefact is not allowed without a person.
    """

    reference: str
    kind: str
    name: str
    lineage: Lineage
    version: str = ""
    declared: list[Declaration] = field(default_factory=list)
    detected: list[Detection] = field(default_factory=list)
    files: list[File] = field(default_factory=list)
    copyrights: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
