"""Tiny random models, as checkpoints on disk and as engines in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from freehold.engine.models import program_for
from freehold.engine.request import GenerateRequest, Sampling, TokenOutput
from freehold.engine.runner import Engine
from freehold.kernels import make_executor
from freehold.kernels.matrix import FloatMatrix, Matrix, QuantizedMatrix
from freehold.kernels.program import Program
from freehold.settings import EngineSettings

VOCABULARY = 97

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}


def config(**changes: Any) -> dict[str, Any]:
    """CONFIG with changes; None removes a key."""
    return {key: value for key, value in (CONFIG | changes).items() if value is not None}


def tensors(program: Program, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Random values for every tensor a program takes from a checkpoint, by its checkpoint name."""
    out: dict[str, NDArray[np.float32]] = {}
    generator = np.random.default_rng(seed)
    hidden, dim = program.buffers["x"].columns, program.head_dim
    rows = {"q_proj": program.heads * dim, "k_proj": program.kv_heads * dim, "v_proj": program.kv_heads * dim}
    inner = program.buffers["gated"].columns
    rows |= {"o_proj": hidden, "gate_proj": inner, "up_proj": inner, "down_proj": hidden}
    columns = {"o_proj": program.heads * dim, "down_proj": inner}
    for spec in program.weights.values():
        for name in spec.sources:
            module = name.split(".")[-2]
            if "norm" in module:
                size = dim if module in ("q_norm", "k_norm") else hidden
                out[name] = (1 + 0.1 * generator.standard_normal(size)).astype(np.float32)
            elif name.endswith(".bias"):
                out[name] = (0.5 * generator.standard_normal(rows[module])).astype(np.float32)
            else:
                shape = (rows.get(module, program.vocabulary), columns.get(module, hidden))
                out[name] = (generator.standard_normal(shape) * 1.5 / np.sqrt(shape[1])).astype(np.float32)
    return out


def quantize(values: NDArray[np.float32], bits: int = 8, group: int = 32) -> QuantizedMatrix:
    """Symmetric round-to-nearest codes, good enough for tests."""
    rows, columns = values.shape
    half = 1 << (bits - 1)
    grouped = values.reshape(rows, columns // group, group)
    scales = (np.abs(grouped).max(axis=2) / (half - 1)).astype(np.float32)
    codes = (np.clip(np.rint(grouped / scales[:, :, None]), -half, half - 1) + half).astype(np.uint8)
    return QuantizedMatrix(codes.reshape(rows, columns), scales, None, bits, group)


def weights(program: Program, *, quantized: bool = True, seed: int = 0) -> dict[str, Matrix | NDArray[np.float32]]:
    """An executor's weights. Quantized ones make the twin's results independent of the batch, bit for bit."""
    values = tensors(program, seed)
    out: dict[str, Matrix | NDArray[np.float32]] = {}
    for name, spec in program.weights.items():
        if spec.value is not None:
            out[name] = spec.value
        elif spec.kind == "vector":
            out[name] = np.concatenate([values[source] for source in spec.sources])
        else:
            parts = [values[source] for source in spec.sources]
            out[name] = Matrix(tuple(quantize(part) if quantized else FloatMatrix(part) for part in parts))
    return out


def engine(*, pages: int = 64, tier: str = "reference", threads: int = 1, **settings: Any) -> Engine:
    """A tiny quantized Llama, on the NumPy twin unless told otherwise."""
    program = program_for(config())
    executor = make_executor(program, weights(program), pages=pages, threads=threads, tier=tier)
    return Engine(program, executor, EngineSettings(**settings), pages=pages)


def write(directory: Path, *, seed: int = 0, **changes: Any) -> Path:
    """A checkpoint on disk: config.json and model.safetensors."""
    directory.mkdir(parents=True, exist_ok=True)
    made = config(**changes)
    (directory / "config.json").write_text(json.dumps(made))
    save_file(tensors(program_for(made), seed), directory / "model.safetensors")
    return directory


def prompts(count: int, *, longest: int = 40, seed: int = 1) -> list[list[int]]:
    """Prompts of 1 to `longest` tokens."""
    generator = np.random.default_rng(seed)
    return [generator.integers(0, VOCABULARY, int(generator.integers(1, longest + 1))).tolist() for _ in range(count)]


def request(name: str, prompt: list[int], **sampling: Any) -> GenerateRequest:
    """A request; greedy and of 12 tokens unless told otherwise."""
    return GenerateRequest(name, prompt, Sampling(**({"temperature": 0.0, "max_tokens": 12} | sampling)))


def drain(running: Engine) -> dict[str, list[TokenOutput]]:
    """Step until nothing is left; outputs by request."""
    outputs: dict[str, list[TokenOutput]] = {}
    while running.has_work:
        for output in running.step():
            outputs.setdefault(output.id, []).append(output)
    return outputs


def texts(outputs: dict[str, list[TokenOutput]]) -> dict[str, list[int | None]]:
    """Token ids by request."""
    return {name: [output.token for output in given] for name, given in outputs.items()}
