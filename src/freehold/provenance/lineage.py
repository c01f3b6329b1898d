"""What a thing is made from: things, links between them, and every path from the subject to a licensed thing.

W3C PROV in small: a Thing is an Entity, a Link is `wasDerivedFrom` with its kind. Knows no licences.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass, field

RELATIONS = {
    "quantized_from": "adapt",
    "converted_from": "adapt",
    "fine_tuned_from": "adapt",
    "adapter_of": "adapt",
    "merged_from": "adapt",
    "adapted_from": "adapt",
    "contains": "part",
    "trained_on": "train",
    "generated_by": "generate",
    "follows": "generate",
    "quotes": "generate",
}
"""Every relation, and how it moves the reach (see `reach_of`)."""
MAX_PATHS = 2_000
MAX_DEPTH = 16
_STEPS = {
    ("own", "adapt"): "adapted",
    ("own", "part"): "part",
    ("own", "train"): "trained",
    ("own", "generate"): "output",
    ("part", "adapt"): "adapted",
    ("part", "part"): "part",
    ("part", "train"): "trained",
    ("part", "generate"): "output",
    ("adapted", "adapt"): "adapted",
    ("adapted", "part"): "adapted",
    ("adapted", "train"): "trained",
    ("adapted", "generate"): "output",
    ("trained", "adapt"): "trained",
    ("trained", "part"): "trained",
    ("trained", "generate"): "trained-on-output",
    ("output", "adapt"): "output",
    ("trained-on-output", "adapt"): "trained-on-output",
}


@dataclass(frozen=True, slots=True)
class Thing:
    """A model, data set, package, record or provider.

    Attributes:
        id: its name, unique in the lineage.
        kind: "model", "dataset", "software", "record" or "provider".
        licence: an expression, None when nothing is declared or known.
        evidence: where that is written.
        doubt: a contested point that a person has to settle.
        at: for providers, the day of generation; None when unknown.
        provider: for providers, the name their terms are under.
        outputs: for models, where their makers free what they write, whatever the licence says.
    """

    id: str
    kind: str
    licence: str | None = None
    evidence: str = ""
    doubt: str = ""
    at: dt.date | None = None
    provider: str = ""
    outputs: str = ""


@dataclass(frozen=True, slots=True)
class Link:
    """`child` was made from `parent`; `relation` is one of RELATIONS."""

    child: str
    relation: str
    parent: str
    evidence: str = ""


@dataclass(slots=True)
class Lineage:
    """Things and links, seen from a subject."""

    subject: str
    things: dict[str, Thing] = field(default_factory=dict)
    links: list[Link] = field(default_factory=list)

    def add(self, thing: Thing) -> Thing:
        """Add a thing; one of the same name stays as it was."""
        return self.things.setdefault(thing.id, thing)

    def link(self, child: str, relation: str, parent: str, evidence: str = "") -> None:
        """Say that one was made from the other; said twice it counts once."""
        if relation not in RELATIONS:
            raise KeyError(relation)
        link = Link(child, relation, parent, evidence)
        if link not in self.links:
            self.links.append(link)

    def paths(self) -> Iterator[tuple[Link, ...]]:
        """Every way from the subject to a thing, the empty one first; no thing twice on one way."""
        links: dict[str, list[Link]] = {}
        for link in self.links:
            links.setdefault(link.child, []).append(link)
        waiting: list[tuple[Link, ...]] = [()]
        for _ in range(MAX_PATHS):
            if not waiting:
                return
            path = waiting.pop(0)
            yield path
            if len(path) < MAX_DEPTH:
                end = path[-1].parent if path else self.subject
                been = {self.subject, *(link.parent for link in path)}
                waiting += [(*path, link) for link in links.get(end, []) if link.parent not in been]


def reach_of(path: tuple[Link, ...]) -> str:
    """How the subject stands to the end of a path: one of the knowledge base's REACHES."""
    reach = "own"
    for link in path:
        reach = _STEPS.get((reach, RELATIONS[link.relation]), "beyond")
    return reach


def words(subject: str, path: tuple[Link, ...]) -> str:
    """A path as a line: "model > quantized_from > base"."""
    return " > ".join([subject, *(word for link in path for word in (link.relation, link.parent))])
