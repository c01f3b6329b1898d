"""Hostile GGUF files: one clear error each, and never more memory than the file deserves."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freehold.errors import FormatError, UnsupportedError
from freehold.formats import open_checkpoint
from freehold.formats.gguf import GGUFFile
from freehold.formats.gguf_quants import TYPES
from tests.formats.building import (
    ARRAY,
    BOOL,
    MINIMAL,
    PARTS,
    STRING,
    U8,
    U32,
    U64,
    Part,
    array,
    changed,
    f32,
    gguf,
    string,
    value,
)

GOOD = gguf(
    {**MINIMAL, "tokenizer.ggml.tokens": array(STRING, ["a", "b"]), "x.nested": array(ARRAY, []), "y": value(BOOL, 1)},
    [*PARTS, Part("blk.0.attn_v.weight", (4, 32), 3, bytes(4 * 20))],
)


def refused(
    tmp_path: Path, content: bytes, problem: str, error: type[FormatError | UnsupportedError] = FormatError
) -> FormatError | UnsupportedError:
    """The one error; opening never took more than a few MB."""
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(error, match=problem) as caught:
            GGUFFile(path)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000 + 4 * len(content)
    finally:
        tracemalloc.stop()
    assert str(path) in caught.value.message
    return caught.value


def with_key(key: str | bytes, typed: bytes) -> bytes:
    return gguf([(key, typed)], [])


def with_part(part: Part) -> bytes:
    return gguf(MINIMAL, [part])


def test_the_file_all_attacks_start_from_is_good(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(GOOD)
    with open_checkpoint(tmp_path / "x.gguf") as checkpoint:
        assert len(checkpoint.names()) == 5
        assert checkpoint.float32("model.layers.0.self_attn.v_proj.weight").shape == (4, 32)


def test_a_file_truncated_anywhere_is_refused_with_one_clear_error(tmp_path: Path) -> None:
    end = len(GOOD) - 16  # the last tensor of 80 bytes is followed by 16 of padding
    for length in range(end):
        (tmp_path / "x.gguf").write_bytes(GOOD[:length])
        with pytest.raises(FormatError, match=r"x\.gguf"):
            GGUFFile(tmp_path / "x.gguf")
    (tmp_path / "x.gguf").write_bytes(GOOD[:end])
    GGUFFile(tmp_path / "x.gguf").close()


@pytest.mark.parametrize("content", [b"", b"G", b"GGU", b"GGML" + bytes(100), b"\x7fELF" + bytes(100), bytes(100)])
def test_a_file_that_does_not_begin_as_gguf_is_refused(tmp_path: Path, content: bytes) -> None:
    refused(tmp_path, content, "expected a GGUF file")


@pytest.mark.parametrize(
    ("version", "found"),
    [(0, "version 0"), (1, "version 1"), (4, "version 4"), (3 << 24, "big-endian"), (2**32 - 1, "version 4294967295")],
)
def test_another_version_is_refused_by_name(tmp_path: Path, version: int, found: str) -> None:
    refused(tmp_path, gguf(version=version), found, UnsupportedError)


@pytest.mark.parametrize("count", [2**64 - 1, 2**63, 2**32, 10**6])
def test_absurd_counts_are_refused_before_anything_is_read(tmp_path: Path, count: int) -> None:
    refused(tmp_path, gguf(pair_count=count), f"{count} metadata entries and 4 tensors don't fit")
    refused(tmp_path, gguf(MINIMAL, [], tensor_count=count), f"8 metadata entries and {count} tensors don't fit")


def test_a_count_a_little_too_high_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, gguf(MINIMAL, [], pair_count=len(MINIMAL) + 1), "metadata entry 9 of 9")
    refused(tmp_path, gguf(MINIMAL, [], tensor_count=1), "tensor 1 of 1")


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 2**32, 1 << 20])
def test_a_string_longer_than_the_file_is_refused(tmp_path: Path, length: int) -> None:
    long = struct.pack("<Q", length) + b"x"
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)
    refused(tmp_path, head + long, "too long")
    refused(tmp_path, head + string("key") + struct.pack("<I", STRING) + long, "too long|but the file has")


@pytest.mark.parametrize("kind", [*range(8), STRING, ARRAY, 10, 11, 12])
@pytest.mark.parametrize("count", [2**64 - 1, 2**63, 2**61, 2**32])
def test_an_array_longer_than_the_file_is_refused(tmp_path: Path, kind: int, count: int) -> None:
    # Refused by what the count promises, not by reading element after element to the end.
    refused(tmp_path, with_key("key", array(kind, [], count)), r"metadata 'key': needs bytes up to \d{10,}")


@pytest.mark.parametrize("kind", [13, 255, 2**32 - 1])
def test_a_value_type_nobody_knows_is_refused(tmp_path: Path, kind: int) -> None:
    refused(tmp_path, with_key("key", struct.pack("<I", kind)), f"unknown value type {kind}")
    refused(tmp_path, with_key("key", struct.pack("<IIQ", ARRAY, kind, 1)), f"unknown element type {kind}")


def test_arrays_nested_without_end_are_refused(tmp_path: Path) -> None:
    nested = struct.pack("<I", ARRAY) + struct.pack("<IQ", ARRAY, 1) * 10_000
    refused(tmp_path, with_key("key", nested), "nested more than 4 deep")


def test_arrays_nested_a_little_are_fine(tmp_path: Path) -> None:
    typed = struct.pack("<IIQ", ARRAY, ARRAY, 2) + array(U8, [1, 2])[4:] + array(STRING, ["a"])[4:]
    (tmp_path / "x.gguf").write_bytes(with_key("key", typed))
    with GGUFFile(tmp_path / "x.gguf") as file:
        assert file.metadata["key"] == [[1, 2], ["a"]]


@pytest.mark.parametrize("key", [b"\xff\xfe", b"a\xc3", b"\xed\xa0\x80"])
def test_names_and_strings_that_are_not_utf_8_are_refused(tmp_path: Path, key: bytes) -> None:
    refused(tmp_path, with_key(key, value(U32, 1)), "expected UTF-8")
    refused(tmp_path, with_key("key", value(STRING, key)), "metadata 'key': expected UTF-8")
    refused(tmp_path, with_part(f32(key, 1)), "tensor 1 of 1: expected UTF-8")


@pytest.mark.parametrize("name", ["", "a\x1b[2J", "a\nb", "a\u202eb", "a\0"])
def test_a_name_that_would_play_tricks_on_a_terminal_is_refused(tmp_path: Path, name: str) -> None:
    refused(tmp_path, with_key(name, value(U32, 1)), "expected a printable name")
    refused(tmp_path, with_part(f32(name, 1)), "expected a printable name")


def test_a_name_longer_than_the_format_allows_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, with_key("k" * 65536, value(U32, 1)), "too long")


def test_a_name_that_appears_twice_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, gguf([("key", value(U32, 1)), ("key", value(U32, 2))], []), "'key' appears twice")
    refused(tmp_path, gguf(MINIMAL, [PARTS[0], PARTS[0]]), r"'token_embd\.weight' appears twice")


def test_a_bool_of_neither_zero_nor_one_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, with_key("key", value(BOOL, 2)), "expected a bool of 0 or 1, found 2")
    refused(tmp_path, with_key("key", array(BOOL, [0, 1, 255])), "expected a bool of 0 or 1, found 255")


@pytest.mark.parametrize(
    "typed", [value(U32, 0), value(U32, 24), value(U32, 1 << 31), value(U64, 1 << 63), value(STRING, "32")]
)
def test_an_absurd_alignment_is_refused(tmp_path: Path, typed: bytes) -> None:
    refused(tmp_path, with_key("general.alignment", typed), "'general.alignment': expected a power of two")


@pytest.mark.parametrize("dimensions", [0, 5, 2**31, 2**32 - 1])
def test_too_few_or_too_many_dimensions_are_refused(tmp_path: Path, dimensions: int) -> None:
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 0)
    entry = string("t") + struct.pack("<I", dimensions) + struct.pack("<Q", 1) * 5 + struct.pack("<IQ", 0, 0)
    refused(tmp_path, head + entry + bytes(64), f"expected 1 to 4 dimensions, found {dimensions}")


@pytest.mark.parametrize(
    "shape",
    [(0,), (4, 0), (2**63,), (2**64 - 1,), (2**32, 2**32), (2**63, 2), (2**16, 2**16, 2**16, 2**16), (2**41,)],
)
def test_a_shape_that_is_empty_or_overflows_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    refused(tmp_path, with_part(Part("t", shape, 0, b"")), "tensor 't': absurd shape")


@pytest.mark.parametrize("code", [code for code, kind in TYPES.items() if kind.elements > 1])
def test_rows_that_are_no_whole_number_of_blocks_are_refused(tmp_path: Path, code: int) -> None:
    kind = TYPES[code]
    part = Part("t", (2, kind.elements // 2), code, bytes(kind.nbytes))
    refused(tmp_path, with_part(part), f"{kind.name} needs rows in multiples of {kind.elements}")


@pytest.mark.parametrize(("code", "name"), [(4, "number 4"), (20, "IQ4_NL"), (39, "MXFP4"), (2**32 - 1, "number")])
def test_a_number_format_we_cannot_read_is_named(tmp_path: Path, code: int, name: str) -> None:
    error = refused(tmp_path, with_part(Part("t", (32,), code, bytes(64))), f"'t' has type {name}", UnsupportedError)
    assert "Q4_K" in str(error.hint)


@pytest.mark.parametrize("offset", [1 << 63, (1 << 64) - 32, 1 << 40, 160])
def test_an_offset_past_the_end_is_refused(tmp_path: Path, offset: int) -> None:
    refused(tmp_path, with_part(changed(f32("t", 8), offset=offset)), "'t' ends at byte")


@pytest.mark.parametrize("offset", [1, 16, 31])
def test_an_offset_out_of_line_is_refused(tmp_path: Path, offset: int) -> None:
    refused(tmp_path, with_part(changed(f32("t", 8), offset=offset)), "an offset in multiples of 32")


@pytest.mark.parametrize("offset", [0, 32])
def test_tensors_that_share_bytes_are_refused(tmp_path: Path, offset: int) -> None:
    refused(tmp_path, gguf(MINIMAL, [f32("a", 16), changed(f32("b", 8), offset=offset)]), "overlaps another tensor's")


def test_a_header_beyond_the_limit_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("freehold.formats.gguf.MAX_HEADER_BYTES", 10_000)
    refused(tmp_path, with_key("key", array(U8, [0] * 20_000)), "more than 10000 bytes of header")


@pytest.mark.parametrize("code", TYPES)
def test_blocks_of_random_bytes_decode_or_are_refused_without_a_warning(code: int) -> None:
    kind = TYPES[code]
    raw = np.random.default_rng(code).integers(0, 256, (4 * 64 * kind.nbytes,), dtype=np.uint8)
    shape = (4, 64 * kind.elements)
    try:
        assert kind.decode(raw, shape, "t") is not None
    except FormatError as error:
        assert "t: a scale is not a finite number" in error.message


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    flips=st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(1, 255)), min_size=1, max_size=4),
    cut=st.integers(0, len(GOOD)) | st.none(),
)
def test_a_damaged_file_opens_or_is_refused_and_nothing_else(
    tmp_path: Path, flips: list[tuple[int, int]], cut: int | None
) -> None:
    content = bytearray(GOOD)
    for position, mask in flips:
        content[position] ^= mask
    (tmp_path / "x.gguf").write_bytes(content[:cut])
    tracemalloc.start()
    try:
        with open_checkpoint(tmp_path / "x.gguf") as checkpoint:
            for name in checkpoint.names():
                assert checkpoint.float32(name).shape == checkpoint.info(name).shape
    except (FormatError, UnsupportedError) as error:
        assert "x.gguf" in error.message
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 8_000_000
