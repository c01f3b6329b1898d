"""One table: our compressed models beside llama.cpp's (and any other peer's logits) on the same text and windows.

    python bench/compare_quantizers.py ORIGINAL OURS... --llama-python PYTHON [--types Q4_0,Q4_K_M] [--windows 12]
        [--gguf OUR.gguf ...] [--text FILE] [--json FILE]

ORIGINAL is a GGUF file; llama.cpp quantizes it with its own tools (`--pure`: every matrix in that type, as 4.5 bits for
the whole model means; without: its own choice for embeddings). The truth is ORIGINAL dequantized in float32 by our
engine. Divergences are scored at the second half of every window; sizes are those of all tensors.
PYTHON is that of an environment with llama-cpp-python.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from freehold.cli.eval import help_topics
from freehold.engine.blocks import pages_for
from freehold.engine.loading import load_weights
from freehold.engine.models import program_for
from freehold.formats import load_tokenizer, open_checkpoint, store
from freehold.kernels import make_executor
from freehold.kernels.cpu import choose_threads, choose_tier
from freehold.kernels.program import Step

WINDOW, FIRST = 512, 256
PEER = Path(__file__).with_name("peers_llama.py")


def our_logits(path: Path, precision: str, windows: np.ndarray) -> np.ndarray:
    with open_checkpoint(path) as checkpoint:
        program = program_for(checkpoint.config)
        weights = load_weights(checkpoint, program, precision).weights
    kv = "f32" if precision == "f32" else "int8"
    executor = make_executor(
        program,
        weights,
        pages=pages_for(WINDOW),
        kv_dtype=kv,
        threads=choose_threads(0)[0],
        tier=choose_tier("auto").value,
    )
    rows = np.arange(WINDOW, dtype=np.int32)
    table = np.arange(pages_for(WINDOW), dtype=np.int32)[None]
    outputs = np.arange(FIRST, WINDOW - 1, dtype=np.int32)
    steps = (Step(window, rows, np.zeros_like(rows), table, outputs) for window in windows)
    return np.stack([executor.run(step).copy() for step in steps])


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def distance(truth: np.ndarray, given: np.ndarray) -> dict[str, float]:
    """Mean divergence with half its 95% interval over windows, and top-1 agreement."""
    means, agree = [], []
    for p, q in zip(truth, given, strict=True):
        p, q = log_softmax(p), log_softmax(q)
        means.append(float((np.exp(p) * (p - q)).sum(axis=-1).mean()))
        agree.append(float((p.argmax(-1) == q.argmax(-1)).mean()))
    spread = 1.96 * float(np.std(means, ddof=1)) / len(means) ** 0.5 if len(means) > 1 else float("nan")
    return {"kld": float(np.mean(means)), "ci95": spread, "top1": float(np.mean(agree))}


def size_of(path: Path) -> tuple[int, int]:
    """(bytes of all tensors, weights)."""
    with open_checkpoint(path) as checkpoint:
        infos = [checkpoint.info(name) for name in checkpoint.names()]
    return sum(info.nbytes for info in infos), sum(int(np.prod(info.shape)) for info in infos)


def llama(python: str, *words: object) -> None:
    subprocess.run(
        [python, str(PEER), *map(str, words)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("original")
    parser.add_argument("ours", nargs="*", type=Path)
    parser.add_argument("--llama-python")
    parser.add_argument("--types", default="Q4_0")
    parser.add_argument("--gguf", type=Path, nargs="*", default=[])
    parser.add_argument("--windows", type=int, default=12)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    original = store.resolve(arguments.original)
    words = arguments.text.read_text() if arguments.text else help_topics()
    tokenizer = load_tokenizer(original)
    ids = np.array(tokenizer.encode(words, special=False), np.int32)
    available = len(ids) // WINDOW
    picks = np.linspace(0, available - 1, min(arguments.windows, available)).astype(int)
    windows = np.stack([ids[p * WINDOW : (p + 1) * WINDOW] for p in picks])
    if tokenizer.begin is not None:  # as llama.cpp's `perplexity` does: some models are lost without it
        windows[:, 0] = tokenizer.begin
    truth = our_logits(original, "f32", windows)
    rows: list[dict[str, Any]] = []

    def add(name: str, path: Path, given: np.ndarray) -> None:
        nbytes, parameters = size_of(path)
        row = {"model": name, "bytes": nbytes, "bits": 8 * nbytes / parameters, **distance(truth, given)}
        rows.append(row)
        print(
            f"{name:34s} {nbytes / 1e6:8.1f} MB {row['bits']:6.3f} bits  KLD {row['kld']:.4f} +- {row['ci95']:.4f}"
            f"  top-1 {row['top1']:.1%}",
            flush=True,
        )

    for path in arguments.ours:
        add(f"freehold {path.name}", path, our_logits(path, "stored", windows))
    if arguments.llama_python:
        with tempfile.TemporaryDirectory() as work:
            np.save(Path(work) / "ids.npy", windows)
            jobs = [(f"llama.cpp, our {path.name}", path) for path in arguments.gguf]
            if original.suffix == ".gguf":
                jobs.append(("llama.cpp, the original", original))
                for kind in arguments.types.split(","):
                    for pure in (True, False):
                        made = Path(work) / f"{kind}{'-pure' if pure else ''}.gguf"
                        llama(arguments.llama_python, "quantize", original, made, kind, *(["--pure"] if pure else []))
                        jobs.append((f"llama.cpp {kind}{' --pure' if pure else ''}", made))
            for name, path in jobs:
                out = Path(work) / "logits.npy"
                llama(arguments.llama_python, "logits", path, Path(work) / "ids.npy", FIRST, out)
                add(name, path, np.load(out))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
