"""Our engine beside its peers, on the same shapes, in one go.

    python bench/peers.py --llama PYTHON [--openvino PYTHON] [--transformers PYTHON]
        [--shapes llama-135m,qwen2.5-0.5b,qwen2.5-1.5b]
        [--repetitions 5] [--streams 32] [--keep DIR] [--json FILE] [--write docs/benchmarks.md]

Same machine, same number of threads, same token ids, interleaved: in every repetition each engine runs each figure once,
in an order that rotates. A figure is the median of the repetitions; a ratio is the median of the ratios within
repetitions. Prefill: 512 tokens in, until the first token. Decode: 128 tokens after the first, from a prompt of one
token. Streams: so many requests of 128 tokens in and 64 out at once; output tokens a second over the whole run.

Weights are random, of real sizes: int4 in groups of 32 with an int8 embedding for ours, Q4_0 with Q6_K or Q8_0 for
llama.cpp, int4 in groups of 64 with an int8 embedding for OpenVINO GenAI, float32 for transformers. `--llama`,
`--openvino` and `--transformers` name the interpreters of the peers' environments: llama-cpp-python is best built on the
machine itself, with the instructions it has; the others' scripts say what theirs need.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from freehold.engine.request import GenerateRequest, Sampling
from freehold.engine.runner import Engine
from freehold.engine.shapes import SHAPES, shape_model
from freehold.kernels.cpu import choose_threads
from freehold.settings import EngineSettings

HERE = Path(__file__).parent
SETTLE = 0.1
"""Seconds between figures, in which the other side's threads stop spinning."""


class Ours:
    """The engine in this process."""

    def __init__(self, shape: str, threads: int) -> None:
        program, weights, loaded = shape_model(shape)
        self.engine = Engine.of(
            program, weights, loaded, EngineSettings(threads=threads, kv_memory_mb=1024, prefix_cache=False)
        )
        self.facts = {"name": "freehold", "cpu": self.engine.facts.isa, "bits": self.engine.facts.bits_per_weight}

    def seconds(self, kind: str, ids: list[int], tokens: int, streams: int) -> float:
        """Of one figure, see this module's docstring."""
        count = {"prefill": 1, "decode": tokens + 1, "streams": tokens}[kind]
        times: list[float] = []
        begin = time.perf_counter()
        for number in range(streams):
            self.engine.add(GenerateRequest(str(number), ids, Sampling(temperature=0.0, max_tokens=count)))
        while self.engine.has_work:
            for output in self.engine.step():
                if output.finish == "error":
                    raise SystemExit(f"our engine failed: {output.error}")
                times.append(time.perf_counter())
        return times[-1] - times[0] if kind == "decode" else times[-1] - begin


class Peer:
    """A process that answers JSON lines."""

    def __init__(self, process: subprocess.Popen[str], variant: str = "") -> None:
        self._process, self._variant = process, variant
        self.facts = self._read()

    def seconds(self, kind: str, ids: list[int], tokens: int, streams: int) -> float:
        """As `Ours.seconds`."""
        asked = {"kind": kind, "ids": ids, "tokens": tokens, "streams": streams, "variant": self._variant}
        assert self._process.stdin
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return float(self._read()["seconds"])

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a peer's process ended with exit code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def peer(command: list[Any], threads: int, variant: str = "") -> Iterator[Peer]:
    """A peer, loaded and waiting; ended on the way out."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        [*map(str, command)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield Peer(process, variant)
        finally:
            process.terminate()


def measure(shape: str, arguments: argparse.Namespace, threads: int) -> dict[str, Any]:
    """Tokens per second of every engine and figure, one value for each repetition; the first round only warms up."""
    vocabulary = SHAPES[shape]["vocab_size"]
    ids = np.random.default_rng(0).integers(0, vocabulary, 512).tolist()
    figures = {
        "prefill 512": ("prefill", ids, 0, 1, 512),
        "decode 128": ("decode", ids[:1], 128, 1, 128),
    }
    if arguments.streams:
        figures[f"{arguments.streams} streams"] = ("streams", ids[:128], 64, arguments.streams, 64 * arguments.streams)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        engines: dict[str, Any] = {"freehold": Ours(shape, threads)}
        config, kept = Path(scratch) / "config.json", arguments.keep or Path(scratch)
        config.write_text(json.dumps(SHAPES[shape] | {"model_type": SHAPES[shape]["architectures"][0][:-11].lower()}))
        if arguments.llama:
            gguf = made(arguments.llama, "llama", config, kept / f"{shape}.gguf")
            command = [arguments.llama, HERE / "peers_llama.py", "serve", gguf, threads]
            engines["llama.cpp"] = stack.enter_context(peer(command, threads))
        if arguments.openvino:
            model = made(arguments.openvino, "openvino", config, kept / f"{shape}-openvino")
            command = [arguments.openvino, HERE / "peers_openvino.py", "serve", model, threads]
            engines["OpenVINO GenAI"] = stack.enter_context(peer(command, threads))
        if arguments.transformers:
            for variant in arguments.variants.split(","):
                command = [arguments.transformers, HERE / "peers_transformers.py", config, "--threads", threads]
                name = f"transformers {variant}"
                engines[name] = stack.enter_context(peer([*command, "--variants", variant], threads, variant))
        rates: dict[str, dict[str, list[float]]] = {name: {figure: [] for figure in figures} for name in engines}
        for repetition in range(arguments.repetitions + 1):
            names = list(engines)
            for name in names[repetition % len(names) :] + names[: repetition % len(names)]:
                for figure, (kind, prompt, tokens, streams, counted) in figures.items():
                    if kind == "streams" and name.startswith("transformers"):
                        continue  # it has no continuous batching to measure
                    time.sleep(SETTLE)
                    rate = counted / engines[name].seconds(kind, prompt, tokens, streams)
                    if repetition:
                        rates[name][figure].append(rate)
            print(f"{shape}: repetition {repetition} of {arguments.repetitions}", file=sys.stderr)
        facts = {name: engine.facts for name, engine in engines.items()}
    return {"shape": shape, "engines": facts, "rates": rates}


def made(python: Path, peer_name: str, config: Path, model: Path) -> Path:
    """A shape in a peer's own files; left alone where `--keep` has them from an earlier run."""
    if not model.exists():
        command = [python, HERE / f"peers_{peer_name}.py", "shape", config, model]
        subprocess.run(command, check=True, stdout=sys.stderr, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    return model


def cell(values: list[float]) -> str:
    """Median and extremes."""
    return f"{statistics.median(values):,.1f} ({min(values):,.1f}-{max(values):,.1f})" if values else ""


def ratio(mine: list[float], theirs: list[float]) -> str:
    """Median of the ratios within repetitions."""
    return f"{statistics.median(a / b for a, b in zip(mine, theirs, strict=True)):.2f}x" if theirs else ""


def table(results: list[dict[str, Any]]) -> Iterator[str]:
    """Markdown: a row for each shape and engine; ratios are ours over theirs."""
    found = [figure for result in results for figure in result["rates"]["freehold"]]
    figures = list(dict.fromkeys(found))
    yield "| shape | engine | " + " | ".join(f"{figure}, tok/s | ours is" for figure in figures) + " |"
    yield "|---|---|" + "---:|---:|" * len(figures)
    for result in results:
        ours = result["rates"]["freehold"]
        for name, rates in result["rates"].items():
            cells = [
                f"{cell(rates.get(figure, []))} | "
                + ("" if name == "freehold" else ratio(ours.get(figure, []), rates.get(figure, [])))
                for figure in figures
            ]
            yield f"| {result['shape']} | {name} | " + " | ".join(cells) + " |"


def machine() -> str:
    """Processor and cores."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{model}, {os.cpu_count()} cores"


def write(path: Path, report: dict[str, Any]) -> None:
    """The table into the file, between its marks."""
    before, _, rest = path.read_text().partition("<!-- peers -->\n")
    _, _, after = rest.partition("<!-- end -->\n")
    head = f"{report['machine']}; {report['threads']} threads; load {report['load']:.1f} before; "
    lines = [head + f"median of {report['repetitions']} repetitions (lowest-highest).", "", *table(report["results"])]
    path.write_text(before + "<!-- peers -->\n" + "\n".join(lines) + "\n<!-- end -->\n" + after)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llama", type=Path, help="interpreter that has llama-cpp-python and gguf")
    parser.add_argument("--openvino", type=Path, help="interpreter that has openvino-genai, optimum-intel and nncf")
    parser.add_argument("--transformers", type=Path, help="interpreter that has torch and transformers")
    parser.add_argument("--variants", default="fp32,bf16", help="of transformers")
    parser.add_argument("--shapes", default="llama-135m,qwen2.5-0.5b,qwen2.5-1.5b")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--streams", type=int, default=32, help="0 leaves the figure out")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="directory to keep the peers' files in, for another run")
    parser.add_argument("--json", type=Path, help="write everything that was measured")
    parser.add_argument("--append", type=Path, help="results of an earlier --json that the table shows, too")
    parser.add_argument("--write", type=Path, help="put the table into this file")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.shapes.split(",") if name not in SHAPES]
    if unknown or arguments.repetitions < 1:
        parser.error(f"unknown shape {unknown[0]}; known: {', '.join(SHAPES)}" if unknown else "repetitions: 1 or more")
    load, threads = os.getloadavg()[0], choose_threads(arguments.threads)[0]
    results = json.loads(arguments.append.read_text())["results"] if arguments.append else []
    results += [measure(shape, arguments, threads) for shape in arguments.shapes.split(",")]
    report = {
        "machine": machine(),
        "threads": threads,
        "load": load,
        "repetitions": arguments.repetitions,
        "results": results,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2))
    if arguments.write:
        write(arguments.write, report)
    print("\n".join(table(results)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
