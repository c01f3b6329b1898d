"""transformers as a peer: a process that runs one timed figure for each line it is sent.

    python bench/peers_transformers.py CHECKPOINT --threads N [--variants fp32,bf16,int8]

Started by `compare_transformers.py` with the Python of the oracle environment. It prints one JSON line when ready, then
for each request {"variant", "kind": "prefill" | "decode", "ids", "tokens"} one line {"seconds", "tokens"}. It knows
nothing of Freehold.

The peer gets its better side: default attention (sdpa), inference mode, a bare loop instead of `generate`, and logits
of the last position only.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM


def load(path: Path) -> Any:
    """A checkpoint in float32: a config.json, a directory, or a .gguf file that transformers dequantizes, in a plain model."""
    if path.suffix == ".json":  # a config: random weights of its sizes
        return AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**json.loads(path.read_text())), dtype=torch.float32
        ).eval()
    if path.suffix != ".gguf":
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    read = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    config = copy.deepcopy(read.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    return model.eval()


def variant_of(model: Any, name: str) -> Any:
    """fp32 as loaded, bf16 cast, int8 by torch's dynamic quantization of every linear layer."""
    if name == "fp32":
        return model
    if name == "bf16":
        return copy.deepcopy(model).to(torch.bfloat16)
    if name == "int8":
        return torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {torch.nn.Linear}, dtype=torch.qint8)
    raise SystemExit(f"unknown variant {name!r}: fp32, bf16 or int8")


def step(model: Any, ids: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
    """One pass; the next token [1, 1] and the cache."""
    out = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return out.logits[:, -1].argmax(dim=-1, keepdim=True), out.past_key_values


def prefill(model: Any, ids: list[int]) -> float:
    """Seconds from a prompt to its first token."""
    prompt = torch.tensor([ids])
    begin = time.perf_counter()
    step(model, prompt, None)[0].item()
    return time.perf_counter() - begin


def decode(model: Any, ids: list[int], tokens: int) -> float:
    """Seconds for `tokens` more tokens, one by one, after the first."""
    token, cache = step(model, torch.tensor([ids]), None)
    token.item()
    begin = time.perf_counter()
    for _ in range(tokens):
        token, cache = step(model, token, cache)
        token.item()  # as a server must: the token leaves before the next one
    return time.perf_counter() - begin


def answer(variants: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    """One figure."""
    model, ids = variants[request["variant"]], request["ids"]
    with torch.inference_mode():
        if request["kind"] == "prefill":
            return {"seconds": prefill(model, ids), "tokens": len(ids)}
        return {"seconds": decode(model, ids, request["tokens"]), "tokens": request["tokens"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--variants", default="fp32,bf16")
    arguments = parser.parse_args()
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever libraries print must not mix with the answers
    warnings.simplefilter("ignore")
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(arguments.threads)
    model = load(arguments.checkpoint)
    variants = {name: variant_of(model, name) for name in arguments.variants.split(",")}
    ready = {
        "ready": True,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        "attention": model.config._attn_implementation,
        "vocabulary": model.config.vocab_size,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "pid": os.getpid(),
    }
    print(json.dumps(ready), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(variants, json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
