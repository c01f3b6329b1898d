"""Where every byte of the result will lie, known before any weight is read.

Turns a plan into safetensors files: names, types and shapes of what each tensor becomes, headers, offsets, shards and
their index. Format: https://github.com/huggingface/safetensors#format. Opens no file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from freehold.compress.plan import TensorPlan
from freehold.errors import FormatError

SHARD_BYTES = 2_000_000_000
_SIZES = {"I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I8": 1}


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor of the result.

    Args:
        kind: what it holds of its source tensor: "codes", "scales", "zeros", "shape", "tied_scales" or "values".
        name, dtype, shape: as in the safetensors header.
    """

    kind: str
    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return math.prod(self.shape) * _SIZES[self.dtype]


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a part lies: file name, first byte, and the part."""

    file: str
    offset: int
    part: Part


@dataclass(frozen=True, slots=True)
class Shard:
    """A file to write: its name, header (with its length in front) and size in bytes."""

    file: str
    header: bytes
    size: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Files, and for each source tensor its slots by kind; `index` is the shards' index, None for a single file."""

    shards: tuple[Shard, ...]
    slots: dict[str, dict[str, Slot]]
    index: dict[str, Any] | None


def parts(plan: TensorPlan) -> list[Part]:
    """What a tensor becomes, in the order it is written."""
    if plan.scheme is None:
        return [Part("values", plan.name, plan.dtype, plan.info.shape)]
    rows, columns = plan.info.shape
    scheme, base = plan.scheme, plan.module
    groups = 1 if scheme.group_size is None else columns // scheme.group_size
    if not scheme.packed:
        found = [Part("codes", plan.name, "I8", (rows, columns))]
    else:
        found = [Part("codes", f"{base}.weight_packed", "I32", (rows, _words(columns, scheme.bits)))]
    scales = plan.scale_dtype or "BF16"
    found.append(Part("scales", f"{base}.weight_scale", scales, (rows, groups)))
    if not scheme.symmetric:
        found.append(Part("zeros", f"{base}.weight_zero_point", "I32", (_words(rows, scheme.bits), groups)))
    if scheme.packed:
        found.append(Part("shape", f"{base}.weight_shape", "I64", (2,)))
    if plan.tied and not scheme.packed:  # what transformers needs to tie int8; 4 bits it can't tie anyway
        found.append(Part("tied_scales", f"{plan.tied}.weight_scale", scales, (rows, groups)))
    return found


def lay_out(plans: Sequence[TensorPlan], limit: int = SHARD_BYTES) -> Layout:
    """Place all parts. A tensor's parts stay in one file; a new file begins where `limit` bytes would be passed.

    Raises:
        FormatError: two parts of the same name.
    """
    files: list[list[tuple[TensorPlan, list[Part]]]] = [[]]
    filled = 0
    for plan in plans:
        made = parts(plan)
        size = sum(part.nbytes for part in made)
        if files[-1] and filled + size > limit:
            files.append([])
            filled = 0
        files[-1].append((plan, made))
        filled += size
    _refuse_collisions(part.name for members in files for _, made in members for part in made)
    shards, slots = [], {plan.name: dict[str, Slot]() for plan in plans}
    for number, members in enumerate(files, 1):
        name = "model.safetensors" if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        shards.append(_place(name, members, slots))
    return Layout(tuple(shards), slots, _index(slots) if len(files) > 1 else None)


def _place(file: str, members: Iterable[tuple[TensorPlan, list[Part]]], slots: dict[str, dict[str, Slot]]) -> Shard:
    # Wide types first: as the header is padded to eight bytes, each tensor begins on a multiple of its type's size.
    placed = sorted(((plan, part) for plan, made in members for part in made), key=lambda item: -_SIZES[item[1].dtype])
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for _, part in placed:
        end = position + part.nbytes
        table[part.name] = {"dtype": part.dtype, "shape": list(part.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    for plan, part in placed:
        begin = table[part.name]["data_offsets"][0]
        slots[plan.name][part.kind] = Slot(file, len(header) + begin, part)
    return Shard(file, header, len(header) + position)


def _refuse_collisions(names: Iterable[str]) -> None:
    seen = set()
    for name in names:
        if name in seen:
            raise FormatError(f"the source holds {name}, a name that its compressed form needs for something else")
        seen.add(name)


def _index(slots: dict[str, dict[str, Slot]]) -> dict[str, Any]:
    every = [slot for of_tensor in slots.values() for slot in of_tensor.values()]
    return {
        "metadata": {"total_size": sum(slot.part.nbytes for slot in every)},
        "weight_map": {slot.part.name: slot.file for slot in sorted(every, key=lambda slot: slot.part.name)},
    }


def _words(count: int, bits: int) -> int:
    return -(-count * bits // 32)
