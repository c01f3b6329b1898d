"""Schemas made to stall: clients send them, and every step serves others too."""

from __future__ import annotations

import time
from typing import Any

import pytest

from freehold.engine import grammar
from tests.engine.test_grammar import ask, engine, request, schema

HOSTILE = [
    {"type": "string", "pattern": "((a{0,100}){0,100}){0,100}"},
    {"type": "string", "pattern": "(a|b|ab){0,3000}c"},
    {"properties": {f"k{i}": {} for i in range(1500)}},
    {"type": "array", "items": {"type": "array", "items": {"type": "string", "minLength": 99_999}}},
    {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    {"anyOf": [{"type": "object", "properties": {f"k{i}_{j}": {} for j in range(20)}} for i in range(50)]},
]


@pytest.mark.parametrize("value", HOSTILE)
def test_a_hostile_schema_ends_soon_and_holds_up_no_step(value: dict[str, Any]) -> None:
    began = time.monotonic()
    outputs = ask(engine(), request("bad", schema(value), max_tokens=8), request("free", None, max_tokens=8))
    assert len(outputs["free"]) == 8 and outputs["bad"][-1].finish is not None
    assert time.monotonic() - began < grammar.COMPILE_SECONDS + 5
