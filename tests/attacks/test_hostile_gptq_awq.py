"""Hostile GPTQ and AWQ checkpoints: whatever the tensors and settings claim, one clear error, and no read outside them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from freehold.errors import FormatError, FreeholdError
from freehold.formats import open_checkpoint

VECTORS = Path(__file__).parents[1] / "vectors" / "gptq_awq"
I32, F16 = np.int32, np.float16


def opened(directory: Path, case: str, tensors: dict[str, Any]) -> np.ndarray:
    """The weight of a recorded case with some of its tensors replaced; None removes one."""
    shutil.rmtree(directory / "m", ignore_errors=True)
    shutil.copytree(VECTORS / case, directory / "m")
    stored = load_file(directory / "m/model.safetensors")
    stored |= {f"l.{part}": value for part, value in tensors.items()}
    kept = {name: np.ascontiguousarray(value) for name, value in stored.items() if value is not None}
    save_file(kept, directory / "m/model.safetensors")
    with open_checkpoint(directory / "m") as checkpoint:
        checkpoint.info("l.weight")
        return checkpoint.float32("l.weight")


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        ({"scales": None}, "no tensor|l.scales"),
        ({"qzeros": None}, "no tensor|l.qzeros"),
        ({"qweight": np.zeros((32, 64), np.int64)}, "expected qweight as I32 matrix"),
        ({"qweight": np.zeros(2048, I32)}, "expected qweight as I32 matrix"),
        ({"qweight": np.zeros((0, 64), I32)}, "expected qweight as I32 matrix"),
        ({"qweight": np.zeros((31, 64), I32)}, "don't fit together"),
        ({"qweight": np.zeros((32, 63), I32)}, "don't fit together"),
        ({"scales": np.zeros((8, 63), F16)}, "don't fit together"),
        ({"scales": np.zeros((7, 64), F16), "qzeros": np.zeros((7, 8), I32)}, "7 groups don't divide 256 columns"),
        ({"scales": np.zeros((256, 64), F16), "qzeros": np.zeros((256, 8), I32)}, "groups don't divide"),
        ({"scales": np.zeros((8, 64), I32)}, "expected scales as F16 or BF16 or F32"),
        ({"scales": np.full((8, 64), np.nan, F16)}, "not a finite number"),
        ({"scales": np.full((8, 64), np.inf, F16)}, "not a finite number"),
        ({"scales": np.full((8, 64), 3e38, np.float32)}, "not a finite number"),
        ({"qzeros": np.zeros((8, 7), I32)}, "don't fit together"),
        ({"qzeros": np.zeros((9, 8), I32)}, "don't fit together"),
        ({"g_idx": np.full(256, 8, I32)}, "expected g_idx from 0 to 7"),
        ({"g_idx": np.full(256, -1, I32)}, "expected g_idx from 0 to 7"),
        ({"g_idx": np.zeros(256, np.float32)}, "expected g_idx from 0 to 7"),
        ({"g_idx": np.zeros(255, I32)}, "don't fit together"),
        ({"g_idx": np.zeros((256, 1), I32)}, r"expected g_idx \[K\]"),
        ({"g_idx": np.zeros(0, I32)}, r"expected g_idx \[K\]"),
        ({"g_idx": np.zeros(1, I32)}, "don't fit together"),
        ({"g_idx": np.zeros(1 << 20, I32)}, "don't fit together"),
    ],
)
def test_tensors_that_do_not_fit_together_are_refused(tmp_path: Path, tensors: dict[str, Any], problem: str) -> None:
    with pytest.raises(FormatError, match=problem):
        opened(tmp_path, "gptq-asym-g32", tensors)


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        ({"qweight": np.zeros((256, 7), I32)}, "don't fit together"),
        ({"qweight": np.zeros((255, 8), I32)}, "groups don't divide"),
        ({"qzeros": np.zeros((8, 9), I32)}, "don't fit together"),
        ({"scales": np.zeros((8, 72), F16)}, "don't fit together"),
        ({"scales": np.full((8, 64), np.nan, F16)}, "not a finite number"),
    ],
)
def test_an_awq_layer_that_does_not_fit_together_is_refused(
    tmp_path: Path, tensors: dict[str, Any], problem: str
) -> None:
    with pytest.raises(FormatError, match=problem):
        opened(tmp_path, "awq-g32", tensors)


SHAPES = st.tuples(st.sampled_from([0, 1, 2, 7, 8, 32, 64, 256]), st.sampled_from([0, 1, 2, 7, 8, 32, 64, 256]))
SETTINGS = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@SETTINGS
@given(
    case=st.sampled_from(["gptq-asym-g32", "gptq-act-order", "gptq-int8-g64", "awq-g128"]),
    shapes=st.dictionaries(st.sampled_from(["qweight", "qzeros", "scales"]), SHAPES),
    index=st.none() | st.lists(st.integers(-3, 300), max_size=300),
)
def test_any_shapes_give_weights_or_one_clear_error(
    tmp_path: Path, case: str, shapes: dict[str, tuple[int, int]], index: list[int] | None
) -> None:
    tensors: dict[str, Any] = {name: np.ones(shape, F16 if name == "scales" else I32) for name, shape in shapes.items()}
    if index is not None:
        tensors["g_idx"] = np.array(index, I32)
    try:
        found = opened(tmp_path, case, tensors)
    except FreeholdError:
        return
    assert found.ndim == 2
    assert np.isfinite(found).all()


@SETTINGS
@given(
    key=st.sampled_from(["bits", "group_size", "checkpoint_format", "version", "dynamic", "quant_method", "desc_act"]),
    value=st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers()),
)
def test_any_setting_gives_a_checkpoint_or_one_clear_error(tmp_path: Path, key: str, value: Any) -> None:
    shutil.rmtree(tmp_path / "m", ignore_errors=True)
    shutil.copytree(VECTORS / "gptq-asym-g32", tmp_path / "m")
    config = json.loads((tmp_path / "m/config.json").read_text())
    config["quantization_config"][key] = value
    (tmp_path / "m/config.json").write_text(json.dumps(config))
    try:
        with open_checkpoint(tmp_path / "m") as checkpoint:
            checkpoint.float32("l.weight")
    except FreeholdError:
        return


def test_settings_that_are_no_object_are_refused(tmp_path: Path) -> None:
    shutil.copytree(VECTORS / "gptq-row", tmp_path / "m")
    (tmp_path / "m/config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "m/quantize_config.json").write_text("[4, 128]")
    with pytest.raises(FormatError, match="quantize_config"):
        open_checkpoint(tmp_path / "m")
