"""Our engine on the compressed model against transformers on the dequantized original, in one go.

    python bench/compare_transformers.py [--model smollm2] [--compressed DIR] [--repetitions 5] [--int8] [--json] [--check]

Same machine, same number of threads, same token ids, interleaved: in every repetition each engine runs each figure
once, in an order that rotates. A figure is the median of the repetitions; a ratio is the median of the ratios within
repetitions, so that a slow minute of the machine weighs on both sides. Prefill: 512 tokens in, until the first token.
Decode: 128 tokens after the first, from a prompt of one token. Both choose the likeliest token; after the prompt each
follows its own.

transformers runs in an environment of its own, made by `make oracle`: `--python` or ORACLE_PYTHON name its interpreter.
`--check` exits 1 when decode is below 3x transformers float32 or prefill below transformers bfloat16, and 3 when the
machine is busy: ratios from such a run mean little.
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
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from freehold.compress import compress
from freehold.engine.request import GenerateRequest, Sampling
from freehold.engine.runner import Engine
from freehold.formats import store
from freehold.kernels.cpu import choose_threads
from freehold.settings import EngineSettings

ROOT = Path(__file__).parent.parent
TARGETS = {"decode_vs_fp32": 3.0, "prefill_vs_bf16": 1.0}
SETTLE = 0.1
"""Seconds between figures, in which the other side's threads stop spinning."""


class Ours:
    """The engine in this process, one request at a time."""

    def __init__(self, path: Path, threads: int) -> None:
        self.engine = Engine.load(path, EngineSettings(threads=threads, prefix_cache=False))

    def seconds(self, kind: str, ids: list[int], tokens: int) -> float:
        """Prefill: from the request to its first token. Decode: from the first token to the last."""
        count = 1 if kind == "prefill" else tokens + 1
        began = time.perf_counter()
        self.engine.add(GenerateRequest("0", ids, Sampling(temperature=0.0, max_tokens=count)))
        times = []
        while self.engine.has_work:
            for output in self.engine.step():
                if output.finish == "error":
                    raise SystemExit(f"our engine failed: {output.error}")
                times.append(time.perf_counter())
        if len(times) != count:
            raise SystemExit(f"our engine gave {len(times)} tokens, {count} were asked for")
        return times[0] - began if kind == "prefill" else times[-1] - times[0]


class Theirs:
    """transformers in its own process; see `peers_transformers.py`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.facts = self._read()

    def seconds(self, variant: str, kind: str, ids: list[int], tokens: int) -> float:
        """As `Ours.seconds`, of one variant."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"variant": variant, "kind": kind, "ids": ids, "tokens": tokens}) + "\n")
        self._process.stdin.flush()
        return float(self._read()["seconds"])

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"transformers' process ended with exit code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def transformers_process(python: Path, checkpoint: Path, threads: int, variants: list[str]) -> Iterator[Theirs]:
    """transformers, loaded and waiting; ended on the way out."""
    command = [python, ROOT / "bench" / "peers_transformers.py", checkpoint, "--threads", str(threads)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    with subprocess.Popen(
        [*map(str, command), "--variants", ",".join(variants)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    ) as process:  # fmt: skip
        try:
            yield Theirs(process)
        finally:
            process.terminate()


def measure(
    ours: Ours, theirs: Theirs, variants: list[str], arguments: argparse.Namespace
) -> dict[str, dict[str, list[float]]]:
    """Tokens per second: engine -> kind -> one value for each repetition. The first round only warms up."""
    engines = ["freehold", *variants]
    rates: dict[str, dict[str, list[float]]] = {name: {"prefill": [], "decode": []} for name in engines}
    for repetition in range(arguments.repetitions + 1):
        # Other ids in every round, the same for all engines: nobody can answer from a cache of prompts.
        ids = np.random.default_rng(repetition).integers(0, theirs.facts["vocabulary"], arguments.prefill).tolist()
        work = {"prefill": (ids, arguments.prefill), "decode": (ids[:1], arguments.decode)}
        shift = repetition % len(engines)
        for kind, (prompt, tokens) in work.items():
            for name in engines[shift:] + engines[:shift]:
                time.sleep(SETTLE)
                run = ours.seconds if name == "freehold" else lambda *of, name=name: theirs.seconds(name, *of)
                seconds = run(kind, prompt, tokens)
                if repetition:
                    rates[name][kind].append(tokens / seconds)
        print(f"round {repetition} of {arguments.repetitions}", file=sys.stderr)
    return rates


def spread(values: list[float]) -> dict[str, Any]:
    """Median, extremes and the values themselves."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "values": values}


def ratios(rates: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, Any]]:
    """Ours over theirs, within each repetition."""
    out = {}
    for name, kinds in rates.items():
        if name != "freehold":
            for kind, values in kinds.items():
                pairs = zip(rates["freehold"][kind], values, strict=True)
                out[f"{kind}_vs_{name}"] = spread([mine / yours for mine, yours in pairs])
    return out


def report_of(arguments: argparse.Namespace, variants: list[str]) -> dict[str, Any]:
    """Everything measured; JSON."""
    source = store.resolve(arguments.model)
    threads = choose_threads(arguments.threads)[0]
    with tempfile.TemporaryDirectory() as scratch:
        compressed = arguments.compressed or Path(scratch) / "compressed"
        if not compressed.exists():
            print(f"compressing {arguments.model}", file=sys.stderr)
            compress(source, compressed)
        ours = Ours(compressed, threads)
        with transformers_process(arguments.python, source, threads, variants) as theirs:
            rates = measure(ours, theirs, variants, arguments)
            peer = theirs.facts
    facts = ours.engine.facts
    return {
        "model": arguments.model,
        "machine": {"cpu": _cpu(), "cpus": os.cpu_count(), "load_before": arguments.load, "python": platform.python_version()},
        "threads": threads,
        "repetitions": arguments.repetitions,
        "tokens": {"prefill": arguments.prefill, "decode": arguments.decode},
        "freehold": {
            "isa": facts.isa, "kv_dtype": facts.kv_dtype, "threads": facts.threads,
            "bits_per_weight": facts.bits_per_weight,
        },
        "transformers": {key: peer[key] for key in ("transformers", "torch", "attention", "cpu", "threads")},
        "tokens_per_second": {
            name: {kind: spread(values) for kind, values in kinds.items()} for name, kinds in rates.items()
        },
        "ratios": ratios(rates),
        "targets": TARGETS,
    }  # fmt: skip


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def show(report: dict[str, Any]) -> None:
    """The report as a table."""
    peer, ours = report["transformers"], report["freehold"]
    print(f"{report['model']} on {report['machine']['cpu']}, {report['threads']} threads, "
          f"median of {report['repetitions']} (lowest - highest)")  # fmt: skip
    print(f"freehold: {ours['isa']}, {ours['bits_per_weight']:.2f} bits a weight; "
          f"transformers {peer['transformers']}, torch {peer['torch']}, {peer['cpu']}")  # fmt: skip
    print(f"{'tok/s':<18}{'prefill ' + str(report['tokens']['prefill']):>28}"
          f"{'decode ' + str(report['tokens']['decode']):>28}")  # fmt: skip
    for name, kinds in report["tokens_per_second"].items():
        cells = [f"{k['median']:,.1f} ({k['min']:,.1f} - {k['max']:,.1f})" for k in kinds.values()]
        label = name if name == "freehold" else f"transformers {name}"
        print(f"{label:<18}" + "".join(f"{cell:>28}" for cell in cells))
    for name, ratio in report["ratios"].items():
        target = f", wanted {TARGETS[name]:.1f}" if name in TARGETS else ""
        print(f"{name}: {ratio['median']:.2f}x ({ratio['min']:.2f} - {ratio['max']:.2f}){target}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2", help="what is compressed, and what transformers dequantizes")
    parser.add_argument(
        "--compressed", type=Path, help="compressed directory; made in a scratch directory when missing"
    )
    parser.add_argument("--threads", type=int, default=0, help="of both sides; 0 = all this process may use")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--decode", type=int, default=128)
    parser.add_argument("--int8", action="store_true", help="torch's dynamic int8 quantization, too")
    parser.add_argument(
        "--python", type=Path, default=Path(os.environ.get("ORACLE_PYTHON", ROOT / ".venv-oracle" / "bin" / "python"))
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    arguments = parser.parse_args()
    if arguments.repetitions < 1 or arguments.prefill < 1 or arguments.decode < 1:
        parser.error("repetitions, prefill and decode must be 1 or more")
    if not arguments.python.exists():
        parser.error(f"no interpreter at {arguments.python}: run `make oracle`, or name one with --python")
    arguments.load = os.getloadavg()[0]
    if arguments.load > 0.5 * (os.cpu_count() or 1):
        busy = f"load average {arguments.load:.1f}: something else runs here, so figures mean little"
        if arguments.check:
            parser.exit(3, f"{busy}\nhint: --check wants an idle machine; wait until it is\n")
        print(f"note: {busy}", file=sys.stderr)
    report = report_of(arguments, ["fp32", "bf16", *(["int8"] if arguments.int8 else [])])
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        show(report)
    missed = [name for name, target in TARGETS.items() if report["ratios"][name]["median"] < target]
    return 1 if arguments.check and missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
