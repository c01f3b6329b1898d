"""CycloneDX 1.7 as JSON, with model cards (ML-BOM). https://cyclonedx.org/docs/1.7/json/.

Knows no files and no terminal.
"""

from __future__ import annotations

from typing import Any

from freehold import __version__
from freehold.provenance.bom.bill import Bill, licence_url, pretty, spdx_expression
from freehold.provenance.licences import identifiers, lookup
from freehold.provenance.lineage import Thing

_TYPES = {"model": "machine-learning-model", "dataset": "data", "record": "data", "software": "library"}


def render(bill: Bill) -> str:
    """The document."""
    root = _component(bill, bill.subject)
    parts = [_component(bill, thing) for thing in bill.things if thing.kind != "provider"]
    names = {thing.id for thing in [bill.subject, *bill.things] if thing.kind != "provider"}
    tool = {"type": "application", "name": "freehold", "version": __version__}
    return pretty(
        {
            "$schema": "http://cyclonedx.org/schema/bom-1.7.schema.json",
            "bomFormat": "CycloneDX",
            "specVersion": "1.7",
            "serialNumber": f"urn:uuid:{bill.id('cyclonedx', bill.time)}",
            "version": 1,
            "metadata": {
                "timestamp": bill.time,
                "tools": {"components": [tool]},
                "component": root,
                "properties": _properties({"freehold:verdict:redistribute": bill.judgement.verdict}),
            },
            "components": parts,
            "dependencies": [
                {
                    "ref": _ref(bill, name),
                    "dependsOn": sorted(
                        {_ref(bill, link.parent) for link in bill.links if link.child == name and link.parent in names}
                    ),
                }
                for name in sorted(names)
            ],
        }
    )


def _component(bill: Bill, thing: Thing) -> dict[str, Any]:
    own = thing.id == bill.subject.id
    component: dict[str, Any] = {
        "type": _TYPES.get(thing.kind, "library"),
        "bom-ref": _ref(bill, thing.id),
        "name": bill.artefact.name if own else thing.id,
    }
    if own:
        component |= _own(bill)
    if licences := _licences(thing.licence, "declared"):
        component["licenses"] = licences
    if found := [item for key in bill.found_in(thing) for item in _licences(key, "concluded")]:
        component["evidence"] = {"licenses": found}
    if thing.kind == "model":
        component["modelCard"] = _card(bill, thing)
        if bases := [link.parent for link in bill.links if link.child == thing.id and _descends(link.relation)]:
            component["pedigree"] = {"ancestors": [_ancestor(bill, name) for name in bases]}
    if thing.kind in ("dataset", "record"):
        component["data"] = [{"type": "dataset", "name": thing.id}]
    component["properties"] = _properties({"freehold:licence:evidence": thing.evidence, "freehold:doubt": thing.doubt})
    return {key: value for key, value in component.items() if value}


def _own(bill: Bill) -> dict[str, Any]:
    """What is known of the subject only."""
    facts = bill.artefact.facts
    found: dict[str, Any] = {"version": bill.version, "description": str(facts.get("description") or "")}
    if bill.supplied_by:
        found["supplier"] = {"name": bill.supplied_by}
    if bill.url:
        found["externalReferences"] = [{"type": "distribution", "url": bill.url}]
    if bill.artefact.kind == "software" and bill.artefact.version:
        found["purl"] = bill.purl
    if bill.artefact.copyrights:
        found["copyright"] = "\n".join(dict.fromkeys(bill.artefact.copyrights))
    hashed = [file for file in bill.artefact.files if file.sha256]
    if hashed:
        found["components"] = [
            {"type": "file", "name": file.name, "hashes": [{"alg": "SHA-256", "content": file.sha256}]}
            for file in hashed
        ]
    return found


def _card(bill: Bill, thing: Thing) -> dict[str, Any]:
    """The model card: architecture, data sets, and the restrictions that come with its licence."""
    facts = bill.artefact.facts if thing.id == bill.subject.id else {}
    trained = [link.parent for link in bill.links if link.child == thing.id and link.relation == "trained_on"]
    parameters: dict[str, Any] = {
        "task": facts.get("task"),
        "modelArchitecture": facts.get("architecture"),
        "datasets": [{"ref": _ref(bill, name)} for name in trained],
    }
    duties = [duty for duty in bill.judgement.duties if duty.path.endswith(f"{thing.id} > {duty.licence}")]
    limits = [
        f"{duty.text} ({duty.licence}, {duty.clause})" for duty in duties if duty.kind in ("use-policy", "threshold")
    ]
    card = {
        "modelParameters": {key: value for key, value in parameters.items() if value},
        "considerations": {"technicalLimitations": list(dict.fromkeys(limits))} if limits else None,
    }
    return {key: value for key, value in card.items() if value}


def _ancestor(bill: Bill, name: str) -> dict[str, Any]:
    thing = bill.artefact.lineage.things[name]
    ancestor: dict[str, Any] = {"type": _TYPES.get(thing.kind, "library"), "name": name}
    if licences := _licences(thing.licence, "declared"):
        ancestor["licenses"] = licences
    return ancestor


def _licences(expression: str | None, acknowledgement: str) -> list[dict[str, Any]]:
    """One expression, or one licence by id, or by name when SPDX has no id for it."""
    expression = spdx_expression(expression)
    if expression is None:
        return []
    keys = identifiers(expression)
    if len(keys) > 1 or " " in expression:
        return [{"expression": expression, "acknowledgement": acknowledgement}]
    if keys[0].startswith("LicenseRef-"):
        named = {"name": lookup(keys[0]).name, "acknowledgement": acknowledgement}
        return [{"license": named | ({"url": url} if (url := licence_url(keys[0])) else {})}]
    return [{"license": {"id": keys[0], "acknowledgement": acknowledgement}}]


def _descends(relation: str) -> bool:
    return relation.endswith(("_from", "_of"))


def _ref(bill: Bill, name: str) -> str:
    return f"urn:uuid:{bill.id('component', name)}"


def _properties(found: dict[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "value": value} for name, value in found.items() if value]
