"""Makes `tests/vectors/gguf`: what the `gguf` package and transformers make of blocks, metadata and small files.

    python tests/vectors/make_gguf.py

Needs gguf, torch and transformers (the oracle environment), so that the tests need none of them. Writes

* `blocks.npz`: for each number format random blocks (`<type>_raw`, uint8) and their values (`<type>_values`, float32)
  as `gguf.quants.dequantize` has them;
* `metadata.gguf`: every metadata type, written by `gguf.GGUFWriter`; what went in is in `metadata.json`;
* `tiny-*.gguf`: small random models; `tiny-*.npz` holds their tensors as transformers loads them. `tiny-llama3.gguf`
  has Llama 3's rope factors, computed by transformers from the config in `LLAMA3`.

Knows nothing of Freehold's own code, on purpose.
"""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Type
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

HERE = Path(__file__).parent / "gguf"

HALVES = {
    "F16": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82],
    "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
}  # fmt: skip
"""Where a block has float16 fields: random bytes there would give infinities."""

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

METADATA = {
    "test.uint8": 200, "test.int8": -100, "test.uint16": 60000, "test.int16": -30000, "test.uint32": 4_000_000_000,
    "test.int32": -2_000_000_000, "test.uint64": 2**63 + 1, "test.int64": -(2**62), "test.float32": 0.5,
    "test.float64": 0.1, "test.bool": True, "test.string": "Grüße, 世界", "test.strings": ["", "a", "Ġthe"],
    "test.ints": [1, -2, 3], "test.floats": [0.5, -1.5], "test.bools": [True, False],
}  # fmt: skip


def blocks(rng: np.random.Generator) -> None:
    """`blocks.npz`."""
    out: dict[str, np.ndarray] = {}
    for name in [*HALVES, "BF16"]:
        elements, nbytes = GGML_QUANT_SIZES[Type[name]]
        count = 64 if elements == 1 else 8 if elements == 32 else 4
        raw = rng.integers(0, 256, (count, nbytes), dtype=np.uint8)
        for at in HALVES.get(name, []):
            raw[:, at : at + 2] = rng.normal(0, 1, count).astype("<f2").view(np.uint8).reshape(-1, 2)
        if name == "BF16":
            raw = (rng.normal(0, 1, count).astype("<f4").view("<u4") >> 16).astype("<u2").view(np.uint8).reshape(-1, 2)
        out[f"{name}_raw"] = raw
        out[f"{name}_values"] = gguf.quants.dequantize(raw, Type[name]).astype(np.float32).reshape(count, elements)
    np.savez_compressed(HERE / "blocks.npz", **out)


def metadata() -> None:
    """`metadata.gguf` and `metadata.json`."""
    writer = gguf.GGUFWriter(HERE / "metadata.gguf", "test")
    for key, value in METADATA.items():
        kind = key.removeprefix("test.")
        getattr(writer, f"add_{kind}" if hasattr(writer, f"add_{kind}") else "add_array")(key, value)
    writer.add_tensor("first", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("second", np.arange(5, dtype=np.float16))
    _write(writer)
    (HERE / "metadata.json").write_text(json.dumps(METADATA, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def tiny(family: str, rng: np.random.Generator, *, tied: bool, file: str = "", hidden: int = 32) -> None:
    """One tiny model and, unless it has rope factors, its tensors by transformers."""
    vocabulary, heads, kv_heads, wide = 24, 4, 2, 64
    dim = 16 if family in ("tiny-qwen3", "tiny-gemma3") else hidden // heads
    writer = gguf.GGUFWriter(HERE / f"{file or family}.gguf", family.removeprefix("tiny-"))
    writer.add_block_count(2)
    writer.add_context_length(512)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(wide)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(dim)
    writer.add_value_length(dim)
    writer.add_rope_dimension_count(dim)
    writer.add_rope_freq_base(500000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocabulary)
    if "gemma3" in family:
        writer.add_sliding_window(7)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)

    def add(name: str, shape: tuple[int, ...], kind: str) -> None:
        values = rng.normal(0, 0.1, shape).astype(np.float32)
        writer.add_tensor(name, gguf.quants.quantize(values, Type[kind]), raw_dtype=Type[kind])

    add("token_embd.weight", (vocabulary, hidden), "Q8_0")
    for layer in range(2):
        blk = f"blk.{layer}."
        add(blk + "attn_q.weight", (heads * dim, hidden), "Q4_1" if layer else "Q4_0")
        add(blk + "attn_k.weight", (kv_heads * dim, hidden), "Q4_0" if layer else "F16")
        add(blk + "attn_v.weight", (kv_heads * dim, hidden), "Q5_0")
        add(blk + "attn_output.weight", (hidden, heads * dim), "Q5_1")
        for part, shape in {"gate": (wide, hidden), "up": (wide, hidden), "down": (hidden, wide)}.items():
            add(f"{blk}ffn_{part}.weight", shape, "BF16" if part == "up" else "Q4_1")
        for norm in (
            "attn_norm",
            "ffn_norm",
            *(("post_attention_norm", "post_ffw_norm") if "gemma3" in family else ()),
        ):
            add(f"{blk}{norm}.weight", (hidden,), "F32")
        if "qwen2" in family:
            for part, rows in {"q": heads * dim, "k": kv_heads * dim, "v": kv_heads * dim}.items():
                add(f"{blk}attn_{part}.bias", (rows,), "F32")
        if family in ("tiny-qwen3", "tiny-gemma3"):
            for part in "qk":
                add(f"{blk}attn_{part}_norm.weight", (dim,), "F32")
    add("output_norm.weight", (hidden,), "F32")
    if not tied:
        add("output.weight", (vocabulary, hidden), "Q8_0")
    if file:
        writer.add_tensor("rope_freqs.weight", _llama3_factors(hidden, heads, dim))
    _write(writer)
    if not file:
        # Given, because transformers takes no head size from Qwen3 files.
        config = AutoConfig.for_model(
            family.removeprefix("tiny-") + ("_text" if "gemma3" in family else ""),
            hidden_size=hidden,
            intermediate_size=wide,
            num_hidden_layers=2,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=dim,
            vocab_size=vocabulary,
            tie_word_embeddings=tied,
        )
        model = AutoModelForCausalLM.from_pretrained(HERE, gguf_file=f"{family}.gguf", config=config)
        state = {name: value.float().numpy() for name, value in model.state_dict().items()}
        if tied:
            state.pop("lm_head.weight", None)
        np.savez_compressed(HERE / f"{family}.npz", **state)


def _llama3_factors(hidden: int, heads: int, dim: int) -> np.ndarray:
    base = {"hidden_size": hidden, "num_attention_heads": heads, "head_dim": dim, "max_position_embeddings": 131072}
    config = LlamaConfig(**base, rope_parameters=LLAMA3 | {"rope_theta": 500000.0})
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, device="cpu")
    plain = 1.0 / 500000.0 ** (np.arange(0, dim, 2) / dim)
    return (plain / scaled.numpy()).astype(np.float32)


def _write(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    generator = np.random.default_rng(20260101)
    blocks(generator)
    metadata()
    tiny("tiny-llama", generator, tied=True)
    tiny("tiny-qwen2", generator, tied=True)
    tiny("tiny-qwen3", generator, tied=False)
    tiny("tiny-llama", generator, tied=True, file="tiny-llama3")
    tiny("tiny-gemma3", np.random.default_rng(20260102), tied=True)
