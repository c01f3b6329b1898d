"""What this process takes of memory, as Linux accounts it. Knows nothing else.

`getrusage` would not do: its maximum outlives `exec`, so a child begins with what its parent had.
"""

from __future__ import annotations

from pathlib import Path


def resident_bytes() -> int:
    """Bytes in memory now."""
    return _status("VmRSS")


def peak_resident_bytes() -> int:
    """The most bytes that were ever in memory at once."""
    return _status("VmHWM")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
