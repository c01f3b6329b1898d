"""Croissant 1.0 with PROV-O: a data set's files, licence and sources as JSON-LD.

https://docs.mlcommons.org/croissant/docs/croissant-spec.html (the context is the one its section on namespaces
gives); https://www.w3.org/TR/prov-o/. Knows no files beyond what the bill lists.
"""

from __future__ import annotations

import mimetypes
from pathlib import Path
from typing import Any

from freehold.errors import UsageError
from freehold.formats.digest import digest
from freehold.provenance.bom.bill import TOOL, Bill, licence_url, pretty
from freehold.provenance.licences import identifiers

CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "prov": "http://www.w3.org/ns/prov#",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "conformsTo": "dct:conformsTo",
} | {
    term: f"cr:{term}"
    for term in (
        "citeAs", "column", "equivalentProperty", "extract", "field", "fileProperty", "fileObject", "fileSet", "format",
        "includes", "isLiveDataset", "jsonPath", "key", "md5", "parentField", "path", "recordSet", "references", "regex",
        "repeated", "replace", "samplingRate", "separator", "source", "subField", "transform",
    )
}  # fmt: skip
_FORMATS = {
    ".jsonl": "application/jsonlines",
    ".ndjson": "application/jsonlines",
    ".parquet": "application/x-parquet",
    ".csv": "text/csv",
}


def render(bill: Bill) -> str:
    """The description.

    Raises:
        UsageError: the artefact is no data set on this machine.
    """
    artefact = bill.artefact
    if artefact.kind != "dataset":
        raise UsageError(
            f"Croissant describes data sets, and {artefact.name} is a {artefact.kind}",
            hint="use --format spdx or cyclonedx",
        )
    facts = artefact.facts
    described: dict[str, Any] = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "@id": f"urn:uuid:{bill.id('croissant')}",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": artefact.name,
        "description": str(facts.get("description") or facts.get("title") or f"Data set {artefact.name}."),
        "url": bill.url or f"urn:uuid:{bill.id('croissant')}",
        "version": bill.version or None,
        "datePublished": (bill.released or bill.created).date().isoformat(),
        "license": [licence_url(key) or key for key in identifiers(bill.concluded(bill.subject))] or None,
        "creator": {"@type": "sc:Organization", "name": bill.supplied_by} if bill.supplied_by else None,
        "distribution": _files(bill),
        "prov:wasDerivedFrom": _sources(bill),
        "prov:wasAttributedTo": _generators(bill),
        "prov:wasGeneratedBy": {
            "@type": "prov:Activity",
            "prov:wasAssociatedWith": {"@type": "prov:SoftwareAgent", "name": TOOL},
        },
    }
    return pretty({key: value for key, value in described.items() if value})


def _files(bill: Bill) -> list[dict[str, Any]]:
    """Every file of the data set with its digest, read from disk."""
    root = Path(bill.artefact.reference).expanduser()
    objects = []
    for file in bill.artefact.files:
        path = root / file.name if root.is_dir() else root
        suffix = path.suffix.lower()
        objects.append(
            {
                "@type": "cr:FileObject",
                "@id": file.name,
                "name": file.name,
                "contentUrl": file.name,
                "contentSize": f"{file.size} B",
                "encodingFormat": _FORMATS.get(suffix)
                or mimetypes.guess_type(path.name)[0]
                or "application/octet-stream",
                "sha256": file.sha256 or digest(path),
            }
        )
    return objects


def _sources(bill: Bill) -> list[dict[str, Any]]:
    """What it was adapted from or contains, as PROV entities."""
    subject = bill.subject.id
    parents = [
        link.parent for link in bill.links if link.child == subject and link.relation in ("adapted_from", "contains")
    ]
    found = []
    for name in dict.fromkeys(parents):
        licence = bill.artefact.lineage.things[name].licence
        found.append({"@type": "prov:Entity", "name": name} | ({"license": licence} if licence else {}))
    return found


def _generators(bill: Bill) -> list[dict[str, Any]]:
    """Who generated it, where models did."""
    made = [link.parent for link in bill.links if link.relation == "generated_by"]
    return [{"@type": "prov:Agent", "name": name} for name in dict.fromkeys(made)]
