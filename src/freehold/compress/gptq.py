"""Rounding that makes up for itself: GPTQ (arXiv 2210.17323) with a weighted scale search for each group.

Columns are rounded one after another; what each loses is made good by the columns that follow, as the inputs' second
moment allows. Scales are searched when their group is reached, weighting each column's error by what it will finally
cost. Knows arrays only: no files, no names.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from freehold.compress.quantize import Quantized, search
from freehold.errors import FormatError

F32 = NDArray[np.float32]
_f = np.float32

DAMPING = 0.05
"""Share of an input's own second moment that is added to it: correlations measured on a short text are too sure."""
FLOOR = 0.01
"""Share of the mean second moment added to every input's: those that hardly vary in the calibration text may elsewhere, and
must not become the place where the errors of others are hidden."""
BLOCK = 32  # columns whose errors are handed on one by one; to the others they go as one matrix product
SMALL = 256  # triangular inverses below this size are LAPACK's


@dataclass(frozen=True, slots=True)
class Rounded(Quantized):
    """Rows on their grid, as `Quantized`, and what that costs.

    Args:
        costs: float64 [N], E moment E^T on the diagonal, E being the rounding error.
    """

    costs: NDArray[np.float64]


def inverse_root(correlation: NDArray[np.floating], scale: F32, damping: float = DAMPING, floor: float = FLOOR) -> F32:
    """Upper triangular U [K, K] with U^T U = (S (C + damping I) S + floor mean(S^2) I)^-1, C and S being the moment's
    correlation matrix and scale.

    Raises:
        FormatError: C is no correlation matrix.
    """
    size = len(scale)
    squares = scale.astype(np.float64) ** 2
    whole = np.sqrt(squares * (1 + damping) + (floor * squares.mean() if squares.any() else 1.0)).astype(_f)
    share = scale / whole
    c = correlation.astype(_f)
    c *= share[:, None]
    c *= share[None, :]
    c[np.arange(size), np.arange(size)] = 1
    try:
        # C = R R^T with R upper triangular is a Cholesky factor read backwards, and R^-1 is the root wanted.
        upper = np.ascontiguousarray(np.linalg.cholesky(c[::-1, ::-1])[::-1, ::-1])
    except np.linalg.LinAlgError:
        raise FormatError("expected a second moment that is positive definite", hint="calibrate again") from None
    del c
    root = _inverse_of_upper(upper)
    root /= whole[None, :]
    return root


def gptq(weights: F32, root: F32, bits: int, group: int, *, symmetric: bool) -> Rounded:
    """Round float32 [N, K] given `inverse_root`; `group` divides K.

    Raises:
        FormatError: a weight that is NaN or infinite.
    """
    if not np.isfinite(weights).all():
        raise FormatError("expected finite weights, found NaN or infinity")
    rows, columns = weights.shape
    w = np.ascontiguousarray(weights.T, dtype=_f)  # columns of the layer one after another
    codes = np.empty((columns, rows), np.uint8)
    scales = np.empty((columns // group, rows), _f)
    zeros = None if symmetric else np.empty((columns // group, rows), np.uint8)
    costs = np.zeros(rows, np.float64)
    diagonal = np.diag(root).copy()
    step = BLOCK if group % BLOCK == 0 else columns
    for begin in range(0, columns, step):
        end = min(begin + step, columns)
        errors = np.empty((end - begin, rows), _f)
        for column in range(begin, end):
            if column % group == 0:
                members = slice(column, column + group)
                importance = (_f(1) / diagonal[members] ** 2)[:, None]
                scale, zero = search(w[members], bits, symmetric=symmetric, importance=importance)
                low = _f(-(1 << (bits - 1))) if zero is None else -zero
                high = low + _f((1 << bits) - 1)
                inverse = _f(1) / scale
                scales[column // group] = scale
                if zeros is not None and zero is not None:
                    zeros[column // group] = zero
            q = np.minimum(np.maximum(np.rint(w[column] * inverse), low), high)
            codes[column] = q - low
            error = (w[column] - q * scale) / diagonal[column]
            errors[column - begin] = error
            if column + 1 < end:
                w[column + 1 : end] -= root[column, column + 1 : end, None] * error
        costs += np.einsum("kn,kn->n", errors, errors, dtype=np.float64)
        if end < columns:
            w[end:] -= root[begin:end, end:].T @ errors
    rounded = (codes - _f(1 << (bits - 1)) if zeros is None else codes - np.repeat(zeros.astype(_f), group, axis=0)) * (
        np.repeat(scales, group, axis=0)
    )
    return Rounded(
        codes=np.ascontiguousarray(codes.T),
        scales=np.ascontiguousarray(scales.T),
        zeros=None if zeros is None else np.ascontiguousarray(zeros.T),
        squared_error=float(np.sum((weights.T - rounded) ** 2, dtype=np.float64)),
        squared_norm=float(np.sum(weights * weights, dtype=np.float64)),
        costs=costs,
    )


def _inverse_of_upper(upper: F32) -> F32:
    """The inverse of an upper triangular matrix, halved until LAPACK takes it; zero below the diagonal."""
    size = len(upper)
    if size <= SMALL:
        return np.triu(np.linalg.inv(upper)).astype(_f)
    half = size // 2
    out = np.zeros_like(upper)
    out[:half, :half] = _inverse_of_upper(np.ascontiguousarray(upper[:half, :half]))
    out[half:, half:] = _inverse_of_upper(np.ascontiguousarray(upper[half:, half:]))
    out[:half, half:] = -(out[:half, :half] @ upper[:half, half:]) @ out[half:, half:]
    return out
