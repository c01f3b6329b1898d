"""Source tensors that lie on a grid the result can hold: codes, scales and zero points go over bit for bit.

A checkpoint from GPTQ, AWQ, compressed-tensors or a GGUF file is quantized already; rounding it once more could only
lose. Where a plan asks for the very grid of the source nothing is rounded; where a rule or a budget would give it
another one that is no smaller, the source's own is taken instead. Knows tensors and plans, no files.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from freehold.compress.layout import parts
from freehold.compress.options import GROUP_SIZES
from freehold.compress.plan import Plan, Scheme, TensorPlan
from freehold.formats import QuantizedTensor, Tensor
from freehold.formats.tensors import scale_type

FLOATS = ("F64", "F32", "F16", "BF16")
KEPT = "on this grid already: codes and scales kept bit for bit"
KEPT_BUT_TUNED = "the source's own grid: codes kept bit for bit, scales tuned"
INSTEAD = "the source's own grid, kept bit for bit: it costs nothing and is no larger than what was planned"


def keep_grids(plan: Plan, load: Callable[[str], Tensor], *, choose: bool, symmetric: bool) -> Plan:
    """The plan with tensors marked (`TensorPlan.scale_dtype`) that are on their grid already.

    Args:
        load: gives a source tensor.
        choose: take a source's grid also where another one is planned, if it is no larger; all tensors of an input
            alike, as they must have one format.
        symmetric: choose none with zero points.
    """
    found = {
        tensor.name: grid
        for tensor in plan.tensors
        if tensor.scheme is not None and tensor.info.dtype not in FLOATS and (grid := _grid(tensor, load(tensor.name)))
    }
    if not found:
        return plan
    chosen = _chosen(plan, found, symmetric=symmetric) if choose else {}
    made = tuple(_marked(tensor, found.get(tensor.name), chosen) for tensor in plan.tensors)
    counts = Counter(tensor.scheme.text for tensor in made if tensor.scheme is not None and tensor.scale_dtype)
    if not counts:
        return plan
    kinds = ", ".join(f"{count} tensors {text}" for text, count in counts.items())
    return dataclasses.replace(plan, tensors=made, warnings=(*plan.warnings, f"kept without rounding again: {kinds}"))


def zero_points(tensor: QuantizedTensor) -> NDArray[np.uint8] | None:
    """Zero points uint8 [N, G] of an asymmetric grid; None where its offsets are no whole multiples of its scales."""
    if tensor.offsets is None:
        return None
    safe = np.where(tensor.scales == 0, np.float32(1), tensor.scales)
    zeros = np.rint(-tensor.offsets / safe)
    top = (1 << tensor.bits) - 1
    if not ((zeros >= 0) & (zeros <= top)).all() or not np.array_equal(
        np.multiply(-zeros, tensor.scales), tensor.offsets
    ):
        return None
    return zeros.astype(np.uint8)


@dataclasses.dataclass(frozen=True, slots=True)
class _Grid:
    """Where a source tensor lies, and the type that holds its scales exactly."""

    scheme: Scheme
    scale_dtype: str


def _grid(tensor: TensorPlan, loaded: Tensor) -> _Grid | None:
    if not isinstance(loaded, QuantizedTensor):
        return None
    columns = loaded.codes.shape[1]
    size = None if loaded.group_size == columns else loaded.group_size
    if size is not None and (size not in GROUP_SIZES or columns % size):
        return None
    if loaded.offsets is not None and zero_points(loaded) is None:
        return None
    wide = tensor.role != "linear" and loaded.bits == 8  # stored as plain int8, which has no zero points here
    if wide and loaded.offsets is not None:
        return None
    scheme = Scheme(loaded.bits, size, symmetric=loaded.offsets is None, packed=not wide)
    return _Grid(scheme, scale_type(loaded.scales))


def _chosen(plan: Plan, found: dict[str, _Grid], *, symmetric: bool) -> dict[str, _Grid]:
    """Grids to take instead of the planned ones, group by group."""
    groups: dict[str, list[TensorPlan]] = defaultdict(list)
    for tensor in plan.tensors:
        if tensor.scheme is not None:
            groups[tensor.group or tensor.name].append(tensor)
    chosen: dict[str, _Grid] = {}
    for members in groups.values():
        grids = [found.get(tensor.name) for tensor in members]
        schemes = {grid.scheme for grid in grids if grid is not None}
        if None in grids or len(schemes) != 1 or (symmetric and not next(iter(schemes)).symmetric):
            continue
        theirs = [_with(tensor, found[tensor.name], "") for tensor in members]
        if _size(theirs) <= _size(members):
            chosen |= {tensor.name: found[tensor.name] for tensor in members}
    return chosen


def _marked(tensor: TensorPlan, grid: _Grid | None, chosen: dict[str, _Grid]) -> TensorPlan:
    if grid is None or tensor.scheme is None:
        return tensor
    if dataclasses.replace(grid.scheme, packed=tensor.scheme.packed) == tensor.scheme:
        return _with(tensor, dataclasses.replace(grid, scheme=tensor.scheme), KEPT)
    return _with(tensor, grid, INSTEAD) if tensor.name in chosen else tensor


def _with(tensor: TensorPlan, grid: _Grid, reason: str) -> TensorPlan:
    cost = None if tensor.cost is None else 0.0
    return dataclasses.replace(tensor, scheme=grid.scheme, scale_dtype=grid.scale_dtype, reason=reason, cost=cost)


def _size(tensors: Iterable[TensorPlan]) -> int:
    return sum(part.nbytes for tensor in tensors for part in parts(tensor))
