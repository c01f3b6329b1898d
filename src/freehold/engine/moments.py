"""What calibration sums up for one linear: second moments of its input for each of its tensors, importances of its outputs.

Window by window, in their order: the same windows give the same sums. Knows arrays only, no files and no programs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from freehold.engine.tape import F32, Linear
from freehold.kernels.reference import quantize_rows

UNITS = (32, 64, 128)
"""Columns that share a scale where activations are rounded to int8."""


@dataclass(frozen=True, slots=True)
class Share:
    """What one window adds to a moment: sums over its tokens, see `Moment`; products and weights by tensor."""

    products: list[F32]
    squares: NDArray[np.float64]
    weights: list[float]
    tokens: int
    cost: dict[int, float]
    peak: float

    @classmethod
    def of(cls, seen: Linear, ends: list[int]) -> Share:
        """Of one linear, whose tensors begin at row 0 and at `ends`."""
        x, gradient, input_gradient = seen.input, seen.gradient, seen.input_gradient
        squares = gradient * gradient
        products, weights = [], []
        for part in np.split(squares, ends, axis=1):
            weight = part.mean(axis=1)
            weighted = x * np.sqrt(weight)[:, None]
            products.append(weighted.T @ weighted)
            weights.append(float(weight.sum(dtype=np.float64)))
        cost = {}
        for unit in UNITS:
            slope = np.einsum("tk,tk->t", input_gradient, x - _int8(x, unit))
            cost[unit] = 0.5 * float((slope**2).sum(dtype=np.float64))
        ratio = np.abs(x).max(axis=1) / np.sqrt((x * x).mean(axis=1) + np.float32(1e-30))
        squared: NDArray[np.float64] = squares.sum(axis=0, dtype=np.float64)
        return cls(products, squared, weights, len(x), cost, float(ratio.max()))


class Moment:
    """Sums over tokens for one linear, window by window in their order."""

    def __init__(self, first: Share) -> None:
        self._sums = [np.zeros_like(product) for product in first.products]
        self._squares = np.zeros_like(first.squares)
        self._weights = [0.0] * len(first.weights)
        self._tokens = 0
        self._cost = dict.fromkeys(UNITS, 0.0)
        self.peak = 0.0

    def add(self, share: Share) -> None:
        """One window."""
        for place, product in enumerate(share.products):
            self._sums[place] += product
            self._weights[place] += share.weights[place]
        self._squares += share.squares
        self._tokens += share.tokens
        for unit in UNITS:
            self._cost[unit] += share.cost[unit]
        self.peak = max(self.peak, share.peak)

    @property
    def importance(self) -> F32:
        """E[g^2] of each output."""
        return (self._squares / self._tokens).astype(np.float32)

    @property
    def int8(self) -> dict[str, float]:
        """Nats of KL divergence that rounding its input to int8 in groups of so many columns costs, to first order."""
        return {str(unit): cost / self._tokens for unit, cost in self._cost.items()}

    def normalized(self) -> list[tuple[NDArray[np.float16], F32]]:
        """For each tensor E[s x x^T] as a correlation matrix and the root of its diagonal."""
        return [_normalized(total, weight) for total, weight in zip(self._sums, self._weights, strict=True)]


def _normalized(total: F32, weight: float) -> tuple[NDArray[np.float16], F32]:
    mean = total / np.float32(max(weight, 1e-30))
    scale = np.sqrt(np.maximum(np.diag(mean), np.float32(0)))
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    mean *= inverse[:, None]
    mean *= inverse[None, :]
    return mean.astype(np.float16), scale


def _int8(x: F32, unit: int) -> F32:
    codes, scales = quantize_rows(x, unit)
    back = codes.reshape(len(x), -1, unit) * scales[:, :, None]
    out: F32 = back.reshape(len(x), -1)[:, : x.shape[1]]
    return out
