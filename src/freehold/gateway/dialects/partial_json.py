"""The object that a cut JSON text had come to: tool arguments end anywhere when a limit cuts them.

Knows nothing of tools.
"""

from __future__ import annotations

from typing import Any

import msgspec

MAX_DEPTH = 64
_CLOSERS = {"{": "}", "[": "]"}


def whole_object(text: str) -> dict[str, Any]:
    """The object in `text`; of one that was cut, all members that were complete. Anything else is `{}` or wrapped.

    A value that is whole but no object comes as the member `value`: an arguments object is all the dialect has room for.
    """
    if not text.strip():
        return {}
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        value = _cut(text)
    return value if isinstance(value, dict) else {"value": value}


def _cut(text: str) -> Any:
    """The longest beginning of `text` that becomes an object when its brackets are closed."""
    for end, closers in reversed(_stops(text)):
        try:
            return msgspec.json.decode(text[:end] + closers)
        except (msgspec.DecodeError, RecursionError):
            continue
    return {}


def _stops(text: str) -> list[tuple[int, str]]:
    """Places where the text could be closed, with what closes it: after each opening bracket, before each comma, and
    after each closing bracket; only the last few can matter."""
    stops: list[tuple[int, str]] = []
    stack: list[str] = []
    quoted = escaped = False
    for i, character in enumerate(text):
        if quoted:
            quoted = escaped or character != '"'
            escaped = character == "\\" and not escaped
        elif character == '"':
            quoted = True
        elif character in "{[":
            if len(stack) == MAX_DEPTH:
                break
            stack.append(_CLOSERS[character])
            stops.append((i + 1, "".join(reversed(stack))))
        elif character in "}]" and stack:
            stack.pop()
            stops.append((i + 1, "".join(reversed(stack))))
        elif character == ",":
            stops.append((i, "".join(reversed(stack))))
        if len(stops) > 64:
            del stops[:32]
    return stops
