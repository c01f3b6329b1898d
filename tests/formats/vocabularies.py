"""Recorded vocabularies and small ones made by hand, for tests of tokenizers."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from freehold.formats.gguf_tokenizer import parts_of_metadata
from freehold.formats.tokenizer import BYTE_OF, Tokenizer

VECTORS = Path(__file__).parents[1] / "vectors" / "tokenizer"
BYTE_LETTERS = [letter for letter, _ in sorted(BYTE_OF.items(), key=lambda item: item[1])]


def vector(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def metadata_of(recorded: dict[str, Any]) -> dict[str, Any]:
    """GGUF metadata of a recorded vocabulary; its tokens are numbered 0, 1, 2 ... in their original order."""
    position = {id: i for i, id in enumerate(recorded["ids"])}
    metadata = {
        key: position[value] if key.endswith("_token_id") else value for key, value in recorded["metadata"].items()
    }
    arrays = ("tokens", "token_type", "merges", "scores")
    return metadata | {f"tokenizer.ggml.{key}": recorded[key] for key in arrays if key in recorded}


def renumbered(recorded: dict[str, Any], ids: list[int]) -> list[int]:
    position = {id: i for i, id in enumerate(recorded["ids"])}
    return [position[id] for id in ids]


def recorded_tokenizer(name: str) -> Tokenizer:
    return Tokenizer(parts_of_metadata(metadata_of(vector(name)), name))


def tiny_metadata(**changes: Any) -> dict[str, Any]:
    """A byte-level vocabulary: all bytes, "he", "hell" ... and two control tokens."""
    tokens = [*BYTE_LETTERS, "he", "ll", "hell", "hello", "Ġw", "<|begin|>", "<|im_end|>"]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * (len(tokens) - 2) + [3, 3],
        "tokenizer.ggml.merges": ["h e", "l l", "he ll", "hell o", "Ġ w"],
        "tokenizer.ggml.bos_token_id": len(tokens) - 2,
        "tokenizer.ggml.eos_token_id": len(tokens) - 1,
        "tokenizer.chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
    }
    for key, value in changes.items():
        metadata[f"tokenizer.ggml.{key}"] = value
    return {key: value for key, value in metadata.items() if value is not None}


def tiny_tokenizer(**changes: Any) -> Tokenizer:
    return Tokenizer(parts_of_metadata(tiny_metadata(**changes), "tiny.gguf"))


def gemma_metadata() -> dict[str, Any]:
    """A SentencePiece vocabulary of Gemma's kind: no leading space, bytes, runs of newlines, marks around turns."""
    marks = ["<pad>", "<eos>", "<bos>", "<unk>"]
    turns = ["<start_of_turn>", "<end_of_turn>"]
    words = ["h", "i", "hi", "\u2581", "\u2581hi", "u", "s", "e", "r", "us", "er", "user", "\n"]
    tokens = [*marks, *turns, "\n\n", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    kinds = [3] * 3 + [2] + [3] * 2 + [4] + [6] * 256 + [1] * len(words)
    turn = "<start_of_turn>{{ m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.scores": [float(-id) for id in range(len(tokens))],
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.chat_template": "{{ bos_token }}{% for m in messages %}" + turn + "{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
    }


def write_gguf(path: Path, metadata: dict[str, Any]) -> Path:
    """A GGUF file with metadata and no tensors."""

    def text(value: str) -> bytes:
        raw = value.encode("utf-8")
        return struct.pack("<Q", len(raw)) + raw

    def item(value: Any) -> tuple[int, bytes]:
        if isinstance(value, bool):
            return 7, struct.pack("<?", value)
        if isinstance(value, int):
            return 4, struct.pack("<I", value)
        if isinstance(value, float):
            return 6, struct.pack("<f", value)
        if isinstance(value, str):
            return 8, text(value)
        kinds = [item(entry) for entry in value]
        return 9, struct.pack("<IQ", kinds[0][0], len(kinds)) + b"".join(raw for _, raw in kinds)

    body = b"GGUF" + struct.pack("<IQQ", 3, 0, len(metadata))
    for key, value in metadata.items():
        kind, raw = item(value)
        body += text(key) + struct.pack("<I", kind) + raw
    path.write_bytes(body)
    return path
