"""Embeddings: a prompt's final hidden states, pooled into one vector.

The head is not run: the last layer's rows are read from the program's buffer and given the program's own final norm,
here in float64. Knows no scheduler and no text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from freehold.kernels.program import Program

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

HIDDEN = "x"
"""The buffer that holds the last layer's output when a step is over."""


@dataclass(frozen=True, slots=True)
class FinalNorm:
    """RMSNorm before the head: gain [C] and eps."""

    gain: F64
    eps: float

    @classmethod
    def of(cls, program: Program, weights: Mapping[str, Any]) -> FinalNorm:
        """The norm that makes the head's input, from the program and its weights."""
        head = next(op for op in program.ops if op.out == "logits")
        norm = next(op for op in program.ops if op.kind == "rmsnorm" and op.out == head.inputs[0])
        gain = cast(F32, weights[norm.weights[0]]).astype(np.float64) + norm.attrs.get("offset", 0.0)
        return cls(gain, float(norm.attrs["eps"]))

    def __call__(self, rows: F32) -> F64:
        """Normed rows [T, C]."""
        wide = rows.astype(np.float64)
        out: F64 = wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + self.eps) * self.gain
        return out


class Pool:
    """Pools the rows of one prompt, chunk by chunk, from position 0 on.

    Args:
        kind: "mean" of all rows, or "last".
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._sum: F64 | None = None
        self._rows = 0

    def add(self, rows: F64, begin: int) -> None:
        """The rows [T, C] of positions `begin` and on; position 0 starts afresh (after a preemption)."""
        if begin == 0 or self._sum is None:
            self._sum, self._rows = np.zeros(rows.shape[1]), 0
        if self._kind == "last":
            self._sum, self._rows = rows[-1], 1
        else:
            self._sum = self._sum + rows.sum(axis=0)
            self._rows += len(rows)

    def vector(self) -> list[float]:
        """The pooled vector, of length 1 unless it is zero."""
        assert self._sum is not None  # noqa: S101  (asked for after the last chunk only)
        mean = self._sum / self._rows
        length = float(np.linalg.norm(mean))
        found: list[float] = (mean / length if length else mean).astype(np.float32).tolist()
        return found
