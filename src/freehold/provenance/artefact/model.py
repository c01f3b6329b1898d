"""Models: a directory, a GGUF file, a model of the store or of the hub. Headers and cards are read, weights are not.

Of a hub's model that is not here only the card, the legal files and the config are fetched. Knows no rules: facts go
into an Artefact.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from freehold.errors import FormatError, ModelNotFoundError
from freehold.formats.builtin import BUILTINS
from freehold.progress import Progress
from freehold.provenance.artefact import ancestry, card, scan, survey
from freehold.provenance.artefact.facts import Artefact, File
from freehold.provenance.artefact.tree import Folder, digest_of, text_of
from freehold.provenance.lineage import Lineage, Thing

_CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)")
_DOCUMENTS = re.compile(
    r"(README\.md|config\.json|[^/]*(licen[cs]e|notice|copying|use_policy|terms)[^/]*)", re.IGNORECASE
)


def read_named(reference: str, *, offline: bool = False, progress: Progress | None = None) -> Artefact:
    """A model by the name that other verbs take.

    Raises:
        ModelNotFoundError: nothing of that name, here or at the hub.
        StoreError: the hub can't be asked.
    """
    from freehold.formats import store

    try:
        path = store.resolve(reference, offline=True)
    except ModelNotFoundError:
        if reference in BUILTINS:
            return _pinned(reference)
        return _from_hub(reference, offline, progress)
    return read_file(reference, path) if path.is_file() else read_folder(reference, path)


def read_folder(reference: str, path: Path, name: str | None = None) -> Artefact:
    """A directory with a config.json: a checkpoint, or one that `freehold compress` made."""
    name = name or _name_of(path) or reference
    artefact = Artefact(reference, "model", name, Lineage(name))
    tree = Folder(path)
    cards = survey.survey(tree, artefact)
    own = next(((file, fields) for file, fields, _ in cards if "/" not in file), ("README.md", {}))
    licence = _declared(artefact, survey.card_licence(own[1]), f"{own[0]}: license")
    made_here = any(file.name == "freehold-report.json" for file in artefact.files)
    survey.read_ancestry(artefact, name, own[1], own[0], "quantized_from" if made_here else "")
    if made_here:
        licence = _from_report(artefact, tree, name, licence)
    config = _json(tree, artefact, "config.json", needed=True)
    artefact.facts |= _facts(own[1], config)
    _family(artefact, name, licence, config)
    return artefact


def read_file(reference: str, path: Path, *, whole: bool = False) -> Artefact:
    """A GGUF file, by its metadata; and the card and legal files beside it.

    Args:
        reference, path: what was asked for, and the file.
        whole: its directory was asked for, so the other files in it count too.
    """
    from freehold.formats.gguf import GGUFFile

    if path.suffix != ".gguf":
        raise FormatError(f"expected a .gguf file, found {path.name}", hint="name its directory")
    with GGUFFile(path) as file:
        metadata = file.metadata
    named = _text(metadata, "general.name")
    name = reference if reference in BUILTINS else _repository(metadata) or named or path.stem
    artefact = Artefact(reference, "model", name, Lineage(name))
    licence = _gguf_licence(artefact, reference, metadata)
    gguf_ancestry(artefact, name, metadata)
    tree = Folder(path.parent)
    alone = len(list(path.parent.glob("*.gguf"))) == 1
    beside = {item.name for item in path.parent.iterdir() if tree.holds(item.name)} if alone else set()
    if "README.md" in beside:
        content = tree.read("README.md")
        fields = card.head(text_of(content))
        if (label := survey.card_licence(fields)) and licence is None:
            licence = survey.declare(artefact, label, "README.md: license")
        survey.read_ancestry(artefact, name, fields, "README.md", "quantized_from")
    for legal in sorted(beside):
        if survey.named_legal(legal) and not legal.endswith(".gguf"):
            content = tree.read(legal)
            artefact.detected += survey.detections(text_of(content), legal, digest_of(content), True)
    if whole:
        artefact.files = tree.files()
        others = [file for file in artefact.files if not (file.name in beside and survey.named_legal(file.name))]
        artefact.detected += scan.scattered(tree, artefact, others, len(artefact.files) - len(others))
    artefact.files = [File(path.name, path.stat().st_size)]
    artefact.facts |= {
        "architecture": _text(metadata, "general.architecture"),
        "title": named,
        "description": _text(metadata, "general.description"),
        "author": _text(metadata, "general.author") or _text(metadata, "general.organization"),
        "url": _text(metadata, "general.url") or _text(metadata, "general.repo_url"),
        "language": [str(item) for item in metadata.get("general.languages", [])][:50],
        "parameters": _text(metadata, "general.size_label"),
    }
    _family(artefact, name, licence, {}, named)
    return artefact


def _pinned(reference: str) -> Artefact:
    """A built-in model that was not fetched yet: what its pin says."""
    builtin = BUILTINS[reference]
    artefact = Artefact(reference, "model", reference, Lineage(reference), builtin.version)
    licence = survey.declare(artefact, builtin.licence, f"pin of {builtin.project} {builtin.version}")
    artefact.files = [File(builtin.file_name, builtin.size, builtin.sha256)]
    artefact.notes.append(f"{reference} has not been fetched: this is what its pin and its family say")
    _family(artefact, reference, licence, {}, builtin.file_name.removesuffix(".gguf"))
    return artefact


def _from_hub(reference: str, offline: bool, progress: Progress | None) -> Artefact:
    """Card, legal files and config of a hub's model; offline what the knowledge base says of its family."""
    from freehold.formats.hub import Hub, HubSettings
    from freehold.formats.references import FORMS, hub_reference

    wanted, settings = hub_reference(reference), HubSettings.from_environment()
    if wanted is None:
        raise ModelNotFoundError(f"no model {reference!r}", hint=f"a model is {FORMS}")
    if offline or settings.offline:
        return _by_family(reference, wanted.repo)
    hub = Hub(settings)
    listing = hub.listing(wanted.repo, wanted.revision)
    files = [file for file in listing.files if _DOCUMENTS.fullmatch(file.name) and file.size <= 1_000_000]
    # under its commit, so that no reference points to a snapshot without weights
    snapshot = hub.fetch(listing, files, listing.commit, progress)
    artefact = read_folder(reference, snapshot, wanted.repo)
    artefact.files = [File(f.name, f.size, f.digest if len(f.digest) == 64 else None) for f in listing.files]
    artefact.version = listing.commit
    artefact.notes.append("only the card, the legal files and the config were fetched")
    return artefact


def _by_family(reference: str, repo: str) -> Artefact:
    family = ancestry.family_of(repo)
    if family is None:
        raise ModelNotFoundError(
            f"{reference} is not on this machine, and its family is not in the knowledge base",
            hint="fetch its card while online, or name its directory",
        )
    artefact = Artefact(reference, "model", repo, Lineage(repo))
    artefact.notes.append(f"{repo} was not read: this is what the knowledge base says of its family")
    _family(artefact, repo, None, {})
    return artefact


def _family(artefact: Artefact, name: str, licence: str | None, config: dict[str, Any], title: str = "") -> None:
    """Put the subject into its lineage: what it declares, else what is known of its family; and its family's base."""
    evidence = next((item.where for item in artefact.declared if item.licence), "nothing declared")
    family = ancestry.family_of(name) or (ancestry.family_of(title) if title else None)
    named = str(config.get("_name_or_path", ""))
    if "/" in named and ancestry.family_of(named) and not any(link.child == name for link in artefact.lineage.links):
        ancestry.add_base(artefact.lineage, name, named, "fine_tuned_from", "config.json: _name_or_path")
    if family is not None:
        if licence is None and not any(link.child == name for link in artefact.lineage.links):
            licence = family.licence
            evidence = f"{family.cite.document}, {family.cite.date} (family {family.family})"
        if family.base and not any(link.parent == family.base for link in artefact.lineage.links):
            ancestry.add_family_base(artefact.lineage, name, family)
    if not any(link.relation == "trained_on" for link in artefact.lineage.links):
        artefact.notes.append("it names no training data: what it was trained on is not part of this verdict")
    artefact.lineage.things[name] = Thing(name, "model", licence, evidence)


def _from_report(artefact: Artefact, tree: Folder, name: str, licence: str | None) -> str | None:
    """What `freehold compress` noted of its source."""
    report = _json(tree, artefact, "freehold-report.json")
    source, base = str(report.get("source_name") or ""), str(report.get("source_base") or "")
    label = str(report.get("source_licence") or "")
    if label and licence is None:
        licence = survey.declare(artefact, label, "freehold-report.json: source_licence")
    if source and source != name:
        ancestry.add_base(artefact.lineage, name, source, "quantized_from", "freehold-report.json: source_name")
        if artefact.lineage.things[source].licence is None and label:
            where = "freehold-report.json: source_licence"
            artefact.lineage.things[source] = Thing(source, "model", licence, where)
        if base and base != source:
            ancestry.add_base(artefact.lineage, source, base, "fine_tuned_from", "freehold-report.json: source_base")
    artefact.facts["source_sha256"] = str(report.get("source_sha256") or "")
    return licence


def _gguf_licence(artefact: Artefact, reference: str, metadata: dict[str, Any]) -> str | None:
    found = gguf_licence(artefact, metadata, "GGUF metadata")
    if found is None and reference in BUILTINS:
        pin = BUILTINS[reference]
        return survey.declare(artefact, pin.licence, f"pin of {pin.project} {pin.version}")
    return found


def gguf_licence(artefact: Artefact, metadata: dict[str, Any], where: str) -> str | None:
    """What a GGUF file declares: `general.license.name` where that is known, else `general.license`."""
    found = None
    for key in ("general.license.name", "general.license"):
        if found is None and (label := _text(metadata, key)):
            found = survey.declare(artefact, label, f"{where}: general.license")
    return found


def gguf_ancestry(artefact: Artefact, name: str, metadata: dict[str, Any], where: str = "GGUF metadata") -> None:
    """general.base_model.N and general.dataset.N (gguf.md, "Source metadata")."""
    for kind in ("base_model", "dataset"):
        count = metadata.get(f"general.{kind}.count", 0)
        for index in range(min(count, 100) if isinstance(count, int) else 0):
            prefix = f"general.{kind}.{index}"
            parent = _repository(metadata, prefix) or _text(metadata, f"{prefix}.name")
            if not parent:
                continue
            if kind == "dataset":
                ancestry.add_dataset(artefact.lineage, name, parent, "trained_on", f"{where}: {prefix}")
            else:
                relation = "merged_from" if count > 1 else "quantized_from"
                ancestry.add_base(artefact.lineage, name, parent, relation, f"{where}: {prefix}")


def _repository(metadata: dict[str, Any], prefix: str = "general") -> str:
    """org/name out of the address of a repository."""
    match = re.fullmatch(r"https://huggingface\.co/([\w.-]+/[\w.-]+?)/?", _text(metadata, f"{prefix}.repo_url"))
    return match[1] if match else ""


def _declared(artefact: Artefact, label: str, where: str) -> str | None:
    return survey.declare(artefact, label, where) if label else None


def _facts(fields: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    named = config.get("architectures")
    return {
        "architecture": str(named[0]) if isinstance(named, list) and named else str(config.get("model_type") or ""),
        "task": card.value(fields, "pipeline_tag"),
        "language": card.values(fields, "language"),
        "datasets": card.values(fields, "datasets"),
        "tags": card.values(fields, "tags"),
        "card": bool(fields),
    }


def _json(tree: Folder, artefact: Artefact, name: str, *, needed: bool = False) -> dict[str, Any]:
    """A JSON object of a directory, empty when there is none; one that is broken is an error when it is needed."""
    import msgspec

    if all(file.name != name for file in artefact.files):
        return {}
    try:
        found = msgspec.json.decode(tree.read(name, 20_000_000))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        found = None
    if isinstance(found, dict):
        return found
    if needed:
        raise FormatError(f"{tree.path / name}: expected a JSON object", hint="fetch it again")
    artefact.notes.append(f"{name} is no JSON object and was left out")
    return {}


def _name_of(path: Path) -> str:
    """org/name of a snapshot in Hugging Face's cache, else the directory's name."""
    for part in path.absolute().parts:
        if match := _CACHED.fullmatch(part):
            return f"{match[1]}/{match[2]}"
    return path.absolute().name


def _text(metadata: dict[str, Any], key: str) -> str:
    found = metadata.get(key)
    return " ".join(found.split())[:500] if isinstance(found, str) else ""
