"""Rotary position embedding: inverse frequencies from a config, for each scaling scheme in use.

Sources: RoFormer (arXiv 2104.09864); linear interpolation (arXiv 2306.15595); YaRN (arXiv 2309.00071, section 3.2 and
3.4); the "llama3" smoothing as published with Llama 3.1 (huggingface.co/docs/transformers, "rope_utils").
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from freehold.engine.models.config import Config
from freehold.errors import UnsupportedError

F64 = NDArray[np.float64]
KNOWN = ("default", "linear", "llama3", "yarn")


def frequencies(config: Config, dim: int, context: int) -> tuple[NDArray[np.float32], float]:
    """(float32 [dim/2] inverse frequencies in radians per position, factor on cos and sin).

    Reads `rope_parameters`, else `rope_scaling` and `rope_theta`.

    Raises:
        UnsupportedError: a scaling scheme that is not known.
        FormatError: a missing or impossible parameter.
    """
    scaling = config.table("rope_parameters") or config.table("rope_scaling")
    source = scaling if scaling is not None and scaling.has("rope_theta") else config
    theta = source.number("rope_theta", default=10000.0, low=1.0)
    base = theta ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
    if scaling is None:
        return base.astype(np.float32), 1.0
    kind = scaling.text("rope_type", default=scaling.text("type", default="default"))
    if kind not in KNOWN:
        raise UnsupportedError(f"rope scaling {kind[:80]!r} is not supported", hint="known: " + ", ".join(KNOWN))
    if kind == "linear":
        base = base / scaling.number("factor", low=0.0, high=1e6)
    elif kind == "llama3":
        base = _llama3(base, scaling)
    elif kind == "yarn":
        return _yarn(base, scaling, theta, dim, context)
    return base.astype(np.float32), 1.0


def _llama3(base: F64, scaling: Config) -> F64:
    """Slow wavelengths divided by factor, fast ones kept, a smooth blend between."""
    factor = scaling.number("factor", high=1e6)
    low = scaling.number("low_freq_factor", high=1e6)
    high = scaling.number("high_freq_factor", low=low, high=1e6)
    trained = scaling.integer("original_max_position_embeddings", high=1 << 30)
    wavelength = 2 * math.pi / base
    smooth = np.clip((trained / wavelength - low) / (high - low), 0.0, 1.0)
    blend: F64 = (1 - smooth) * base / factor + smooth * base
    return blend


def _yarn(base: F64, scaling: Config, theta: float, dim: int, context: int) -> tuple[NDArray[np.float32], float]:
    """Dimensions that turn often keep their frequency, those that turn seldom are interpolated, with a ramp between."""
    trained = scaling.integer("original_max_position_embeddings", default=context, high=1 << 30)
    factor = scaling.number("factor", high=1e6)
    fast, slow = scaling.number("beta_fast", default=32.0), scaling.number("beta_slow", default=1.0)

    def dimension(turns: float) -> float:
        return dim * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = dimension(fast), dimension(slow)
    if scaling.flag("truncate", default=True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    ramp = np.clip((np.arange(dim // 2) - first) / max(last - first, 0.001), 0.0, 1.0)
    mixed = base / factor * ramp + base * (1 - ramp)
    return mixed.astype(np.float32), _yarn_attention(scaling, factor)


def _yarn_attention(scaling: Config, factor: float) -> float:
    def mscale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if scaling.has("attention_factor"):
        return scaling.number("attention_factor", high=1e3)
    if scaling.has("mscale") and scaling.has("mscale_all_dim"):
        return mscale(scaling.number("mscale", high=1e3)) / mscale(scaling.number("mscale_all_dim", high=1e3))
    return mscale(1.0)
