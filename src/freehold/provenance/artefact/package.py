"""Python packages: a wheel (fetched by pip, or a file), or one that is installed here. No code of it is ever run.

Metadata: https://packaging.python.org/en/latest/specifications/core-metadata/. Knows no rules: facts go into an
Artefact.
"""

from __future__ import annotations

import email
import email.message
import re
import tempfile
from importlib import metadata
from pathlib import Path, PurePosixPath

from freehold.errors import FormatError, FreeholdError, StoreError, UsageError
from freehold.formats.wheels import download
from freehold.progress import Progress
from freehold.provenance import texts
from freehold.provenance.artefact import card, model, survey
from freehold.provenance.artefact.facts import Artefact, File
from freehold.provenance.artefact.tree import MAX_TEXT, Tree, Zip, digest_of, text_of
from freehold.provenance.licences import MAX_LABEL, normalize
from freehold.provenance.lineage import Lineage, Thing

PREFIX = "pypi:"
_REQUIREMENT = re.compile(
    r"(?P<name>[A-Za-z0-9](?:[\w.-]{0,98}[A-Za-z0-9])?)(?:==(?P<version>[\w.!+-]{1,100}))?", re.ASCII
)
MAX_METADATA = 2_000_000
MAX_WEIGHTS = 4  # GGUF files whose metadata is read
MAX_HEAD = 32_000_000  # bytes of one; metadata with a vocabulary of 256k tokens takes about ten million


def read_requirement(reference: str, *, offline: bool = False, progress: Progress | None = None) -> Artefact:
    """`pypi:NAME==VERSION`, fetched unless that version is installed here; `pypi:NAME` prefers what is installed.

    Raises:
        UsageError: no such form.
        StoreError: pip can't fetch it.
        FormatError: what came is no wheel.
    """
    match = _REQUIREMENT.fullmatch(reference.removeprefix(PREFIX))
    if match is None:
        raise UsageError(f"expected pypi:NAME==VERSION, found {reference!r}", hint="for example pypi:wordfreq==3.1.1")
    name, version = match["name"], match["version"]
    installed = _installed(name)
    if installed is not None and version in (None, installed.version):
        return _read_installed(reference, installed)
    if offline:
        raise StoreError(f"{reference} is not installed here, and the index may not be asked (offline)")
    with tempfile.TemporaryDirectory(prefix="freehold-audit-") as folder:
        wheel = download(f"{name}=={version}" if version else name, Path(folder), progress=progress)
        return read_wheel(reference, wheel)


def read_installed(reference: str) -> Artefact | None:
    """A package that is installed here, by its plain name; None when there is none of that name."""
    match = _REQUIREMENT.fullmatch(reference)
    installed = _installed(match["name"]) if match and match["version"] is None else None
    return None if installed is None else _read_installed(reference, installed)


def read_wheel(reference: str, path: Path) -> Artefact:
    """A wheel file."""
    with Zip(path) as tree:
        infos = [file for file in tree.files() if re.fullmatch(r"[^/]+\.dist-info/METADATA", file.name)]
        if len(infos) != 1:
            raise FormatError(
                f"{path.name}: expected one .dist-info/METADATA, found {len(infos)}", hint="is it a wheel?"
            )
        return _read(reference, tree, tree.read(infos[0].name, MAX_METADATA), infos[0].name)


def _installed(name: str) -> metadata.Distribution | None:
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None


class _Installed:
    """An installed package as a tree: the files its RECORD lists."""

    def __init__(self, package: metadata.Distribution) -> None:
        self.name = package.metadata["Name"]
        self._paths = {}
        for file in package.files or ():
            path = Path(str(package.locate_file(file)))
            if ".." not in PurePosixPath(str(file)).parts and path.is_file():
                self._paths[PurePosixPath(str(file)).as_posix()] = path

    def files(self) -> list[File]:
        return [File(name, path.stat().st_size) for name, path in sorted(self._paths.items())]

    def left_out(self) -> list[str]:
        return []

    def read(self, name: str, limit: int = MAX_TEXT) -> bytes:
        with self._paths[name].open("rb") as file:
            return file.read(limit)


def _read_installed(reference: str, package: metadata.Distribution) -> Artefact:
    content = (package.read_text("METADATA") or "").encode()
    return _read(reference, _Installed(package), content, f"{package.metadata['Name']}.dist-info/METADATA")


def _read(reference: str, tree: Tree, content: bytes, where: str) -> Artefact:
    """The facts of a package from its metadata and its files."""
    message = email.message_from_string(text_of(content))
    name = _field(message, "Name") or tree.name
    version = _field(message, "Version")
    subject = f"{name}=={version}" if version else name
    artefact = Artefact(reference, "software", name, Lineage(subject), version)
    artefact.facts = _facts(message)
    cards = survey.survey(tree, artefact)
    body = message.get_payload()
    if isinstance(body, str):
        artefact.detected += survey.sections(body, where, digest_of(content))
    licence = _declared(artefact, message, where)
    licence = _from_cards(artefact, subject, cards, licence)
    _from_weights(artefact, subject, tree)
    artefact.lineage.things[subject] = Thing(subject, "software", licence, _evidence(artefact))
    return artefact


def _declared(artefact: Artefact, message: email.message.Message, where: str) -> str | None:
    """License-Expression, else License, else the classifiers."""
    for field in ("License-Expression", "License"):
        label = _field(message, field)
        if len(label) > MAX_LABEL:  # some put the whole text there
            inside = next((item for item in texts.find(str(message.get(field))) if item.how != "similar"), None)
            label = inside.licence if inside else ""
        if label and (licence := survey.declare(artefact, label, f"{where}: {field}")):
            return licence
    classifiers = [str(value) for value in message.get_all("Classifier") or () if str(value).startswith("License ::")]
    labels = [value.rsplit(" :: ", 1)[-1] for value in classifiers]
    found = [licence for label in labels if label != "OSI Approved" and (licence := normalize(label))]
    for label in labels:
        survey.declare(artefact, label, f"{where}: Classifier")
    return " AND ".join(dict.fromkeys(found)) or None


def _from_cards(
    artefact: Artefact, subject: str, cards: list[tuple[str, dict[str, object], str]], licence: str | None
) -> str | None:
    """Cards of models inside the package: parts with licences and bases of their own."""
    for file, fields, _ in cards:
        label = survey.card_licence(fields)
        if not label and not card.values(fields, "base_model"):
            continue
        declared = survey.declare(artefact, label, f"{file}: license") if label else None
        part = f"{artefact.name}:{file}"
        artefact.lineage.add(Thing(part, "model", declared, f"{file}: license"))
        artefact.lineage.link(subject, "contains", part, file)
        survey.read_ancestry(artefact, part, fields, file, "converted_from")
        if licence is None and declared is not None:
            licence = declared
            artefact.notes.append(f"the package's own code declares no licence: the card's in {file} was taken")
    return licence


def _from_weights(artefact: Artefact, subject: str, tree: Tree) -> None:
    """GGUF files inside the package: parts that declare licences and bases in their metadata."""
    from freehold.formats.gguf import read_metadata

    weights = [file for file in artefact.files if file.name.endswith(".gguf")]
    for file in weights[:MAX_WEIGHTS]:
        try:
            with tempfile.NamedTemporaryFile(prefix="freehold-audit-", suffix=".gguf") as head:
                head.write(tree.read(file.name, MAX_HEAD))
                head.flush()
                metadata = read_metadata(Path(head.name))
        except FreeholdError:
            artefact.notes.append(f"{file.name}: its metadata could not be read")
            continue
        part = f"{artefact.name}:{file.name}"
        declared = model.gguf_licence(artefact, metadata, file.name)
        artefact.lineage.add(Thing(part, "model", declared, f"{file.name}: general.license"))
        artefact.lineage.link(subject, "contains", part, file.name)
        model.gguf_ancestry(artefact, part, metadata, file.name)


def _facts(message: email.message.Message) -> dict[str, object]:
    urls = dict(part.split(", ", 1) for part in message.get_all("Project-URL") or () if ", " in part)
    return {
        "description": _field(message, "Summary"),
        "author": _field(message, "Author") or _field(message, "Author-email"),
        "url": _field(message, "Home-page") or next(iter(urls.values()), ""),
        "requires": [" ".join(str(value).split())[:200] for value in message.get_all("Requires-Dist") or ()][:500],
        "keywords": _field(message, "Keywords"),
    }


def _field(message: email.message.Message, name: str) -> str:
    found = " ".join(str(message.get(name) or "").split())
    return "" if found == "UNKNOWN" else found


def _evidence(artefact: Artefact) -> str:
    return next((item.where for item in artefact.declared if item.licence), "nothing declared")
