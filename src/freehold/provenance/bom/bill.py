"""What every format is written from: the artefact, the judgement, and names and ids derived from them.

Knows none of the formats.
"""

from __future__ import annotations

import datetime as dt
import json
import uuid
from dataclasses import dataclass
from typing import Any

from freehold import __version__
from freehold.provenance.artefact.facts import Artefact
from freehold.provenance.licences import UNKNOWN, identifiers, lookup
from freehold.provenance.lineage import Link, Thing
from freehold.provenance.rules import Judgement

TOOL = f"freehold {__version__}"
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://spdx.org/spdxdocs/freehold")


@dataclass(frozen=True, slots=True)
class Bill:
    """An artefact that was read and judged.

    Attributes:
        artefact, judgement: facts and verdict (for redistribution).
        created: when the bill is written, UTC.
        supplier: who gives the artefact out; derived when empty.
        released: since when; None when nobody said.
        told_version, told_url: what to say where the artefact does not.
    """

    artefact: Artefact
    judgement: Judgement
    created: dt.datetime
    supplier: str = ""
    released: dt.datetime | None = None
    told_version: str = ""
    told_url: str = ""

    @property
    def version(self) -> str:
        """The artefact's version, "" when unknown."""
        return self.artefact.version or self.told_version

    @property
    def subject(self) -> Thing:
        """The artefact as a thing of its lineage."""
        return self.artefact.lineage.things[self.artefact.lineage.subject]

    @property
    def things(self) -> list[Thing]:
        """Everything it is made from, without itself, in order of the lineage."""
        reached = {path[-1].parent for path in self.artefact.lineage.paths() if path}
        return [thing for thing in self.artefact.lineage.things.values() if thing.id in reached]

    @property
    def links(self) -> list[Link]:
        """The links between those."""
        known = {self.subject.id, *(thing.id for thing in self.things)}
        return [link for link in self.artefact.lineage.links if link.child in known and link.parent in known]

    @property
    def time(self) -> str:
        """`created` as the formats want it."""
        return stamp(self.created)

    @property
    def supplied_by(self) -> str:
        """Who gives the artefact out: as told, as its metadata says, or the hub's organization; "" when unknown."""
        name = self.artefact.name
        said = str(self.artefact.facts.get("author") or "")
        return self.supplier or said or (name.split("/", 1)[0] if "/" in name else "")

    @property
    def url(self) -> str:
        """Where it comes from, as far as that is known."""
        said = str(self.artefact.facts.get("url") or "")
        if self.told_url:
            return self.told_url
        if said.startswith(("https://", "http://")):
            return said
        if self.artefact.kind == "software" and self.artefact.version:
            return self.purl
        return f"https://huggingface.co/{self.artefact.name}" if "/" in self.artefact.name else ""

    @property
    def purl(self) -> str:
        """A package's address whatever its index is (https://github.com/package-url/purl-spec)."""
        return f"pkg:pypi/{self.artefact.name.lower().replace('_', '-')}@{self.artefact.version}"

    def id(self, *parts: str) -> uuid.UUID:
        """An id that the same facts get again."""
        return uuid.uuid5(NAMESPACE, "\n".join((self.artefact.name, self.artefact.version, *parts)))

    def found_in(self, thing: Thing) -> list[str]:
        """Licences that were detected in a thing although it declares others."""
        found = [item for item in self.judgement.findings if item.rule == "R10" and item.because.startswith("declared")]
        return list(dict.fromkeys(item.licence for item in found if f"> {thing.id} >" in f"> {item.path} >"))

    def concluded(self, thing: Thing) -> str | None:
        """The expression that was judged: declared and found together; None when nothing is known."""
        parts = ([thing.licence] if thing.licence else []) + self.found_in(thing)
        return " AND ".join(f"({part})" if " OR " in part and len(parts) > 1 else part for part in parts) or None


def stamp(moment: dt.datetime) -> str:
    """ISO 8601 in UTC, whole seconds."""
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def spdx_expression(expression: str | None) -> str | None:
    """An expression of SPDX identifiers and LicenseRefs; None when there is nothing to say."""
    return None if expression is None or identifiers(expression) in ([], [UNKNOWN]) else expression


def licence_url(identifier: str) -> str:
    """Where a licence can be read."""
    return lookup(identifier).cite.url


def pretty(value: Any) -> str:
    """JSON for people, ending in a line feed."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
