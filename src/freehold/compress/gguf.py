"""A checkpoint as a GGUF file that llama.cpp loads: each tensor in the ggml type of its own grid, none rounded again.

3 and 4 bits become Q4_0 (Q4_1 with zero points), 5 bits Q5_0, 6 and 8 bits Q8_0, the rest BF16 or F32. Metadata and
vocabulary are taken from the source where that is a GGUF file, else made from config.json and tokenizer.json (byte-level
BPE only). Knows llama.cpp's names for the families that `formats.gguf_checkpoint` reads.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freehold.errors import UnsupportedError, UsageError
from freehold.formats import Checkpoint, open_checkpoint
from freehold.formats.gguf import GGUFFile
from freehold.formats.gguf_checkpoint import FAMILIES, architecture_of, norm_offset, stored_name
from freehold.formats.gguf_writer import TYPE_NAMES, Entry, block_type, encode, inexact_scales, write_gguf
from freehold.formats.pretokenizers import PRE_TOKENIZERS
from freehold.formats.reading import read_json
from freehold.formats.tensors import QuantizedTensor, Tensor, to_float32

_DROPPED = ("general.file_type", "general.quantization_version", "general.quantized_by", "split.")


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written: bytes, tensors of each type, and scales that float16 had to round."""

    bytes: int
    types: dict[str, int]
    rounded_scales: int


def export_gguf(model: Path, source: Path, out: Path) -> Exported:
    """Write the checkpoint at `model` as `out`; `source` is where it was made from, for its vocabulary.

    Raises:
        UsageError: `out` exists.
        UnsupportedError: an architecture or tokenizer that can't be translated.
    """
    if out.exists():
        raise UsageError(f"{out} exists already", hint="choose another name")
    with open_checkpoint(model) as checkpoint:
        family = architecture_of(str(checkpoint.config.get("model_type")))
        names = sorted(checkpoint.names(), key=lambda name: (not name.startswith("model.embed"), name))
        entries, types, rounded = [], Counter[str](), 0
        for name in names:
            tensor = checkpoint.load(name)
            kind = block_type(tensor)
            types[TYPE_NAMES[kind]] += 1
            rounded += inexact_scales(tensor, kind)
            shape = checkpoint.info(name).shape
            entries.append(Entry(stored_name(family, name), kind, shape, _reader(checkpoint, family, name, kind)))
        metadata = _metadata_of(source) if source.is_file() else _metadata_for(model, checkpoint.config)
        write_gguf(out, metadata | {"general.quantization_version": 2}, entries)
    return Exported(out.stat().st_size, dict(types), rounded)


def _reader(checkpoint: Checkpoint, family: str, name: str, kind: int) -> Any:
    def read() -> bytes:
        tensor = checkpoint.load(name)
        offset = norm_offset(family, name)
        if offset and isinstance(tensor, np.ndarray):
            return encode(to_float32(tensor) + np.float32(offset), kind)
        order = _row_order(checkpoint.config, family, name, checkpoint.info(name).shape[0])
        return encode(tensor if order is None else _rows(tensor, order), kind)

    return read


def _row_order(config: dict[str, Any], family: str, name: str, rows: int) -> NDArray[np.intp] | None:
    """llama.cpp keeps the halves of a rotary pair side by side in its Llama files (LlamaModel.permute)."""
    if not FAMILIES[family].interleaved or not any(f".self_attn.{part}_proj." in name for part in "qk"):
        return None
    key = "num_attention_heads" if ".q_proj." in name else "num_key_value_heads"
    heads = int(config.get(key) or config["num_attention_heads"])
    return np.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(rows)


def _rows(tensor: Tensor, order: NDArray[np.intp]) -> Tensor:
    if not isinstance(tensor, QuantizedTensor):
        return tensor[order]
    offsets = None if tensor.offsets is None else tensor.offsets[order]
    return QuantizedTensor(tensor.codes[order], tensor.scales[order], offsets, tensor.bits, tensor.group_size)


def _metadata_of(source: Path) -> dict[str, Any]:
    with GGUFFile(source) as file:
        return {key: value for key, value in file.metadata.items() if not key.startswith(_DROPPED)}


def _metadata_for(model: Path, config: dict[str, Any]) -> dict[str, Any]:
    kind = architecture_of(str(config["model_type"]))
    if FAMILIES[kind].gemma:
        raise UnsupportedError("a Gemma model can be written as GGUF only where it came from a GGUF file")
    heads = int(config["num_attention_heads"])
    rope = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or rope
    if scaling.get("rope_type", scaling.get("type", "default")) not in ("default", None):
        raise UnsupportedError("a model with rope scaling can't be written as GGUF")
    head_dim = int(config.get("head_dim") or config["hidden_size"] // heads)
    return {
        "general.architecture": kind,
        "general.name": model.name,
        f"{kind}.block_count": int(config["num_hidden_layers"]),
        f"{kind}.context_length": int(config["max_position_embeddings"]),
        f"{kind}.embedding_length": int(config["hidden_size"]),
        f"{kind}.feed_forward_length": int(config["intermediate_size"]),
        f"{kind}.attention.head_count": heads,
        f"{kind}.attention.head_count_kv": int(config.get("num_key_value_heads") or heads),
        f"{kind}.attention.key_length": head_dim,
        f"{kind}.attention.value_length": head_dim,
        f"{kind}.attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        f"{kind}.rope.freq_base": float(config.get("rope_theta") or rope.get("rope_theta") or 10000.0),
        f"{kind}.rope.dimension_count": head_dim,
        f"{kind}.vocab_size": int(config["vocab_size"]),
    } | _vocabulary(model, config)


def _vocabulary(model: Path, config: dict[str, Any]) -> dict[str, Any]:
    path = model / "tokenizer.json"
    if not path.is_file():
        raise UnsupportedError(f"GGUF needs a vocabulary, and {model} has no tokenizer.json")
    table = json.loads(path.read_text(encoding="utf-8"))
    bpe = table.get("model") or {}
    if bpe.get("type") != "BPE" or not _byte_level(table):
        raise UnsupportedError("only byte-level BPE vocabularies can be written as GGUF")
    size = int(config["vocab_size"])
    tokens, kinds = [f"[PAD{i}]" for i in range(size)], [5] * size  # 5 = unused
    for token, number in bpe["vocab"].items():
        tokens[number], kinds[number] = token, 1
    for added in table.get("added_tokens") or []:
        tokens[added["id"]], kinds[added["id"]] = added["content"], 3 if added.get("special") else 4
    out = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": _splitting(table),
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": [m if isinstance(m, str) else " ".join(m) for m in bpe["merges"]],
        "tokenizer.ggml.add_bos_token": False,
    }
    for key in ("bos", "eos"):
        number = config.get(f"{key}_token_id")
        number = number[0] if isinstance(number, list) and number else number
        if isinstance(number, int):
            out[f"tokenizer.ggml.{key}_token_id"] = number
    settings = model / "tokenizer_config.json"
    said = read_json(settings, "tokenizer config") if settings.is_file() else {}
    out["tokenizer.ggml.add_bos_token"] = bool(said.get("add_bos_token", False))
    template = model / "chat_template.jinja"
    text = template.read_text(encoding="utf-8") if template.is_file() else said.get("chat_template")
    return out | ({"tokenizer.chat_template": text} if isinstance(text, str) else {})


def _steps(table: dict[str, Any]) -> list[dict[str, Any]]:
    first = table.get("pre_tokenizer") or {}
    return list(first.get("pretokenizers") or []) if first.get("type") == "Sequence" else [first]


def _byte_level(table: dict[str, Any]) -> bool:
    return any(step.get("type") == "ByteLevel" for step in _steps(table))


def _splitting(table: dict[str, Any]) -> str:
    """The name of the splitting rules that tokenizer.json spells out."""
    patterns, gpt2 = [], PRE_TOKENIZERS["gpt-2"].patterns
    for step in _steps(table):
        if step.get("type") == "Split":
            patterns.append(step["pattern"].get("Regex"))
        elif step.get("type") == "Digits":
            patterns.append(r"\p{N}" if step.get("individual_digits") else r"\p{N}+")
        elif step.get("type") == "ByteLevel" and step.get("use_regex", True):
            patterns += gpt2
    whole = bool((table.get("model") or {}).get("ignore_merges", False))
    for name, rules in PRE_TOKENIZERS.items():
        if rules.patterns == tuple(patterns) and rules.whole_words == whole:
            return name
    raise UnsupportedError("this tokenizer splits text in a way that has no name in GGUF")
