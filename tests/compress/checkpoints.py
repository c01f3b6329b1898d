"""Small checkpoints for the tests of this room, written by hand so that they owe nothing to the code under test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 96,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
    "eos_token_id": 2,
}
_CODES = {"float32": "F32", "float16": "F16", "uint16": "BF16", "int64": "I64"}


def write_safetensors(path: Path, tensors: dict[str, np.ndarray[Any, Any]]) -> None:
    """A safetensors file; uint16 arrays are bfloat16 bits."""
    header: dict[str, Any] = {}
    position = 0
    for name, values in tensors.items():
        span = [position, position + values.nbytes]
        header[name] = {"dtype": _CODES[values.dtype.name], "shape": list(values.shape), "data_offsets": span}
        position = span[1]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(v.tobytes() for v in tensors.values()))


def tiny_tensors(seed: int = 7, layers: int = 2, tied: bool = True) -> dict[str, np.ndarray[Any, Any]]:
    """A Llama of random float32 weights, hidden 64, intermediate 160 (so groups of 64 do not fit everywhere)."""
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray[Any, Any]:
        return random.normal(0, 0.05, shape).astype(np.float32)

    tensors = {"model.embed_tokens.weight": normal(96, 64)}
    for layer in range(layers):
        base = f"model.layers.{layer}."
        tensors[base + "input_layernorm.weight"] = 1 + normal(64)
        tensors[base + "post_attention_layernorm.weight"] = 1 + normal(64)
        for name, rows in (("q_proj", 64), ("k_proj", 32), ("v_proj", 32), ("o_proj", 64)):
            tensors[f"{base}self_attn.{name}.weight"] = normal(rows, 64)
        for name, shape in (("gate_proj", (160, 64)), ("up_proj", (160, 64)), ("down_proj", (64, 160))):
            tensors[f"{base}mlp.{name}.weight"] = normal(*shape)
    tensors["model.norm.weight"] = 1 + normal(64)
    if not tied:
        tensors["lm_head.weight"] = normal(96, 64)
    return tensors


def write_checkpoint(directory: Path, tensors: dict[str, np.ndarray[Any, Any]] | None = None, **changes: Any) -> Path:
    """A Hugging Face directory with config, weights and a one-word tokenizer."""
    directory.mkdir()
    tensors = tiny_tensors() if tensors is None else tensors
    write_safetensors(directory / "model.safetensors", tensors)
    (directory / "config.json").write_text(json.dumps(CONFIG | changes))
    tokenizer = {"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    return directory
