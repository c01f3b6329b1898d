"""Sources that are quantized already: what is on its grid is not rounded again, and the report says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from freehold.compress import CompressOptions, Report, compress
from freehold.compress.kept import zero_points
from freehold.engine.calibrate import calibrate
from freehold.formats import QuantizedTensor, open_checkpoint
from freehold.formats.digest import digest
from freehold.formats.safetensors import SafetensorsSet
from freehold.formats.tensors import scale_type
from tests.engine import tiny
from tests.formats.packing import packed
from tests.oracle.recorded import logits

IDS = np.random.default_rng(3).integers(0, tiny.VOCABULARY, 128).tolist()
LAYERS = {f"model.layers.{n}.{part}" for n in range(2) for part in (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)}  # fmt: skip
SOURCES = {"gptq": ("gptq", 32, True), "gptq asymmetric": ("gptq", 32, False), "awq": ("awq", 32, False)}


def source_of(tmp_path: Path, method: str, group: int, symmetric: bool) -> Path:
    return packed(tiny.write(tmp_path / "dense"), tmp_path / "packed", method, group, symmetric=symmetric)


def unrounded(report: Report) -> set[str]:
    return {tensor.name.removesuffix(".weight") for tensor in report.tensors if tensor.unrounded}


@pytest.mark.parametrize(("method", "group", "symmetric"), SOURCES.values(), ids=SOURCES.keys())
def test_the_engine_computes_with_a_packed_source_what_its_values_say(
    tmp_path: Path, method: str, group: int, symmetric: bool
) -> None:
    source = source_of(tmp_path, method, group, symmetric)
    with open_checkpoint(source) as checkpoint:
        assert all(isinstance(checkpoint.load(f"{name}.weight"), QuantizedTensor) for name in LAYERS)
        values = {name: checkpoint.float32(name) for name in checkpoint.names()}
    plain = tiny.write(tmp_path / "plain")
    save_file(values, plain / "model.safetensors")
    found, expected = (logits(path, IDS, list(range(128)), tier="reference") for path in (source, plain))
    np.testing.assert_array_equal(found, expected)
    rounded_inputs = logits(source, IDS, list(range(128)), tier="reference", precision="stored")
    assert 0 < np.abs(rounded_inputs - expected).max() < 0.1 * np.abs(expected).max()


@pytest.mark.parametrize(("method", "group", "symmetric"), SOURCES.values(), ids=SOURCES.keys())
def test_the_grid_that_is_asked_for_and_there_already_is_kept_bit_for_bit(
    tmp_path: Path, method: str, group: int, symmetric: bool
) -> None:
    source = source_of(tmp_path, method, group, symmetric)
    options = CompressOptions(group_size=group, kv_bits=4, symmetric=symmetric)
    report = compress(source, tmp_path / "out", options)
    assert unrounded(report) == LAYERS
    assert all(t.relative_error == 0 and "kept bit for bit" in t.reason for t in report.tensors if t.unrounded)
    assert any(warning.startswith("kept without rounding again: 14 tensors int4 g32") for warning in report.warnings)
    with open_checkpoint(source) as before, open_checkpoint(tmp_path / "out") as after:
        for name in LAYERS:
            old, new = before.load(f"{name}.weight"), after.load(f"{name}.weight")
            assert isinstance(old, QuantizedTensor)
            assert isinstance(new, QuantizedTensor)
            np.testing.assert_array_equal(new.codes, old.codes)
            np.testing.assert_array_equal(new.scales, old.scales)
            assert (old.offsets is None) == (new.offsets is None) == symmetric
            np.testing.assert_array_equal(new.float32(), old.float32())
    with SafetensorsSet(tmp_path / "out") as stored:
        assert stored.info("model.layers.0.mlp.up_proj.weight_scale").dtype == "F16"


def test_another_grid_is_rounded_and_nothing_claims_otherwise(tmp_path: Path) -> None:
    source, statistics = source_of(tmp_path, "gptq", 32, True), tmp_path / "statistics"
    calibrate(source, IDS, statistics, source=digest(source), text="random")
    for number, uniform in enumerate(("int8 g32", "int4 g32 asymmetric", "int4 g64")):
        report = compress(source, tmp_path / str(number), CompressOptions(uniform=uniform), statistics=statistics)
        # a width of 96 has groups of 32 also where 64 are asked for
        kept = {name for name in LAYERS if name.endswith("down_proj")} if number == 2 else set()
        assert unrounded(report) == kept


def test_rules_leave_a_source_on_its_own_grid_where_theirs_is_larger(tmp_path: Path) -> None:
    source = source_of(tmp_path, "gptq", 32, True)
    for number, options in enumerate((CompressOptions(), CompressOptions(bits=8), CompressOptions(symmetric=False))):
        report = compress(source, tmp_path / str(number), options)
        assert unrounded(report) == LAYERS
        assert {tensor.stored for tensor in report.tensors if tensor.unrounded} == {"int4 g32"}


def test_a_budget_takes_the_sources_own_grid_where_that_is_no_larger(tmp_path: Path) -> None:
    source = source_of(tmp_path, "gptq", 32, True)
    statistics = tmp_path / "statistics"
    calibrate(source, IDS, statistics, source=digest(source), text="random")
    options = CompressOptions(budget=6.0, stretch=True, embedding_bits=8)
    report = compress(source, tmp_path / "out", options, statistics=statistics)
    assert unrounded(report)
    for tensor in report.tensors:  # what is rounded nevertheless is smaller than the source's own grid
        if tensor.name.removesuffix(".weight") in LAYERS and not tensor.unrounded:
            assert tensor.bytes < 0.57 * tensor.shape[0] * tensor.shape[1]
    reasons = {tensor.reason for tensor in report.tensors if tensor.unrounded}
    assert all("bit for bit" in reason for reason in reasons)
    assert report.predicted_kld is not None
    costs = [tensor.cost for tensor in report.tensors if tensor.unrounded]
    assert costs == [0.0] * len(costs)


def test_zero_points_are_chosen_only_where_they_are_allowed(tmp_path: Path) -> None:
    source = source_of(tmp_path, "awq", 32, False)
    statistics = tmp_path / "statistics"
    calibrate(source, IDS, statistics, source=digest(source), text="random")
    kept = []
    for symmetric in (True, False):
        options = CompressOptions(budget=6.0, stretch=True, embedding_bits=8, symmetric=symmetric)
        kept.append(unrounded(compress(source, tmp_path / f"{symmetric}", options, statistics=statistics)))
    assert kept[0] == set()
    assert kept[1]


def test_offsets_between_the_codes_are_no_zero_points() -> None:
    scales = np.full((2, 1), 0.5, np.float32)
    codes = np.zeros((2, 32), np.uint8)

    def points(offset: float) -> object:
        return zero_points(QuantizedTensor(codes, scales, np.full((2, 1), offset, np.float32), 4, 32))

    assert np.array_equal(points(-3.5), np.full((2, 1), 7))  # type: ignore[arg-type]
    assert points(-3.4) is None
    assert points(0.5) is None  # minus one
    assert points(-8.0) is None  # sixteen, which four bits don't hold


@pytest.mark.parametrize(("value", "dtype"), [(1.5, "BF16"), (1 + 2**-10, "F16"), (1e-30, "F32"), (1 + 2**-20, "F32")])
def test_scales_are_stored_in_the_smallest_type_that_holds_them(value: float, dtype: str) -> None:
    assert scale_type(np.array([[1.0, value]], np.float32)) == dtype
