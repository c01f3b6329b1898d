"""Hostile safetensors files and shard indexes: one clear error each, and never more memory than the file deserves."""

from __future__ import annotations

import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freehold.errors import FormatError, UnsupportedError
from freehold.formats.safetensors import SafetensorsFile, SafetensorsSet
from tests.formats.building import packed, safetensors

GOOD = packed({"a": ("F32", (2, 3), bytes(24)), "b": ("BF16", (4,), bytes(8)), "c": ("I64", (1,), bytes(8))})
HEADER_END = 8 + struct.unpack("<Q", GOOD[:8])[0]


def entry(dtype: Any = "F32", shape: Any = (2,), data_offsets: Any = (0, 8), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": data_offsets} | more


def refused(tmp_path: Path, content: bytes, problem: str, error: type[Exception] = FormatError) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(error, match=problem):
            SafetensorsFile(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000 + 4 * len(content)
    finally:
        tracemalloc.stop()


def test_the_file_all_attacks_start_from_is_good(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(GOOD)
    with SafetensorsFile(tmp_path / "x.safetensors") as file:
        assert file.names() == ["a", "b", "c"]


@pytest.mark.parametrize("length", range(len(GOOD)))
def test_a_truncated_file_is_refused_with_one_clear_error(tmp_path: Path, length: int) -> None:
    refused(tmp_path, GOOD[:length], r"x\.safetensors")


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 100_000_001, len(GOOD) - 7])
def test_a_header_longer_than_the_file_or_the_limit_is_refused_unread(tmp_path: Path, length: int) -> None:
    refused(tmp_path, struct.pack("<Q", length) + GOOD[8:], f"header of {length} bytes in a file of {len(GOOD)}")


def test_a_header_beyond_the_limit_is_refused_though_the_file_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("freehold.formats.safetensors.MAX_JSON_BYTES", 20)
    refused(tmp_path, GOOD, f"header of {HEADER_END - 8} bytes in a file of {len(GOOD)}")


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        (b"", "begin with"),
        (b"[]", "begin with"),
        (b" {}", "begin with"),
        (b"{", "not valid JSON"),
        (b'{"a": ' * 100_000, "nested too deeply"),
        (b'{"a": {"a": NaN}}', "NaN is not JSON"),
        (b'{"\xff": 1}', "expected UTF-8"),
        (b'{"a": 1, "a": 2}', "key 'a' appears twice"),
        (b'{"a": {"dtype": "F32", "dtype": "F16"}}', "key 'dtype' appears twice"),
        (b'{"a": {"dtype": "F32", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 0]}}', "not valid JSON"),
        (b'{"__metadata__": []}', "__metadata__ to map strings"),
        (b'{"__metadata__": {"a": 1}}', "__metadata__ to map strings"),
    ],
)
def test_a_header_that_is_not_what_it_should_be_is_refused(tmp_path: Path, header: bytes, problem: str) -> None:
    refused(tmp_path, safetensors(header), problem)


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        (1, "expected dtype, shape and data_offsets"),
        ({"dtype": "F32"}, "expected dtype, shape and data_offsets"),
        (entry(extra=1), "expected dtype, shape and data_offsets"),
        (entry(dtype=1), "expected a type name"),
        (entry(shape=2), "expected a type name, a list of sizes"),
        (entry(shape=[-2]), "a list of sizes"),
        (entry(shape=[2.0]), "a list of sizes"),
        (entry(shape=[True, 2]), "a list of sizes"),
        (entry(shape=["2"]), "a list of sizes"),
        (entry(data_offsets=[8]), "two offsets"),
        (entry(data_offsets=[0, 4, 8]), "two offsets"),
        (entry(data_offsets=[-8, 0]), "two offsets"),
        (entry(data_offsets={"0": 8}), "two offsets"),
        (entry(shape=[3]), "F32 \\[3\\] takes 12 bytes, but its range holds 8"),
        (entry(dtype="F64"), "takes 16 bytes, but its range holds 8"),
        (entry(data_offsets=[8, 0]), "its range holds -8"),
        (entry(data_offsets=[4, 12]), "ends at byte"),
        (entry(data_offsets=[2**63, 2**63 + 8]), "ends at byte"),
        (entry(shape=[2**63, 2]), "absurd shape"),
        (entry(shape=[2**32, 2**32]), "absurd shape"),
        (entry(shape=[1] * 17), "absurd shape"),
        (entry(shape=[2**39], data_offsets=[0, 2**41]), "ends at byte"),
    ],
)
def test_a_tensor_that_makes_no_sense_is_refused(tmp_path: Path, broken: Any, problem: str) -> None:
    refused(tmp_path, safetensors({"a": broken}, bytes(8)), problem)


def test_a_type_nobody_knows_is_named(tmp_path: Path) -> None:
    refused(tmp_path, safetensors({"a": entry(dtype="F13")}, bytes(8)), "unknown type 'F13'", UnsupportedError)


@pytest.mark.parametrize(
    ("offsets", "problem"),
    [
        (([0, 8], [0, 8]), "'b' overlaps|'a' overlaps"),
        (([0, 8], [4, 12]), "'b' overlaps"),
        (([0, 8], [12, 20]), "'b' follows a hole"),
        (([4, 12], [12, 20]), "'a' follows a hole"),
        (([0, 8], [8, 16]), "4 bytes after the last tensor"),
    ],
)
def test_data_that_overlaps_or_leaves_holes_is_refused(
    tmp_path: Path, offsets: tuple[list[int], list[int]], problem: str
) -> None:
    entries = {"a": entry(data_offsets=offsets[0]), "b": entry(data_offsets=offsets[1])}
    refused(tmp_path, safetensors(entries, bytes(20)), problem)


@pytest.mark.parametrize("name", ["a\x1b[2J", "a\nb", "a\u202eb", "\ud800"])
def test_a_name_that_would_play_tricks_on_a_terminal_is_refused(tmp_path: Path, name: str) -> None:
    refused(tmp_path, safetensors({name: entry()}, bytes(8)), "expected a printable name")


@pytest.mark.parametrize(
    "shard",
    [
        "../secret.safetensors",
        "/etc/secret.safetensors",
        "sub/x.safetensors",
        "..",
        "",
        "x.bin",
        "a\\b.safetensors",
        "x\0.safetensors",
        "x\n.safetensors",
        "\ud800.safetensors",
        7,
        None,
        ["x.safetensors"],
    ],
)
def test_an_index_cannot_reach_outside_its_directory(tmp_path: Path, shard: Any) -> None:
    (tmp_path / "secret.safetensors").write_bytes(GOOD)
    model = tmp_path / "model"
    (model / "sub").mkdir(parents=True)
    (model / "sub" / "x.safetensors").write_bytes(GOOD)
    index = model / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": shard}}), encoding="utf-8")
    with pytest.raises(FormatError, match=r"expected a plain \.safetensors file name"):
        SafetensorsSet(model)


@pytest.mark.parametrize("content", [{}, {"weight_map": []}, {"weight_map": {}}, {"weight_map": "a"}])
def test_an_index_without_a_map_is_refused(tmp_path: Path, content: Any) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(FormatError, match="expected a weight_map"):
        SafetensorsSet(tmp_path)


def test_an_index_of_very_many_files_is_refused_and_leaves_none_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("freehold.formats.safetensors.MAX_SHARDS", 3)
    weight_map = {}
    for i in range(4):
        (tmp_path / f"{i}.safetensors").write_bytes(packed({f"t{i}": ("U8", (1,), b"x")}))
        weight_map[f"t{i}"] = f"{i}.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    with pytest.raises(FormatError, match="names more than 3 files"):
        SafetensorsSet(tmp_path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flips=st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(1, 255)), min_size=1, max_size=4))
def test_a_damaged_file_opens_or_is_refused_and_nothing_else(tmp_path: Path, flips: list[tuple[int, int]]) -> None:
    content = bytearray(GOOD)
    for position, mask in flips:
        content[position] ^= mask
    (tmp_path / "x.safetensors").write_bytes(content)
    try:
        with SafetensorsFile(tmp_path / "x.safetensors") as file:
            for name in file.names():
                assert file.read(name).shape == file.info(name).shape
                assert isinstance(file.read(name), np.ndarray)
    except (FormatError, UnsupportedError) as error:
        assert "x.safetensors" in error.message
