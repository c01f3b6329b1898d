"""How long, and in how much memory, a model of a named shape is calibrated, planned and compressed.

    python bench/compress_shape.py qwen2.5-1.5b [--layers 2] [--tokens 8192] [--work DIR]

Weights are random: neither time nor memory depends on the values. With --layers the model is built with so many layers,
then with twice as many: the difference is what layers take, the rest is the embedding's and the output layer's, and the
whole is made of both. The figures are then an estimate; on a busy machine those of the CPU say more. Memory is the
process's peak, next to the bfloat16 size of the whole model. Prints JSON.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from freehold.compress import CompressOptions, compress
from freehold.engine.calibrate import calibrate
from freehold.formats.digest import digest
from freehold.process_memory import peak_resident_bytes

SHAPES = {  # hidden, intermediate, layers, heads, kv heads, head size, vocabulary, tied
    "llama-135m": (576, 1536, 30, 9, 3, 64, 49152, True),
    "qwen2.5-0.5b": (896, 4864, 24, 14, 2, 64, 151936, True),
    "qwen2.5-1.5b": (1536, 8960, 28, 12, 2, 128, 151936, True),
}


def write(directory: Path, shape: tuple[int, ...], layers: int) -> None:
    hidden, inner, _, heads, kv, dim, vocabulary, tied = shape
    random = np.random.default_rng(0)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (random.standard_normal((rows, columns), np.float32) * np.float32(columns**-0.5)).astype(np.float16)

    tensors = {
        "model.embed_tokens.weight": matrix(vocabulary, hidden),
        "model.norm.weight": np.ones(hidden, np.float32),
    }
    sizes = {"q": heads * dim, "k": kv * dim, "v": kv * dim}
    for layer in range(layers):
        base = f"model.layers.{layer}."
        for part, rows in sizes.items():
            tensors[f"{base}self_attn.{part}_proj.weight"] = matrix(rows, hidden)
            tensors[f"{base}self_attn.{part}_proj.bias"] = np.zeros(rows, np.float32)
        tensors[f"{base}self_attn.o_proj.weight"] = matrix(hidden, heads * dim)
        for part in ("gate", "up"):
            tensors[f"{base}mlp.{part}_proj.weight"] = matrix(inner, hidden)
        tensors[f"{base}mlp.down_proj.weight"] = matrix(hidden, inner)
        for norm in ("input", "post_attention"):
            tensors[f"{base}{norm}_layernorm.weight"] = np.ones(hidden, np.float32)
    save_file(tensors, directory / "model.safetensors")
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "head_dim": dim,
        "vocab_size": vocabulary,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": bool(tied),
        "dtype": "float16",
    }
    (directory / "config.json").write_text(json.dumps(config))


def timed(shape: tuple[int, ...], layers: int, tokens: int, directory: Path | None) -> dict[str, float]:
    """Seconds by step and in all, of the wall clock and of the CPU."""
    with tempfile.TemporaryDirectory(dir=directory) as work:
        source, statistics = Path(work) / "source", Path(work) / "statistics"
        source.mkdir()
        write(source, shape, layers)
        ids = np.random.default_rng(1).integers(0, shape[6], tokens).tolist()
        begin, cpu = time.monotonic(), time.process_time()
        calibrate(source, ids, statistics, source=digest(source), text="random")
        calibrated = time.monotonic()
        compress(source, Path(work) / "out", CompressOptions(budget=6.0, embedding_bits=0), statistics=statistics)
        end = time.monotonic()
        return {
            "calibrate": calibrated - begin,
            "plan and round": end - calibrated,
            "wall": end - begin,
            "cpu": time.process_time() - cpu,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--work", type=Path)
    arguments = parser.parse_args()
    shape = SHAPES[arguments.shape]
    whole = shape[2]
    layers = arguments.layers or whole
    runs = {layers: timed(shape, layers, arguments.tokens, arguments.work)}
    if layers != whole:
        runs[2 * layers] = timed(shape, 2 * layers, arguments.tokens, arguments.work)

    def minutes(clock: str) -> float:
        seconds = runs[layers][clock]
        if layers != whole:
            seconds += (whole / layers - 1) * (runs[2 * layers][clock] - seconds)
        return seconds / 60

    hidden, inner, _, heads, kv, dim, vocabulary, tied = shape
    matrices = hidden * dim * (2 * heads + 2 * kv) + 3 * hidden * inner
    table = vocabulary * hidden * (1 if tied else 2)
    bf16 = 2 * (whole * matrices + table)
    report = {
        "shape": arguments.shape,
        "tokens": arguments.tokens,
        "seconds_by_layers": runs,
        "estimate": layers != whole,
        "minutes": minutes("wall"),
        "cpu_minutes": minutes("cpu"),
        "peak_rss_bytes": peak_resident_bytes(),
        "bf16_bytes_of_the_whole": bf16,
        "rss_over_bf16": peak_resident_bytes() / bf16,
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
