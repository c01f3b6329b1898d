"""Rounding weights to 3 to 8 bits: a search for each group's scale that needs no calibration data.

For every group several scales are tried. For the codes q that a candidate gives, the best scale has a closed form,
s = <w,q>/<q,q>, and leaves the squared error |w|^2 - <w,q>^2/<q,q>; the candidate with the least wins, its scale is
rounded to bfloat16 as it will be stored, and the codes are taken again with that scale. Plain absmax rounding competes
as well, so that no group ends up worse than with it. Arithmetic is elementwise float32 in a fixed order: the same input
gives the same bytes on any machine. Knows arrays only: no files, no names.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from freehold.errors import FormatError

F32 = NDArray[np.float32]
_f = np.float32

# Which code the group's extreme weight is mapped to; negative ones flip the scale's sign, which lets the extreme use
# the one code more that two's complement has below zero. Chosen on SmolLM2-135M: relative error 0.1002 with absmax,
# 0.0791 with these eight, 0.0789 with twenty.
_SYMMETRIC = {
    3: (-4.0, 3.0, -3.5, 3.5, -4.5, -5.0, 4.5, -3.0, 5.0),
    4: (-8.0, 7.0, -7.5, 7.5, -8.5, -9.0, 8.0, -7.0),
    5: (-16.0, 15.0, -15.5, 15.5, -16.5, 16.5, -17.5, 17.5),
    6: (-32.0, 31.0, -31.5, 31.5, -33.0, 33.0),
    8: (127.0, -128.0, -132.0, 132.0, -138.0, 138.0),
}
# How far the range from smallest to largest weight is shrunk.
_ASYMMETRIC = {
    3: (1.0, 1.05, 0.94, 0.88, 0.82, 0.76, 0.7),
    4: (1.0, 1.03, 0.96, 0.92, 0.88, 0.84, 0.8, 0.76),
    5: (1.0, 1.02, 0.98, 0.95, 0.92, 0.88),
    6: (1.0, 0.98, 0.96, 0.93),
    8: (1.0, 0.98, 0.96),
}


@dataclass(frozen=True, slots=True)
class Quantized:
    """Rows on their grid: w = scales * (codes - zeros), with zeros = 2^(bits-1) where None.

    Args:
        codes: uint8 [N, K], 0 .. 2^bits-1.
        scales: float32 [N, K/group], each representable in bfloat16.
        zeros: uint8 [N, K/group], or None when symmetric.
        squared_error: sum over all weights of (w - stored w)^2.
        squared_norm: sum over all weights of w^2.
    """

    codes: NDArray[np.uint8]
    scales: F32
    zeros: NDArray[np.uint8] | None
    squared_error: float
    squared_norm: float


def quantize(weights: F32, bits: int, group: int, *, symmetric: bool) -> Quantized:
    """Quantize float32 [N, K]; `group` divides K.

    Raises:
        FormatError: a weight that is NaN, infinite, or too large to square.
    """
    rows, columns = weights.shape
    w = np.ascontiguousarray(weights.reshape(-1, group).T, dtype=_f)  # one column per group: reductions are row adds
    with np.errstate(over="ignore", invalid="ignore"):
        norm = float(_dot(w, w, np.empty_like(w)).sum(dtype=np.float64))
    if not np.isfinite(norm):
        raise FormatError("expected finite weights, found NaN, infinity or values beyond 1e19")
    q, scale, zero, errors = _symmetric(w, bits) if symmetric else _asymmetric(w, bits)
    low = 1 << (bits - 1) if zero is None else zero
    codes = (q + _f(low) if zero is None else q + zero).astype(np.uint8)
    return Quantized(
        codes=np.ascontiguousarray(codes.T).reshape(rows, columns),
        scales=scale.reshape(rows, columns // group),
        zeros=None if zero is None else zero.astype(np.uint8).reshape(rows, columns // group),
        squared_error=float(errors.sum(dtype=np.float64)),
        squared_norm=norm,
    )


def round_bf16(values: F32) -> F32:
    """The nearest bfloat16 values, ties to even, as float32."""
    return (bf16_bits(values).astype(np.uint32) << np.uint32(16)).view(_f)


def bf16_bits(values: F32) -> NDArray[np.uint16]:
    """Bfloat16 bits nearest to finite float32 values, ties to even."""
    bits = np.ascontiguousarray(values, dtype=_f).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded >> np.uint32(16)).astype(np.uint16)


def _symmetric(w: F32, bits: int, importance: F32 | None = None) -> tuple[F32, F32, None, F32]:
    half = 1 << (bits - 1)
    low, high = _f(-half), _f(half - 1)
    top, bottom = w.max(axis=0), w.min(axis=0)
    extreme = np.where(top >= -bottom, top, bottom)
    best = _Best(w, importance)
    for code in _SYMMETRIC[bits]:
        best.offer(_codes(w, _ratio(_f(code), extreme), low, high, best.scratch))
    plain = round_bf16(np.abs(extreme) / high)
    scale = round_bf16(best.scale)
    q, errors = _settle(w, scale, low, high, importance)
    q_plain, errors_plain = _settle(w, plain, low, high, importance)
    worse = errors_plain < errors
    q[:, worse], scale[worse], errors[worse] = q_plain[:, worse], plain[worse], errors_plain[worse]
    return q, _never_zero(scale), None, errors


def _asymmetric(w: F32, bits: int, importance: F32 | None = None) -> tuple[F32, F32, F32, F32]:
    span = _f((1 << bits) - 1)
    top, bottom = np.maximum(w.max(axis=0), _f(0)), np.minimum(w.min(axis=0), _f(0))
    best = _Best(w, importance)
    for shrink in _ASYMMETRIC[bits]:
        inverse = _ratio(span, (top - bottom) * _f(shrink))
        zero = np.clip(np.rint(-bottom * _f(shrink) * inverse), _f(0), span)
        best.offer(_codes(w, inverse, -zero, span - zero, best.scratch), zero)
    plain = round_bf16((top - bottom) / span)
    zero_plain = np.clip(np.rint(-bottom * _ratio(_f(1), plain)), _f(0), span)
    scale, zero = round_bf16(best.scale), best.zero
    q, errors = _settle(w, scale, -zero, span - zero, importance)
    q_plain, errors_plain = _settle(w, plain, -zero_plain, span - zero_plain, importance)
    worse = errors_plain < errors
    q[:, worse], scale[worse], errors[worse] = q_plain[:, worse], plain[worse], errors_plain[worse]
    zero[worse] = zero_plain[worse]
    return q, _never_zero(scale), zero, errors


def search(w: F32, bits: int, *, symmetric: bool, importance: F32) -> tuple[F32, F32 | None]:
    """Scales (as stored) and zero points for the groups in the columns of w [group, N], errors weighted by row.

    Args:
        importance: float32 [group, 1] or [group, N], what the squared error of each weight counts.
    """
    _, scale, zero, _ = (_symmetric if symmetric else _asymmetric)(w, bits, importance)
    return scale, zero


class _Best:
    """The best candidate of each group so far."""

    def __init__(self, w: F32, importance: F32 | None = None) -> None:
        self._w = w if importance is None else w * importance
        self._importance = importance
        self._product = np.empty_like(w)
        self._gain = np.full(w.shape[1], -1, _f)
        self.scratch = np.empty_like(w)
        self.scale = np.zeros(w.shape[1], _f)
        self.zero = np.zeros(w.shape[1], _f)

    def offer(self, q: F32, zero: F32 | None = None) -> None:
        """Consider codes q (zero point taken off) with the scale that suits them best."""
        wq = _dot(self._w, q, self._product)
        heavy = q if self._importance is None else q * self._importance
        qq = _dot(heavy, q, self._product)
        scale = _ratio(wq, qq)
        gain = scale * wq
        better = gain > self._gain
        self._gain[better], self.scale[better] = gain[better], scale[better]
        if zero is not None:
            self.zero[better] = zero[better]


def _codes(w: F32, inverse: F32, low: F32 | np.float32, high: F32 | np.float32, out: F32) -> F32:
    np.multiply(w, inverse, out=out)
    np.rint(out, out=out)
    np.maximum(out, low, out=out)
    np.minimum(out, high, out=out)
    return out


def _settle(
    w: F32, scale: F32, low: F32 | np.float32, high: F32 | np.float32, importance: F32 | None
) -> tuple[F32, F32]:
    """Codes for a fixed scale and the (weighted) squared error of each group."""
    q = _codes(w, _ratio(_f(1), scale), low, high, np.empty_like(w))
    difference = q * scale
    np.subtract(w, difference, out=difference)
    heavy = difference if importance is None else difference * importance
    return q, _dot(heavy, difference, difference)


def _dot(a: F32, b: F32, out: F32) -> F32:
    """Column-wise dot products, added row by row: the order is the same on every machine."""
    np.multiply(a, b, out=out)
    total: F32 = np.add.reduce(out, axis=0)
    return total


def _ratio(a: F32 | np.float32, b: F32) -> F32:
    """a / b, and 0 where b is 0 or so small that the ratio overflows: such a group is stored as zeros."""
    with np.errstate(over="ignore"):
        out = np.divide(a, b, out=np.zeros_like(b), where=b != 0)
    out[~np.isfinite(out)] = 0
    return out


def _never_zero(scale: F32) -> F32:
    """A group of zeros gets scale 1: some readers divide by scales."""
    return np.where(scale == 0, _f(1), scale)
