"""`freehold audit`: read an artefact, hold what it declares against what is in it, judge it for a purpose.

The whole way fits here: read -> reconcile -> judge -> report. Not legal advice: the rules are engineering encodings.
Knows no terminal.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from freehold.errors import UsageError
from freehold.progress import Progress
from freehold.provenance import artefact as artefacts
from freehold.provenance.artefact.facts import Artefact, Declaration, Detection
from freehold.provenance.knowledge import FILES, PURPOSES, knowledge
from freehold.provenance.reconcile import reconcile
from freehold.provenance.rules import Basis, Finding, Judgement, Obligation, judge

CONFLICTS = {"R3": "merged", "R6": "name", "R9": "base", "R10": "declared-differs-from-detected"}


@dataclass(frozen=True, slots=True)
class Report:
    """The result of an audit.

    Attributes:
        reference, kind, name, version: what was audited.
        purpose, verdict: the question and its answer.
        declared, detected: licences stated and found, with where.
        duties: what to do, each with its path.
        conflicts: where labels, parts and bases contradict each other.
        path: the findings that led to the verdict, strictest first.
        entities: SHA-256 of every licence text that was read, by file.
        terms: digest of each provider's terms that were looked at.
        knowledge: digest of the knowledge base that was used.
        notes: what a reader has to know.
    """

    reference: str
    kind: str
    name: str
    version: str
    purpose: str
    verdict: str
    declared: tuple[Declaration, ...]
    detected: tuple[Detection, ...]
    duties: tuple[Obligation, ...]
    conflicts: tuple[dict[str, str], ...]
    path: tuple[Finding, ...]
    entities: dict[str, str]
    terms: dict[str, str]
    knowledge: str
    notes: tuple[str, ...]


class BasisFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A signed agreement on file: the party that signed, the document beside this file, its digest, its last day."""

    party: str
    document: str
    sha256: str
    until: dt.date | None = None


def audit(
    reference: str,
    purpose: str = "commercial",
    *,
    offline: bool = False,
    bases: tuple[Basis, ...] = (),
    progress: Progress | None = None,
) -> Report:
    """Audit what a reference names.

    Args:
        reference: see `artefact.read`.
        purpose: one of PURPOSES.
        offline: never use the network.
        bases: signed agreements, from `basis`.
        progress: told about transfers.

    Raises:
        UsageError, StoreError, FormatError: it can't be read.
    """
    read = artefacts.read(reference, offline=offline, progress=progress)
    judgement = examine(read, purpose, bases)
    return report(read, judgement)


def examine(artefact: Artefact, purpose: str, bases: tuple[Basis, ...] = ()) -> Judgement:
    """Judge an artefact that was read; its lineage gains what was detected in it."""
    if purpose not in PURPOSES:
        raise UsageError(f"expected a purpose of {', '.join(PURPOSES)}, found {purpose!r}")
    return judge(artefact.lineage, purpose, found=reconcile(artefact), bases=bases)


def report(artefact: Artefact, judgement: Judgement) -> Report:
    """Facts and judgement in one."""
    return Report(
        reference=artefact.reference,
        kind=artefact.kind,
        name=artefact.name,
        version=artefact.version,
        purpose=judgement.purpose,
        verdict=judgement.verdict,
        declared=tuple(artefact.declared),
        detected=tuple(artefact.detected),
        duties=judgement.duties,
        conflicts=tuple(_conflicts(judgement)),
        path=judgement.findings,
        entities={item.file: item.sha256 for item in artefact.detected},
        terms=judgement.terms,
        knowledge=knowledge_digest(),
        notes=tuple(dict.fromkeys((*artefact.notes, *judgement.notes))),
    )


def basis(path: Path) -> Basis:
    """A signed agreement from a JSON file, whose document lies beside it and has the digest it says.

    Raises:
        UsageError: the file can't be read, or the document is another one.
    """
    try:
        found = msgspec.json.decode(path.read_bytes(), type=BasisFile)
        document = (path.parent / found.document).read_bytes()
    except OSError as error:
        raise UsageError(f"can't read {error.filename}: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path}: {error}", hint='expected {"party": "openai", "document": "contract.pdf", "sha256": "..."}'
        ) from None
    digest = hashlib.sha256(document).hexdigest()
    if digest != found.sha256.lower():
        raise UsageError(f"{found.document} has SHA-256 {digest}, but {path} says {found.sha256}")
    return Basis(found.party, digest, found.until)


def knowledge_digest() -> str:
    """SHA-256 over the knowledge base, which a verdict can be repeated with."""
    knowledge()  # complains when it is broken
    folder = resources.files("freehold.provenance.knowledge")
    sha = hashlib.sha256()
    for name in FILES:
        sha.update(folder.joinpath(f"{name}.yaml").read_bytes())
    return sha.hexdigest()


def _conflicts(judgement: Judgement) -> list[dict[str, Any]]:
    found = []
    for item in judgement.findings:
        differs = item.rule == "R10" and item.because.startswith("declared as")
        if item.rule in ("R3", "R9") or differs or (item.rule in ("R2", "R6") and item.verdict != "allow"):
            kind = CONFLICTS.get(item.rule, "share-alike")
            found.append({"kind": kind, "rule": item.rule, "because": item.because, "path": item.path})
    return [item for item in found if item["kind"] != "share-alike" or "may be shared only" in item["because"]]
