"""What a check finds: trials, and the status that k good ones out of n make.

A check that depends on a model's obedience states by how much chance alone could have made a trial good; it passes when
chance is no longer an explanation (one-sided binomial test at 1%). Other checks need every trial.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["PASS", "FAIL", "WARN", "NOT_DECLARED", "UNTESTABLE", "HARNESS_ERROR"]
ALPHA = 0.01


@dataclass(frozen=True, slots=True)
class Trial:
    """One thing looked at.

    Args:
        good: whether it was as expected.
        exchange: key of the exchange.
        path: JSON path of what was observed.
    """

    good: bool
    exchange: str = ""
    path: str = "$"
    expected: str = ""
    observed: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgement on one requirement.

    Args:
        k: trials that were good, of n.
        interval: Wilson's 95% interval of k/n.
        trials: those that were not good (all of an UNTESTABLE's reasons).
    """

    id: str
    status: Status
    k: int = 0
    n: int = 0
    interval: tuple[float, float] = (0.0, 1.0)
    trials: tuple[Trial, ...] = ()
    note: str = ""

    @property
    def bad(self) -> bool:
        """Whether it is shown as not passed."""
        return self.status in ("FAIL", "WARN", "UNTESTABLE", "HARNESS_ERROR")

    def record(self) -> dict[str, Any]:
        """As JSON, without the trials."""
        low, high = (round(end, 4) for end in self.interval)
        return {
            "id": self.id,
            "status": self.status,
            "k": self.k,
            "n": self.n,
            "interval": [low, high],
            "note": self.note,
        }


def wilson(k: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a proportion: https://doi.org/10.1080/01621459.1927.10502953."""
    if n == 0:
        return 0.0, 1.0
    p, zz = k / n, z * z / n
    half = z * math.sqrt(p * (1 - p) / n + zz / (4 * n))
    return max(0.0, (p + zz / 2 - half) / (1 + zz)), min(1.0, (p + zz / 2 + half) / (1 + zz))


def tail(k: int, n: int, chance: float) -> float:
    """The probability of k or more good trials of n when each is good by chance."""
    return sum(math.comb(n, i) * chance**i * (1 - chance) ** (n - i) for i in range(k, n + 1))


def weigh(id: str, trials: Sequence[Trial], *, must: bool, chance: float | None) -> Verdict:
    """The verdict that the trials make.

    Args:
        must: whether falling short is FAIL or WARN.
        chance: how often chance alone makes a trial good; None = every trial must be good.
    """
    k, n = sum(trial.good for trial in trials), len(trials)
    bad = tuple(trial for trial in trials if not trial.good)
    if n == 0:
        return Verdict(id, "UNTESTABLE" if must else "WARN", note="nothing to look at")
    good = k == n if chance is None else k > 0 and tail(k, n, chance) <= ALPHA
    status: Status = "PASS" if good else "FAIL" if must else "WARN"
    return Verdict(id, status, k, n, wilson(k, n), bad)
