"""Tells a worker that hangs from one that is busy, by asking it for a word between two steps.

A step of a large model may take a minute, so silence alone says little. A worker that answers nothing and whose
threads neither use nor want CPU time stands still (stopped, deadlocked): that is plain after seconds. One that computes
without a word may be in a loop without end: that takes the longest step it is given. Time in which the owner itself did
not run counts for nothing. Knows no socket and no process but its number.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from freehold.settings import EngineSettings

BEAT_SECONDS = 1.0


def cpu_seconds(pid: int) -> float | None:
    """CPU time that all threads of a process have used (proc(5), fields 14 and 15); None where nobody can tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None


def runnable(pid: int) -> bool:
    """Whether a thread of a process runs or waits for a processor (proc(5), field 3)."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        return any((thread / "stat").read_text().rpartition(")")[2].split()[0] == "R" for thread in threads)
    except (OSError, IndexError):
        return False


class Pulse:
    """One worker's.

    Args:
        pid: of the worker.
        settings: `step_seconds` and `stall_seconds`; 0 = never.
        clock: seconds, monotonic.
        cpu: CPU seconds of a process.
        waits: whether one would run if the machine let it.
    """

    def __init__(
        self,
        pid: int,
        settings: EngineSettings,
        clock: Callable[[], float] = time.monotonic,
        cpu: Callable[[int], float | None] = cpu_seconds,
        waits: Callable[[int], bool] = runnable,
    ) -> None:
        limits = [limit for limit in (settings.step_seconds, settings.stall_seconds) if limit]
        self.beat = min([BEAT_SECONDS, *(limit / 4 for limit in limits)])
        self.wanted = bool(limits)
        self._pid = pid
        self._settings = settings
        self._clock = clock
        self._cpu = cpu
        self._waits = waits
        self._asked = False
        self._last = 0.0  # look, on the clock
        self._silent = 0.0  # seconds since it was asked
        self._still = 0.0  # seconds since it was seen using the CPU
        self._used: float | None = None

    def heard(self) -> None:
        """It said something, whatever it was."""
        self._asked = False

    def ask(self) -> bool:
        """Whether it must be asked for a word now."""
        if self._asked:
            return False
        self._asked, self._last = True, self._clock()
        self._silent = self._still = 0.0
        self._used = self._cpu(self._pid)
        return True

    def look(self) -> str | None:
        """Called every `beat` seconds while no word comes: why it counts as hanging; None while it does not."""
        if not self._asked:
            return None
        now = self._clock()
        passed, self._last = min(now - self._last, 2 * self.beat), now  # more, and it was us who slept
        used = self._cpu(self._pid)
        self._silent += passed
        stands = used is not None and used == self._used and not self._waits(self._pid)
        self._still = self._still + passed if stands else 0.0
        self._used = used
        if self._settings.stall_seconds and self._still >= self._settings.stall_seconds:
            return f"it stood still for {self._still:.3g} s"
        if self._settings.step_seconds and self._silent >= self._settings.step_seconds:
            return f"it answered nothing for {self._silent:.3g} s"
        return None
