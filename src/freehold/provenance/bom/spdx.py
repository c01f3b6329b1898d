"""SPDX 3.0.1 as JSON-LD, with the AI, Dataset and SimpleLicensing profiles.

https://spdx.github.io/spdx-spec/v3.0.1/. The AI and Dataset profiles ask for supplier, version, release time and
place of download; a profile is claimed only when the facts it asks for are there, and a comment says what is missing.
Knows no files and no terminal.
"""

from __future__ import annotations

from typing import Any

from freehold.provenance.bom.bill import TOOL, Bill, pretty, spdx_expression, stamp
from freehold.provenance.lineage import Thing

CONTEXT = "https://spdx.org/rdf/3.0.1/spdx-context.jsonld"
_KINDS = {"model": "ai_AIPackage", "dataset": "dataset_DatasetPackage", "record": "dataset_DatasetPackage"}
_PURPOSES = {"model": "model", "dataset": "data", "record": "data", "software": "library"}
_RELATIONS = {
    "contains": ("contains", False),
    "trained_on": ("trainedOn", False),
    "generated_by": ("generates", True),
    "follows": ("other", False),
    "quotes": ("other", False),
}
"""Relation to SPDX relationship, and whether it points the other way; all others descend from their parent."""


def render(bill: Bill) -> str:
    """The document."""
    return pretty({"@context": CONTEXT, "@graph": _Graph(bill).build()})


class _Graph:
    """Collects elements; every one carries the same creation information."""

    def __init__(self, bill: Bill) -> None:
        self.bill = bill
        self.base = f"https://spdx.org/spdxdocs/freehold-{bill.id('spdx', bill.time)}"
        self.elements: list[dict[str, Any]] = []
        self.licences: dict[str, str] = {}

    def build(self) -> list[dict[str, Any]]:
        bill = self.bill
        tool = self._add("Tool", "tool", name=TOOL)
        agent = self._add("SoftwareAgent", "agent", name=TOOL)
        creation = {
            "type": "CreationInfo",
            "@id": "_:creation",
            "specVersion": "3.0.1",
            "created": bill.time,
            "createdBy": [agent],
            "createdUsing": [tool],
        }
        ids = {thing.id: self._thing(thing) for thing in [bill.subject, *bill.things]}
        for thing in [bill.subject, *bill.things]:
            self._licensed(ids[thing.id], thing)
        for link in bill.links:
            self._related(ids[link.child], link.relation, ids[link.parent], link.evidence)
        self._files(ids[bill.subject.id])
        return [creation, self._document(ids[bill.subject.id]), *self.elements]

    def _document(self, root: str) -> dict[str, Any]:
        profiles, comment = self._profiles()
        document = {
            "type": "SpdxDocument",
            "spdxId": f"{self.base}#document",
            "creationInfo": "_:creation",
            "name": f"{self.bill.artefact.name} {self.bill.version}".strip(),
            "dataLicense": self._expression("CC0-1.0"),
            "rootElement": [root],
            "profileConformance": profiles,
            "element": [element["spdxId"] for element in self.elements],
        }
        return document | ({"comment": comment} if comment else {})

    def _profiles(self) -> tuple[list[str], str]:
        """What the document conforms to, and what is missing for more."""
        bill = self.bill
        profiles = ["core", "software", "simpleLicensing"]
        asked = {
            "supplier": bill.supplied_by,
            "version": bill.version,
            "release time": bill.released,
            "place of download": bill.url,
        }
        missing = [name for name, value in asked.items() if not value]
        profile = {"model": "ai", "dataset": "dataset"}.get(bill.artefact.kind)
        if profile and not missing:
            return [*profiles, profile], ""
        if profile:
            return profiles, f"conformance to the {profile} profile is not claimed: unknown {', '.join(missing)}"
        return profiles, ""

    def _thing(self, thing: Thing) -> str:
        """One package, or the agent behind outputs."""
        bill = self.bill
        if thing.kind == "provider":
            return self._add("Organization", f"provider-{bill.id(thing.id)}", name=thing.id)
        kind = _KINDS.get(thing.kind, "software_Package")
        fields: dict[str, Any] = {
            "name": thing.id,
            "software_primaryPurpose": _PURPOSES.get(thing.kind, "other"),
        }
        if thing.evidence:
            fields["comment"] = f"licence read from: {thing.evidence}"
        if kind == "dataset_DatasetPackage":
            fields["dataset_datasetType"] = ["text" if _is_text(bill, thing) else "noAssertion"]
        if thing.id == bill.subject.id:
            fields |= self._own(kind)
        return self._add(kind, f"thing-{bill.id(thing.id)}", **fields)

    def _own(self, kind: str) -> dict[str, Any]:
        """What is known of the subject only."""
        bill, facts = self.bill, self.bill.artefact.facts
        found: dict[str, Any] = {
            "software_packageVersion": bill.version,
            "software_downloadLocation": bill.url,
            "description": facts.get("description"),
            "releaseTime": stamp(bill.released) if bill.released else None,
            "software_copyrightText": "\n".join(dict.fromkeys(bill.artefact.copyrights)),
        }
        if bill.supplied_by:
            found["suppliedBy"] = self._add("Organization", "supplier", name=bill.supplied_by)
        if kind == "ai_AIPackage":
            found["ai_typeOfModel"] = [facts["architecture"]] if facts.get("architecture") else None
            found["ai_domain"] = [facts["task"]] if facts.get("task") else None
            found["ai_informationAboutTraining"] = "; ".join(facts.get("datasets") or ()) or None
        if kind == "dataset_DatasetPackage":
            found["dataset_datasetSize"] = facts.get("records") or None
        return {key: value for key, value in found.items() if value}

    def _licensed(self, element: str, thing: Thing) -> None:
        """Declared and concluded licence; without either nothing is said, which is NoAssertion."""
        declared, concluded = spdx_expression(thing.licence), spdx_expression(self.bill.concluded(thing))
        for relation, expression in (("hasDeclaredLicense", declared), ("hasConcludedLicense", concluded)):
            if expression:
                self._relationship(element, relation, self._expression(expression))

    def _expression(self, expression: str) -> str:
        if expression not in self.licences:
            name = f"licence-{self.bill.id('licence', expression)}"
            self.licences[expression] = self._add(
                "simplelicensing_LicenseExpression", name, simplelicensing_licenseExpression=expression
            )
        return self.licences[expression]

    def _related(self, child: str, relation: str, parent: str, evidence: str) -> None:
        kind, turned = _RELATIONS.get(relation, ("descendantOf", False))
        one, other = (parent, child) if turned else (child, parent)
        self._relationship(one, kind, other, f"{relation}: {evidence}" if evidence else relation)

    def _files(self, root: str) -> None:
        """Files whose digest is known."""
        for file in self.bill.artefact.files:
            if file.sha256:
                digest = {"type": "Hash", "algorithm": "sha256", "hashValue": file.sha256}
                name = f"file-{self.bill.id('file', file.name)}"
                self._relationship(
                    root, "contains", self._add("software_File", name, name=file.name, verifiedUsing=[digest])
                )

    def _relationship(self, one: str, kind: str, other: str, comment: str = "") -> None:
        fields: dict[str, Any] = {"from": one, "relationshipType": kind, "to": [other]}
        if comment:
            fields["comment"] = comment
        self._add("Relationship", f"relationship-{self.bill.id(one, kind, other, comment)}", **fields)

    def _add(self, kind: str, tag: str, **fields: Any) -> str:
        identifier = f"{self.base}#{tag}"
        if all(element["spdxId"] != identifier for element in self.elements):
            self.elements.append({"type": kind, "spdxId": identifier, "creationInfo": "_:creation", **fields})
        return identifier


def _is_text(bill: Bill, thing: Thing) -> bool:
    return bool(bill.artefact.facts.get("records")) and thing.id == bill.subject.id
