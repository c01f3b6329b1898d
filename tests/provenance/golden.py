"""Reads the golden table: one case for each row and purpose."""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass
from pathlib import Path

from freehold.provenance.licences import lookup
from freehold.provenance.lineage import Lineage, Thing

TABLE = Path(__file__).parent.parent / "vectors/provenance/golden.txt"
PURPOSES = ("commercial", "research", "train", "redistribute")
KINDS = {"m": "model", "d": "dataset", "s": "software", "r": "record"}
VERDICTS = {"a": "allow", "e": "escalate", "d": "deny"}
_WORD = re.compile(r"([\w.-]+):([mdsr])\[([^\]]*)\]|p\[([\w.-]+)(?:@([\d-]+))?\]|([\w.-]+)>(\w+)>([\w.-]+)")


@dataclass(frozen=True)
class GoldenCase:
    """A lineage, a purpose, and what is expected of them."""

    line: int
    things: str
    purpose: str
    verdict: str
    rule: str
    path: str

    @property
    def name(self) -> str:
        return f"line {self.line}: {self.things} for {self.purpose}"

    def lineage(self) -> tuple[Lineage, dict[str, tuple[str, ...]]]:
        return lineage_of(self.things)


def cases() -> list[GoldenCase]:
    found = []
    for number, line in enumerate(TABLE.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        things, path, *cells = (cell.strip() for cell in line.split("|"))
        for purpose, cell in zip(PURPOSES, cells, strict=True):
            word, _, own = cell.partition(" ")
            found.append(GoldenCase(number, things, purpose, VERDICTS[word[0]], f"R{word[1:]}", own or path))
    return found


def lineage_of(text: str) -> tuple[Lineage, dict[str, tuple[str, ...]]]:
    """The lineage a row describes, and licences that were found without being declared."""
    words = list(_WORD.finditer(text))
    left = _WORD.sub("", text)
    assert not left.strip(), f"not understood: {left}"
    lineage, found = Lineage(words[0][1]), {}
    for word in words:
        if word[1]:
            mark, expression = re.match(r"([?!]?)(.*)", word[3]).groups()
            licence = full(expression) or None
            doubt = "somebody has to read it" if mark == "!" else ""
            declared = None if mark == "?" else licence
            if mark == "?":
                found[word[1]] = (licence,)
            lineage.add(Thing(word[1], KINDS[word[2]], declared, doubt=doubt))
        elif word[4]:
            at = dt.date.fromisoformat(word[5]) if word[5] else None
            lineage.add(Thing("p", "provider", at=at, provider=word[4]))
        else:
            lineage.link(word[6], word[7], word[8])
    return lineage, found


def full(expression: str) -> str:
    """Identifiers with their LicenseRef."""
    return re.sub(r"[\w.+-]+", lambda word: known(word[0]), expression)


def full_path(path: str) -> str:
    """A path whose last word is a licence."""
    head, _, licence = path.strip().rpartition(" > ")
    return f"{head} > {known(licence)}"


def known(word: str) -> str:
    if word in ("AND", "OR", "WITH"):
        return word
    named = word == "unknown" or re.search(r"-terms-", word) is not None
    return f"LicenseRef-{word}" if named or lookup(f"LicenseRef-{word}").cls != "unknown" else word
