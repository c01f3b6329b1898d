"""What each number format would cost each group of tensors, in nats of KL divergence, measured before anything is chosen.

Rounding is tried on rows drawn by importance; the cost is that of `engine.calibrate`'s quadratic form. Results go to a
file in the calibration's directory, group by group, so that a run that was cut off goes on, and another budget costs
nothing. Knows no budgets.
"""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from freehold.compress.gptq import Curvature, costs_of
from freehold.compress.plan import Scheme
from freehold.compress.quantize import quantize
from freehold.compress.statistics import Statistics
from freehold.formats import Checkpoint
from freehold.formats.tensors import QuantizedTensor, to_float32
from freehold.progress import Progress

F32 = NDArray[np.float32]
Costs = dict[str, dict[str, float]]
"""By tensor and by the scheme's text."""

SAMPLE = 96  # rows of a tensor that are tried; all of them where there are not many more
VERSION = 8


def measure(
    checkpoint: Checkpoint,
    statistics: Statistics,
    candidates: dict[str, list[Scheme]],
    progress: Progress,
    threads: int = 1,
) -> Costs:
    """Costs of the candidates of every group, measured or read back."""
    path = statistics.directory / f"costs-{VERSION}.jsonl"
    known = _read(path)
    groups = [group for group in statistics.groups if group.name in candidates]
    with path.open("a") as file, ThreadPoolExecutor(threads) as pool:
        for number, group in enumerate(groups):
            progress(number, len(groups), "measuring")
            wanted = {scheme.text for scheme in candidates[group.name]}
            if all(wanted <= known.get(tensor, {}).keys() for tensor in group.tensors):
                continue
            batches = _batches(candidates[group.name])
            costs: Costs = {}
            for tensor in group.tensors:
                trial = _Trial(*_sample(checkpoint, statistics, tensor), *_moments(statistics, tensor))
                costs[tensor] = {
                    scheme.text: float(rows.sum())
                    for schemes, found in zip(batches, pool.map(trial.costs, batches), strict=True)
                    for scheme, rows in zip(schemes, found, strict=True)
                }
            _add(known, costs)
            file.write(json.dumps({"group": group.name, "costs": costs}) + "\n")
            file.flush()
    progress(len(groups), len(groups), "measuring")
    return known


@dataclass(frozen=True, slots=True)
class _Trial:
    """Rows [n, K] that stand for `counts`, and what their columns count: the moment, and its diagonal."""

    weights: F32
    counts: F32
    moment: Curvature
    diagonal: F32

    def costs(self, batch: list[Scheme]) -> list[NDArray[np.float64]]:
        """For each scheme of a batch, of each row as it will be rounded."""
        first = batch[0]
        group = first.group_size or self.weights.shape[1]
        if first.bits < 8:
            widths = [scheme.bits for scheme in batch]
            found = costs_of(self.weights, self.moment, widths, group, symmetric=first.symmetric)
            return [0.5 * costs * self.counts for costs in found]
        # To nearest: errors are independent from column to column.
        plain = quantize(self.weights, 8, group, symmetric=True)
        error = self.weights - (plain.codes - np.float32(128)) * np.repeat(plain.scales, group, axis=1)
        return [0.5 * self.counts.astype(np.float64) * ((error * error) @ self.diagonal)]


def _moments(statistics: Statistics, tensor: str) -> tuple[Curvature, F32]:
    return statistics.curvature(tensor), statistics.moment(tensor)[1] ** 2


def _batches(schemes: list[Scheme]) -> list[list[Scheme]]:
    """Schemes that are tried side by side: those of one group size and kind, and each of 8 bits by itself."""
    batches: dict[tuple[int | None, bool, bool], list[Scheme]] = {}
    for scheme in schemes:
        batches.setdefault((scheme.group_size, scheme.symmetric, scheme.bits == 8), []).append(scheme)
    return list(batches.values())


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
            costs = {
                str(tensor): {str(text): float(cost) for text, cost in found.items()}
                for tensor, found in json.loads(line)["costs"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # a line cut off by a kill is measured again
        if all(math.isfinite(cost) for found in costs.values() for cost in found.values()):
            _add(known, costs)
    return known


def _add(known: Costs, more: Costs) -> None:
    for tensor, costs in more.items():
        known.setdefault(tensor, {}).update(costs)
