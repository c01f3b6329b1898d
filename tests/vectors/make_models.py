"""Makes `tests/vectors/models`: what transformers computes for small checkpoints, recorded so that tests need no torch.

    python tests/vectors/make_models.py [--smollm2 FILE.gguf] [--only NAME]

Run in the oracle environment (`bench/requirements-oracle.txt`). Two sorts of vectors:

* tiny random checkpoints of each family, saved by transformers itself, with `expected.npz` beside them;
* `smollm2.npz`: the built-in model dequantized by transformers and the `gguf` package (not by our reader). Its weights
  are not kept here; tests fetch them by the built-in name.

Each .npz holds: `prompt` int32 [48]; `greedy` int32 [64], what follows by argmax in float32; `margin` float32 [64], the
gap between the two best logits at each step over the largest |logit|; `positions` int32 [P] into prompt + greedy;
`logits` float32 [P, V] there in float32, and `bf16_positions`, `bf16_logits` uint16 (bfloat16 bits) in bfloat16.

Every part of a tiny model is random (biases, norm gains too) and a seed is only taken when the
logits notice each part that is left out (`_weakest_part`). It knows nothing of Freehold's own code, on purpose.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3TextConfig, LlamaConfig, Qwen2Config, Qwen3Config

HERE = Path(__file__).parent / "models"
PROMPT, OUTPUT = 48, 64
TINY_POSITIONS = (0, 15, 47, 63, 64, 111)
SMOLLM2_POSITIONS = (47, 111)
SMOLLM2_BF16_POSITIONS = (47, 111)
SMOLLM2_TEXT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\nTell me, in plain words, how rain forms and why some clouds give us none.<|im_end|>\n"
    "<|im_start|>assistant\n"
)
SMALLEST_MARGIN = 2e-3
"""Twice the tolerance of the tests: a greedy path with closer ties would test luck."""
FEWEST_DISTINCT = 16
"""Different tokens among the 64: a path that repeats one token would prove little."""
SMALLEST_EFFECT = 3e-2
"""What leaving out any part must change, at least, in the norm the tests use: thirty times their tolerance in float32
and more than that in bfloat16."""
LARGEST_BF16_NOISE = 1.5e-2
"""How far transformers' own bfloat16 run may be from its float32 run: a noisier one could not be held to 2e-2."""


@dataclass(frozen=True)
class Tiny:
    """One random checkpoint: how its config differs, how it is saved."""

    config: Callable[..., Any]
    options: dict[str, Any]
    dtype: torch.dtype = torch.bfloat16
    shard: str = "10MB"
    old_rope_keys: bool = False
    gain_offset: float = 0.0
    """What the family adds to the weights of its norms."""
    ablations: tuple[dict[str, Any], ...] = ()


_BASE = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}
_LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
_LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
_TWO_ROPES = {
    "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}
_ONE_ROPE = dict.fromkeys(_TWO_ROPES, _TWO_ROPES["full_attention"])
_SCALED_ROPES = {
    "full_attention": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}
_GEMMA = {
    "hidden_activation": "gelu_pytorch_tanh", "pad_token_id": 0, "tie_word_embeddings": True, "query_pre_attn_scalar": 16,
}  # fmt: skip
_PLAIN_ROPE = ({"rope_parameters": _DEFAULT},)

_FAR = {"rope_type": "default", "rope_theta": 1000000.0}
_BIASED = {"attention_bias": True, "mlp_bias": True}
_TIED, _UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
_SMALL = {"vocab_size": 256, "intermediate_size": 96}

TINY = {
    "llama-tied": Tiny(LlamaConfig, {**_TIED, "head_dim": 16, "rope_parameters": _DEFAULT}, torch.float32),
    "llama-rope-llama3": Tiny(
        LlamaConfig,
        {**_UNTIED, "head_dim": 32, "rope_parameters": _LLAMA3, "rms_norm_eps": 1e-5},
        old_rope_keys=True,
        ablations=_PLAIN_ROPE,
    ),
    "llama-biases-sharded": Tiny(
        LlamaConfig,
        {**_UNTIED, **_BIASED, "head_dim": 16, "rope_parameters": _LINEAR},
        torch.float16,
        shard="120KB",
        ablations=_PLAIN_ROPE,
    ),
    "qwen2-tied": Tiny(
        Qwen2Config, {**_TIED, "num_hidden_layers": 3, "intermediate_size": 96, "rope_parameters": _FAR}
    ),
    "qwen2-untied": Tiny(
        Qwen2Config,
        {**_UNTIED, **_SMALL, "hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1,
         "rope_parameters": _DEFAULT},
    ),
    "qwen3-tied": Tiny(Qwen3Config, {**_TIED, "head_dim": 32, "rope_parameters": _FAR}),
    "qwen3-untied": Tiny(
        Qwen3Config, {**_UNTIED, "head_dim": 32, "num_key_value_heads": 1, "rope_parameters": _DEFAULT}
    ),
    "gemma3-tied": Tiny(
        Gemma3TextConfig,
        {**_GEMMA, "head_dim": 32, "num_key_value_heads": 1, "num_hidden_layers": 3, "sliding_window": 24,
         "layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "rope_parameters": _TWO_ROPES},
        gain_offset=1.0,
        ablations=({"sliding_window": 256}, {"rope_parameters": _ONE_ROPE}, {"query_pre_attn_scalar": 32},
                   {"hidden_activation": "silu"}),
    ),
    "gemma3-old-keys": Tiny(
        Gemma3TextConfig,
        {**_GEMMA, "head_dim": 16, "num_hidden_layers": 4, "sliding_window": 9, "sliding_window_pattern": 2,
         "rope_parameters": _SCALED_ROPES},
        torch.float32,
        old_rope_keys=True,
        gain_offset=1.0,
        ablations=({"sliding_window": 10}, {"sliding_window_pattern": 3}, {"rope_parameters": _TWO_ROPES}),
    ),
}  # fmt: skip


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """max |a - b| / max |b|, the norm of the tests."""
    return float((a - b).abs().max() / b.abs().max())


@torch.no_grad()
def logits_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """All logits of one sequence [T, V], without a cache."""
    return model(ids[None], use_cache=False).logits[0]


@torch.no_grad()
def greedy(model: Any, prompt: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """64 tokens by argmax with a KV cache (no stop ids), and each step's relative gap between the best two logits."""
    tokens, margins, cache, ids = [], [], None, prompt[None]
    for _ in range(OUTPUT):
        out = model(ids, past_key_values=cache, use_cache=True)
        cache, last = out.past_key_values, out.logits[0, -1].float()
        top = last.topk(2)
        margins.append((top.values[0] - top.values[1]) / last.abs().max())
        tokens.append(top.indices[0])
        ids = top.indices[:1][None]
    return torch.stack(tokens), torch.stack(margins)


def build(tiny: Tiny, seed: int) -> Any:
    """A model whose every parameter is random, rounded to the dtype it will be stored in, in float32."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        tiny.config(**(_BASE | tiny.options)), dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                # Signs too: with tied embeddings an all-positive last norm would only repeat its input.
                parameter.uniform_(0.5, 1.5).mul_(torch.randint(0, 2, parameter.shape) * 2 - 1).sub_(tiny.gain_offset)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.4)
            elif "embed_tokens" in name:
                parameter.normal_(0.0, 0.5)
            else:
                parameter.normal_(0.0, 1.0 / parameter.shape[1] ** 0.5)
            parameter.copy_(parameter.to(tiny.dtype).float())
    return model


@contextmanager
def _left_out(parameter: torch.nn.Parameter, neutral: float) -> Iterator[None]:
    kept = parameter.detach().clone()
    with torch.no_grad():
        parameter.fill_(neutral)
        yield
        parameter.copy_(kept)


def _weakest_part(model: Any, tiny: Tiny, ids: torch.Tensor) -> float:
    """Leave out every parameter in turn, and the rope variant: the least that the logits notice."""
    full = logits_of(model, ids)
    effects = []
    for name, parameter in model.named_parameters():
        with _left_out(parameter, 1.0 - tiny.gain_offset if name.endswith("norm.weight") else 0.0):
            effects.append(relative(logits_of(model, ids), full))
    for change in tiny.ablations:
        other = AutoModelForCausalLM.from_config(
            tiny.config(**(_BASE | tiny.options | change)), dtype=torch.float32, attn_implementation="eager"
        ).eval()
        other.load_state_dict(model.state_dict())
        effects.append(relative(logits_of(other, ids), full))
    return min(effects)


def _bits(x: torch.Tensor) -> np.ndarray:
    return x.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)


def _record(path: Path, model: Any, prompt: torch.Tensor, positions: tuple[int, ...], bf16: tuple[int, ...]) -> None:
    """Compute and write one .npz; the model comes back in bfloat16."""
    tokens, margins = greedy(model, prompt)
    ids = torch.cat([prompt, tokens])
    logits = logits_of(model, ids)
    assert torch.equal(logits[PROMPT - 1 : -1].argmax(1), tokens), "with and without a cache must agree"
    bf16_logits = logits_of(model.to(torch.bfloat16), ids)
    noise = relative(bf16_logits.float(), logits)
    print(f"   margin {float(margins.min()):.1e}, distinct {len(set(tokens.tolist()))}, bfloat16 noise {noise:.1e}")
    np.savez_compressed(
        path,
        prompt=prompt.numpy().astype(np.int32), greedy=tokens.numpy().astype(np.int32), margin=margins.numpy(),
        positions=np.array(positions, np.int32), logits=logits[list(positions)].numpy(),
        bf16_positions=np.array(bf16, np.int32), bf16_logits=_bits(bf16_logits[list(bf16)]),
    )  # fmt: skip


def _well_posed(model: Any, tiny: Tiny, prompt: torch.Tensor) -> bool:
    """Whether a seed is a fair test: no near ties, no short loop, little bfloat16 noise, no part without effect."""
    tokens, margins = greedy(model, prompt)
    if float(margins.min()) < SMALLEST_MARGIN or len(set(tokens.tolist())) < FEWEST_DISTINCT:
        return False
    ids = torch.cat([prompt, tokens])
    noise = relative(logits_of(copy.deepcopy(model).to(torch.bfloat16), ids).float(), logits_of(model, ids))
    weakest = _weakest_part(model, tiny, prompt)
    print(f"   bfloat16 noise {noise:.1e}, leaving out any part changes the logits by {weakest:.1e} or more")
    return noise <= LARGEST_BF16_NOISE and weakest >= SMALLEST_EFFECT


def _use_old_rope_keys(directory: Path) -> None:
    """Write rope settings as published Llama 3 and Gemma 3 checkpoints have them: `rope_theta` and `rope_scaling`."""
    path = directory / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    if "sliding_attention" in rope:
        config["rope_local_base_freq"] = rope.pop("sliding_attention")["rope_theta"]
        config["sliding_window_pattern"] = config.pop("_sliding_window_pattern")
        del config["layer_types"]
        rope = rope.pop("full_attention")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope
    path.write_text(json.dumps(config, indent=2) + "\n")


def make_tiny(name: str) -> dict[str, Any]:
    """One tiny checkpoint directory, from the first seed whose greedy path has no near ties and is not a short loop."""
    tiny, directory = TINY[name], HERE / name
    for seed in range(2_000):
        model = build(tiny, seed)
        prompt = torch.randint(3, model.config.vocab_size, (PROMPT,))
        if _well_posed(model, tiny, prompt):
            break
    else:
        raise SystemExit(f"{name}: no well-posed seed")
    print(f"{name}: seed {seed}")
    shutil.rmtree(directory, ignore_errors=True)
    stored = build(tiny, seed).to(tiny.dtype)
    stored.save_pretrained(directory, max_shard_size=tiny.shard)
    if tiny.old_rope_keys:
        _use_old_rope_keys(directory)
    _record(directory / "expected.npz", model, prompt, TINY_POSITIONS, TINY_POSITIONS)
    return {"seed": seed, "dtype": str(tiny.dtype)}


def load_smollm2(path: Path) -> tuple[Any, Any]:
    """The built-in model in float32, dequantized by transformers and checked with `gguf`, and its tokenizer.

    The weights move into a plain model: the one transformers gives still calls itself quantized and refuses casts.
    """
    read = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for theirs, ours in (("token_embd", "model.embed_tokens"), ("blk.7.ffn_down", "model.layers.7.mlp.down_proj")):
        tensor = tensors[f"{theirs}.weight"]
        plain = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(plain, read.get_parameter(f"{ours}.weight").detach().numpy()), theirs
    config = read.config.to_dict()
    config.pop("quantization_config", None)
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(**config), dtype=torch.float32, attn_implementation="eager"
    ).eval()
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    return model, AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def make_smollm2(path: Path) -> dict[str, Any]:
    """`smollm2.npz` from the built-in model's GGUF file."""
    model, tokenizer = load_smollm2(path)
    ids = tokenizer(SMOLLM2_TEXT, add_special_tokens=False)["input_ids"]
    print(f"smollm2: {len(ids)} prompt tokens")
    prompt = torch.tensor(ids)
    assert len(ids) == PROMPT, "change SMOLLM2_TEXT until it has 48 tokens"
    tokens, margins = greedy(model, prompt)
    print(tokenizer.decode(tokens), float(margins.min()))
    assert float(margins.min()) >= SMALLEST_MARGIN, "change SMOLLM2_TEXT: its greedy path has a near tie"
    _record(HERE / "smollm2.npz", model, prompt, SMOLLM2_POSITIONS, SMOLLM2_BF16_POSITIONS)
    return {"text": SMOLLM2_TEXT, "file": path.name}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smollm2", type=Path, help="the built-in model's .gguf file")
    parser.add_argument("--only", help="make only this one")
    arguments = parser.parse_args()
    HERE.mkdir(exist_ok=True)
    manifest_path = HERE / "manifest.json"
    manifest = json.loads(manifest_path.read_text()) if manifest_path.exists() else {"vectors": {}}
    for name in TINY:
        if arguments.only in (None, name):
            manifest["vectors"][name] = make_tiny(name)
    if arguments.smollm2 and arguments.only in (None, "smollm2"):
        manifest["vectors"]["smollm2"] = make_smollm2(arguments.smollm2)
    manifest["made_by"] = "tests/vectors/make_models.py"
    manifest["versions"] = {
        "torch": torch.__version__, "transformers": transformers.__version__, "numpy": np.__version__,
        "python": platform.python_version(),
    }  # fmt: skip
    manifest_path.write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
