"""The planned mix against one format for everything, at equal bits, measured, and the plot that shows it.

    python bench/mix_against_uniform.py smollm2 [--formats "int4 g128,int4 g64,int4 g32,int5 g64"] [--max-tokens 8192]
        [--work DIR] [--plot FILE.png] [--json FILE] [--compress "--asymmetric"]

Each format is given to every linear layer and the embedding (`freehold compress --uniform`); the plan then gets the bits
that this took (`--bits`), the same statistics and the same rounding. All are measured in one `freehold eval` on the same
text, the built-in one by default. What is compared is the KL divergence of the two at one size. --work keeps the models
and the calibration; what is finished there is taken as it is. Prints a table; exits with 1 if a mix saves less than 20%
(--wanted).
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

FREEHOLD = Path(sys.executable).with_name("freehold")


def freehold(*words: object) -> dict[str, Any]:
    done = subprocess.run([FREEHOLD, *map(str, words), "--json"], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def compressed(model: str, out: Path, statistics: Path, *words: str) -> float:
    """Bits a weight of a model that is made, or found finished, at `out`."""
    if not out.exists():
        freehold("compress", model, "--out", out, "--statistics", statistics, *words)
    report = json.loads((out / "freehold-report.json").read_text())
    return float(report["bits_per_weight"])


def pair(model: str, form: str, work: Path, extra: list[str]) -> tuple[Path, Path]:
    """The uniform model and the mix of its size."""
    name, statistics = form.replace(" ", "-"), work / "statistics"
    uniform, mix = work / f"uniform-{name}", work / f"mix-at-{name}"
    bits = compressed(model, uniform, statistics, "--uniform", form, *extra)
    compressed(model, mix, statistics, "--bits", f"{bits:.6f}", *extra)
    return uniform, mix


def plot(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for kind, mark in (("uniform", "o--"), ("mix", "s-")):
        found = sorted((row[kind] for row in rows), key=lambda one: one["bits_per_weight"])
        axes.errorbar(
            [one["bits_per_weight"] for one in found],
            [one["kld_mean"] for one in found],
            [one["kld_ci95"] for one in found],
            fmt=mark,
            capsize=3,
            label={"uniform": "one format for everything", "mix": "planned mix"}[kind],
        )
    for row in rows:
        at = (row["uniform"]["bits_per_weight"], row["uniform"]["kld_mean"])
        axes.annotate(row["format"], at, xytext=(5, 5), textcoords="offset points", fontsize=8)
    axes.set(xlabel="bits per weight, everything included", ylabel="KL divergence (nats)", title=title)
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--formats", default="int4 g128,int4 g64,int4 g32,int5 g64")
    parser.add_argument("--max-tokens", type=int, default=8192)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--compress", default="", help="more words for every freehold compress")
    parser.add_argument("--wanted", type=float, default=0.2)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    formats = [text.strip() for text in arguments.formats.split(",")]
    with tempfile.TemporaryDirectory() as made:
        work = (arguments.work or Path(made)).absolute()
        work.mkdir(parents=True, exist_ok=True)
        pairs = [pair(arguments.model, form, work, shlex.split(arguments.compress)) for form in formats]
        words = ["--text", arguments.text] if arguments.text else []
        models = [path for two in pairs for path in two]
        found = freehold("eval", arguments.model, *models, "--max-tokens", arguments.max_tokens, *words)["models"]
    rows = [
        {"format": form, "uniform": uniform, "mix": mix, "saved": 1 - mix["kld_mean"] / uniform["kld_mean"]}
        for form, uniform, mix in zip(formats, found[0::2], found[1::2], strict=True)
    ]
    print(f"{'FORMAT':18s} {'UNIFORM':>30s}  {'MIX':>30s}  SAVED")
    for row in rows:
        cells = [
            f"{one['bits_per_weight']:.3f} bits {one['kld_mean']:.4f} {one['top1_agreement']:.1%}"
            for one in (row["uniform"], row["mix"])
        ]
        print(f"{row['format']:18s} {cells[0]:>30s}  {cells[1]:>30s}  {row['saved']:.1%}")
    if arguments.plot:
        plot(
            rows, arguments.plot, f"{arguments.model}: planned mix against one format, {found[0]['tokens']:,} positions"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))
    if min(row["saved"] for row in rows) < arguments.wanted:
        sys.exit(f"a mix saves less than {arguments.wanted:.0%}")


if __name__ == "__main__":
    main()
