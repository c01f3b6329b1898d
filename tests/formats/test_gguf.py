"""The GGUF container and its number formats, against what the `gguf` package wrote and decoded."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from freehold.errors import FormatError
from freehold.formats import gguf_quants
from freehold.formats.gguf import GGUFFile
from freehold.formats.gguf_quants import TYPES
from freehold.formats.reading import ByteFile
from freehold.formats.tensors import QuantizedTensor, to_float32
from tests.formats.building import MINIMAL, PARTS, U32, Part, gguf, value

VECTORS = Path(__file__).parents[1] / "vectors" / "gguf"
CODES = {kind.name: code for code, kind in TYPES.items()}
BITS = {"Q4_0": 4, "Q4_1": 4, "Q4_K": 4, "Q5_0": 8, "Q5_1": 8, "Q5_K": 8, "Q8_0": 8}
RECORDED = [name for name in CODES if name != "F32"]


def recorded(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Blocks uint8 [n, bytes] and their values float32 [n, elements]."""
    with np.load(VECTORS / "blocks.npz") as vectors:
        return vectors[f"{name}_raw"], vectors[f"{name}_values"]


@pytest.mark.parametrize("name", RECORDED)
def test_every_number_format_decodes_to_the_values_the_gguf_package_gives(name: str) -> None:
    raw, values = recorded(name)
    tensor = TYPES[CODES[name]].decode(raw.reshape(-1), (2, values.size // 2), name)
    np.testing.assert_array_equal(to_float32(tensor), values.reshape(2, -1))


@pytest.mark.parametrize("name", RECORDED)
def test_decoding_piece_by_piece_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, values = recorded(name)
    monkeypatch.setattr(gguf_quants, "CHUNK_ELEMENTS", 3 * TYPES[CODES[name]].elements)
    tensor = TYPES[CODES[name]].decode(raw.reshape(-1), (2, values.size // 2), name)
    np.testing.assert_array_equal(to_float32(tensor), values.reshape(2, -1))


@pytest.mark.parametrize(("name", "bits"), BITS.items())
def test_a_format_with_one_scale_for_32_values_keeps_its_grid(name: str, bits: int) -> None:
    raw, values = recorded(name)
    tensor = TYPES[CODES[name]].decode(raw.reshape(-1), (2, values.size // 2), name)
    assert isinstance(tensor, QuantizedTensor)
    assert (tensor.bits, tensor.group_size) == (bits, 32)
    assert (tensor.offsets is None) == name.endswith("_0")
    assert tensor.codes.max() < 1 << bits


@pytest.mark.parametrize("name", ["Q2_K", "Q3_K", "Q6_K", "F16"])
def test_a_format_without_such_a_grid_becomes_float32(name: str) -> None:
    raw, values = recorded(name)
    tensor = TYPES[CODES[name]].decode(raw.reshape(-1), (2, values.size // 2), name)
    assert isinstance(tensor, np.ndarray)
    assert tensor.dtype == np.float32


def test_a_bfloat16_matrix_keeps_its_bits() -> None:
    raw, _ = recorded("BF16")
    tensor = TYPES[CODES["BF16"]].decode(raw.reshape(-1), (8, 8), "x")
    assert isinstance(tensor, np.ndarray)
    np.testing.assert_array_equal(tensor, raw.view("<u2").reshape(8, 8))


@pytest.mark.parametrize(
    ("name", "dimensions"), [(name, 1) for name in RECORDED] + [(name, 3) for name in RECORDED if name != "BF16"]
)
def test_vectors_and_stacks_of_matrices_are_float32_whatever_the_format(name: str, dimensions: int) -> None:
    raw, values = recorded(name)
    shape = (values.size,) if dimensions == 1 else (2, 2, values.size // 4)
    tensor = TYPES[CODES[name]].decode(raw.reshape(-1), shape, name)
    assert isinstance(tensor, np.ndarray)
    assert tensor.dtype == np.float32
    np.testing.assert_array_equal(tensor, values.reshape(shape))


def test_all_metadata_types_come_back_as_the_gguf_package_wrote_them() -> None:
    with GGUFFile(VECTORS / "metadata.gguf") as file:
        metadata = file.metadata
    expected = json.loads((VECTORS / "metadata.json").read_text(encoding="utf-8"))
    assert {key: metadata[key] for key in expected} == expected
    assert metadata["general.architecture"] == "test"
    assert [type(metadata[f"test.{kind}"]) for kind in ("bool", "uint8", "float32")] == [bool, int, float]


def test_float_tensors_come_back_with_rows_first() -> None:
    with GGUFFile(VECTORS / "metadata.gguf") as file:
        assert file.info("first").shape == (2, 3)
        np.testing.assert_array_equal(file.load("first"), np.arange(6, dtype=np.float32).reshape(2, 3))
        np.testing.assert_array_equal(file.load("second"), np.arange(5, dtype=np.float32))


def test_version_2_is_read_like_version_3(tmp_path: Path) -> None:
    (tmp_path / "two.gguf").write_bytes(gguf(version=2))
    with GGUFFile(tmp_path / "two.gguf") as file:
        assert (file.version, file.info("token_embd.weight").shape) == (2, (6, 8))


def test_the_alignment_of_the_metadata_is_obeyed(tmp_path: Path) -> None:
    metadata = {**MINIMAL, "general.alignment": value(U32, 256)}
    (tmp_path / "wide.gguf").write_bytes(gguf(metadata, alignment=256))
    with GGUFFile(tmp_path / "wide.gguf") as file:
        np.testing.assert_array_equal(file.load("output_norm.weight"), np.arange(8, dtype=np.float32))


def test_data_may_lie_in_another_order_than_the_table(tmp_path: Path) -> None:
    # The builder lays the data of `first` down first; the offsets say that it belongs to `second`.
    first = Part("first", (8,), CODES["F32"], np.full(8, 2, "<f4").tobytes(), offset=32)
    second = Part("second", (8,), CODES["F32"], np.full(8, 1, "<f4").tobytes(), offset=0)
    (tmp_path / "x.gguf").write_bytes(gguf(MINIMAL, [first, second]))
    with GGUFFile(tmp_path / "x.gguf") as file:
        np.testing.assert_array_equal(file.load("first"), np.full(8, 1, np.float32))
        np.testing.assert_array_equal(file.load("second"), np.full(8, 2, np.float32))


def test_a_header_longer_than_one_fetch_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("freehold.formats.gguf.FETCH_BYTES", 16)
    (tmp_path / "x.gguf").write_bytes(gguf())
    with GGUFFile(tmp_path / "x.gguf") as file:
        assert list(file.tensors) == [part.name for part in PARTS]
        assert file.metadata["llama.embedding_length"] == 8


def test_info_reads_no_tensor_data(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    read = ByteFile.read

    def noted(self: ByteFile, offset: int, count: int) -> np.ndarray:
        reads.append(count)
        return read(self, offset, count)

    with GGUFFile(VECTORS / "tiny-llama.gguf") as file:
        monkeypatch.setattr(ByteFile, "read", noted)
        for name in file.tensors:
            file.info(name)
        assert reads == []
        file.load("output_norm.weight")
        assert reads == [file.info("output_norm.weight").nbytes]


def test_a_scale_that_is_not_a_number_is_refused_when_the_tensor_is_loaded(tmp_path: Path) -> None:
    nan = np.array([np.nan], "<f2").tobytes()
    (tmp_path / "nan.gguf").write_bytes(gguf(MINIMAL, [Part("w", (1, 32), CODES["Q4_0"], nan + bytes(16))]))
    refusal = pytest.raises(FormatError, match=r"nan\.gguf: tensor w: a scale is not a finite number")
    with GGUFFile(tmp_path / "nan.gguf") as file, refusal:
        file.load("w")


def test_a_file_that_shrinks_after_opening_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf())
    with GGUFFile(path) as file:
        os.truncate(path, len(gguf()) - 64)
        with pytest.raises(FormatError, match="shrank while it was read"):
            file.load("blk.0.attn_k.weight")
