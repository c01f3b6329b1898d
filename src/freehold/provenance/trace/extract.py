"""Text out of files: plain text as it is, the strings of JSON, what a reader sees of HTML; each byte knows where it was.

A document is text without markup and escapes, and segments: from `text` on (bytes in the document), bytes stand one for
one in the source from `source` on, in line `line`. It knows nothing of paths or indexes. Sources are hostile: every loop
is linear in their length.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import NamedTuple

from freehold.provenance.trace.sources import HTML, JSON

SHORTEST_STRING = 16  # bytes: shorter strings of JSON are names and labels


class Segment(NamedTuple):
    """Where a run of bytes of a document was."""

    text: int
    source: int
    line: int


class Document(NamedTuple):
    """A text that stands for itself: a file, or one string of a JSON file."""

    text: bytes
    segments: list[Segment]


def extract(kind: str, data: bytes, line: int = 1) -> Iterator[Document]:
    """The documents of a source.

    Args:
        kind: `sources.TEXT`, `JSON` or `HTML`.
        data: its bytes.
        line: number of its first line.
    """
    if kind == JSON:
        yield from _json(data, line)
    elif kind == HTML:
        yield _html(data, line)
    else:
        yield Document(data, [Segment(0, 0, line)])


# A string, or the rest of a line after a quote that nothing closes: JSON's strings have no line ends, so a broken line
# does not disturb the next one.
_STRING = re.compile(rb'"((?:[^"\\\n]++|\\[^\n])*+)("?)(\s*+:)?')
_ESCAPE = re.compile(rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|.)", re.DOTALL)
_SHORT_ESCAPES = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"b": b"\b", b"f": b"\f"}


def _json(data: bytes, line: int) -> Iterator[Document]:
    """The strings that are values (not names), one document each; works for JSON and for lines of it."""
    at = 0
    for found in _STRING.finditer(data):
        body, closed, name = found.groups()
        if not closed or name or len(body) < SHORTEST_STRING:
            continue
        line += data.count(b"\n", at, found.start())
        at = found.start()
        yield _unescape(body, found.start(1), line)


def _unescape(body: bytes, source: int, line: int) -> Document:
    parts: list[bytes] = []
    segments = [Segment(0, source, line)]
    at = size = 0
    for found in _ESCAPE.finditer(body):
        parts += (body[at : found.start()], _escaped(found[0][1:]))
        size += len(parts[-1]) + len(parts[-2])
        at = found.end()
        segments.append(Segment(size, source + at, line))
    parts.append(body[at:])
    return Document(b"".join(parts), segments)


def _escaped(escape: bytes) -> bytes:
    """What stands behind a backslash, as UTF-8; half a surrogate pair becomes U+FFFD."""
    if escape[:1] != b"u" or len(escape) < 5:
        return _SHORT_ESCAPES.get(escape, escape)
    units = bytes.fromhex((escape[1:5] + escape[7:11]).decode())
    return units.decode("utf-16-be", "replace").encode()


_MARK = re.compile(rb"<!--|<(/?)([a-zA-Z][a-zA-Z0-9]*+)[^<>]{0,65536}+>|<[!?][^<>]{0,65536}+>|&#?\w{1,32};?")
_BLOCKS = frozenset(
    b"address article aside blockquote br dd div dl dt fieldset figure footer form h1 h2 h3 h4 h5 h6 header hr li main"
    b" nav ol p pre section table tbody td th thead tr ul title option".split()
)
_UNSEEN = frozenset((b"script", b"style", b"template", b"noscript"))


def _html(data: bytes, line: int) -> Document:
    """What a reader sees: no tags, comments, scripts and styles; blocks begin on lines of their own."""
    parts: list[bytes] = []
    segments = [Segment(0, 0, line)]
    at = size = counted = 0
    ends: dict[bytes, int] = {}  # where a closing mark was last found: each is looked for only once from any place
    while found := _MARK.search(data, at):
        parts.append(data[at : found.start()])
        stop, seen = _mark(data, found, ends)
        parts.append(seen)
        size += len(parts[-2]) + len(seen)
        line += data.count(b"\n", counted, stop)
        at = counted = stop
        segments.append(Segment(size, at, line))
    parts.append(data[at:])
    return Document(b"".join(parts), segments)


def _mark(data: bytes, found: re.Match[bytes], ends: dict[bytes, int]) -> tuple[int, bytes]:
    """Where a tag, comment or entity ends, and what a reader sees in its place."""
    mark, closing, name = found[0], found[1], (found[2] or b"").lower()
    if mark.startswith(b"&"):
        return found.end(), html.unescape(mark.decode("latin-1")).encode("utf-8", "replace")
    if mark == b"<!--":
        return min(_next(data, b"-->", found.end(), ends) + 3, len(data)), b""
    if name in _UNSEEN and not closing:
        return _next(data, b"</" + name, found.end(), ends), b""
    return found.end(), b"\n" if name in _BLOCKS else b""


def _next(data: bytes, mark: bytes, at: int, ends: dict[bytes, int]) -> int:
    """Where the next `mark` (in small letters or in capitals) begins; the end where there is none."""
    if ends.get(mark, -1) < at:
        places = [data.find(form, at) for form in {mark, mark.upper()}]
        ends[mark] = min((place for place in places if place >= 0), default=len(data))
    return ends[mark]
