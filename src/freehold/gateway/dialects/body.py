"""Hostile JSON bodies: bounded depth, strict UTF-8, typed fields; every problem becomes one RequestError with its path.

Codes are OpenAI's (https://platform.openai.com/docs/guides/error-codes and answers of its API): `invalid_type`,
`missing_required_parameter`, `decimal_above_max_value` and so on. Knows no endpoint: callers pass the type they want.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from freehold.gateway.failures import RequestError

T = TypeVar("T")

MAX_DEPTH = 64

_STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_ALL_BUT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_ONE_KIND = bytes.maketrans(b"{}", b"[]")
_PATH = re.compile(r" - at `\$\.?(.*)`$", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `([^`]*)`")
_EXPECTED = re.compile(r"Expected `([^`]*)`, got `([^`]*)`")
_BOUND = re.compile(r"Expected `(\w+)` (of length )?([<>]=?) ([-\d.]+)")
_PLAIN = {"int": "an integer", "float": "a decimal", "str": "a string", "array": "an array", "object": "an object",
          "bool": "a boolean", "null": "null"}  # fmt: skip
_KIND = {"int": "integer", "float": "decimal", "str": "string", "array": "array", "object": "object"}


def decode(body: bytes, type_: type[T]) -> T:
    """The body as `type_` (a msgspec Struct); unknown fields are ignored.

    Raises:
        RequestError: not JSON, not UTF-8, nested deeper than MAX_DEPTH, or a field of the wrong type or range.
    """
    try:
        value = msgspec.json.decode(body, type=type_)
        str(body, "utf-8")  # fields that were skipped must be text too
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"We could not parse the JSON body of your request: {_plain(error)}.") from None
    if _deeper_than(body, MAX_DEPTH):
        raise RequestError(f"The JSON body of your request is nested deeper than {MAX_DEPTH} levels.")
    return value


def plain(body: bytes) -> Any:
    """A body that `decode` took, as plain objects; fields it skipped may still hold a number that no float can.

    Raises:
        RequestError: they do.
    """
    try:
        return msgspec.json.decode(body)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None


def _plain(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return f"it is nested deeper than {MAX_DEPTH} levels"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8"
    return str(error).rstrip(".")


def _deeper_than(body: bytes, depth: int) -> bool:
    """Whether valid JSON nests deeper than `depth`: peels one level of empty brackets per round, all in C."""
    brackets = _STRINGS.sub(b"", body).translate(_ONE_KIND, _ALL_BUT_BRACKETS)
    for _ in range(depth):
        if not brackets:
            return False
        brackets = brackets.replace(b"[]", b"")
    return bool(brackets)


def _invalid(message: str) -> RequestError:
    """msgspec's complaint in OpenAI's words, code and param."""
    found = _PATH.search(message)
    path = found.group(1) if found else ""
    what = message[: found.start()] if found else message
    if missing := _MISSING.match(what):
        param = f"{path}.{missing.group(1)}" if path else missing.group(1)
        return RequestError(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
    if expected := _EXPECTED.match(what):
        wanted = " or ".join(_PLAIN.get(name, name) for name in expected.group(1).split(" | ") if name != "null")
        got = _PLAIN.get(expected.group(2), expected.group(2))
        subject = f"Invalid type for '{path}'" if path else "Invalid body"
        return RequestError(
            f"{subject}: expected {wanted}, but got {got} instead.", param=path or None, code="invalid_type"
        )
    if bound := _BOUND.match(what):
        return _out_of_bounds(path, *bound.groups())
    return RequestError(f"Invalid value for '{path}': {what}.", param=path or None, code="invalid_value")


def _out_of_bounds(path: str, kind: str, length: str | None, operator: str, limit: str) -> RequestError:
    above = operator.startswith("<")
    subject = _KIND.get(kind, kind)
    if length and not above and kind == "array":
        text = f"Invalid '{path}': empty array. Expected an array with minimum length {limit}."
        return RequestError(text, param=path or None, code="empty_array")
    if length:
        side, noun = ("too long", "length") if above else ("too short", "length")
        code = f"{subject}_{'above_max' if above else 'below_min'}_length"
    else:
        side, noun = ("above maximum value", "value") if above else ("below minimum value", "value")
        code = f"{subject}_{'above_max' if above else 'below_min'}_value"
    text = f"Invalid '{path}': {subject} {side}. Expected a {noun} {operator} {limit}."
    return RequestError(text, param=path or None, code=code)
