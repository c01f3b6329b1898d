"""One table: our compressed models beside llama.cpp's (and any other peer's logits) on the same text and windows.

    python bench/compare_quantizers.py ORIGINAL OURS... --llama-python PYTHON [--types Q4_0,Q4_K_M] [--windows 12]
        [--openvino-python PYTHON] [--nncf sym,all-sym] [--gguf OUR.gguf ...] [--text FILE] [--json FILE]

ORIGINAL is a GGUF file; llama.cpp quantizes it with its own tools (`--pure`: every matrix in that type, as 4.5 bits for
the whole model means; without: its own choice for embeddings). The truth is ORIGINAL dequantized in float32 by our
engine. Divergences are scored at the second half of every window; sizes are those of all tensors.

NNCF compresses a checkpoint of the same dequantized values, in groups of 64; its kinds are `sym` or `asym`, after `all-`
for the embedding as well, where it keeps int8 otherwise, and before `+awq`, `+scale`, `+gptq` for what it does by data,
in any number: `all-sym+awq+scale`. It measures on the very tokens that `freehold compress` does by default. OpenVINO runs
the result in float32 and without int8 activations; ours runs as it serves, with int8 activations.

The last column is our divergence over that row's, of our best model that is no larger. The interpreters are those of
environments with llama-cpp-python, and with what `peers_openvino.py` names.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from freehold.cli.compress import DEFAULT_TOKENS, spread
from freehold.cli.eval import help_topics
from freehold.compress import builtin_text
from freehold.engine.blocks import pages_for
from freehold.engine.loading import load_weights
from freehold.engine.models import program_for
from freehold.formats import load_tokenizer, open_checkpoint, store
from freehold.formats.tensors import to_float32
from freehold.kernels import make_executor
from freehold.kernels.cpu import choose_threads, choose_tier
from freehold.kernels.program import Step

WINDOW, FIRST = 512, 256
LLAMA, OPENVINO = (Path(__file__).with_name(f"peers_{name}.py") for name in ("llama", "openvino"))
LEAST = 1e-4
"""Divergences below this are what float32 leaves; there is nothing to compare."""
NNCF_KINDS = "sym,asym,sym+awq+scale,all-sym,all-sym+awq+scale"


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


def run(python: str, script: Path, *words: object) -> None:
    """A peer's script with its own interpreter; what it says is shown if it fails."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(choose_threads(0)[0])}
    done = subprocess.run(
        [python, str(script), *map(str, words)], env=environment, text=True, capture_output=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{script.name} {words[0]} failed:\n{done.stderr[-3000:]}")


def dequantized(original: Path, out: Path) -> None:
    """The original's values in float32, as a directory that transformers reads."""
    out.mkdir()
    with open_checkpoint(original) as checkpoint:
        tensors = {name: np.ascontiguousarray(to_float32(checkpoint.load(name))) for name in checkpoint.names()}
        config = {name: value for name, value in checkpoint.config.items() if name != "quantization_config"}
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    (out / "config.json").write_text(json.dumps(config))
    load_tokenizer(original).save(out)


def calibration(original: Path) -> np.ndarray:
    """The tokens that `freehold compress` measures on when nothing else is said: int32 [windows, WINDOW]."""
    tokenizer = load_tokenizer(original)
    ids = spread(tokenizer.encode(builtin_text(), special=False), DEFAULT_TOKENS)
    return with_begin(np.array(ids[: len(ids) // WINDOW * WINDOW], np.int32).reshape(-1, WINDOW), tokenizer.begin)


def with_begin(windows: np.ndarray, begin: int | None) -> np.ndarray:
    """Every window begins as llama.cpp's `perplexity` has it: some models are lost without their first token."""
    if begin is not None:
        windows[:, 0] = begin
    return windows


def nncf_options(kind: str) -> dict[str, Any]:
    """`all-sym+awq+scale` in the words of `nncf.compress_weights`."""
    grid, *methods = kind.removeprefix("all-").split("+")
    names = {"awq": "awq", "scale": "scale_estimation", "gptq": "gptq"}
    if grid not in ("sym", "asym") or not set(methods) <= set(names):
        raise SystemExit(f"unknown NNCF kind {kind!r}: expected [all-]sym or asym, then any of +awq, +scale, +gptq")
    by_data = {names[method]: True for method in methods}
    return {"mode": f"int4_{grid}", "group_size": 64, "all_layers": kind.startswith("all-"), **by_data}


Row = tuple[str, int, np.ndarray]
"""Name, bytes of all tensors, logits."""


def llama_rows(python: str, original: Path, types: str, ours: list[Path], windows: np.ndarray) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as work:
        ids, out = Path(work) / "ids.npy", Path(work) / "logits.npy"
        np.save(ids, windows)
        jobs = [(f"llama.cpp, our {path.name}", path) for path in ours]
        if original.suffix == ".gguf":
            jobs.append(("llama.cpp, the original", original))
            for kind in types.split(","):
                for pure in (True, False):
                    made = Path(work) / f"{kind}{'-pure' if pure else ''}.gguf"
                    run(python, LLAMA, "quantize", original, made, kind, *(["--pure"] if pure else []))
                    jobs.append((f"llama.cpp {kind}{' --pure' if pure else ''}", made))
        for name, path in jobs:
            run(python, LLAMA, "logits", path, ids, FIRST, out)
            yield name, size_of(path)[0], np.load(out)


def openvino_rows(python: str, original: Path, kinds: str, windows: np.ndarray) -> Iterator[Row]:
    jobs = [(f"NNCF {kind} g64", nncf_options(kind)) for kind in kinds.split(",")]
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        ids, text, exported, made, out = (work / n for n in ("ids.npy", "text.npy", "exported", "made", "logits.npy"))
        np.save(ids, windows)
        np.save(text, calibration(original))
        dequantized(original, work / "plain")
        run(python, OPENVINO, "export", work / "plain", exported)
        shutil.rmtree(work / "plain")
        run(python, OPENVINO, "logits", exported, ids, FIRST, out)
        yield "OpenVINO, the original", (exported / "openvino_model.bin").stat().st_size, np.load(out)
        for title, options in jobs:
            run(python, OPENVINO, "compress", exported, made, text, json.dumps(options))
            run(python, OPENVINO, "logits", made, ids, FIRST, out)
            yield title, (made / "openvino_model.bin").stat().st_size, np.load(out)
            shutil.rmtree(made)


def beside_ours(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Our divergence over a peer's, of our best model that is no larger."""
    fitting = [ours["kld"] for ours in rows if ours["model"].startswith("freehold ") and ours["bytes"] <= row["bytes"]]
    if not fitting or row["model"].startswith("freehold ") or row["kld"] < LEAST:
        return ""
    return f"  ours {min(fitting) / row['kld']:.2f}x"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("original")
    parser.add_argument("ours", nargs="*", type=Path)
    parser.add_argument("--llama-python")
    parser.add_argument("--types", default="Q4_0")
    parser.add_argument("--openvino-python")
    parser.add_argument("--nncf", default=NNCF_KINDS, help="[default: %(default)s]")
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
    windows = with_begin(np.stack([ids[p * WINDOW : (p + 1) * WINDOW] for p in picks]), tokenizer.begin)
    truth, parameters = our_logits(original, "f32", windows), size_of(original)[1]
    rows: list[dict[str, Any]] = []

    def add(name: str, nbytes: int, given: np.ndarray) -> None:
        row = {"model": name, "bytes": nbytes, "bits": 8 * nbytes / parameters, **distance(truth, given)}
        rows.append(row)
        print(
            f"{name:34s} {nbytes / 1e6:8.1f} MB {row['bits']:6.3f} bits  KLD {row['kld']:.4f} +- {row['ci95']:.4f}"
            f"  top-1 {row['top1']:.1%}{beside_ours(row, rows)}",
            flush=True,
        )

    for path in arguments.ours:
        add(f"freehold {path.name}", size_of(path)[0], our_logits(path, "stored", windows))
    if arguments.llama_python:
        for row in llama_rows(arguments.llama_python, original, arguments.types, arguments.gguf, windows):
            add(*row)
    if arguments.openvino_python:
        for row in openvino_rows(arguments.openvino_python, original, arguments.nncf, windows):
            add(*row)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
