"""Rounding that makes up for itself: GPTQ (arXiv 2210.17323), then sweeps that refit scales and codes (arXiv 2309.01885).

Scales are searched for every group beforehand, weighting each column's error by what it will finally cost. Columns are
rounded one after another, the heaviest first; what each loses is made good by the columns that follow, as the inputs'
second moment allows. Sweeps then take one group after another: its scale is refitted by least squares against the error
that all others leave, and each of its codes moves to where that error is least. Knows arrays only: no files, no names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from freehold.compress.quantize import Quantized, round_bf16, search
from freehold.errors import FormatError

F32 = NDArray[np.float32]
_f = np.float32

DAMPING = 0.15
"""Share of an input's own second moment that is added to it, on a text without end; see `damping_for`."""
UNSURE = 1000
"""Tokens at which as much as the input's own second moment is added on top."""
FLOOR = 0.02
"""Share of the mean second moment added to every input's: those that hardly vary in the calibration text may elsewhere, and
must not become the place where the errors of others are hidden."""
BLOCK = 32  # columns whose errors are handed on one by one; to the others they go as one matrix product
SMALL = 256  # triangular inverses below this size are LAPACK's
SWEEPS = 2


@dataclass(frozen=True, slots=True)
class Rounded(Quantized):
    """Rows on their grid, as `Quantized`, and what that costs.

    Args:
        costs: float64 [N], E moment E^T on the diagonal, E being the rounding error.
    """

    costs: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Curvature:
    """A damped second moment H = S (C + damping I) S + floor mean(S^2) I, made ready for rounding.

    Args:
        order: intp [K], columns as they are rounded, heaviest first.
        root: float32 [K, K], upper triangular U with U^T U = H[order][:, order]^-1.
        matrix: float32 [K, K], H.
        added: float32 [K], what damping and floor put on the diagonal of H.
    """

    order: NDArray[np.intp]
    root: F32
    matrix: F32
    added: F32

    @property
    def importance(self) -> F32:
        """What a column's squared error costs once all that follow have made up for it, float32 [K]."""
        out = np.empty(len(self.order), _f)
        out[self.order] = _f(1) / np.diag(self.root) ** 2
        return out


def damping_for(tokens: int) -> float:
    """Correlations measured on a short text are too sure: what is added to an input's own second moment, as a share.

    Chosen by the cost on another text than was measured on: of shares from 0.01 to 1.5, half was best at 2,048 tokens
    and 0.3 at 8,192.
    """
    return DAMPING + UNSURE / tokens


def curvature(
    correlation: NDArray[np.floating], scale: F32, damping: float = DAMPING, floor: float = FLOOR
) -> Curvature:
    """From a moment's correlation matrix C and scale S.

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
    order = np.argsort(-whole, kind="stable")
    # C = R R^T with R upper triangular is a Cholesky factor read backwards, and R^-1 is the root wanted.
    back = order[::-1]
    try:
        upper = np.ascontiguousarray(np.linalg.cholesky(c[np.ix_(back, back)])[::-1, ::-1])
    except np.linalg.LinAlgError:
        raise FormatError("expected a second moment that is positive definite", hint="calibrate again") from None
    root = _inverse_of_upper(upper)
    root /= whole[order][None, :]
    c *= whole[:, None]
    c *= whole[None, :]
    return Curvature(order, root, c, (whole.astype(np.float64) ** 2 - squares).astype(_f))


def gptq(weights: F32, given: Curvature, bits: int, group: int, *, symmetric: bool, sweeps: int = SWEEPS) -> Rounded:
    """Round float32 [N, K]; `group` divides K.

    Raises:
        FormatError: a weight that is NaN or infinite.
    """
    w = _columns(weights)
    grid = _searched(w, bits, group, symmetric=symmetric, importance=given.importance)
    q, error, costs = _rounded(w, grid, given, sweeps)
    low = grid.spread(grid.low)
    return Rounded(
        codes=np.ascontiguousarray((q - low).astype(np.uint8).T),
        scales=np.ascontiguousarray(grid.scales.T),
        zeros=None if symmetric else np.ascontiguousarray((-grid.low).astype(np.uint8).T),
        squared_error=float(np.sum(error * error, dtype=np.float64)),
        squared_norm=float(np.sum(w * w, dtype=np.float64)),
        costs=costs,
    )


def costs_of(
    weights: F32, given: Curvature, widths: Sequence[int], group: int, *, symmetric: bool
) -> NDArray[np.float64]:
    """E moment E^T [widths, N], the moment not damped, of several widths.

    They are rounded side by side: few rows leave most of the time to Python.

    Raises:
        FormatError: a weight that is NaN or infinite.
    """
    w = _columns(weights)
    grids = [_searched(w, bits, group, symmetric=symmetric, importance=given.importance) for bits in widths]
    grid = _Grid(
        np.concatenate([each.scales for each in grids], axis=1),
        np.concatenate([each.low for each in grids], axis=1),
        np.concatenate([each.span for each in grids]),
        group,
    )
    _, error, costs = _rounded(np.tile(w, len(widths)), grid, given, SWEEPS)
    costs -= np.einsum("k,kn->n", given.added, error * error, dtype=np.float64)
    return costs.reshape(len(widths), -1)


def _columns(weights: F32) -> F32:
    """Float32 [K, N]: columns of the layer one after another."""
    if not np.isfinite(weights).all():
        raise FormatError("expected finite weights, found NaN or infinity")
    return np.ascontiguousarray(weights.T, dtype=_f)


@dataclass(frozen=True, slots=True)
class _Grid:
    """Scales and smallest codes [K/group, N] (a zero point z makes codes -z and more), and the span of codes [N]."""

    scales: F32
    low: F32
    span: F32
    group: int

    def spread(self, values: F32) -> F32:
        """A value for each column."""
        return np.repeat(values, self.group, axis=0)


def _searched(w: F32, bits: int, group: int, *, symmetric: bool, importance: F32) -> _Grid:
    columns, rows = w.shape
    scales, low = np.empty((2, columns // group, rows), _f)
    for number in range(columns // group):
        members = slice(number * group, (number + 1) * group)
        scales[number], zero = search(w[members], bits, symmetric=symmetric, importance=importance[members, None])
        low[number] = _f(-(1 << (bits - 1))) if zero is None else -zero
    return _Grid(scales, low, np.full(rows, (1 << bits) - 1, _f), group)


def _rounded(w: F32, grid: _Grid, given: Curvature, sweeps: int) -> tuple[F32, F32, NDArray[np.float64]]:
    """Codes [K, N], zero points taken off, the errors they leave, and what these cost; scales are refitted in place."""
    q = _compensated(w, grid, given)
    error = w - q * grid.spread(grid.scales)
    slope = given.matrix @ error
    for _ in range(sweeps):
        _sweep(q, error, slope, grid, given.matrix)
    return q, error, np.einsum("kn,kn->n", error, slope, dtype=np.float64)


def _compensated(w: F32, grid: _Grid, given: Curvature) -> F32:
    """Codes [K, N], zero points taken off."""
    columns, rows = w.shape
    w = w[given.order]
    groups = given.order // grid.group
    root, diagonal = given.root, np.diag(given.root)
    q = np.empty_like(w)
    for begin in range(0, columns, BLOCK):
        end = min(begin + BLOCK, columns)
        errors = np.empty((end - begin, rows), _f)
        for place in range(begin, end):
            scale, low = grid.scales[groups[place]], grid.low[groups[place]]
            codes = np.rint(w[place] / scale)
            np.maximum(codes, low, out=codes)
            np.minimum(codes, low + grid.span, out=codes)
            q[place] = codes
            error = (w[place] - codes * scale) / diagonal[place]
            errors[place - begin] = error
            if place + 1 < end:
                w[place + 1 : end] -= root[place, place + 1 : end, None] * error
        if end < columns:
            w[end:] -= root[begin:end, end:].T @ errors
    out = np.empty_like(q)
    out[given.order] = q
    return out


def _sweep(q: F32, error: F32, slope: F32, grid: _Grid, matrix: F32) -> None:
    """Scales and codes, group by group, in place; `error` [K, N] is what q leaves of the weights, slope = matrix @ error."""
    columns = len(q)
    step = grid.group if grid.group <= 128 else BLOCK
    for begin in range(0, columns, step):
        members = slice(begin, begin + step)
        number = begin // grid.group
        inner = np.ascontiguousarray(matrix[members, members])
        codes, local, before = q[members], slope[members].copy(), error[members].copy()
        scale = grid.scales[number]
        if step == grid.group:
            pull = inner @ codes
            weight = np.einsum("kn,kn->n", codes, pull)
            change = np.zeros_like(scale)
            np.divide(np.einsum("kn,kn->n", codes, local), weight, out=change, where=weight > 0)
            fitted = round_bf16(scale + change)
            fitted = np.where(fitted == 0, scale, fitted)
            change = fitted - scale
            error[members] -= change * codes
            local -= change * pull
            grid.scales[number] = scale = fitted
        low, high = grid.low[number], grid.low[number] + grid.span
        inverse = _f(1) / scale
        for place in range(begin, begin + len(inner)):
            k = place - begin
            moved = np.rint(codes[k] + local[k] * (inverse / inner[k, k]))
            np.maximum(moved, low, out=moved)
            np.minimum(moved, high, out=moved)
            moved -= codes[k]
            if not moved.any():
                continue
            codes[k] += moved
            moved *= scale
            error[place] -= moved
            local[k + 1 :] -= inner[k + 1 :, k, None] * moved
        slope -= matrix[:, members] @ (before - error[members])


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
