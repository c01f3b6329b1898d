"""Which fields of a body its type does not know: what a dialect can't carry is named, never silently dropped.

Knows types and JSON, no dialect. Names come from clients and end in a header, so they are cleaned and counted here.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, cast

from msgspec import inspect

from freehold.gateway.dialects.body import plain

MOST_NAMES = 32
LONGEST_NAME = 80

_UNSAFE = re.compile(r"[^A-Za-z0-9_.\[\]-]")


@dataclass(slots=True)
class _Shape:
    """What to look at in a value: known fields of an object (by tag when there are several), items of an array."""

    fields: dict[str, _Shape | None] | None = None
    tag_field: str = ""
    tagged: dict[Any, _Shape] = field(default_factory=dict)
    item: _Shape | None = None


def unknown(body: bytes, type_: type[Any]) -> tuple[str, ...]:
    """Paths of the fields that are given but not in `type_`; indices are left out, null means absent.

    Args:
        body: JSON that has been decoded as `type_` before.
        type_: a msgspec Struct.
    """
    found: dict[str, None] = {}
    shape = _compiled(cast("Hashable", type_))
    if shape is not None:
        _walk(plain(body), shape, "", found)
    return tuple(found)


def clean(name: str) -> str:
    """A client's word, fit for a header."""
    return _UNSAFE.sub("?", name[:LONGEST_NAME])


def _walk(value: Any, shape: _Shape, path: str, found: dict[str, None]) -> None:
    if isinstance(value, list):
        if shape.item is not None:
            for item in value:
                _walk(item, shape.item, path + "[]", found)
        return
    if not isinstance(value, dict):
        return
    known = shape
    if shape.tagged:
        known = shape.tagged.get(value.get(shape.tag_field), shape)
    if known.fields is None:
        return
    for name, item in value.items():
        below = f"{path}.{name}" if path else name
        if name not in known.fields:
            if item is not None and name != shape.tag_field and len(found) < MOST_NAMES:
                found[clean(below)] = None
        elif (inner := known.fields[name]) is not None:
            _walk(item, inner, below, found)


@cache
def _compiled(type_: Hashable) -> _Shape | None:
    return _shape(inspect.type_info(type_))


def _shape(info: inspect.Type) -> _Shape | None:
    """The shape of a type; None where nothing can be unknown."""
    if isinstance(info, inspect.Metadata):
        return _shape(info.type)
    if isinstance(info, inspect.ListType):
        item = _shape(info.item_type)
        return None if item is None else _Shape(item=item)
    if isinstance(info, inspect.StructType):
        return _Shape(fields={f.encode_name: _shape(f.type) for f in info.fields})
    if isinstance(info, inspect.UnionType):
        return _union(info)
    return None


def _union(info: inspect.UnionType) -> _Shape | None:
    whole = _Shape()
    for kind in info.types:
        shape = _shape(kind)
        if isinstance(kind, inspect.StructType) and shape is not None:
            if kind.tag is None:
                whole.fields = shape.fields
            else:
                whole.tag_field, whole.tagged[kind.tag] = kind.tag_field or "type", shape
        elif isinstance(kind, inspect.ListType) and shape is not None:
            whole.item = shape.item
    return whole if whole.fields is not None or whole.tagged or whole.item is not None else None
