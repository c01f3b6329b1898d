"""The class of the Model Openness Framework, with its reasons: which components are there, and under open licences.

Evaluates as the Model Openness Tool does (see knowledge/mof.yaml): a class counts when the one below it is complete.
Reads the tool's own YAML releases too; of any other artefact only what can be seen in it counts as released.
"""

from __future__ import annotations

import functools
import re
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
import yaml

from freehold.errors import FormatError
from freehold.provenance.bom.bill import Bill, pretty
from freehold.provenance.licences import identifiers

LABELS = {
    0: "Unclassified",
    1: "Class I - Open Science Model",
    2: "Class II - Open Tooling Model",
    3: "Class III - Open Model",
}
OPEN_DATA = re.compile(
    r"CC-BY(-SA)?-\d\.\d(-[A-Z]+)*|CC0-1\.0|CDLA-(Permissive|Sharing)-\d\.0|ODbL-1\.0|ODC-By-1\.0|PDDL-1\.0|OpenMDW-1\.0"
)
"""Open licences for data and documents; those for code are the ones that OSI approved or FSF calls free."""
MAX_RELEASE = 2_000_000
REPORT, PAPER = "Technical report", "Research paper"


class Component(msgspec.Struct, frozen=True, rename={"level": "class"}):
    """A component of the framework: its name, the class that asks for it (0: none), and its kind of licence."""

    name: str
    level: int
    kind: str


class Classification(msgspec.Struct, frozen=True):
    """The result: class 0 to 3, percent of each class, and a line for every component."""

    level: int
    progress: dict[int, float]
    reasons: list[str]
    components: list[dict[str, str]]


def classify(licences: dict[str, str | None], globals_: dict[str, str]) -> Classification:
    """Classify a release.

    Args:
        licences: licence of each component that was released, None where the component names none.
        globals_: licences of the release by kind: "code", "data", "document", and "distribution" for everything.
    """
    status = {item.name: _status(item, licences, globals_) for item in components()}
    valid = {name for name, (word, _, _) in status.items() if word == "open"}
    asked = {level: _asked(level, valid) for level in (1, 2, 3)}
    progress = {level: 100 * len(names & valid) / len(names) for level, names in asked.items()}
    for level in (2, 1):  # a class counts only above a complete one
        progress[level] = progress[level] if progress[level + 1] == 100 else 0.0
    level = next((level for level in (1, 2, 3) if progress[level] == 100), 0)
    rows = [
        {"name": name, "status": word, "licence": licence or "", "reason": reason}
        for name, (word, licence, reason) in status.items()
    ]
    return Classification(level, progress, _reasons(level, asked, valid, status), rows)


def render(bill: Bill) -> str:
    """What can be seen of an artefact, classified."""
    artefact = bill.artefact
    licence = bill.concluded(bill.subject)
    released: dict[str, str | None] = {}
    if artefact.kind == "model":
        released["Model parameters (Final)"] = licence
    if artefact.kind == "dataset":
        released["Datasets"] = licence
    if artefact.facts.get("card"):
        released["Data card" if artefact.kind == "dataset" else "Model card"] = licence
    if artefact.kind == "software":
        released["Supporting libraries and tools"] = licence
    found = classify(released, {"distribution": licence} if licence else {})
    return _page(f"{artefact.name} {bill.version}".strip(), found, "components that can be seen in the artefact")


def render_release(reference: str) -> str:
    """A release file of the Model Openness Tool, classified.

    Raises:
        FormatError: it is none.
    """
    release = read_release(Path(reference).expanduser())
    licences, globals_ = release_licences(release)
    return _page(str(release.get("name") or Path(reference).stem), classify(licences, globals_), "its release file")


def read_release(path: Path) -> dict[str, Any]:
    """The `release` of a Model Openness Tool file."""
    try:
        with path.open("rb") as file:
            found = yaml.safe_load(file.read(MAX_RELEASE))
    except OSError as error:
        raise FormatError(f"can't read {path}: {error.strerror}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # a date that is none is a ValueError
        raise FormatError(f"{path} is no YAML: {' '.join(str(error).split())[:300]}") from None
    release = found.get("release") if isinstance(found, dict) else None
    if not isinstance(release, dict) or not isinstance(release.get("components"), list):
        raise FormatError(
            f"{path} is no release of the Model Openness Tool", hint="expected release: components: [...]"
        )
    return release


def release_licences(release: dict[str, Any]) -> tuple[dict[str, str | None], dict[str, str]]:
    """Licences by component, and global ones by kind."""
    parts = [item for item in release["components"] if isinstance(item, dict)]
    licences = {str(item.get("name")): str(item["license"]) if item.get("license") else None for item in parts}
    found = release.get("license")
    whole = found if isinstance(found, dict) else {}
    globals_ = {kind: str(item.get("name")) for kind, item in whole.items() if isinstance(item, dict)}
    return licences, globals_


@functools.cache
def components() -> tuple[Component, ...]:
    """The framework's components."""
    text = resources.files("freehold.provenance.knowledge").joinpath("mof.yaml").read_text(encoding="utf-8")
    return msgspec.convert(yaml.safe_load(text), tuple[Component, ...])


def is_open(licence: str) -> bool:
    """Whether a licence, or every licence of an expression, is an open one."""
    if licence in _open() or OPEN_DATA.fullmatch(licence):
        return True
    keys = identifiers(licence)
    return bool(keys) and all(key in _open() or OPEN_DATA.fullmatch(key) for key in keys)


def _status(item: Component, licences: dict[str, str | None], globals_: dict[str, str]) -> tuple[str, str | None, str]:
    """("open" | "not open" | "no licence" | "missing", licence, reason)."""
    if item.name not in licences:
        return "missing", None, "not released"
    licence = licences[item.name] or globals_.get(item.kind) or globals_.get("distribution")
    if not licence:
        return "no licence", None, "released without a licence"
    if not is_open(licence):
        return "not open", licence, f"{licence} is neither OSI-approved nor free by FSF, nor an open data licence"
    return "open", licence, f"released under {licence}"


def _asked(level: int, valid: set[str]) -> set[str]:
    """What a class and those below it ask for; a valid paper stands in for a report that isn't there."""
    names = {item.name for item in components() if item.level >= level}
    if REPORT not in valid and PAPER in valid:
        names = (names - {REPORT}) | {PAPER}
    return names


def _reasons(
    level: int, asked: dict[int, set[str]], valid: set[str], status: dict[str, tuple[str, str | None, str]]
) -> list[str]:
    lines = [f"class {level}: every component it asks for is open"] if level else []
    target = level - 1 if level else 3
    if target:
        left = sorted(asked[target] - valid)
        lines += [f"not class {target}: {name}: {status[name][2]}" for name in left]
    return lines


def _page(name: str, found: Classification, source: str) -> str:
    return pretty(
        {
            "framework": {"name": "Model Openness Framework", "version": "1.0"},
            "release": name,
            "evaluated": source,
            "class": found.level,
            "label": LABELS[found.level],
            "progress": {str(level): found.progress[level] for level in (1, 2, 3)},
            "reasons": found.reasons,
            "components": found.components,
        }
    )


@functools.cache
def _open() -> frozenset[str]:
    text = resources.files("freehold.provenance.knowledge").joinpath("open_licences.txt").read_text(encoding="utf-8")
    return frozenset(text.split())
