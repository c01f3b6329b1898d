"""The licence that a project's own metadata at its root declares: pyproject.toml, setup.cfg, package.json, Cargo.toml.

Knows no judgement. A manifest that can't be read is told, not guessed at.
"""

from __future__ import annotations

import configparser
import tomllib
from collections.abc import Callable
from typing import Any

import msgspec

from freehold.provenance.artefact import survey
from freehold.provenance.artefact.facts import Artefact
from freehold.provenance.artefact.tree import Folder, text_of


def present(tree: Folder) -> list[str]:
    """The manifests at the root."""
    return [name for name in _READERS if tree.holds(name)]


def declared(tree: Folder, artefact: Artefact) -> str | None:
    """Declare what the manifests at the root say; what several of them say applies together."""
    stated = []
    for name in present(tree):
        try:
            labels = _READERS[name](text_of(tree.read(name)))
        except (ValueError, RecursionError, configparser.Error, AttributeError) as error:
            artefact.unread.append(f"{name} can't be read: {' '.join(str(error).split())[:200]}")
            continue
        for key, label in labels:
            if isinstance(label, str) and label.strip():
                stated.append(survey.declare(artefact, label, f"{name}: {key}"))
    found = dict.fromkeys(f"({licence})" if " " in licence else licence for licence in stated if licence)
    return " AND ".join(found) or None


def _pyproject(text: str) -> list[tuple[str, Any]]:
    found = tomllib.loads(text)
    project, poetry = found.get("project", {}), found.get("tool", {}).get("poetry", {})
    stated = project.get("license")
    labels = [("project.license", stated.get("text") if isinstance(stated, dict) else stated)]
    return [*labels, ("tool.poetry.license", poetry.get("license"))]


def _setup_cfg(text: str) -> list[tuple[str, Any]]:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(text)
    return [("metadata.license", parser.get("metadata", "license", fallback=None))]


def _package_json(text: str) -> list[tuple[str, Any]]:
    stated = msgspec.json.decode(text).get("license")
    return [("license", stated.get("type") if isinstance(stated, dict) else stated)]


def _cargo(text: str) -> list[tuple[str, Any]]:
    return [("package.license", tomllib.loads(text).get("package", {}).get("license"))]


_READERS: dict[str, Callable[[str], list[tuple[str, Any]]]] = {
    "pyproject.toml": _pyproject,
    "setup.cfg": _setup_cfg,
    "package.json": _package_json,
    "Cargo.toml": _cargo,
}
