"""Packed checkpoints, against a directory that the compressed-tensors package packed and decompressed itself."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from freehold.errors import FormatError, UnsupportedError
from freehold.formats import open_checkpoint
from freehold.formats.checkpoint import Checkpoint
from freehold.formats.tensors import QuantizedTensor

VECTORS = Path(__file__).parents[1] / "vectors" / "compressed_tensors"
GRIDS = {
    "int4_group": (4, 32, True),
    "int4_group_asymmetric": (4, 64, False),
    "int4_channel": (4, 51, True),
    "int4_channel_asymmetric": (4, 51, False),
    "int8_group_asymmetric": (8, 128, False),
    "int8_channel": (8, 50, True),
    "int8_plain": (8, 40, True),
}

Tensors = dict[str, np.ndarray]


@pytest.fixture
def recorded() -> Iterator[Checkpoint]:
    with open_checkpoint(VECTORS) as checkpoint:
        yield checkpoint


def layer() -> Tensors:
    """One int4 layer [4, 64] in groups of 32: every code 9, every scale 0.5, so every weight 0.5."""
    return {
        "l.weight_packed": np.full((4, 8), 0x99999999 - (1 << 32), np.int32),
        "l.weight_scale": np.full((4, 2), 0.5, np.float32),
        "l.weight_shape": np.array([4, 64]),
    }


def config(**weights: Any) -> dict[str, Any]:
    arguments = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32} | weights
    groups = {"group_0": {"targets": ["Linear"], "weights": arguments}}
    return {
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": groups,
        }
    }


def opened(directory: Path, tensors: Tensors, settings: dict[str, Any]) -> Checkpoint:
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    return open_checkpoint(directory)


def test_weights_equal_what_the_package_decompresses(recorded: Checkpoint) -> None:
    with np.load(VECTORS / "expected.npz") as expected:
        assert set(recorded.names()) == set(expected.files)
        for name in recorded.names():
            values = expected[name]
            # scale*code + offset rounds differently from scale*(code - zero): 255 times half a unit in the last place.
            tolerance = 0.0 if "asymmetric" not in name else float(np.abs(values).max()) * 256 * 2**-24
            np.testing.assert_allclose(recorded.float32(name), values, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize(("name", "grid"), GRIDS.items())
def test_quantized_weights_keep_their_grid(recorded: Checkpoint, name: str, grid: tuple[int, int, bool]) -> None:
    tensor = recorded.load(f"model.{name}.weight")
    info = recorded.info(f"model.{name}.weight")
    assert isinstance(tensor, QuantizedTensor)
    assert (tensor.bits, tensor.group_size, tensor.offsets is None) == grid
    assert tensor.codes.max() < 1 << tensor.bits
    assert (info.dtype, info.shape) == (f"int{grid[0]}", tensor.shape)


def test_the_size_of_a_weight_counts_its_scales_and_zero_points(recorded: Checkpoint) -> None:
    # 20 x 128 int4 in int32 words, 20 x 2 float32 scales, 3 x 2 words of zero points, two int64 of shape.
    assert recorded.info("model.int4_group_asymmetric.weight").nbytes == 20 * 64 + 20 * 2 * 4 + 3 * 2 * 4 + 16


def test_dense_tensors_are_loaded_as_in_any_checkpoint(recorded: Checkpoint) -> None:
    embedding, norm = recorded.load("model.embed_tokens.weight"), recorded.load("model.norm.weight")
    assert isinstance(embedding, np.ndarray)
    assert isinstance(norm, np.ndarray)
    assert (embedding.dtype, norm.dtype) == (np.uint16, np.float32)


def test_a_hand_made_layer_has_the_values_computed_by_hand(tmp_path: Path) -> None:
    tensors = layer()
    tensors["l.weight_packed"][0, 0] = 0x76543210  # values 0 .. 7 in the first eight columns
    with opened(tmp_path, tensors, config()) as checkpoint:
        weights = checkpoint.float32("l.weight")
    np.testing.assert_array_equal(weights[0, :8], (np.arange(8) - 8) * 0.5)
    assert (weights[0, 8:] == 0.5).all()
    assert (weights[1:] == 0.5).all()


def test_codes_of_five_bits_follow_each_other_without_gaps(tmp_path: Path) -> None:
    # As compressed_tensors 0.20 packs them: code i begins at bit 5 i, whatever int32 that is in.
    codes = np.arange(64, dtype=np.int64) * 7 % 32
    number = sum(int(code) << (5 * place) for place, code in enumerate(codes))
    words = np.frombuffer(number.to_bytes(40, "little"), np.int32).reshape(1, 10)
    tensors = {
        "l.weight_packed": words.copy(),
        "l.weight_scale": np.full((1, 2), 0.5, np.float32),
        "l.weight_shape": np.array([1, 64], np.int64),
    }
    settings = config()
    settings["quantization_config"]["config_groups"]["group_0"]["weights"].update(num_bits=5)
    with opened(tmp_path, tensors, settings) as checkpoint:
        np.testing.assert_array_equal(checkpoint.float32("l.weight")[0], (codes - 16) * 0.5)
    # Before 0.20, six codes and two empty bits to an int32: eleven words, which are not read as ten.
    tensors["l.weight_packed"] = np.zeros((1, 11), np.int32)
    (tmp_path / "gaps").mkdir()
    with opened(tmp_path / "gaps", tensors, settings) as checkpoint, pytest.raises(FormatError, match="don't hold"):
        checkpoint.load("l.weight")


def test_zero_points_are_packed_down_the_rows(tmp_path: Path) -> None:
    points = np.array([[0x00004321, 0x00008888]], np.int32)
    with opened(tmp_path, layer() | {"l.weight_zero_point": points}, config(symmetric=False)) as checkpoint:
        weights = checkpoint.float32("l.weight")
    np.testing.assert_array_equal(weights[:, 0], (9 - np.array([1, 2, 3, 4])) * 0.5)
    assert (weights[:, 32:] == 0.5).all()


def test_unpacked_zero_points_of_older_versions_are_read(tmp_path: Path) -> None:
    points = np.array([[-8, 0], [7, 0], [0, 0], [1, 0]], np.int8)
    with opened(tmp_path, layer() | {"l.weight_zero_point": points}, config(symmetric=False)) as checkpoint:
        weights = checkpoint.float32("l.weight")
    np.testing.assert_array_equal(weights[:, 0], (1 - np.array([-8, 7, 0, 1])) * 0.5)


def test_zero_points_of_a_symmetric_layer_do_not_count(tmp_path: Path) -> None:
    points = np.zeros((4, 2), np.int8)
    with opened(tmp_path, layer() | {"l.weight_zero_point": points}, config()) as checkpoint:
        tensor = checkpoint.load("l.weight")
    assert isinstance(tensor, QuantizedTensor)
    assert tensor.offsets is None


def test_one_scale_for_a_whole_tensor_is_one_for_each_row(tmp_path: Path) -> None:
    tensors = {"l.weight": np.full((3, 40), -2, np.int8), "l.weight_scale": np.array([0.25], np.float32)}
    with opened(tmp_path, tensors, config(num_bits=8, strategy="tensor", group_size=None)) as checkpoint:
        tensor = checkpoint.load("l.weight")
        assert isinstance(tensor, QuantizedTensor)
        assert (tensor.group_size, tensor.scales.shape) == (40, (3, 1))
        assert (tensor.float32() == -0.5).all()


def test_a_group_size_of_minus_one_means_one_scale_for_a_row(tmp_path: Path) -> None:
    tensors = layer() | {"l.weight_scale": np.full((4, 1), 0.5, np.float32)}
    with opened(tmp_path, tensors, config(strategy="channel", group_size=-1)) as checkpoint:
        tensor = checkpoint.load("l.weight")
    assert isinstance(tensor, QuantizedTensor)
    assert tensor.group_size == 64


def test_static_activation_scales_are_no_tensors_of_the_model(tmp_path: Path) -> None:
    extra = {"l.input_scale": np.ones(1, np.float32), "l.k_scale": np.ones(1, np.float32)}
    with opened(tmp_path, layer() | extra, config()) as checkpoint:
        assert checkpoint.names() == ["l.weight"]


def test_a_dense_weight_with_a_scale_beside_it_is_dense(tmp_path: Path) -> None:
    tensors = {"l.weight": np.ones((2, 32), np.float32), "l.weight_scale": np.ones((2, 1), np.float32)}
    with opened(tmp_path, tensors, config()) as checkpoint:
        assert checkpoint.names() == ["l.weight"]
        assert isinstance(checkpoint.load("l.weight"), np.ndarray)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda q: q.update(quant_method="hqq"), "expected compressed-tensors, found 'hqq'"),
        (lambda q: q.pop("quant_method"), "expected compressed-tensors, found None"),
        (lambda q: q.update(format="marlin-24"), "unknown format 'marlin-24'"),
        (lambda q: q["config_groups"]["group_0"].update(format="nvfp4-pack-quantized"), "unknown format 'nvfp4"),
        (lambda q: q["config_groups"]["group_0"]["weights"].update(num_bits=9), "2 to 8 bits, found 'int' of 9"),
        (lambda q: q["config_groups"]["group_0"]["weights"].update(num_bits=True), "2 to 8 bits"),
        (lambda q: q["config_groups"]["group_0"]["weights"].update(type="float"), "found 'float' of 4"),
        (lambda q: q["config_groups"]["group_0"]["weights"].update(group_size=48), "unknown group size 48"),
        (lambda q: q["config_groups"]["group_0"]["weights"].update(group_size="32"), "unknown group size '32'"),
    ],
)
def test_another_method_format_or_width_is_refused_by_name(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], problem: str
) -> None:
    settings = copy.deepcopy(config())
    change(settings["quantization_config"])
    with pytest.raises(UnsupportedError, match=problem):
        opened(tmp_path, layer(), settings)


@pytest.mark.parametrize("broken", [[], "int4", {"quant_method": "compressed-tensors"}, {"config_groups": 1}])
def test_a_quantization_config_of_the_wrong_form_is_one_clear_error(tmp_path: Path, broken: Any) -> None:
    if isinstance(broken, dict):
        broken = {"quant_method": "compressed-tensors"} | broken
    with pytest.raises(FormatError, match="quantization_config: expected"):
        opened(tmp_path, layer(), {"quantization_config": broken})


@pytest.mark.parametrize("group", [None, [], {"weights": []}, {"weights": 4}])
def test_a_group_of_layers_of_the_wrong_form_is_one_clear_error(tmp_path: Path, group: Any) -> None:
    settings = config()
    settings["quantization_config"]["config_groups"] = {"group_0": group}
    with pytest.raises(FormatError, match="quantization_config: expected"):
        opened(tmp_path, layer(), settings)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"l.weight_scale": None}, "no tensor l.weight_scale"),
        ({"l.weight_shape": None}, "no tensor l.weight_shape"),
        ({"l.weight_shape": np.array([4, 72])}, "don't hold"),
        ({"l.weight_shape": np.array([5, 64])}, "don't hold"),
        ({"l.weight_shape": np.array([4, -64])}, "don't hold"),
        ({"l.weight_shape": np.array([2**62, 2**62])}, "don't hold"),
        ({"l.weight_shape": np.array([4, 0]), "l.weight_packed": np.zeros((4, 0), np.int32)}, "don't hold"),
        ({"l.weight_shape": np.array([4, 64, 1])}, "weight_shape of two integers"),
        ({"l.weight_shape": np.array([4.0, 64.0])}, "weight_shape of two integers"),
        ({"l.weight_packed": np.zeros((4, 8), np.int64)}, "expected packed int32"),
        ({"l.weight_packed": np.zeros(32, np.int32)}, "expected packed int32"),
        ({"l.weight_scale": np.ones((4, 3), np.float32)}, "fit no group size"),
        ({"l.weight_scale": np.ones((2, 2), np.float32)}, "fit no group size"),
        ({"l.weight_scale": np.ones((4, 2), np.int32)}, "expected float scales, found I32"),
        ({"l.weight_scale": np.full((4, 2), np.nan, np.float32)}, "a scale is not a finite number"),
    ],
)
def test_parts_that_do_not_fit_together_are_one_clear_error(
    tmp_path: Path, changes: dict[str, np.ndarray | None], problem: str
) -> None:
    tensors = {name: values for name, values in (layer() | changes).items() if values is not None}
    with opened(tmp_path, tensors, config()) as checkpoint, pytest.raises(FormatError, match=problem):
        checkpoint.load("l.weight")


@pytest.mark.parametrize("shape", [(8,), (2, 2, 8), (2, 0), (0, 8)])
def test_int8_weights_that_are_no_matrix_are_one_clear_error(tmp_path: Path, shape: tuple[int, ...]) -> None:
    tensors = {"l.weight": np.zeros(shape, np.int8), "l.weight_scale": np.ones(1, np.float32)}
    with opened(tmp_path, tensors, config(num_bits=8)) as checkpoint:
        for ask in (checkpoint.info, checkpoint.load):
            with pytest.raises(FormatError, match="expected int8"):
                ask("l.weight")


@pytest.mark.parametrize(
    "points", [None, np.zeros((2, 2), np.int32), np.zeros((4, 1), np.int8), np.zeros((1, 2), np.float32)]
)
def test_zero_points_that_are_missing_or_do_not_fit_are_one_clear_error(
    tmp_path: Path, points: np.ndarray | None
) -> None:
    tensors = layer() if points is None else layer() | {"l.weight_zero_point": points}
    settings = config(symmetric=False)
    with opened(tmp_path, tensors, settings) as checkpoint, pytest.raises(FormatError, match="expected zero points"):
        checkpoint.load("l.weight")


def test_groups_scattered_over_the_columns_become_float32_value_for_value(tmp_path: Path) -> None:
    order = np.tile(np.array([1, 0], np.int32), 32)
    tensors = layer() | {"l.weight_scale": np.array([[0.5, 2.0]] * 4, np.float32), "l.weight_g_idx": order}
    with opened(tmp_path, tensors, config()) as checkpoint:
        tensor = checkpoint.load("l.weight")
        assert checkpoint.names() == ["l.weight"]
    assert isinstance(tensor, np.ndarray)
    np.testing.assert_array_equal(tensor, np.tile(np.array([2.0, 0.5], np.float32), (4, 32)))


@pytest.mark.parametrize("order", [np.full(64, -1, np.int32), np.arange(64, dtype=np.int64) // 32])
def test_groups_in_order_or_never_set_keep_the_grid(tmp_path: Path, order: np.ndarray) -> None:
    with opened(tmp_path, layer() | {"l.weight_g_idx": order}, config()) as checkpoint:
        assert isinstance(checkpoint.load("l.weight"), QuantizedTensor)


@pytest.mark.parametrize(
    ("order", "problem"),
    [
        (np.full(64, 2, np.int32), "expected groups from 0 to 1"),
        (np.full(64, -2, np.int32), "expected groups from 0 to 1"),
        (np.zeros(63, np.int32), "expected a group for each column"),
        (np.zeros(64, np.float32), "expected a group for each column"),
    ],
)
def test_groups_of_columns_that_are_not_there_are_refused(tmp_path: Path, order: np.ndarray, problem: str) -> None:
    with (
        opened(tmp_path, layer() | {"l.weight_g_idx": order}, config()) as checkpoint,
        pytest.raises(FormatError, match=problem),
    ):
        checkpoint.load("l.weight")
