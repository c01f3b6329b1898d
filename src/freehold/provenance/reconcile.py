"""Declared against detected: what a label leaves out is put into the lineage, so that rules see it.

Knows artefacts and lineages; judges nothing.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import PurePosixPath

from freehold.provenance.artefact.facts import Artefact, Detection
from freehold.provenance.artefact.survey import heavy
from freehold.provenance.knowledge import FREE_CLASSES
from freehold.provenance.licences import UNKNOWN, identifiers, lookup, same_text
from freehold.provenance.lineage import Thing


def reconcile(artefact: Artefact) -> dict[str, tuple[str, ...]]:
    """Add what was detected to the lineage.

    A licence that nobody declared and that asks for more than the declared ones differs from the label; a permissive
    one is a part with a notice of its own. Without any declaration the artefact's own licence file decides.

    Returns: by thing, the licences that were found in it although it is labelled otherwise.
    """
    _conclude(artefact)
    mine = _declared(artefact)
    found: dict[str, tuple[str, ...]] = {}
    for thing, licences in _labelled_otherwise(artefact).items():
        found[thing] = licences
    for licence, seen in _undeclared(artefact, mine).items():
        if _differs(artefact, licence, seen, mine):
            thing = _part(artefact, seen[0], None)
            found[thing] = (*found.get(thing, ()), licence)
        else:
            _part(artefact, seen[0], licence)
    _doubt(artefact, mine)
    _unread(artefact)
    return found


def _conclude(artefact: Artefact) -> None:
    """Nothing declared: the artefact's own licence file, or a single licence found anywhere, is taken."""
    subject = artefact.lineage.things[artefact.lineage.subject]
    if subject.licence is not None:
        return
    own = [item for item in artefact.detected if item.primary and item.how in ("text", "tag")]
    named = {item.licence: item for item in artefact.detected if item.how in ("text", "tag", "reference")}
    chosen = {item.licence: item for item in own} or (named if len(named) == 1 else {})
    if chosen:
        files = ", ".join(dict.fromkeys(item.file for item in chosen.values()))
        artefact.lineage.things[subject.id] = replace(subject, licence=" AND ".join(chosen), evidence=files)
        artefact.notes.append(f"it declares no licence: {', '.join(chosen)} was concluded from {files}")


def _declared(artefact: Artefact) -> list[str]:
    stated = [item.licence for item in artefact.declared]
    things = [thing.licence for thing in artefact.lineage.things.values()]
    return list(dict.fromkeys(key for licence in (*stated, *things) for key in identifiers(licence)))


def _undeclared(artefact: Artefact, mine: list[str]) -> dict[str, list[Detection]]:
    """Detections of licences nobody declared, the surest first."""
    order = ("text", "tag", "reference")
    left: dict[str, list[Detection]] = {}
    for item in sorted(
        (item for item in artefact.detected if item.how in order), key=lambda item: order.index(item.how)
    ):
        if not any(_stands_for(item, key) for key in mine):
            left.setdefault(item.licence, []).append(item)
    return left


def _labelled_otherwise(artefact: Artefact) -> dict[str, tuple[str, ...]]:
    """Weights and data in a package whose own card asks for more than the package's label says."""
    subject = artefact.lineage.things[artefact.lineage.subject]
    label = identifiers(subject.licence)
    parts = [link.parent for link in artefact.lineage.links if link.child == subject.id and link.relation == "contains"]
    found = {}
    for part in parts if artefact.kind == "software" and label else []:
        stricter = [
            key
            for key in identifiers(artefact.lineage.things[part].licence)
            if lookup(key).cls not in FREE_CLASSES and not any(same_text(key, mine) for mine in label)
        ]
        if stricter:
            found[part] = tuple(stricter)
    return found


def _stands_for(item: Detection, declared: str) -> bool:
    """Whether a detection is the declared licence: the same text, or a variant of a permissive one."""
    if same_text(item.licence, declared):
        return True
    free = all(lookup(key).cls in FREE_CLASSES for key in (item.licence, declared))
    bsd = item.licence.startswith("BSD-") and declared.startswith("BSD-")  # "BSD License" says no more than that
    return free and (bsd or declared in item.near)


def _differs(artefact: Artefact, licence: str, seen: list[Detection], mine: list[str]) -> bool:
    """Whether the label misleads: more is asked than it says, or its own licence file is another licence's."""
    if lookup(licence).cls not in FREE_CLASSES:
        return True
    own = [item for item in artefact.detected if item.primary and item.how in ("text", "tag", "reference")]
    kept = any(_stands_for(item, key) for item in own for key in mine)
    return not kept and any(item.primary and item.how == "text" for item in seen)


def _part(artefact: Artefact, seen: Detection, licence: str | None) -> str:
    """The thing a licence was found on: the model or data set itself, or the heavy files a package carries."""
    subject = artefact.lineage.subject
    if (artefact.kind != "software" or artefact.facts.get("project")) and licence is None:
        return subject
    named, kind = _carried(artefact, seen) if licence is None else (seen.file, "software")
    part = f"{artefact.name}:{named}"
    evidence = f"{seen.file}: {seen.quote}" if seen.quote else f"{seen.file}: its words ({seen.score:.0%})"
    artefact.lineage.add(Thing(part, kind, licence, evidence))
    artefact.lineage.link(subject, "contains", part, seen.file)
    return part


def _carried(artefact: Artefact, seen: Detection) -> tuple[str, str]:
    """Weights or data near the file that names a licence, else anywhere: the one file, or the folder of several."""
    folder = PurePosixPath(seen.file).parent
    weighty = heavy(artefact.files)
    near = [pair for pair in weighty if PurePosixPath(pair[0].name).is_relative_to(folder) and str(folder) != "."]
    chosen = near or weighty
    if not chosen:
        return seen.file, "software"
    kind = chosen[0][1]
    names = [file.name for file, other in chosen if other == kind]
    return (names[0] if len(names) == 1 else os.path.commonpath(names) or names[0]), kind


def _doubt(artefact: Artefact, mine: list[str]) -> None:
    """The artefact's own licence file is nobody's words, or changed ones: a person has to read it."""
    own = [item for item in artefact.detected if item.primary]
    if any(_stands_for(item, key) for item in own for key in mine if item.how != "similar"):
        return
    for item in own:
        if item.how in ("similar", "unmatched"):
            like = f"is like {item.licence}, changed ({item.score:.0%} of its words)" if item.licence != UNKNOWN else ""
            doubt = f"{item.file} {like or 'holds no licence text that is known'}"
            subject = artefact.lineage.things[artefact.lineage.subject]
            artefact.lineage.things[subject.id] = replace(subject, doubt=doubt)
            return


def _unread(artefact: Artefact) -> None:
    """Files that a bound left unread may say anything: a person has to look at them."""
    subject = artefact.lineage.things[artefact.lineage.subject]
    doubts = [subject.doubt, *artefact.unread] if subject.doubt else artefact.unread
    artefact.lineage.things[subject.id] = replace(subject, doubt="; ".join(doubts))
