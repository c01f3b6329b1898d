"""Models of real sizes and random weights: speed does not depend on the values, and nothing need be fetched.

Int4 in groups of 32 for the layers, int8 rows for the embedding, as `freehold compress` keeps them by default. Packed
once into the cache. Knows sizes, not benches.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from freehold.engine.loading import LoadedWeights, expected_shapes, first_names
from freehold.engine.models import program_for
from freehold.engine.packed import SHAPE, Packed, key_of, obtain
from freehold.errors import UsageError
from freehold.kernels.executor import PackedMatrix, pack_matrix
from freehold.kernels.matrix import Matrix, QuantizedMatrix
from freehold.kernels.program import Program

GROUP = 32
_CHUNK = 1 << 14
"""Rows that are drawn together."""


def _config(family: str, **sizes: Any) -> dict[str, Any]:
    return {"architectures": [f"{family}ForCausalLM"], "hidden_act": "silu", "tie_word_embeddings": True, **sizes}


# From the models' config.json at https://huggingface.co: HuggingFaceTB/SmolLM2-135M-Instruct, Qwen/Qwen2.5-0.5B-Instruct,
# Qwen/Qwen2.5-1.5B-Instruct, Qwen/Qwen3-4B, deepseek-ai/deepseek-coder-6.7b-instruct.
SHAPES: Mapping[str, dict[str, Any]] = {
    "llama-135m": _config(
        "Llama", hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, vocab_size=49152, max_position_embeddings=8192, rms_norm_eps=1e-5, rope_theta=100000.0,
    ),
    "qwen2.5-0.5b": _config(
        "Qwen2", hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
        num_key_value_heads=2, vocab_size=151936, max_position_embeddings=32768, rms_norm_eps=1e-6, rope_theta=1e6,
    ),
    "qwen2.5-1.5b": _config(
        "Qwen2", hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12,
        num_key_value_heads=2, vocab_size=151936, max_position_embeddings=32768, rms_norm_eps=1e-6, rope_theta=1e6,
    ),
    "qwen3-4b": _config(
        "Qwen3", hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32, head_dim=128,
        num_key_value_heads=8, vocab_size=151936, max_position_embeddings=40960, rms_norm_eps=1e-6, rope_theta=1e6,
    ),
    "deepseek-coder-6.7b": _config(
        "Llama", hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=32, vocab_size=32256, max_position_embeddings=16384, rms_norm_eps=1e-6, rope_theta=1e5,
        rope_scaling={"rope_type": "linear", "factor": 4.0}, tie_word_embeddings=False,
    ),
}  # fmt: skip


def shape_model(name: str) -> tuple[Program, Packed, LoadedWeights]:
    """A program and random weights for it, mapped from the cache; made there by the first call.

    Raises:
        UsageError: no such shape, or no room for its file.
    """
    if name not in SHAPES:
        raise UsageError(f"there is no shape {name!r}", hint=f"known: {', '.join(SHAPES)}")
    config = SHAPES[name]
    program = program_for(config)
    expected = expected_shapes(program)
    shapes = {first: expected[first] for first in first_names(program).values()}
    parameters = sum(math.prod(shape) for shape in shapes.values())
    key = key_of(f"random {GROUP} {json.dumps(config, sort_keys=True)}", program)
    try:
        weights, _ = obtain(key, program, lambda: _random(program, shapes), lambda: {"source": SHAPE + name})
    except OSError as error:
        raise UsageError(
            f"random weights of shape {name} can't be kept: {error}", hint="FREEHOLD_HOME names the cache's place"
        ) from error
    stored = sum(
        sum(part.nbytes for part in weight.parts) if isinstance(weight, PackedMatrix) else weight.nbytes
        for weight in weights.values()
    )
    shared = {weight: weights[first] for weight, first in first_names(program).items()}
    return program, shared, LoadedWeights({}, parameters, stored)


def _random(
    program: Program, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, PackedMatrix | np.ndarray[Any, np.dtype[np.float32]]]]:
    """Weights that keep the size of what passes through them about the same."""
    for name, shape in shapes.items():
        spec = program.weights[name]
        rng = np.random.default_rng(list(hashlib.sha256(name.encode()).digest()[:8]))
        if spec.value is not None:
            yield name, spec.value
        elif len(shape) == 1:
            yield name, np.full(shape, 0.02 if name.endswith("bias") else 1.0, np.float32)
        else:
            bits = 8 if name in ("embed", "lm_head") else 4
            yield name, pack_matrix(Matrix((_drawn(rng, shape[0], shape[1], bits),)))


def _drawn(rng: np.random.Generator, rows: int, columns: int, bits: int) -> QuantizedMatrix:
    group = GROUP if bits == 4 else columns
    codes = np.empty((rows, columns), np.uint8)
    for begin in range(0, rows, _CHUNK):
        part = codes[begin : begin + _CHUNK]
        part[:] = rng.integers(0, 1 << bits, part.shape, np.uint8)
    spread = (1 << bits) / math.sqrt(12)
    size = np.float32(1 / (spread * math.sqrt(columns)))
    scales = (size * rng.uniform(0.5, 1.5, (rows, -(-columns // group)))).astype(np.float32)
    return QuantizedMatrix(codes, (scales.view(np.uint32) & 0xFFFF0000).view(np.float32), None, bits, group)
