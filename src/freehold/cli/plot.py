"""Size against KL divergence, for several compressed models: on a terminal, and as PNG where matplotlib is installed.

Knows points and names; measures nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from freehold.errors import UsageError

WIDTH, HEIGHT = 64, 16


@dataclass(frozen=True, slots=True)
class Point:
    """A model: its name, bits per weight, mean KL divergence in nats and half its 95% interval."""

    name: str
    bits: float
    kld: float
    spread: float


def frontier(points: Sequence[Point]) -> list[Point]:
    """Those that no other beats in both size and divergence, by size."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.bits, p.kld)):
        if not best or point.kld < best[-1].kld:
            best.append(point)
    return best


def terminal(points: Sequence[Point]) -> str:
    """The plot as text: a letter for each model, capital on the frontier, and a legend."""
    low, high = min(p.bits for p in points), max(p.bits for p in points)
    top = max(p.kld for p in points) or 1.0
    grid = [[" "] * WIDTH for _ in range(HEIGHT)]
    front = frontier(points)
    legend = []
    for number, point in enumerate(points):
        letter = chr(ord("a") + number % 26)
        mark = letter.upper() if point in front else letter
        x = round((point.bits - low) / max(high - low, 1e-9) * (WIDTH - 1))
        y = HEIGHT - 1 - round(point.kld / top * (HEIGHT - 1))
        grid[y][x] = mark
        legend.append(f"{mark}  {point.bits:6.3f} bits  KLD {point.kld:.4f} +- {point.spread:.4f}  {point.name}")
    lines = [f"{top * (HEIGHT - 1 - row) / (HEIGHT - 1):7.4f} |{''.join(cells)}" for row, cells in enumerate(grid)]
    foot = f"{low:.2f}".ljust(WIDTH - 5) + f"{high:.2f}"
    return "\n".join([*lines, "        +" + "-" * WIDTH, "         " + foot + " bits", *legend])


def png(points: Sequence[Point], path: Path, title: str) -> None:
    """The plot as a picture.

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        raise UsageError("a picture needs matplotlib", hint="pip install 'freehold[plot]'") from None
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    axes.errorbar([p.bits for p in points], [p.kld for p in points], [p.spread for p in points], fmt="o", capsize=3)
    front = frontier(points)
    axes.plot([p.bits for p in front], [p.kld for p in front], "--", linewidth=1)
    for point in points:
        axes.annotate(point.name, (point.bits, point.kld), xytext=(5, 5), textcoords="offset points", fontsize=8)
    axes.set(xlabel="bits per weight, everything included", ylabel="KL divergence (nats)", title=title)
    axes.set_ylim(bottom=0)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
