"""Moments: what calibration sums up for a linear is what their definition says, for each of its tensors."""

from __future__ import annotations

import numpy as np

from freehold.engine.moments import Moment, Share
from freehold.engine.tape import Linear

TOKENS, COLUMNS = 40, 6


def seen(seed: int) -> Linear:
    random = np.random.default_rng(seed)
    gradient = random.standard_normal((TOKENS, 5)).astype(np.float32)
    gradient[: TOKENS // 2, :2] = 0  # the first tensor errs at late tokens only,
    gradient[TOKENS // 2 :, 2:] = 0  # the second at early ones
    x = random.standard_normal((TOKENS, COLUMNS)).astype(np.float32)
    return Linear("w", x, gradient, random.standard_normal((TOKENS, COLUMNS)).astype(np.float32))


def test_every_tensor_of_an_input_weights_tokens_by_its_own_gradient() -> None:
    linears = [seen(0), seen(1)]
    shares = [Share.of(linear, [2]) for linear in linears]
    moment = Moment(shares[0])
    for share in shares:
        moment.add(share)
    x = np.concatenate([linear.input for linear in linears]).astype(np.float64)
    gradient = np.concatenate([linear.gradient for linear in linears]).astype(np.float64)
    for rows, (correlation, scale) in zip((slice(0, 2), slice(2, 5)), moment.normalized(), strict=True):
        weight = (gradient[:, rows] ** 2).mean(axis=1)
        wanted = (x * weight[:, None]).T @ x / weight.sum()
        found = correlation.astype(np.float64) * scale[:, None] * scale[None, :]
        assert np.allclose(found, wanted, atol=2e-3 * np.abs(wanted).max())
    assert np.allclose(moment.importance, (gradient**2).mean(axis=0), rtol=1e-5)


def test_an_input_that_nothing_depends_on_has_a_moment_of_zero() -> None:
    linear = seen(0)
    linear.gradient[:, :2] = 0
    moment = Moment(share := Share.of(linear, [2]))
    moment.add(share)
    correlation, scale = moment.normalized()[0]
    assert not scale.any()
    assert np.isfinite(correlation).all()
