"""The machine as the kernels see it: every choice has a reason, and a forced tier is really forced."""

from __future__ import annotations

from pathlib import Path

import pytest

from freehold.errors import SettingError
from freehold.kernels import _native, cpu, limits


def with_features(monkeypatch: pytest.MonkeyPatch, *present: str) -> None:
    names = ("avx2", "fma", "f16c", "avx512", "avx512_vnni", "amx_tile", "amx_int8", "amx_permitted")
    monkeypatch.setattr(cpu, "features", lambda: {name: name in present for name in names})


AVX2 = ("avx2", "fma", "f16c")
AVX512 = (*AVX2, "avx512", "avx512_vnni")
AMX = (*AVX512, "amx_tile", "amx_int8", "amx_permitted")


@pytest.mark.parametrize(
    ("present", "tier"),
    [
        ((), "portable"),
        (("avx2",), "portable"),
        (AVX2, "avx2"),
        (AVX512[:-1], "avx2"),
        (AVX512, "avx512"),
        (AMX, "amx"),
    ],
)
def test_the_best_tier_with_all_its_features_is_chosen(
    monkeypatch: pytest.MonkeyPatch, present: tuple[str, ...], tier: str
) -> None:
    with_features(monkeypatch, *present)
    assert cpu.choose_tier().value == tier


def test_the_reason_names_what_the_next_better_tier_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    with_features(monkeypatch, *AMX[:-1])
    choice = cpu.choose_tier()
    assert choice.value == "avx512"
    assert "no amx because amx_permitted missing" in choice.reason


def test_forcing_a_tier_this_machine_lacks_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with_features(monkeypatch, *AVX2)
    with pytest.raises(SettingError, match="can't run avx512: avx512, avx512_vnni missing") as caught:
        cpu.choose_tier("avx512")
    assert caught.value.hint == "it can run: avx2, portable"
    with pytest.raises(SettingError, match="expected auto, reference or one of"):
        cpu.choose_tier("sse9")
    assert cpu.choose_tier("portable").value == "portable"
    assert cpu.choose_tier("reference").value == "reference"


def test_what_python_calls_available_the_native_module_can_run() -> None:
    assert [tier for tier in cpu.TIERS if _native.has_tier(tier)] == cpu.available_tiers()


def test_threads_are_the_least_of_what_quota_affinity_and_cores_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(cpu, "_physical_cores", lambda: 4)
    monkeypatch.setattr(cpu, "_cgroup_quota", lambda: None)
    assert cpu.choose_threads() == (4, "least of affinity 8, physical cores 4")
    monkeypatch.setattr(cpu, "_cgroup_quota", lambda: 1.5)
    assert cpu.choose_threads()[0] == 1
    monkeypatch.setattr(cpu, "_cgroup_quota", lambda: 0.2)
    assert cpu.choose_threads()[0] == 1
    assert cpu.choose_threads(6) == (6, "asked for")


def test_a_cgroup_quota_above_this_process_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    (inner / "cpu.max").write_text("max 100000\n")
    (tmp_path / "outer" / "cpu.max").write_text("150000 100000\n")
    monkeypatch.setattr(cpu, "_own_cgroups", lambda root: [inner, inner.parent])
    assert cpu._cgroup_quota() == 1.5


def test_limits_are_measured_and_plausible() -> None:
    tier = cpu.choose_tier().value
    found = limits.measure(tier, 1, megabytes=64, seconds=0.02)
    assert 1e8 < found.read_bytes_per_second < 1e13
    assert 1e8 < found.int8_operations_per_second < 1e14
    with pytest.raises(ValueError, match="unknown tier"):
        limits.measure("sse9", 1, megabytes=1, seconds=0.01)
