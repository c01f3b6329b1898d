"""What each number format would cost each group of tensors, in nats of KL divergence, measured before anything is chosen.

Every candidate is tried with the very rounding that will be used, on rows drawn by importance; the cost is that of
`engine.calibrate`'s quadratic form. Results go to a file in the calibration's directory, group by group, so that a run
that was cut off goes on, and another budget costs nothing. Knows no budgets.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
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
VERSION = 2


def measure(
    checkpoint: Checkpoint,
    statistics: Statistics,
    candidates: dict[str, list[Scheme]],
    progress: Callable[[int, int | None, str], None],
    threads: int,
) -> Costs:
    """Costs of the candidates of every group, measured or read back."""
    path = statistics.directory / f"costs-{VERSION}.jsonl"
    known = _read(path)
    groups = [group for group in statistics.groups if group.name in candidates]
    with path.open("a") as file, ThreadPoolExecutor(max(1, threads)) as pool:
        for number, group in enumerate(groups):
            progress(number, len(groups), "measuring")
            missing = [s for s in candidates[group.name] if s.text not in known.get(group.name, {})]
            if not missing:
                continue
            root, diagonal = statistics.root(group), statistics.moment(group)[1] ** 2
            rows = [_sample(checkpoint, statistics, tensor) for tensor in group.tensors]
            found = pool.map(partial(_cost, rows, root, diagonal), missing)
            costs = {scheme.text: cost for scheme, cost in zip(missing, found, strict=True)}
            known.setdefault(group.name, {}).update(costs)
            file.write(json.dumps({"group": group.name, "costs": costs}) + "\n")
            file.flush()
    progress(len(groups), len(groups), "measuring")
    return known


def _cost(samples: list[tuple[F32, F32]], root: F32, diagonal: F32, scheme: Scheme) -> float:
    total = 0.0
    for weights, counts in samples:
        group = scheme.group_size or weights.shape[1]
        if scheme.bits == 8:  # rounded to nearest, so that errors of columns don't add up
            plain = quantize(weights, 8, group, symmetric=scheme.symmetric)
            low = np.float32(128) if plain.zeros is None else np.repeat(plain.zeros, group, axis=1)
            error = weights - (plain.codes - low) * np.repeat(plain.scales, group, axis=1)
            total += 0.5 * float(counts @ ((error * error) @ diagonal))
        else:
            rounded = gptq(weights, root, scheme.bits, group, symmetric=scheme.symmetric)
            total += 0.5 * float(rounded.costs @ counts)
    return total


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
