"""The requirements: one YAML file a revision, frozen once published.

A revision is named by its month. Its digest is in every certificate, so a changed file is another revision.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import jsonschema
import yaml

from freehold.errors import FormatError

CURRENT = "2026-11"
LEVELS = {1: "L1 Wire", 2: "L2 Function", 3: "L3 Interop", 4: "L4 Switchable"}
SCHEMA: dict[str, Any] = {
    "type": "object", "required": ["revision", "needs", "requirements"], "additionalProperties": False,
    "properties": {
        "revision": {"type": "string", "pattern": r"^\d{4}-\d{2}$"},
        "needs": {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "string"}}},
        "requirements": {"type": "array", "minItems": 1, "items": {
            "type": "object", "additionalProperties": False,
            "required": ["id", "level", "rule", "dialect", "text", "passes", "spec"],
            "properties": {
                "id": {"type": "string", "pattern": r"^[A-Z]{2}\.\d{1,2}$"},
                "level": {"type": "integer", "minimum": 1, "maximum": 4},
                "rule": {"enum": ["MUST", "SHOULD"]},
                "dialect": {"enum": ["any", "chat", "responses", "messages", "cross", "reference"]},
                "capability": {"type": "string"},
                "text": {"type": "string", "minLength": 10}, "passes": {"type": "string", "minLength": 10},
                "spec": {"type": "string", "minLength": 5},
            },
        }},
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Requirement:
    """One requirement.

    Args:
        dialect: whose it is; any = of whichever is declared, cross = needs two, reference = needs something to compare with.
        must: MUST or SHOULD; what falls short of a SHOULD is a warning.
        text: what is required. passes: when it counts as met. spec: where it is written.
        capability: counts only where this is declared.
    """

    id: str
    level: int
    must: bool
    dialect: str
    text: str
    passes: str
    spec: str
    capability: str = ""

    @property
    def group(self) -> str:
        """The part of the id before the point."""
        return self.id.partition(".")[0]


@dataclass(frozen=True, slots=True)
class Revision:
    """A frozen set of requirements.

    Args:
        needs: by level, capabilities without which it can't be reached.
        digest: SHA-256 of the file.
    """

    name: str
    needs: dict[int, tuple[str, ...]]
    requirements: tuple[Requirement, ...]
    digest: str


@cache
def load(name: str = CURRENT) -> Revision:
    """A revision by its name.

    Raises:
        FormatError: there is none, or it is broken.
    """
    file = resources.files(__name__).joinpath(f"{name}.yaml")
    if not name.replace("-", "").isdigit() or not file.is_file():
        raise FormatError(f"no revision {name!r} of the requirements here", hint="a newer freehold may have it")
    data = file.read_bytes()
    return read(yaml.safe_load(data), hashlib.sha256(data).hexdigest())


def read(found: Any, digest: str) -> Revision:
    """A revision out of plain data.

    Raises:
        FormatError: names the first entry that is wrong.
    """
    try:
        jsonschema.validate(found, SCHEMA)
    except jsonschema.ValidationError as error:
        raise FormatError(f"requirements: {error.message[:200]} - at {error.json_path}") from None
    rows = tuple(
        Requirement(row["id"], row["level"], row["rule"] == "MUST", row["dialect"], row["text"], row["passes"], row["spec"],
                    row.get("capability", ""))
        for row in found["requirements"]
    )  # fmt: skip
    twice = {row.id for row in rows if sum(other.id == row.id for other in rows) > 1}
    if twice:
        raise FormatError(f"requirements: {', '.join(sorted(twice))} more than once")
    needs = {int(level): tuple(names) for level, names in found["needs"].items()}
    return Revision(found["revision"], needs, rows, digest)


@cache
def shape(name: str) -> dict[str, Any]:
    """A dialect's object as a JSON schema, by its name in shapes.yaml."""
    found: dict[str, Any] = _shapes()[name]
    return {"$defs": _shapes(), **found}


@cache
def _shapes() -> dict[str, Any]:
    shapes: dict[str, Any] = yaml.safe_load(resources.files(__name__).joinpath("shapes.yaml").read_bytes())
    return shapes
