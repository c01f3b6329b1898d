"""What this process takes of memory, as Linux accounts it, and giving back what is free. Knows nothing else.

`getrusage` would not do: its maximum outlives `exec`, so a child begins with what its parent had.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

_M_ARENA_MAX = -8  # malloc.h


def resident_bytes() -> int:
    """Bytes in memory now."""
    return _status("VmRSS")


def peak_resident_bytes() -> int:
    """The most bytes that were ever in memory at once."""
    return _status("VmHWM")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def give_back() -> None:
    """Returns memory that is free inside the C library to the system; does nothing where the library can't.

    Threads of a server leave their arenas in pieces: without this, 90,000 requests cost 10 MiB that nobody uses
    (`python bench/soak.py`). Unpacked weights leave twice the model's size.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def few_arenas() -> None:
    """Lets all threads share one arena of the C library from now on; does nothing where the library can't.

    A server's threads take turns at the interpreter, so they gain nothing from arenas of their own, each of which keeps what
    its busiest moment needed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
