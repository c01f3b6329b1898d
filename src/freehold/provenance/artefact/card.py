"""The head of a model or data card: YAML between two lines of dashes, as on Hugging Face's hub.

Knows no files. A card is text that anybody could have written: its size is bounded, only plain values are taken, and
nothing in it is followed. Fields: https://huggingface.co/docs/hub/model-cards, https://huggingface.co/docs/hub/datasets-cards.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

MAX_HEAD = 65_536
MAX_BRACKETS = 500
MAX_VALUES = 100
MAX_VALUE = 500  # characters
MAX_BITS = 1024  # of an integer
_HEAD = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|\Z)", re.DOTALL)
_HEADING = re.compile(r"^(#{1,6})[ \t]+(.{1,200})$|^([^\n]{1,100})\n([=-])\4{2,}[ \t]*$", re.MULTILINE)
_LEGAL = re.compile(r"licen[cs]|copyright|terms|attribution|acknowledg|credits|citation", re.IGNORECASE)


def head(text: str) -> dict[str, Any]:
    """The fields at a card's head; empty when there is no head, or it is no YAML."""
    match = _HEAD.match(text[: 2 * MAX_HEAD])
    if match is None or len(match[1]) > MAX_HEAD or _absurd(match[1]):
        return {}
    try:
        fields = yaml.safe_load(match[1])
        return {str(key): value for key, value in fields.items()} if isinstance(fields, dict) else {}
    except (yaml.YAMLError, RecursionError, ValueError):  # of a number with thousands of digits, say
        return {}


def _absurd(text: str) -> bool:
    """Merge keys can grow without bound, and nesting takes a parser long."""
    return "<<" in text or text.count("[") + text.count("{") > MAX_BRACKETS


def values(fields: dict[str, Any], key: str) -> list[str]:
    """A field as a list of short plain strings, whether it holds one or several."""
    found = fields.get(key)
    listed = found if isinstance(found, list) else [found]
    plain = [str(value) for value in listed[:MAX_VALUES] if _is_plain(value)]
    return [" ".join(value.split())[:MAX_VALUE] for value in plain if value.strip()]


def _is_plain(value: object) -> bool:
    """Words or a number; one that nobody would write has too many digits for Python to print."""
    return isinstance(value, (str, float)) or (
        isinstance(value, int) and value is not True and value.bit_length() <= MAX_BITS
    )


def value(fields: dict[str, Any], key: str) -> str:
    """The first of `values`, or ""."""
    return next(iter(values(fields, key)), "")


def legal_sections(text: str) -> str:
    """The parts of a README below headings that speak of licences, terms or attribution."""
    match = _HEAD.match(text[: 2 * MAX_HEAD])
    body = text[match.end() :] if match else text
    heads = [(found.start(), found.end(), _level(found), found[2] or found[3]) for found in _HEADING.finditer(body)]
    parts = []
    for index, (_, end, level, title) in enumerate(heads):
        if _LEGAL.search(title):
            later = (start for start, _, other, _ in heads[index + 1 :] if other <= level)
            parts.append(body[end : next(later, len(body))])
    return "\n".join(parts)


def _level(found: re.Match[str]) -> int:
    return len(found[1]) if found[1] else 1 if found[4] == "=" else 2
