"""Calibration statistics as the engine left them on disk: what each input looks like, what each output's error costs.

The files are described in `engine.calibrate`, which writes them; nothing of the engine is imported. Knows files and
names of tensors, not number formats.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freehold.compress.gptq import Curvature, curvature, damping_for
from freehold.errors import FormatError, UsageError
from freehold.formats.reading import read_json
from freehold.formats.safetensors import SafetensorsFile

F32 = NDArray[np.float32]
VERSION = 3
INDEX = "calibration.json"
EMBEDDING = "embedding.safetensors"
TABLE = "embedding"


@dataclass(frozen=True, slots=True)
class Group:
    """Tensors that read one input, which is rounded once for all of them.

    Args:
        name: the input's, "layers.0.qkv"; TABLE for an embedding that is looked up and nothing else.
        tensors: Hugging Face names, in the order they are stacked.
        int8: nats of KL divergence that int8 activations in groups of 32, 64, 128 columns cost here, by group size.
        peak: largest ratio of an input's largest value to its root mean square.
    """

    name: str
    tensors: tuple[str, ...]
    int8: dict[int, float] = field(compare=False)
    peak: float = 0.0


class Statistics:
    """A finished calibration.

    Raises:
        UsageError: the directory holds none, or that of another model.
        FormatError: damaged files.
    """

    def __init__(self, directory: Path, source: str) -> None:
        index = directory / INDEX
        if not index.is_file():
            raise UsageError(f"expected a finished calibration in {directory}, found none", hint="calibrate first")
        self.facts: dict[str, Any] = read_json(index, "calibration")
        if self.facts.get("version") != VERSION or self.facts.get("source") != source:
            raise UsageError(f"the calibration in {directory} is of another model or version", hint="calibrate again")
        self.directory = directory
        self._sections: dict[str, Path] = {}
        groups = [group for path in sorted(directory.glob("[0-9]*.safetensors")) for group in self._read(path)]
        with SafetensorsFile(directory / EMBEDDING) as file:
            self._table = file.metadata["tensor"]
            self._columns = file.read("importance")
            self._counts = file.read("counts")
        if not any(self._table in group.tensors for group in groups):
            groups.append(Group(TABLE, (self._table,), int8={}, peak=0.0))
        self.groups = tuple(groups)
        self.by_tensor = {tensor: group for group in groups for tensor in group.tensors}

    def importance(self, tensor: str) -> F32:
        """What the squared error of each output feature counts, float32 [N]; twice the nats for each unit of cost."""
        group = self.by_tensor[tensor]
        if group.name == TABLE:
            return self._frequency
        with SafetensorsFile(self._sections[group.name]) as file:
            found: F32 = file.read(f"{tensor}.importance")
        return found

    def moment(self, tensor: str) -> tuple[NDArray[np.floating[Any]], F32]:
        """The input's second moment, as the tensor's errors cost, as correlation [K, K] and scale [K]."""
        group = self.by_tensor[tensor]
        if group.name == TABLE:
            return np.eye(len(self._columns), dtype=np.float32), np.sqrt(self._columns)
        with SafetensorsFile(self._sections[group.name]) as file:
            correlation, scale = file.read(f"{tensor}.correlation"), file.read(f"{tensor}.scale")
        if tensor != self._table:
            return correlation, scale
        # A shared embedding errs twice: where it is looked up and in the logits. Both grow with a token's frequency, so
        # that one moment serves all rows: that of the logits, and the columns' importance times the ratio of the two.
        ratio = float(self._frequency.sum()) / max(float(self.importance(self._table).sum()), 1e-30)
        both = correlation.astype(np.float32) * scale[:, None] * scale[None, :]
        both[np.arange(len(both)), np.arange(len(both))] = scale**2 + self._columns * np.float32(ratio)
        root = np.sqrt(np.diag(both)).copy()
        safe = np.where(root > 0, root, np.float32(1))
        return both / safe[:, None] / safe[None, :], root

    @lru_cache(maxsize=1)  # noqa: B019  two matrices of the largest input's size squared
    def curvature(self, tensor: str) -> Curvature:
        """A tensor's moment, made ready for rounding."""
        return curvature(*self.moment(tensor), damping_for(int(self.facts["tokens"])))

    @property
    def _frequency(self) -> F32:
        """How often each token is looked up, per token; none is never."""
        smoothed = self._counts.astype(np.float64) + 0.1
        return np.asarray(smoothed / smoothed.sum(), np.float32)

    def _read(self, path: Path) -> list[Group]:
        with SafetensorsFile(path) as file:
            try:
                inputs = json.loads(file.metadata["inputs"])
                groups = [
                    Group(
                        name,
                        tuple(item["tensors"]),
                        {int(k): float(v) for k, v in item["int8"].items()},
                        float(item["peak"]),
                    )
                    for name, item in inputs.items()
                ]
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise FormatError(f"{path}: damaged calibration", hint="remove it and calibrate again") from error
        self._sections |= dict.fromkeys((group.name for group in groups), path)
        return groups
