"""Plans as files: TOML that a person can read, edit and replay.

    [tensors]
    # layers.0.qkv: predicted to cost 0.00123 nats; ...
    "model.layers.0.self_attn.q_proj.weight" = "int4 g32"

Formats: "int4 g32", "int4 g64 asymmetric", "int8 per row", "bf16"; widths are 3, 4, 5, 6 and
8 bits. Tensors that are not named follow the usual rules.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from freehold.compress.options import GROUP_SIZES
from freehold.compress.plan import Scheme
from freehold.errors import UsageError

KEEP = "bf16"
_FORMAT = re.compile(r"int([34568]) (?:g(\d+)|(per row))( asymmetric)?")
_KNOWN = 'one such as "int4 g32", "int4 g64 asymmetric", "int8 per row" or "bf16"'


@dataclass(frozen=True, slots=True)
class Decision:
    """For one tensor: its grid (None = kept in 16 bits), why, and the nats it is predicted to cost with its group."""

    scheme: Scheme | None
    reason: str
    group: str = ""
    cost: float | None = None


def parse_scheme(text: str) -> Scheme | None:
    """A format by its text; None for "bf16".

    Raises:
        UsageError: no such format.
    """
    if text == KEEP:
        return None
    match = _FORMAT.fullmatch(text)
    if match is None or (match[2] is not None and int(match[2]) not in GROUP_SIZES):
        raise UsageError(f"expected a number format, found {text[:60]!r}", hint="give " + _KNOWN)
    return Scheme(int(match[1]), int(match[2]) if match[2] else None, match[4] is None, packed=True)


def read_plan(path: Path) -> dict[str, Decision]:
    """Decisions by tensor.

    Raises:
        UsageError: no TOML, no table `tensors`, or a format that is none.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8")).get("tensors")
    except OSError as error:
        raise UsageError(f"can't read {path}: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{path} is no TOML: {error}") from None
    if not isinstance(table, dict) or not all(isinstance(text, str) for text in table.values()):
        raise UsageError(f"{path}: expected a table [tensors] of formats", hint="make one with --plan-only")
    return {name: Decision(parse_scheme(text), f"as {path.name} says") for name, text in table.items()}


def format_plan(decisions: Mapping[str, Decision], heading: str) -> str:
    """The file's text; `heading` becomes a comment."""
    lines = [*(f"# {line}" for line in heading.splitlines()), "", "[tensors]"]
    last = None
    for name, decision in decisions.items():
        if decision.group != last:
            lines.append(f"# {decision.group}: {decision.reason}")
            last = decision.group
        text = KEEP if decision.scheme is None else decision.scheme.text
        lines.append(f'"{name}" = "{text}"')
    return "\n".join(lines) + "\n"
