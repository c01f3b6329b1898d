"""What each number format would cost each group of tensors, in nats of KL divergence, measured before anything is chosen.

Rounding is tried on rows drawn by importance; the cost is that of `engine.calibrate`'s quadratic form. Results go to a
file in the calibration's directory, group by group, so that a run that was cut off goes on, and another budget costs
nothing. Knows no budgets.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from freehold.compress.gptq import gptq
from freehold.compress.plan import Scheme
from freehold.compress.quantize import quantize
from freehold.compress.statistics import Statistics
from freehold.formats import Checkpoint
from freehold.formats.tensors import QuantizedTensor, to_float32

F32 = NDArray[np.float32]
Costs = dict[str, dict[str, float]]
"""By group and by the scheme's text."""

SAMPLE = 96  # rows of a tensor that are tried; all of them where there are not many more
VERSION = 4


def measure(
    checkpoint: Checkpoint,
    statistics: Statistics,
    candidates: dict[str, list[Scheme]],
    progress: Callable[[int, int | None, str], None],
) -> Costs:
    """Costs of the candidates of every group, measured or read back."""
    path = statistics.directory / f"costs-{VERSION}.jsonl"
    known = _read(path)
    groups = [group for group in statistics.groups if group.name in candidates]
    with path.open("a") as file:
        for number, group in enumerate(groups):
            progress(number, len(groups), "measuring")
            if all(scheme.text in known.get(group.name, {}) for scheme in candidates[group.name]):
                continue
            root, diagonal = statistics.root(group), statistics.moment(group)[1] ** 2
            samples = [_sample(checkpoint, statistics, tensor) for tensor in group.tensors]
            weights, counts = (np.concatenate(parts) for parts in zip(*samples, strict=True))
            costs = _costs(weights, counts, root, diagonal, candidates[group.name])
            known.setdefault(group.name, {}).update(costs)
            file.write(json.dumps({"group": group.name, "costs": costs}) + "\n")
            file.flush()
    progress(len(groups), len(groups), "measuring")
    return known


def _costs(weights: F32, counts: F32, root: F32, diagonal: F32, schemes: list[Scheme]) -> dict[str, float]:
    """Of rows [n, K] that stand for `counts`.

    Rounding to nearest errs independently from column to column, so that the moment's diagonal tells its cost; how far
    GPTQ falls below that is tried for the finest grid of each kind and hardly depends on the group size.
    """
    nearest = {scheme: _nearest(weights, counts, diagonal, scheme) for scheme in schemes}
    out: dict[str, float] = {}
    for symmetric in (True, False):
        narrow = [scheme for scheme in schemes if scheme.bits == 4 and scheme.symmetric == symmetric]
        if not narrow:
            continue
        finest = min(narrow, key=lambda scheme: scheme.group_size or weights.shape[1])
        size = finest.group_size or weights.shape[1]
        tried = 0.5 * float(gptq(weights, root, 4, size, symmetric=symmetric).costs @ counts)
        gain = tried / nearest[finest] if nearest[finest] > 0 else 1.0
        out |= {scheme.text: gain * nearest[scheme] for scheme in narrow}
    return out | {scheme.text: nearest[scheme] for scheme in schemes if scheme.bits == 8}


def _nearest(weights: F32, counts: F32, diagonal: F32, scheme: Scheme) -> float:
    group = scheme.group_size or weights.shape[1]
    plain = quantize(weights, scheme.bits, group, symmetric=scheme.symmetric)
    half = np.float32(1 << (scheme.bits - 1))
    low = half if plain.zeros is None else np.repeat(plain.zeros, group, axis=1).astype(np.float32)
    error = weights - (plain.codes - low) * np.repeat(plain.scales, group, axis=1)
    return 0.5 * float(counts @ ((error * error) @ diagonal))


def _sample(checkpoint: Checkpoint, statistics: Statistics, tensor: str) -> tuple[F32, F32]:
    """Rows of a tensor, and what each stands for: the importance of all rows, shared out evenly.

    Rows are drawn in equal steps along the cumulated importance, so that each stands for as much of it.
    """
    importance = statistics.importance(tensor).astype(np.float64)
    loaded = checkpoint.load(tensor)
    total = float(importance.sum())
    if len(importance) <= SAMPLE * 3 // 2 or total <= 0:
        return to_float32(loaded), importance.astype(np.float32)
    steps = (np.arange(SAMPLE) + 0.5) / SAMPLE * total
    rows = np.minimum(np.searchsorted(np.cumsum(importance), steps), len(importance) - 1)
    return _rows(loaded, rows), np.full(SAMPLE, total / SAMPLE, np.float32)


def _rows(loaded: QuantizedTensor | NDArray[np.float32] | NDArray[np.uint16], rows: NDArray[np.intp]) -> F32:
    if not isinstance(loaded, QuantizedTensor):
        return to_float32(loaded[rows])
    offsets = None if loaded.offsets is None else loaded.offsets[rows]
    return QuantizedTensor(loaded.codes[rows], loaded.scales[rows], offsets, loaded.bits, loaded.group_size).float32()


def _read(path: Path) -> Costs:
    known: Costs = {}
    if not path.is_file():
        return known
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
            costs = {str(text): float(cost) for text, cost in entry["costs"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # a line cut off by a kill is measured again
        if all(math.isfinite(cost) for cost in costs.values()):
            known.setdefault(str(entry["group"]), {}).update(costs)
    return known
