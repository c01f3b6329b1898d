"""Reads the licence-bearing files of a tree: legal files, cards, the legal sections of READMEs; and which files are heavy.

What is found is added to an Artefact. Knows trees and texts, not kinds of artefacts.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from freehold.provenance import texts
from freehold.provenance.artefact import ancestry, card, scan
from freehold.provenance.artefact.facts import Artefact, Declaration, Detection, File
from freehold.provenance.artefact.tree import MAX_TEXT, Tree, digest_of, text_of
from freehold.provenance.licences import UNKNOWN, normalize

LEGAL = re.compile(
    r"((un)?licen[cs]es?|copying|copyright|notices?|eula|terms|tos|use[-_]policy)([-_.].*)?", re.IGNORECASE
)
# GEMMA_TERMS, MIT-LICENSE, THIRD_PARTY_NOTICES: the words of a legal file at the end, in capitals as is the custom
_CAPITALS = re.compile(
    r"[A-Z0-9-_.]*[-_.](LICEN[CS]ES?|NOTICES?|COPYING|EULA|TERMS|TOS|USE[-_]POLICY)([-_.][A-Z0-9-_.]*)?"
)
_PARTIES = re.compile(r"(.*third[-_]?part(y|ies).*|.*[-_.](license|licence|notice|use[-_]policy))", re.IGNORECASE)
_PAGES = re.compile(r"(licen[cs]es|notices|terms|tos)", re.IGNORECASE)  # a page about licences as well as one
ASIDE = ("doc", "docs", "test", "tests", "testdata", "fixtures", "vectors", "examples")
PLAIN = ("", ".txt", ".md", ".rst", ".html", ".htm", ".lesser", ".adoc", ".mit", ".apache", ".bsd")
WEIGHTS = (
    ".safetensors", ".gguf", ".bin", ".pt", ".pth", ".onnx", ".ftz", ".tflite", ".h5", ".keras", ".npz", ".ckpt",
    ".pb", ".mlmodel", ".joblib", ".pkl", ".model", ".caffemodel", ".msgpack", ".llamafile",
)  # fmt: skip
DATA = (
    ".parquet", ".arrow", ".jsonl", ".ndjson", ".csv", ".tsv", ".gz", ".zst", ".xz", ".bz2", ".json", ".txt", ".db",
    ".sqlite", ".dat", ".vec", ".dic", ".npy", ".zip", ".tar",
)  # fmt: skip
_COPYRIGHT = re.compile(r"\s{0,20}(copyright\s{1,5}(\(c\)|©|[12]\d{3})|©)", re.IGNORECASE)
HEAVY = 32_768  # bytes from which a file with such a name is weights or data
MAX_LEGAL = 300


def survey(tree: Tree, artefact: Artefact) -> list[tuple[str, dict[str, object], str]]:
    """Read what a tree says of licences into the artefact.

    Returns: (file, head, text) of every card in it.
    """
    files = tree.files()
    artefact.files = files
    legal = [file for file in files if _is_legal(file)]
    if len(legal) > MAX_LEGAL:
        artefact.unread.append(f"only the first {MAX_LEGAL} of {len(legal)} legal files were read")
    if large := [file.name for file in files if file.size > MAX_TEXT and _is_legal(file, file.size)]:
        artefact.unread.append(f"{', '.join(large[:5])}: too large for a licence, and not read")
    shallowest = min((file.name.count("/") for file in legal), default=0)
    for file in legal[:MAX_LEGAL]:
        content = tree.read(file.name)
        primary = _is_primary(file.name, shallowest)
        artefact.copyrights += copyrights(text_of(content))
        found = detections(text_of(content), file.name, digest_of(content), primary)
        if primary and not found:
            found = [Detection(UNKNOWN, "unmatched", 0.0, file.name, digest_of(content), primary=True)]
        artefact.detected += found
    cards = []
    for file in [file for file in files if not (artefact.facts.get("project") and aside(file.name))]:
        if re.fullmatch(r"readme[\w.-]*|[\w.-]*card\.md", PurePosixPath(file.name).name, re.IGNORECASE):
            content = tree.read(file.name)
            text = text_of(content)
            if fields := card.head(text):
                cards.append((file.name, fields, text))
            artefact.detected += sections(text, file.name, digest_of(content))
    read = {file.name for file in legal[:MAX_LEGAL]}
    artefact.detected += scan.scattered(tree, artefact, [file for file in files if file.name not in read], len(read))
    return cards


def aside(name: str) -> bool:
    """Whether a file lies among documentation, tests or examples."""
    return any(part.lower() in ASIDE for part in PurePosixPath(name).parts[:-1])


def named_legal(name: str) -> bool:
    """Whether a file's path calls it a legal file: LICENSE, COPYING-GPL.txt, GEMMA_TERMS.html; not docs/licences.md."""
    path = PurePosixPath(name)
    stem = path.stem if path.suffix.lower() in PLAIN else path.name
    if not stem.isupper() and (aside(name) or _PAGES.fullmatch(stem)):
        return False
    return any(pattern.fullmatch(stem) for pattern in (LEGAL, _CAPITALS, _PARTIES))


def copyrights(text: str) -> list[str]:
    """The lines of a legal file that say whose it is, without templates."""
    lines = [" ".join(line.split()) for line in text.splitlines() if _COPYRIGHT.match(line)]
    return list(dict.fromkeys(line[:200] for line in lines if "[yyyy]" not in line and "<" not in line))[:50]


def detections(text: str, file: str, sha256: str, primary: bool = False) -> list[Detection]:
    """The licences a text holds or names, as facts."""
    return [
        Detection(match.licence, match.how, match.score, file, sha256, match.quote, primary, match.near)
        for match in texts.find(text)
    ]


def sections(text: str, file: str, sha256: str) -> list[Detection]:
    """What the legal sections of a README name."""
    return detections(card.legal_sections(text), file, sha256)


def declare(artefact: Artefact, label: str, where: str) -> str | None:
    """Note a declared licence and give it as an expression."""
    licence = normalize(label)
    artefact.declared.append(Declaration(label[:300], licence, where))
    return licence


def card_licence(fields: dict[str, object]) -> str:
    """The licence a card declares: `license`, or `license_name` where that says "other"; several mean all of them."""
    label = " AND ".join(card.values(fields, "license") or card.values(fields, "licence"))
    return card.value(fields, "license_name") or label if label.lower() in ("", "other") else label


def read_ancestry(artefact: Artefact, child: str, fields: dict[str, object], where: str, relation: str = "") -> None:
    """Base models and data sets a card names."""
    bases = card.values(fields, "base_model")
    said = ancestry.RELATION_OF.get(card.value(fields, "base_model_relation"), "")
    usual = "merged_from" if len(bases) > 1 else relation or "fine_tuned_from"
    for base in bases:
        ancestry.add_base(artefact.lineage, child, base, said or usual, f"{where}: base_model")
    for name in card.values(fields, "datasets"):
        ancestry.add_dataset(artefact.lineage, child, name, "trained_on", f"{where}: datasets")
    for name in card.values(fields, "source_datasets"):
        plain = name.removeprefix("extended|")
        if plain not in ("original", "extended", "unknown"):
            ancestry.add_dataset(artefact.lineage, child, plain, "adapted_from", f"{where}: source_datasets")


def heavy(files: list[File]) -> list[tuple[File, str]]:
    """Files that are weights or data, largest first, with "model" or "dataset"."""
    found = []
    for file in files:
        suffix = PurePosixPath(file.name).suffix.lower()
        split = re.search(r"\.part\d+$", file.name) is not None
        if file.size >= HEAVY and not _is_legal(file) and ".dist-info/" not in file.name:
            if (suffix in WEIGHTS and not file.name.endswith(".msgpack.gz")) or split:
                found.append((file, "model"))
            elif suffix in DATA:
                found.append((file, "dataset"))
    return sorted(found, key=lambda pair: -pair[0].size)


def _is_legal(file: File, limit: int = MAX_TEXT) -> bool:
    path = PurePosixPath(file.name)
    inside = path.parent.name.lower() in ("licenses", "licences", "license_files")
    return 0 < file.size <= limit and path.suffix.lower() in PLAIN and (named_legal(file.name) or inside)


def _is_primary(name: str, shallowest: int) -> bool:
    """The artefact's own licence file: LICENSE or COPYING at the top, or in a wheel's dist-info."""
    path = PurePosixPath(name)
    own = re.match(r"(licen[cs]e|copying|unlicense)", path.name, re.IGNORECASE) is not None
    return own and (name.count("/") == shallowest or ".dist-info/" in name)
