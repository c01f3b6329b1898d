"""Files of packed weights: what is written is what is mapped, and nothing outside of the file is ever read."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from freehold.kernels import _native, packfile
from freehold.kernels.executor import PackedMatrix, pack_matrix
from freehold.kernels.matrix import FloatMatrix, Matrix
from freehold.kernels.packfile import DamagedError

from .conftest import quantized


def matrices() -> dict[str, Matrix]:
    rng = np.random.default_rng(0)
    floats = rng.standard_normal((33, 70)).astype(np.float32)
    half = (floats.view(np.uint32) >> 16).astype(np.uint16)
    parts = {
        "int4": (quantized(rng, 40, 70, 4, 32, True),),
        "int4 with zero points": (quantized(rng, 40, 70, 4, 64, False),),
        "int8": (quantized(rng, 40, 70, 8, 70, True),),
        "f32": (FloatMatrix(floats),),
        "bf16": (FloatMatrix(half),),
        "mixed": (quantized(rng, 20, 70, 4, 32, True), quantized(rng, 7, 70, 8, 128, False), FloatMatrix(floats)),
    }
    return {name: Matrix(given) for name, given in parts.items()}


def written(path: Path) -> dict[str, Matrix]:
    made = matrices()
    with path.open("wb") as file:
        weights: list[tuple[str, PackedMatrix | np.ndarray]] = [(name, pack_matrix(m)) for name, m in made.items()]
        packfile.write(file, [*weights, ("norm", np.arange(5, dtype=np.float32))], lambda: {"source": "here"})
    return made


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "a.packed"
    made = written(path)
    weights, facts = packfile.read(path, whole=True)
    assert facts == packfile.facts_of(path) == {"source": "here"}
    np.testing.assert_array_equal(weights.pop("norm"), np.arange(5, dtype=np.float32))
    assert weights.keys() == made.keys()
    x = np.random.default_rng(1).standard_normal((3, 70)).astype(np.float32)
    for name, matrix in weights.items():
        assert isinstance(matrix, PackedMatrix)
        assert matrix.shape == made[name].shape
        packed = pack_matrix(made[name])
        np.testing.assert_array_equal(np.concatenate([part.float32() for part in matrix.parts]), made[name].float32())
        for mine, theirs in zip(matrix.parts, packed.parts, strict=True):
            assert mine.nbytes == theirs.nbytes
            np.testing.assert_array_equal(_native.linear("portable", mine, x), _native.linear("portable", theirs, x))


def test_parts_of_one_kind_become_one() -> None:
    rng = np.random.default_rng(2)
    q, k, v = (quantized(rng, rows, 64, 4, 32, True) for rows in (24, 8, 8))
    other = quantized(rng, 8, 64, 8, 32, True)
    for parts, expected in (((q, k, v), [40]), ((q, other, k, v), [24, 8, 16])):
        matrix = Matrix(parts)
        packed = pack_matrix(matrix)
        assert [part.shape[0] for part in packed.parts] == expected
        np.testing.assert_array_equal(np.concatenate([part.float32() for part in packed.parts]), matrix.float32())


@pytest.mark.parametrize("length", [0, 10, 63, 64, 5000, -1])
def test_a_file_cut_short_is_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "a.packed"
    written(path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DamagedError):
        packfile.read(path)


def changed(path: Path, change: dict[str, Any], name: str = "int4") -> None:
    """The file with one matrix described differently, and an index whose checksum fits."""
    data = path.read_bytes()
    _, layout, at, length, _ = packfile._BEGINNING.unpack(data[:64])
    index = msgspec.json.decode(data[at : at + length])
    index["matrices"][name][0].update(change)
    raw = msgspec.json.encode(index)
    beginning = packfile._BEGINNING.pack(packfile.MAGIC, layout, at, len(raw), hashlib.sha256(raw).digest()[:24])
    path.write_bytes(beginning + data[64:at] + raw)


@pytest.mark.parametrize(
    "change",
    [
        {"codes_at": 1 << 40},
        {"codes_at": -64},
        {"codes_at": 65},
        {"scales_at": (1 << 63) - 64},
        {"offsets_at": 1 << 40},
        {"rows": 1 << 30},
        {"rows": 0},
        {"rows": -5},
        {"columns": 1 << 30, "group": 1 << 30},
        {"rows": 1 << 31},
        {"group": 48},
        {"format": "int5"},
        {"format": 3},
        {"unknown": 1},
    ],
    ids=str,
)
def test_an_index_that_points_outside_or_makes_no_sense_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "a.packed"
    written(path)
    changed(path, {})
    packfile.read(path)
    changed(path, change)
    with pytest.raises(DamagedError):
        packfile.read(path)


def test_changed_weights_are_found_when_the_whole_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.packed"
    written(path)
    data = bytearray(path.read_bytes())
    data[200] ^= 4
    path.write_bytes(data)
    packfile.read(path)
    with pytest.raises(DamagedError, match="not those that were written"):
        packfile.read(path, whole=True)


def test_mapped_weights_outlive_the_name_of_their_file(tmp_path: Path) -> None:
    path = tmp_path / "a.packed"
    made = written(path)
    weights, _ = packfile.read(path)
    path.unlink()
    matrix = weights["int8"]
    assert isinstance(matrix, PackedMatrix)
    np.testing.assert_array_equal(matrix.parts[0].float32(), made["int8"].float32())
