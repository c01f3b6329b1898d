"""Safetensors files and sets of shards, against files the safetensors package wrote."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from freehold.errors import FormatError, UnsupportedError
from freehold.formats.checkpoint import load_dense
from freehold.formats.safetensors import SafetensorsFile, SafetensorsSet
from tests.formats.building import packed

TYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def sharded(directory: Path, weight_map: dict[str, str] | None = None) -> Path:
    """Two shards and their index."""
    save_file({"a": np.ones((2, 3), np.float32), "b": np.zeros(4, np.float32)}, directory / "one.safetensors")
    save_file({"c": np.full((2, 2), 7, np.float32)}, directory / "two.safetensors")
    weight_map = weight_map or {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}
    index = {"metadata": {"total_size": 56}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return directory


def test_every_type_comes_back_as_the_safetensors_package_wrote_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    written = {name: rng.integers(0, 2, (3, 5)).astype(kind) for name, kind in TYPES.items()}
    save_file(written, tmp_path / "x.safetensors", metadata={"format": "pt"})
    with SafetensorsFile(tmp_path / "x.safetensors") as file:
        assert file.metadata == {"format": "pt"}
        assert set(file.names()) == set(TYPES)
        for name, values in written.items():
            info = file.info(name)
            assert (info.dtype, info.shape, info.nbytes) == (name, (3, 5), values.nbytes)
            assert file.read(name).dtype == values.dtype
            np.testing.assert_array_equal(file.read(name), values)


def test_bfloat16_is_read_as_its_bits(tmp_path: Path) -> None:
    raw = np.array([[1.0, -2.5], [3.140625, 0.0]], np.float32).view(np.uint32) >> 16
    bits = raw.astype("<u2")
    matrix, vector = ("BF16", (2, 2), bits.tobytes()), ("BF16", (4,), bits.tobytes())
    (tmp_path / "model.safetensors").write_bytes(packed({"matrix": matrix, "vector": vector}))
    with SafetensorsSet(tmp_path) as tensors:
        np.testing.assert_array_equal(load_dense(tensors, "matrix"), bits)
        np.testing.assert_array_equal(load_dense(tensors, "vector"), np.array([1.0, -2.5, 3.140625, 0.0], np.float32))


@pytest.mark.parametrize("dtype", ["F64", "F16", "F32"])
def test_other_floats_are_loaded_as_float32(tmp_path: Path, dtype: str) -> None:
    save_file({"x": np.array([[0.5, -2.0]], TYPES[dtype])}, tmp_path / "model.safetensors")
    with SafetensorsSet(tmp_path) as tensors:
        loaded = load_dense(tensors, "x")
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, [[0.5, -2.0]])


def test_a_double_beyond_float32_becomes_infinite_without_a_warning(tmp_path: Path) -> None:
    save_file({"x": np.array([1e300, -1e300])}, tmp_path / "model.safetensors")
    with SafetensorsSet(tmp_path) as tensors:
        np.testing.assert_array_equal(load_dense(tensors, "x"), [np.inf, -np.inf])


def test_integers_are_no_weights(tmp_path: Path) -> None:
    save_file({"x": np.array([1])}, tmp_path / "model.safetensors")
    with SafetensorsSet(tmp_path) as tensors, pytest.raises(UnsupportedError, match="a float tensor x, found I64"):
        load_dense(tensors, "x")


def test_a_type_numpy_lacks_can_be_measured_but_not_read(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(packed({"x": ("F8_E4M3", (4,), bytes(4))}))
    with SafetensorsFile(tmp_path / "x.safetensors") as file:
        assert file.info("x").nbytes == 4
        with pytest.raises(UnsupportedError, match="F8_E4M3, which can't be loaded"):
            file.read("x")


def test_scalars_and_empty_tensors_are_fine(tmp_path: Path) -> None:
    save_file({"scalar": np.array(3, np.int32), "empty": np.zeros((0, 4), np.float32)}, tmp_path / "x.safetensors")
    with SafetensorsFile(tmp_path / "x.safetensors") as file:
        assert file.read("scalar") == 3
        assert file.read("empty").shape == (0, 4)


def test_shards_read_as_one_set(tmp_path: Path) -> None:
    with SafetensorsSet(sharded(tmp_path)) as tensors:
        assert sorted(tensors.names()) == ["a", "b", "c"]
        assert tensors.info("c").shape == (2, 2)
        np.testing.assert_array_equal(tensors.read("c"), np.full((2, 2), 7, np.float32))


def test_shards_may_be_symbolic_links_as_in_the_hugging_face_cache(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    for file in sharded(blobs).iterdir():
        (snapshot / file.name).symlink_to(file)
    with SafetensorsSet(snapshot) as tensors:
        np.testing.assert_array_equal(tensors.read("a"), np.ones((2, 3), np.float32))


def test_a_single_file_is_preferred_to_shards(tmp_path: Path) -> None:
    sharded(tmp_path)
    save_file({"only": np.ones(1, np.float32)}, tmp_path / "model.safetensors")
    with SafetensorsSet(tmp_path) as tensors:
        assert tensors.names() == ["only"]


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    sharded(tmp_path)
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(FormatError, match=r"no file at .*two\.safetensors"):
        SafetensorsSet(tmp_path)


def test_a_tensor_its_shard_does_not_have_is_named(tmp_path: Path) -> None:
    sharded(tmp_path, {"a": "one.safetensors", "z": "two.safetensors"})
    with pytest.raises(FormatError, match=r"no tensor z in .*two\.safetensors"):
        SafetensorsSet(tmp_path)


def test_a_tensor_nobody_has_is_named(tmp_path: Path) -> None:
    with SafetensorsSet(sharded(tmp_path)) as tensors:
        for ask in (tensors.info, tensors.read):
            with pytest.raises(FormatError, match="no tensor z in"):
                ask("z")
