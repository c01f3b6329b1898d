"""Changes single members of a JSON object and leaves every other byte as it came.

For upstreams that speak the client's own dialect: what we don't know passes through unharmed, down to the spelling of
numbers. Knows no dialect.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

_KEY = re.compile(rb'[ \t\r\n]*("[^"\\]*+(?:\\.[^"\\]*+)*+")[ \t\r\n]*:[ \t\r\n]*')
_OPEN = re.compile(rb"[ \t\r\n]*\{")
_NEXT = re.compile(rb"[ \t\r\n]*([,}])")


@dataclass(frozen=True, slots=True)
class _Member:
    """Where a member lies: `begin` behind the comma before it, then its value, then `end` at the comma after it."""

    begin: int
    value: int
    value_end: int
    end: int


class JsonObject:
    """A JSON object as bytes.

    Args:
        body: the object. What is not one, or names a member twice, raises ValueError.
    """

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.values: dict[str, msgspec.Raw] = _decoded(body)
        self._members, self._tail = _located(body, self.values)

    def get(self, name: str) -> object:
        """The value of a member; None when it is absent."""
        return msgspec.json.decode(self.values[name]) if name in self.values else None

    def spliced(self, changes: Mapping[str, bytes | None]) -> bytes:
        """The object with other values, or without members (None); new members come first."""
        body, begin = self._body, next(iter(self._members.values())).begin if self._members else self._tail
        pieces = [
            msgspec.json.encode(name) + b":" + value
            for name, value in changes.items()
            if value is not None and name not in self._members
        ]
        for name, member in self._members.items():
            if name not in changes:
                pieces.append(body[member.begin : member.end])
            elif (value := changes[name]) is not None:
                pieces.append(body[member.begin : member.value] + value + body[member.value_end : member.end])
        return body[:begin] + b",".join(pieces) + body[self._tail :]


def _decoded(body: bytes) -> dict[str, msgspec.Raw]:
    try:
        return msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"not a JSON object: {error}") from None


def _located(body: bytes, values: Mapping[str, msgspec.Raw]) -> tuple[dict[str, _Member], int]:
    """Each member's place and that of the closing brace. Walks the values' lengths, so long ones cost nothing."""
    opening = _OPEN.match(body)
    position, separator = opening.end() if opening else 0, b","
    members: dict[str, _Member] = {}
    for name, raw in values.items():
        key = _KEY.match(body, position)
        value_end = key.end() + len(memoryview(raw)) if key else 0
        following = _NEXT.match(body, value_end) if key else None
        if key is None or following is None or separator != b"," or msgspec.json.decode(key.group(1)) != name:
            raise ValueError("a member comes twice")
        members[name] = _Member(position, key.end(), value_end, following.start(1))
        position, separator = following.end(), following.group(1)
    if not members:
        position = body.index(b"}") + 1
    elif separator != b"}":
        raise ValueError("a member comes twice")
    return members, position - 1
