"""Licence names and expressions: from what people write to identifiers, and from identifiers to what is known.

`license-expression` parses; labels of hubs and package indexes ("apache-2.0", "MIT License", "gemma") come from the
knowledge base. Knows no artefacts.
"""

from __future__ import annotations

import functools
import re
from itertools import product
from typing import Any

from freehold.provenance.knowledge import Citation, Licence, knowledge

UNKNOWN = "LicenseRef-unknown"
MAX_LABEL = 300  # characters; longer ones are texts, not labels
MAX_ALTERNATIVES = 64
_CLASS_OF_CATEGORY = {
    "Permissive": "permissive",
    "Public Domain": "public-domain",
    "Copyleft": "copyleft",
    "Copyleft Limited": "weak-copyleft",
}
_NOTHING = ("", "unknown", "other", "none", "null", "n/a", "noassertion", "proprietary", "custom", "unlicensed")


def normalize(label: str | None) -> str | None:
    """A declared label as an expression of identifiers; None when it declares nothing anybody could look up.

    Unknown words inside a well-formed expression become LicenseRef-unknown, which rules escalate.
    """
    label = " ".join((label or "").split())
    if label.lower() in _NOTHING or len(label) > MAX_LABEL:
        return None
    if (single := identify(label)) is not None:
        return single
    try:
        tree = _licensing().parse(label)
    except Exception:  # the library raises several kinds; all mean that this is no expression
        return None
    known = {key: identify(key) for key in _licensing().license_keys(tree)} if tree is not None else {}
    if not any(known.values()):
        return None
    return re.sub(r"[\w.+-]+", lambda word: _word(word[0], known), str(tree))


def identify(label: str) -> str | None:
    """The identifier of a single licence: exact, by label, or one of the texts we have."""
    label = label.strip()
    if not label:
        return None
    base = knowledge().licences
    lower = label.lower()
    for key in (*base, *_covered()):
        if key.lower() == lower or key.lower() == f"licenseref-{lower}":
            return key
    for licence in base.values():
        if any(re.fullmatch(pattern, lower) for pattern in licence.labels):
            return licence.id
    for key in _spdx():
        if key.lower() == lower:
            return key
    return None


def lookup(identifier: str) -> Licence:
    """What is known of a licence; one that nobody has encoded is known by its class only, or not at all."""
    base = knowledge().licences
    if identifier in base:
        return base[identifier]
    for licence in base.values():
        if licence.covers and re.fullmatch(licence.covers, identifier):
            return _renamed(licence, identifier)
    mark = _texts().get(identifier)
    if mark is None:
        return _bare(identifier, identifier, "unknown", {"unknown": "no entry in the knowledge base"})
    cls = _CLASS_OF_CATEGORY.get(mark.category, "restricted")
    traits = {"copyleft": "see its text"} if cls == "copyleft" else {}
    traits |= {"weak-copyleft": "see its text"} if cls == "weak-copyleft" else {}
    traits |= {"unread": f"ScanCode's category: {mark.category}"} if cls == "restricted" else {}
    return _bare(identifier, mark.name, cls, traits)


def identifiers(expression: str | None) -> list[str]:
    """Every identifier in a label or expression, in order."""
    expression = normalize(expression)
    if expression is None:
        return []
    words = re.findall(r"[\w.+-]+", expression)
    plain = [word for index, word in enumerate(words) if index == 0 or words[index - 1] != "WITH"]
    return list(dict.fromkeys(word for word in plain if word not in ("AND", "OR", "WITH")))


def alternatives(expression: str) -> list[tuple[str, ...]]:
    """The choices an expression offers: one tuple of identifiers for each, all of which apply together.

    "A AND (B OR C)" -> [(A, B), (A, C)].
    """
    tree = _licensing().parse(expression)
    return _choices(tree)[:MAX_ALTERNATIVES] or [(UNKNOWN,)]


def same_text(one: str, other: str) -> bool:
    """Whether two identifiers name one text: "-only" and "-or-later" can't be told apart by it."""
    return re.sub(r"(-only|-or-later|\+)$", "", one) == re.sub(r"(-only|-or-later|\+)$", "", other)


def compatible(source: str, target: str) -> bool:
    """Whether adaptations of something under `source` may be released under `target`."""
    return source == target or target in lookup(source).compatible


def _choices(tree: Any) -> list[tuple[str, ...]]:
    kind = type(tree).__name__
    if kind == "OR":
        return [choice for part in tree.args for choice in _choices(part)]
    if kind == "AND":
        combined = product(*(_choices(part) for part in tree.args))
        return [
            tuple(dict.fromkeys(key for part in parts for key in part))
            for parts, _ in zip(combined, range(MAX_ALTERNATIVES), strict=False)
        ]
    if kind == "LicenseWithExceptionSymbol":
        return [(str(tree.license_symbol.key),)]
    return [(str(tree.key),)]


def _word(word: str, known: dict[str, str | None]) -> str:
    return word if word not in known else known[word] or UNKNOWN


def _bare(identifier: str, name: str, cls: str, traits: dict[str, str]) -> Licence:
    import datetime as dt

    url = f"https://spdx.org/licenses/{identifier}.html" if not identifier.startswith("LicenseRef-") else ""
    return Licence(identifier, name, cls, Citation(name, url, dt.date(1970, 1, 1)), traits)


def _renamed(licence: Licence, identifier: str) -> Licence:
    from msgspec.structs import replace

    mark = _texts().get(identifier)
    return replace(licence, id=identifier, name=mark.name if mark else identifier)


@functools.cache
def _licensing() -> Any:
    from license_expression import Licensing

    return Licensing()


@functools.cache
def _texts() -> dict[str, Any]:
    from freehold.provenance.texts import known_texts

    return dict(known_texts())


def _spdx() -> list[str]:
    return list(_texts())


@functools.cache
def _covered() -> tuple[str, ...]:
    """Identifiers of the compatibility lists, which need no text of their own."""
    return tuple(key for licence in knowledge().licences.values() for key in licence.compatible)
