"""Checkpoints in the formats of GPTQ's and AWQ's tools, against what auto-gptq and autoawq packed and decoded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from freehold.errors import FormatError, UnsupportedError
from freehold.formats import open_checkpoint
from freehold.formats.checkpoint import Checkpoint
from freehold.formats.tensors import QuantizedTensor

VECTORS = Path(__file__).parents[1] / "vectors" / "gptq_awq"
GRIDS = {
    "gptq-sym-g128": (4, 128, True),
    "gptq-asym-g32": (4, 32, False),
    "gptq-row": (4, 256, True),
    "gptq-int8-g64": (8, 64, False),
    "awq-g128": (4, 128, False),
    "awq-g32": (4, 32, False),
}
NAME = "l.weight"


@pytest.fixture(scope="module")
def expected() -> dict[str, NDArray[Any]]:
    with np.load(VECTORS / "expected.npz") as file:
        return dict(file)


def changed(directory: Path, case: str, tensors: dict[str, Any] | None = None, **settings: Any) -> Checkpoint:
    """A recorded case with other tensors (None removes one) and other keys of its quantization_config."""
    shutil.copytree(VECTORS / case, directory / "m")
    path = directory / "m" / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] |= settings
    path.write_text(json.dumps(config))
    stored = load_file(directory / "m" / "model.safetensors") | (tensors or {})
    save_file({name: value for name, value in stored.items() if value is not None}, directory / "m/model.safetensors")
    return open_checkpoint(directory / "m")


@pytest.mark.parametrize("case", [*GRIDS, "gptq-act-order"])
def test_weights_equal_what_the_tool_that_packed_them_decodes(case: str, expected: dict[str, NDArray[Any]]) -> None:
    with open_checkpoint(VECTORS / case) as checkpoint:
        assert checkpoint.names() == [NAME]
        # scale*code + offset rounds differently from scale*(code - zero): a bit in the last place of the larger product
        np.testing.assert_allclose(checkpoint.float32(NAME), expected[f"{case}_values"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("case", "grid"), GRIDS.items())
def test_codes_and_zero_points_are_those_that_went_in(
    case: str, grid: tuple[int, int, bool], expected: dict[str, NDArray[Any]]
) -> None:
    with open_checkpoint(VECTORS / case) as checkpoint:
        tensor, info = checkpoint.load(NAME), checkpoint.info(NAME)
        stored = sum(part.nbytes for part in load_file(VECTORS / case / "model.safetensors").values())
    assert isinstance(tensor, QuantizedTensor)
    assert (tensor.bits, tensor.group_size, tensor.offsets is None) == grid
    np.testing.assert_array_equal(tensor.codes, expected[f"{case}_codes"])
    if tensor.offsets is not None:
        np.testing.assert_array_equal(np.rint(-tensor.offsets / tensor.scales), expected[f"{case}_zeros"])
    assert (info.dtype, info.shape, info.nbytes) == (f"int{grid[0]}", (64, 256), stored)


def test_scattered_groups_become_float32_value_for_value(expected: dict[str, NDArray[Any]]) -> None:
    with open_checkpoint(VECTORS / "gptq-act-order") as checkpoint:
        tensor = checkpoint.load(NAME)
    assert isinstance(tensor, np.ndarray)
    assert tensor.dtype == np.float32
    order = load_file(VECTORS / "gptq-act-order" / "model.safetensors")["l.g_idx"]
    zeros = expected["gptq-act-order_zeros"][:, order].astype(np.float32)
    scales = load_file(VECTORS / "gptq-act-order" / "model.safetensors")["l.scales"].astype(np.float32).T[:, order]
    np.testing.assert_array_equal(tensor, expected["gptq-act-order_codes"] * scales + -zeros * scales)


def test_zero_points_of_the_second_version_are_stored_as_they_are(tmp_path: Path) -> None:
    with open_checkpoint(VECTORS / "gptq-asym-g32") as first:
        old = first.load(NAME)
    words = load_file(VECTORS / "gptq-asym-g32" / "model.safetensors")["l.qzeros"].view(np.uint32)
    one = np.uint32(0x11111111)
    assert ((words & np.uint32(0xF)) != 15).all()  # so that adding 1 to each nibble carries nowhere
    with changed(
        tmp_path, "gptq-asym-g32", {"l.qzeros": (words + one).view(np.int32)}, checkpoint_format="gptq_v2"
    ) as second:
        new = second.load(NAME)
    assert isinstance(old, QuantizedTensor)
    assert isinstance(new, QuantizedTensor)
    np.testing.assert_array_equal(new.offsets, old.offsets)


def test_a_zero_point_that_borrowed_is_zero_again(tmp_path: Path) -> None:
    zeros = np.full((8, 8), -1, np.int32)  # every nibble 15, which stands for 15 + 1 = 0
    with changed(tmp_path, "gptq-asym-g32", {"l.qzeros": zeros}) as checkpoint:
        tensor = checkpoint.load(NAME)
    assert isinstance(tensor, QuantizedTensor)
    assert tensor.offsets is not None
    assert not tensor.offsets.any()


def test_a_directory_of_the_first_auto_gptq_has_its_settings_in_a_file_of_their_own(tmp_path: Path) -> None:
    shutil.copytree(VECTORS / "gptq-sym-g128", tmp_path / "m")
    config = json.loads((tmp_path / "m/config.json").read_text())
    settings = config.pop("quantization_config")
    del settings["quant_method"]
    (tmp_path / "m/config.json").write_text(json.dumps(config))
    (tmp_path / "m/quantize_config.json").write_text(json.dumps(settings))
    with open_checkpoint(tmp_path / "m") as checkpoint, open_checkpoint(VECTORS / "gptq-sym-g128") as usual:
        np.testing.assert_array_equal(checkpoint.float32(NAME), usual.float32(NAME))


def test_a_bias_of_zeros_that_the_tool_made_up_is_left_out_and_a_real_one_is_not(tmp_path: Path) -> None:
    for number, bias in enumerate((np.zeros(64, np.float16), np.full(64, 0.5, np.float16))):
        (tmp_path / str(number)).mkdir()
        with changed(tmp_path / str(number), "gptq-row", {"l.bias": bias}) as checkpoint:
            assert checkpoint.names() == ([NAME, "l.bias"] if bias.any() else [NAME])


def test_a_bias_of_zeros_is_kept_where_another_layer_has_a_real_one(tmp_path: Path) -> None:
    stored = load_file(VECTORS / "gptq-row" / "model.safetensors")
    layers = {f"{n}.{name}": part for n in range(2) for name, part in stored.items()}
    biases = {"0.l.bias": np.zeros(64, np.float16), "1.l.bias": np.full(64, 0.5, np.float16)}
    with changed(tmp_path, "gptq-row", dict.fromkeys(stored) | layers | biases) as checkpoint:
        assert sorted(checkpoint.names()) == ["0.l.bias", "0.l.weight", "1.l.bias", "1.l.weight"]


def test_dense_layers_beside_packed_ones_are_read_as_they_are(tmp_path: Path) -> None:
    with changed(tmp_path, "awq-g32", {"norm.weight": np.ones(4, np.float16)}) as checkpoint:
        assert checkpoint.names() == [NAME, "norm.weight"]
        np.testing.assert_array_equal(checkpoint.float32("norm.weight"), np.ones(4, np.float32))


def test_a_layer_may_have_a_width_of_its_own_where_the_config_says_so(tmp_path: Path) -> None:
    tensors = load_file(VECTORS / "gptq-int8-g64" / "model.safetensors")
    with changed(tmp_path, "gptq-sym-g128", tensors, dynamic={"l": {"bits": 8, "group_size": 64}}) as checkpoint:
        tensor = checkpoint.load(NAME)
    assert isinstance(tensor, QuantizedTensor)
    assert (tensor.bits, tensor.group_size) == (8, 64)


@pytest.mark.parametrize(
    ("case", "settings", "problem"),
    [
        ("gptq-row", {"bits": 3}, "expected bits 4 or 8, found 3"),
        ("gptq-row", {"bits": "4"}, "expected bits 4 or 8"),
        ("gptq-row", {"bits": True}, "expected bits 4 or 8"),
        ("awq-g32", {"bits": 8}, "expected bits 4, found 8"),
        ("gptq-row", {"group_size": 16}, "unknown group_size 16"),
        ("gptq-row", {"group_size": None}, "unknown group_size None"),
        ("gptq-row", {"checkpoint_format": "marlin"}, "unknown checkpoint_format 'marlin'"),
        ("gptq-row", {"checkpoint_format": ["gptq"]}, "unknown checkpoint_format"),
        ("gptq-row", {"is_marlin_format": True}, "unknown checkpoint_format 'marlin'"),
        ("awq-g32", {"version": "gemv"}, "unknown AWQ version 'gemv'"),
        ("awq-g32", {"version": 1}, "unknown AWQ version 1"),
    ],
)
def test_a_layout_we_can_not_read_is_refused_by_name(
    tmp_path: Path, case: str, settings: dict[str, Any], problem: str
) -> None:
    with pytest.raises(UnsupportedError, match=problem):
        changed(tmp_path, case, **settings)


def test_a_group_size_that_the_tensors_contradict_is_refused(tmp_path: Path) -> None:
    with (
        changed(tmp_path, "gptq-asym-g32", group_size=64) as checkpoint,
        pytest.raises(FormatError, match="expected groups of 64 as the config says, found 32"),
    ):
        checkpoint.load(NAME)
