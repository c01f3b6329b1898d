"""The limits of this machine, measured in the same run as the figures that are held against them."""

from __future__ import annotations

from dataclasses import dataclass

from freehold.kernels import _native


@dataclass(frozen=True, slots=True)
class Limits:
    """What the hardware gives.

    Args:
        read_bytes_per_second: memory read by all threads together.
        int8_operations_per_second: multiply-adds times two of the tier's int8 dot product, from registers.
    """

    read_bytes_per_second: float
    int8_operations_per_second: float


def measure(tier: str, threads: int, *, megabytes: int = 512, seconds: float = 0.3) -> Limits:
    """Measure both limits; takes about a second. `megabytes` should be well beyond the caches."""
    bandwidth = _native.read_bandwidth(megabytes << 20, threads, 3)
    return Limits(bandwidth, _native.int8_peak("portable" if tier == "reference" else tier, threads, seconds))
