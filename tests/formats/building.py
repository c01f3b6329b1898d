"""Builds small GGUF and safetensors files byte by byte, right or wrong, without the code under test."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
_LAYOUT = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B", U64: "Q", I64: "q", F64: "d"}


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def value(kind: int, content: Any) -> bytes:
    """A typed metadata value: type number and payload."""
    if kind == STRING:
        return struct.pack("<I", kind) + string(content)
    return struct.pack("<I" + _LAYOUT[kind], kind, content)


def array(kind: int, items: Sequence[Any], count: int | None = None) -> bytes:
    count = len(items) if count is None else count
    body = b"".join(value(kind, item)[4:] for item in items)
    return struct.pack("<IIQ", ARRAY, kind, count) + body


@dataclass(frozen=True)
class Part:
    """One tensor: `shape` rows first, `type` as ggml numbers it; `offset` None for the next free aligned place."""

    name: str | bytes
    shape: tuple[int, ...]
    type: int
    data: bytes
    offset: int | None = None


def f32(name: str | bytes, *shape: int) -> Part:
    return Part(name, shape, 0, np.arange(int(np.prod(shape)), dtype="<f4").tobytes())


MINIMAL: dict[str | bytes, bytes] = {
    "general.architecture": value(STRING, "llama"),
    "llama.block_count": value(U32, 1),
    "llama.context_length": value(U32, 128),
    "llama.embedding_length": value(U32, 8),
    "llama.feed_forward_length": value(U32, 16),
    "llama.attention.head_count": value(U32, 2),
    "llama.attention.head_count_kv": value(U32, 1),
    "llama.attention.layer_norm_rms_epsilon": value(F32, 1e-5),
}
PARTS = (
    f32("token_embd.weight", 6, 8),
    f32("output_norm.weight", 8),
    f32("blk.0.attn_q.weight", 8, 8),
    f32("blk.0.attn_k.weight", 4, 8),
)


def gguf(
    metadata: Mapping[str | bytes, bytes] | Sequence[tuple[str | bytes, bytes]] = MINIMAL,
    parts: Sequence[Part] = PARTS,
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    tensor_count: int | None = None,
    pair_count: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A whole file; the counts can be made to lie."""
    pairs = list(metadata.items()) if isinstance(metadata, Mapping) else list(metadata)
    out = bytearray(magic + struct.pack("<I", version))
    out += struct.pack("<Q", len(parts) if tensor_count is None else tensor_count)
    out += struct.pack("<Q", len(pairs) if pair_count is None else pair_count)
    for key, typed in pairs:
        out += string(key) + typed
    data = bytearray()
    for part in parts:
        offset = len(data) if part.offset is None else part.offset
        dims = struct.pack(f"<I{len(part.shape)}Q", len(part.shape), *reversed(part.shape))
        out += string(part.name) + dims + struct.pack("<IQ", part.type, offset)
        data += part.data + bytes(-len(part.data) % alignment)
    out += bytes(-len(out) % alignment)
    return bytes(out + data)


def changed(part: Part, **changes: Any) -> Part:
    return replace(part, **changes)


def safetensors(entries: Mapping[str, Any] | bytes, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A file from a header (or its raw bytes) and data; `length` lets the header's length lie."""
    header = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def packed(tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]]) -> bytes:
    """A well-formed safetensors file."""
    entries: dict[str, Any] = {}
    data = b""
    for name, (dtype, shape, raw) in tensors.items():
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    return safetensors(entries, data)
