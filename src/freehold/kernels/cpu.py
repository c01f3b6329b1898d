"""What this CPU can do, and the choices that follow from it, each with its reason.

Knows nothing of models: only the ISA tier and the number of threads are chosen here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from freehold.errors import SettingError

TIERS = ("amx", "avx512", "avx2", "portable")
"""Best first. `reference` (NumPy) is never chosen, only asked for."""

_NEEDS = {
    "amx": ("avx512", "avx512_vnni", "amx_tile", "amx_int8", "amx_permitted"),
    "avx512": ("avx2", "fma", "f16c", "avx512", "avx512_vnni"),
    "avx2": ("avx2", "fma", "f16c"),
    "portable": (),
}


@dataclass(frozen=True, slots=True)
class Choice:
    """An automatic choice and why it was made."""

    value: str
    reason: str


def features() -> dict[str, bool]:
    """CPU features the tiers ask for; operating system support is part of each."""
    from freehold.kernels import _native

    return dict(_native.cpu_features())


def available_tiers() -> list[str]:
    """The tiers this machine can run, best first."""
    found = features()
    return [tier for tier in TIERS if all(found.get(need) for need in _NEEDS[tier])]


def choose_tier(asked: str = "auto") -> Choice:
    """The ISA tier to run.

    Args:
        asked: "auto", "reference" or a tier's name (`FREEHOLD_ISA`).

    Raises:
        SettingError: the tier is unknown, or this machine lacks what it needs (named in the message).
    """
    found = features()
    if asked == "reference":
        return Choice("reference", "asked for: NumPy, the definition the kernels are tested against (slow)")
    if asked == "auto":
        tier = available_tiers()[0]
        better = TIERS[: TIERS.index(tier)]
        reason = "best that this CPU has: " + (", ".join(_NEEDS[tier]) or "any CPU")
        for other in better[-1:]:
            lacking = [need for need in _NEEDS[other] if not found.get(need)]
            reason += f"; no {other} because {', '.join(lacking)} missing"
        return Choice(tier, reason)
    if asked not in TIERS:
        raise SettingError(f"isa: expected auto, reference or one of {', '.join(TIERS)}, found {asked!r}")
    lacking = [need for need in _NEEDS[asked] if not found.get(need)]
    if lacking:
        raise SettingError(
            f"isa: this machine can't run {asked}: {', '.join(lacking)} missing",
            hint=f"it can run: {', '.join(available_tiers())}",
        )
    return Choice(asked, "asked for")


def choose_threads(asked: int = 0) -> tuple[int, str]:
    """Compute threads and the reason: the least of cgroup quota, affinity and physical cores.

    More threads than the quota allows get throttled in the middle of a barrier, which costs far more than they bring.
    """
    if asked > 0:
        return asked, "asked for"
    limits = {"affinity": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)}
    cores = _physical_cores()
    if cores:
        limits["physical cores"] = cores
    quota = _cgroup_quota()
    if quota:
        limits["cgroup quota"] = max(1, int(quota))
    least = min(limits, key=lambda name: limits[name])
    return limits[least], "least of " + ", ".join(f"{name} {count}" for name, count in limits.items())


def _physical_cores() -> int | None:
    """Distinct (package, core) pairs among online CPUs; None where sysfs does not tell."""
    seen = set()
    for topology in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/topology"):
        try:
            package = (topology / "physical_package_id").read_text()
            seen.add((package, (topology / "core_id").read_text()))
        except OSError:
            return None
    return len(seen) or None


def _cgroup_quota() -> float | None:
    """CPUs this process's cgroup (v2, then v1) may use; None when unlimited or unknown."""
    root = Path("/sys/fs/cgroup")
    limits = []
    for path in [root / "cpu.max", *[folder / "cpu.max" for folder in _own_cgroups(root)]]:
        try:
            quota, period = path.read_text().split()
        except (OSError, ValueError):
            continue
        if quota != "max":
            limits.append(int(quota) / int(period))
    try:
        quota_v1 = int((root / "cpu/cpu.cfs_quota_us").read_text())
        if quota_v1 > 0:
            limits.append(quota_v1 / int((root / "cpu/cpu.cfs_period_us").read_text()))
    except (OSError, ValueError):
        return min(limits) if limits else None
    return min(limits) if limits else None


def _own_cgroups(root: Path) -> list[Path]:
    """This process's cgroup v2 folder and those above it."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    own = next((line[3:] for line in lines if line.startswith("0::")), "/")
    folder = root / own.lstrip("/")
    return [folder, *[parent for parent in folder.parents if root in parent.parents]]
