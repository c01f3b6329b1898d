"""Putting tuned scales, gains and biases in the places of the rounded ones.

Who tunes is handed in by the caller: the rounded model goes there as a directory, the new values come back as files,
which are described in `engine.tune`; nothing of the engine is imported. A run that dies between the first value written
and the end rounds those tensors again, as their checksums no longer fit, and finds the tuning finished.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freehold.compress.plan import Plan, TensorPlan
from freehold.compress.values import rows_of, stored_values
from freehold.compress.write import Destination
from freehold.errors import FormatError
from freehold.formats import Checkpoint, Tensor, open_checkpoint
from freehold.formats.reading import read_json
from freehold.formats.safetensors import SafetensorsFile

Tuner = Callable[[Path, str], Path]
"""Given a directory with the rounded model and its digest, tunes it and returns the directory with the result."""
ROWS = 4096

F32 = NDArray[np.float32]


def retune(checkpoint: Checkpoint, plan: Plan, destination: Destination, tuner: Tuner) -> dict[str, Any]:
    """Tune the rounded model of `destination` and write the new values into it; returns what was measured.

    Raises:
        FormatError: the result is not one of this model.
    """
    place = tuner(destination.partial, _digest(destination))
    facts: dict[str, Any] = read_json(place / "tuned.json", "tuning")
    with SafetensorsFile(place / "tuned.safetensors") as file:
        changed = {name: file.read(name) for name in file.names()}
    tensors = {tensor.name: tensor for tensor in plan.tensors}
    for name, values in changed.items():
        if name not in tensors or not np.isfinite(values).all():
            raise FormatError(f"{place}: {name} is no tuned tensor of this model", hint="remove it and tune again")
        if values.size != (expected := _count(tensors[name])):
            hint = "remove it and tune again"
            raise FormatError(f"{place}: {name}: expected {expected} values, found {values.size}", hint=hint)
        _put(tensors[name], values, destination)
    with open_checkpoint(destination.partial) as made:
        for name in changed:
            error = sum(_squared_error(*pair) for pair in _row_pairs(checkpoint.load(name), made.load(name)))
            destination.done[name] = destination.done[name] | {"squared_error": error, "tuned": True}
    return facts


def _digest(destination: Destination) -> str:
    notes = sorted((name, note["sha256"]) for name, note in destination.done.items())
    return hashlib.sha256(repr(notes).encode()).hexdigest()


def _count(tensor: TensorPlan) -> int:
    """How many values of a tensor can be tuned: its scales, or all where it is kept."""
    if tensor.scheme is None:
        return math.prod(tensor.info.shape)
    rows, columns = tensor.info.shape
    return rows * (columns // (tensor.scheme.group_size or columns))


def _put(tensor: TensorPlan, values: F32, destination: Destination) -> None:
    writer = destination.tensor(tensor.name)
    if tensor.scheme is None:
        writer.put("values", stored_values(values, tensor.dtype)[0])
        return
    scales = stored_values(values, tensor.scale_dtype or "BF16")[0]
    writer.put("scales", scales)
    if tensor.tied and not tensor.scheme.packed:
        writer.put("tied_scales", scales)


def _row_pairs(source: Tensor, made: Tensor) -> Iterator[tuple[F32, F32]]:
    for begin in range(0, source.shape[0], ROWS):
        rows = slice(begin, begin + ROWS)
        yield rows_of(source, rows), rows_of(made, rows)


def _squared_error(source: F32, made: F32) -> float:
    return float(np.sum((source - made) ** 2, dtype=np.float64))
