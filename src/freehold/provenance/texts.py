"""Recognising a licence by its words, whatever the file calls itself.

A licence text is kept as hashes of word shingles, not as text: containment of a licence's shingles in a file's tells
whether the licence is in there, also when names, wrapping and markup differ (Broder, "On the resemblance and containment
of documents", 1997; sampling by modulus as in its section 4). Short notices and links, which are no texts, are found by
`references`. Knows no rules and no artefacts: text in, matches out.
"""

from __future__ import annotations

import functools
import hashlib
import html
import re
import zlib
from array import array
from dataclasses import dataclass
from importlib import resources

import msgspec

from freehold.provenance.knowledge import knowledge

SHINGLE = 5  # words
SAMPLE = 300  # hashes kept of one licence, about
MATCH = 0.78  # containment from which a file holds the licence
SIMILAR = 0.45  # below MATCH: the licence with changes, which nobody has read yet
MAX_CHARACTERS = 1_000_000
_WORD = re.compile(r"[^\W_]+")
_MARKUP = re.compile(r"<[^<>]{1,2000}>")
_COPYRIGHT = re.compile(r"^[^\w\n]{0,20}(copyright|\(c\)|©).*$", re.IGNORECASE | re.MULTILINE)
_PAGE = re.compile(
    r"Except as otherwise noted, the content of this page is licensed under.{0,400}?Apache 2\.0 License", re.I
)
_TAG = re.compile(r"SPDX-License-Identifier:[ \t]*([^\n\r*<>\"']{2,200})")


class Fingerprint(msgspec.Struct, frozen=True):
    """A licence text as a sample of its shingles.

    Attributes:
        id: SPDX identifier or LicenseRef.
        name: in words.
        category: ScanCode's class of it.
        shingles: how many the whole text has.
        modulus: a shingle is kept when its hash is a multiple of this.
        hashes: the kept ones, 4 bytes each, little-endian.
    """

    id: str
    name: str
    category: str
    shingles: int
    modulus: int
    hashes: bytes


@dataclass(frozen=True, slots=True)
class Match:
    """A licence found in a text.

    Attributes:
        licence: SPDX identifier or LicenseRef.
        how: "text" (the licence's words), "similar" (its words, changed), "reference" (a name or link) or "tag".
        score: containment for texts, 1.0 for the others.
        quote: the words that named it, for references and tags.
    """

    licence: str
    how: str
    score: float
    quote: str = ""


def find(text: str) -> list[Match]:
    """Every licence in a text: by its words first, then by tags, names and links."""
    found = by_words(text)
    seen = {match.licence for match in found if match.how == "text"}
    for match in [*tags(text), *references(text)]:
        if match.licence not in seen:
            seen.add(match.licence)
            found.append(match)
    return found


def by_words(text: str) -> list[Match]:
    """Licences whose words a text holds; of those that overlap, the one that explains most of it.

    Returns: matches by place in the text; a "similar" one only when nothing matched.
    """
    places = _places(text)
    candidates = []
    for mark, hashes in _fingerprints():
        here = [places[value] for value in hashes if value in places]
        share = len(here) / len(hashes)
        if share >= SIMILAR:
            here.sort()
            edge = len(here) // 20
            candidates.append((mark.shingles * (2 * share - 1), share, here[edge], here[-1 - edge], mark.id))
    candidates.sort(reverse=True)
    taken: list[tuple[int, int]] = []
    matches = []
    for _, share, first, last, licence in candidates:
        if share >= MATCH and not any(_overlap(first, last, *other) for other in taken):
            taken.append((first, last))
            matches.append((first, Match(licence, "text", round(share, 3))))
    if not matches and candidates:
        _, share, _, _, licence = max(candidates, key=lambda candidate: candidate[1])
        return [Match(licence, "similar", round(share, 3))]
    return [match for _, match in sorted(matches, key=lambda pair: pair[0])]


def tags(text: str) -> list[Match]:
    """Licences of `SPDX-License-Identifier:` lines."""
    from freehold.provenance.licences import identifiers

    found: dict[str, Match] = {}
    for match in _TAG.finditer(text[:MAX_CHARACTERS]):
        for licence in identifiers(match[1].strip()):
            found.setdefault(licence, Match(licence, "tag", 1.0, match[0].strip()[:120]))
    return list(found.values())


def references(text: str) -> list[Match]:
    """Licences a text names or links to; the names are those of the knowledge base."""
    found: dict[str, Match] = {}
    words = " ".join(text[:MAX_CHARACTERS].split())
    plain = _PAGE.sub(" ", _MARKUP.sub(" ", words)) if "Except as otherwise noted" in words else words
    for licence, pattern in _patterns():
        if (match := pattern.search(plain)) is not None:
            found.setdefault(licence, Match(licence, "reference", 1.0, match[0][:120]))
    return list(found.values())


def digest(text: str | bytes) -> str:
    """SHA-256 of the exact text, by which an Entity is named."""
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()


def known_texts() -> dict[str, Fingerprint]:
    """Every licence that can be recognised by its words."""
    return {mark.id: mark for mark, _ in _fingerprints()}


def shingles(text: str) -> list[int]:
    """The hashes of a text's shingles in their order."""
    words = _WORD.findall(_plain(text))
    return [zlib.crc32(" ".join(words[i : i + SHINGLE]).encode()) for i in range(len(words) - SHINGLE + 1)]


def fingerprint(licence: str, name: str, category: str, text: str) -> Fingerprint:
    """The sample that is kept of a licence text."""
    hashes = sorted(set(shingles(text)))
    modulus = max(1, len(hashes) // SAMPLE)
    kept = array("I", [value for value in hashes if value % modulus == 0])
    return Fingerprint(licence, name, category, len(hashes), modulus, kept.tobytes())


def _plain(text: str) -> str:
    text = text[:MAX_CHARACTERS]
    if "<" in text:
        text = html.unescape(_MARKUP.sub(" ", text))
    return _COPYRIGHT.sub(" ", text).lower()


def _places(text: str) -> dict[int, int]:
    places: dict[int, int] = {}
    for index, value in enumerate(shingles(text)):
        places.setdefault(value, index)
    return places


def _overlap(first: int, last: int, other_first: int, other_last: int) -> bool:
    """Whether half of the shorter stretch lies in the other."""
    common = min(last, other_last) - max(first, other_first)
    return 2 * common > min(last - first, other_last - other_first)


@functools.cache
def _fingerprints() -> list[tuple[Fingerprint, array[int]]]:
    raw = resources.files("freehold.provenance.knowledge").joinpath("texts.msgpack").read_bytes()
    marks = msgspec.msgpack.decode(raw, type=list[Fingerprint])
    return [(mark, array("I", mark.hashes)) for mark in marks]


@functools.cache
def _patterns() -> list[tuple[str, re.Pattern[str]]]:
    return [
        (licence.id, re.compile(pattern, re.IGNORECASE))
        for licence in knowledge().licences.values()
        for pattern in licence.named
    ]
