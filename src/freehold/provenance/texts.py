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
NEAR = 0.08  # difference in containment within which two licences are variants of one text
MAX_CHARACTERS = 1_000_000
_WORD = re.compile(r"[^\W_]+")
_MARKUP = re.compile(r"<[^<>]{1,2000}>")
_COPYRIGHT = re.compile(r"^[^\w\n]{0,20}(copyright|\(c\)|©).*$", re.IGNORECASE | re.MULTILINE)
_PAGE = re.compile(
    r"Except as otherwise noted, the content of this page is licensed under.{0,400}?Apache 2\.0 License", re.I
)
_COMMENT = re.compile(r"^[ \t]*[#/*;%!<>-]{1,8}", re.MULTILINE)
_GNU = re.compile(
    r"under the terms of (?:version (?P<before>\d(?:\.\d)?) of )?the GNU (?:(?P<kind>Affero|Lesser|Library) )?"
    r"General Public License(?: \([AL]?GPL\))?(?:,? as published by the Free Software Foundation)?"
    r"(?:[,;:]? (?:either )?\(?version (?P<after>\d(?:\.\d)?))?",
    re.IGNORECASE,
)
_COMMENT_TAG = re.compile(
    r"^[ \t]{0,40}(?:#|//|/\*|\*|--|;|%|<!--|\.\.|!|rem|\"{3}|\(\*)?[#/*!; \t]{0,80}SPDX-License-Identifier:[^\n\r]{0,220}",
    re.IGNORECASE | re.MULTILINE,
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
        near: other licences that the same stretch of text holds nearly as well (variants of one text).
    """

    licence: str
    how: str
    score: float
    quote: str = ""
    near: tuple[str, ...] = ()


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
    candidates = _candidates(_places(text))
    taken: list[_Candidate] = []
    for candidate in candidates:
        if candidate.share >= MATCH and not any(_overlap(candidate, other) for other in taken):
            taken.append(candidate)
    if not taken and candidates:
        best = max(candidates, key=lambda candidate: candidate.share)
        return [Match(best.licence, "similar", round(best.share, 3))]
    return [_match(one, candidates) for one in sorted(taken, key=lambda candidate: candidate.first)]


def tags(text: str) -> list[Match]:
    """Licences of `SPDX-License-Identifier:` lines."""
    from freehold.provenance.licences import identifiers

    found: dict[str, Match] = {}
    for match in _TAG.finditer(text[:MAX_CHARACTERS]):
        for licence in identifiers(match[1].strip()):
            found.setdefault(licence, Match(licence, "tag", 1.0, match[0].strip()[:120]))
    return list(found.values())


def comment_tags(text: str) -> list[Match]:
    """Licences of `SPDX-License-Identifier:` lines that are comments: a string or a sentence about such a line is none."""
    return tags("\n".join(match[0] for match in _COMMENT_TAG.finditer(text)))


def gnu_notices(text: str) -> list[Match]:
    """Licences of the notice at the head of a source that the GNU licences ask for ("How to Apply These Terms")."""
    words = " ".join(_COMMENT.sub(" ", text[:MAX_CHARACTERS]).split())
    found: dict[str, Match] = {}
    for match in _GNU.finditer(words):
        letter = {"affero": "A", "lesser": "L", "library": "L"}.get((match["kind"] or "").lower(), "")
        version = match["before"] or match["after"]
        if version:
            later = re.match(r"[^.]{0,60}any later version", words[match.end() :], re.IGNORECASE) is not None
            number = version if "." in version else f"{version}.0"
            licence = f"{letter}GPL-{number}-{'or-later' if later else 'only'}"
            found.setdefault(licence, Match(licence, "reference", 1.0, match[0][:120]))
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


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A licence that a text may hold: how well it explains the text, and from which shingle to which."""

    score: float
    share: float
    first: int
    last: int
    licence: str


def _candidates(places: dict[int, int]) -> list[_Candidate]:
    """Best first. A missing shingle counts twice; of two variants the one people use wins a near tie."""
    found = []
    for mark, hashes in _fingerprints():
        here = sorted(places[value] for value in hashes if value in places)
        share = len(here) / len(hashes)
        if share >= SIMILAR:
            edge = len(here) // 20  # a stray shingle is no part of the stretch
            usual = 1.05 if mark.id in knowledge().licences else 1.0
            score = mark.shingles * (3 * share - 2) * usual
            found.append(_Candidate(score, share, here[edge], here[-1 - edge], mark.id))
    return sorted(found, key=lambda candidate: -candidate.score)


def _match(one: _Candidate, candidates: list[_Candidate]) -> Match:
    near = [
        other.licence
        for other in candidates
        if other.licence != one.licence and other.share >= one.share - NEAR and _overlap(one, other)
    ]
    return Match(one.licence, "text", round(one.share, 3), near=tuple(dict.fromkeys(near)))


def _overlap(one: _Candidate, other: _Candidate) -> bool:
    """Whether half of the shorter stretch lies in the other."""
    common = min(one.last, other.last) - max(one.first, other.first)
    return 2 * common > min(one.last - one.first, other.last - other.first)


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
