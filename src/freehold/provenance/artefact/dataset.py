"""Data sets: a directory with a card, JSONL, Parquet or Croissant files; records that carry licences of their own.

Croissant: https://docs.mlcommons.org/croissant/docs/croissant-spec.html. Of Parquet only the footer is read. Knows no
rules: facts go into an Artefact.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from freehold.errors import FormatError
from freehold.provenance.artefact import ancestry, card, manifest, parquet, survey
from freehold.provenance.artefact.facts import Artefact, File
from freehold.provenance.artefact.tree import Folder
from freehold.provenance.licences import normalize
from freehold.provenance.lineage import Lineage, Thing

MAX_RECORDS = 1_000_000
MAX_LINE = 8 << 20
MAX_GROUPS = 200
MAX_CROISSANT = 32_000_000
_LICENCE_KEYS = ("license", "licence", "license_name", "spdx")
_SOURCE_KEYS = ("generated_by", "model", "generator", "served_by")
_TIME_KEYS = ("generated_at", "created_at", "timestamp", "date")


def read_folder(reference: str, path: Path) -> Artefact:
    """A directory: its card, its Croissant description, the records of its JSONL and the footers of its Parquet files."""
    name = path.absolute().name
    artefact = Artefact(reference, "dataset", name, Lineage(name))
    tree = Folder(path)
    if manifest.present(tree):
        artefact.kind, artefact.facts["project"] = "software", True
    stated = manifest.declared(tree, artefact)
    cards = survey.survey(tree, artefact)
    own = next(((file, fields) for file, fields, _ in cards if "/" not in file), ("README.md", {}))
    label = survey.card_licence(own[1])
    licence = survey.declare(artefact, label, f"{own[0]}: license") if label else None
    licence = _both(stated, licence)
    survey.read_ancestry(artefact, name, own[1], own[0])
    artefact.facts |= {
        "language": card.values(own[1], "language"),
        "task": card.value(own[1], "task_categories"),
        "tags": card.values(own[1], "tags"),
        "card": bool(own[1]),
        "title": card.value(own[1], "pretty_name"),
    }
    files = [file for file in artefact.files if not (artefact.facts.get("project") and survey.aside(file.name))]
    for file in files:
        if file.name.endswith((".json", ".jsonld")) and file.size <= MAX_CROISSANT:
            described = _croissant(path / file.name)
            if described is not None:
                found = _from_croissant(artefact, name, described, file.name)
                licence = _both(licence, found)
    for file in files:
        stated = _records(artefact, name, path / file.name, file.name)
        licence = licence or stated
    _subject(artefact, name, licence)
    return artefact


def read_file(reference: str, path: Path) -> Artefact:
    """One JSONL, Parquet or Croissant file."""
    artefact = Artefact(reference, "dataset", path.name, Lineage(path.name))
    licence = None
    described = _croissant(path) if path.suffix in (".json", ".jsonld") else None
    if path.suffix in (".json", ".jsonld"):
        if described is None:
            raise FormatError(
                f"{path} is no Croissant description: expected JSON-LD of a schema.org Dataset",
                hint="data sets are directories, .jsonl, .parquet or Croissant .json files",
            )
        artefact.name = str(described.get("name") or path.name)[:200]
        artefact.lineage = Lineage(artefact.name)
        licence = _from_croissant(artefact, artefact.name, described, path.name)
    stated = _records(artefact, artefact.name, path, path.name)
    licence = licence or stated
    artefact.files = [File(path.name, path.stat().st_size)]
    _subject(artefact, artefact.name, licence)
    return artefact


def _both(one: str | None, other: str | None) -> str | None:
    """Two statements about one thing: neither hides the other."""
    if one and other and one != other:
        return " AND ".join(f"({item})" if " " in item else item for item in (one, other))
    return one or other


def _subject(artefact: Artefact, name: str, licence: str | None) -> None:
    evidence = next((item.where for item in artefact.declared if item.licence), "nothing declared")
    entry = ancestry.dataset_of(name) if licence is None and artefact.kind == "dataset" else None
    parts = [link for link in artefact.lineage.links if link.child == name and link.relation == "contains"]
    if licence is None and entry is not None and entry.licence:
        licence, evidence = normalize(entry.licence), f"{entry.cite.document}, {entry.cite.date}"
    elif licence is None and parts:
        known = [artefact.lineage.things[link.parent].licence for link in parts]
        whole = list(dict.fromkeys(item for item in known if item))
        licence = " AND ".join(f"({item})" if " " in item else item for item in whole) or None
        evidence = "the licences of its records"
    artefact.lineage.things[name] = Thing(name, artefact.kind, licence, evidence)


def _croissant(path: Path) -> dict[str, Any] | None:
    """A JSON-LD description of a data set, None when it is none."""
    try:
        with path.open("rb") as file:
            found = msgspec.json.decode(file.read(MAX_CROISSANT))
    except (msgspec.DecodeError, RecursionError, OSError, UnicodeDecodeError):
        return None
    if not isinstance(found, dict) or "@context" not in found:
        return None
    return found if str(found.get("@type", "")).rsplit("/", 1)[-1].removeprefix("sc:") == "Dataset" else None


def _from_croissant(artefact: Artefact, name: str, described: dict[str, Any], where: str) -> str | None:
    """Licence and sources of a Croissant description; licences are names, links, or CreativeWork objects."""
    found = None
    for item in _several(described.get("license") or described.get("sc:license")):
        label = _label(item)
        if label:
            found = survey.declare(artefact, _plain(label), f"{where}: license") or found
    for key in ("isBasedOn", "prov:wasDerivedFrom", "wasDerivedFrom"):
        for item in _several(described.get(key)):
            if source := _label(item):
                plain = source.removeprefix("https://huggingface.co/datasets/").rstrip("/")
                ancestry.add_dataset(artefact.lineage, name, plain, "adapted_from", f"{where}: {key}")
    artefact.facts |= {
        "description": str(described.get("description") or "")[:2000],
        "url": str(described.get("url") or "")[:500],
        "author": "; ".join(_label(item) for item in _several(described.get("creator")))[:500],
        "date": str(described.get("datePublished") or "")[:40],
        "title": str(described.get("name") or "")[:200],
    }
    artefact.version = artefact.version or str(described.get("version") or "")[:40]
    return found


def _plain(label: str) -> str:
    """A licence's link as its name, when the link is known."""
    from freehold.provenance.texts import references

    if "://" not in label or normalize(label):
        return label
    if label.startswith(("https://spdx.org/licenses/", "http://spdx.org/licenses/")):
        return label.rsplit("/", 1)[-1].removesuffix(".html").removesuffix(".json")
    return next((match.licence for match in references(label)), label)


def _records(artefact: Artefact, name: str, path: Path, file: str) -> str | None:
    """Licences and generators that records carry: each licence is a part of the collection (R3 keeps them apart).

    Returns: the licence a file states for all of itself, which only Parquet's metadata do.
    """
    suffix = PurePosixPath(file).suffix
    if suffix == ".parquet":
        return _footer(artefact, path, file)
    if suffix in (".jsonl", ".ndjson"):
        _lines_of(artefact, name, path, file)
    return None


def _lines_of(artefact: Artefact, name: str, path: Path, file: str) -> None:
    """What the records of a JSONL file carry, counted."""
    licences: Counter[str] = Counter()
    sources: Counter[tuple[str, str]] = Counter()
    for record in _lines(artefact, path, file):
        licences[_first(record, _LICENCE_KEYS)] += 1
        sources[_first(record, _SOURCE_KEYS), _first(record, _TIME_KEYS)[:10]] += 1
    artefact.facts["records"] = artefact.facts.get("records", 0) + licences.total()
    for label, number in licences.most_common(MAX_GROUPS):
        if label:
            licence = survey.declare(artefact, label, f"{file}: {number} records")
            part = f"{file}:{licence or label[:100]}"
            artefact.lineage.add(Thing(part, "dataset", licence, f"{file}: {number} records"))
            artefact.lineage.link(name, "contains", part, file)
    left = {"without a licence": licences[""] if len(licences) > 1 else 0}
    left |= {"with rarer licences": sum(number for _, number in licences.most_common()[MAX_GROUPS:])}
    for what, number in left.items():
        if number:  # nothing is known of these, and the verdict has to say so
            part = f"{file}: {what}"
            artefact.lineage.add(Thing(part, "dataset", None, f"{file}: {number} records"))
            artefact.lineage.link(name, "contains", part, file)
    if len(sources) > MAX_GROUPS:
        artefact.notes.append(f"{file}: of {len(sources)} generators and days only the first {MAX_GROUPS} were judged")
    for (source, day), number in sources.most_common(MAX_GROUPS):
        if source:
            ancestry.add_generator(artefact.lineage, name, source, _day(day), f"{file}: {number} records")


def _lines(artefact: Artefact, path: Path, file: str) -> Iterator[dict[str, Any]]:
    """The records of a JSONL file; broken lines are counted in a note."""
    broken = 0
    with path.open("rb") as lines:
        for number in range(MAX_RECORDS + 1):
            line = lines.readline(MAX_LINE)
            if not line:
                break
            if number == MAX_RECORDS:
                artefact.notes.append(f"{file}: only the first {MAX_RECORDS:,} records were read")
                break
            try:
                record = msgspec.json.decode(line) if line.strip() else {}
            except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
                broken += 1
                continue
            if isinstance(record, dict):
                yield record
    if broken:
        artefact.notes.append(f"{file}: {broken} lines are no JSON and were left out")


def _footer(artefact: Artefact, path: Path, file: str) -> str | None:
    """Rows, columns and metadata of a Parquet file; the licence these state."""
    licence = None
    try:
        footer = parquet.read_footer(path)
    except FormatError as error:
        raise FormatError(f"{file}: {error.message}", hint="fetch it again, or leave it out of the directory") from None
    artefact.facts["records"] = artefact.facts.get("records", 0) + footer.rows
    for key, value in footer.metadata.items():
        if key.lower() in _LICENCE_KEYS:
            licence = survey.declare(artefact, value, f"{file}: metadata {key}")
    if carried := [column for column in footer.columns if column.lower() in (*_LICENCE_KEYS, *_SOURCE_KEYS)]:
        artefact.notes.append(
            f"{file}: the columns {', '.join(carried)} were not read: export them as JSONL to judge records"
        )
    return licence


def _first(record: dict[str, Any], keys: tuple[str, ...]) -> str:
    for holder in (record, record.get("metadata"), record.get("meta")):
        if isinstance(holder, dict):
            for key in keys:
                found = holder.get(key)
                if isinstance(found, str) and found.strip():
                    return " ".join(found.split())[:200]
    return ""


def _several(found: Any) -> list[Any]:
    return found[:100] if isinstance(found, list) else [] if found is None else [found]


def _label(item: Any) -> str:
    if isinstance(item, dict):
        item = item.get("url") or item.get("@id") or item.get("name")
    return " ".join(str(item).split())[:500] if isinstance(item, str) else ""


def _day(text: str) -> dt.date | None:
    try:
        return dt.date.fromisoformat(text)
    except ValueError:
        return None
