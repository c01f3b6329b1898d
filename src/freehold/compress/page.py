"""`report.html`: a compressed model's report as one page without anything from outside, for people.

Draws what `Report` holds as SVG and tables. Knows no files and measures nothing.
"""

from __future__ import annotations

import html
from collections import defaultdict
from collections.abc import Sequence

from freehold.compress.report import Report, TensorReport

PAGE = "report.html"
_WIDTH, _HEIGHT = 720, 220
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#1c2530}
table{border-collapse:collapse;width:100%;font-size:13px}
td,th{text-align:left;padding:.25em .6em;border-bottom:1px solid #dde3ea}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}h2{margin-top:2em}svg{width:100%;height:auto}
svg text{font-size:11px;fill:#44515f}.a{fill:#2f6f9f}.b{fill:#c8793a}figure{margin:1em 0}
figcaption{color:#5a6774;font-size:13px}
@media(prefers-color-scheme:dark){body{background:#14191f;color:#dbe3ea}td,th{border-color:#2c3641}svg text{fill:#a5b3c0}}
"""


def page(report: Report) -> str:
    """The whole page."""
    name = html.escape(report.source_name or report.source)
    sections = [
        f"<h1>{name}, compressed</h1>",
        _summary(report),
        "<h2>Bits</h2>",
        _histogram(report.tensors),
        "<h2>Error by layer</h2>",
        _errors(report.tensors),
        "<h2>Quality against size</h2>",
        _curve(report),
        *(["<h2>Tuning</h2>", _tuning(report)] if report.tuning else []),
        "<h2>Kept in higher precision</h2>",
        _higher(report),
        "<h2>Every tensor</h2>",
        _tensors(report.tensors),
    ]
    head = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}, compressed</title><style>{_STYLE}</style>'
    )
    return head + "\n".join(sections) + "</html>\n"


def _summary(report: Report) -> str:
    facts = [
        ("Size", f"{report.bytes:,} bytes, {report.smaller_than_bf16:.1%} below bf16"),
        ("Bits per weight", f"{report.bits_per_weight:.3f}, embeddings, scales and norms included"),
        ("Method", report.method),
        (
            "Relative error of weights",
            f"{report.error_mean:.4f}; worst {report.error_max:.4f} in {report.error_max_tensor}",
        ),
    ]
    if report.predicted_kld is not None:
        facts.append(("Predicted KL divergence", f"{report.predicted_kld:.4f} nats a token from rounding weights"))
    if report.activation_kld is not None:
        facts.append(("int8 activations", f"{report.activation_kld:.4f} nats predicted"))
    if report.calibration is not None:
        facts.append(
            ("Calibrated on", f"{report.calibration['tokens']:,} tokens, text {report.calibration['text'][:16]}")
        )
    if report.two_pass:
        facts.append(("Read in two int8 passes", ", ".join(report.two_pass)))
    facts.append(("Source", f"{report.source}, SHA-256 {report.source_sha256}"))
    facts.append(("Licence of the source", report.source_licence or "not declared"))
    facts += [("Note", warning) for warning in report.warnings]
    return _table(("", ""), facts)


def _histogram(tensors: Sequence[TensorReport]) -> str:
    weights: dict[str, int] = defaultdict(int)
    for tensor in tensors:
        count = 1
        for size in tensor.shape:
            count *= size
        weights[tensor.stored] += count
    total = sum(weights.values())
    bars = [(f"{kind}: {count / total:.1%}", count / total) for kind, count in sorted(weights.items())]
    return _rows(bars, "Share of all weights in each number format.")


def _errors(tensors: Sequence[TensorReport]) -> str:
    costs = {tensor.group: tensor.cost for tensor in tensors if tensor.cost is not None}
    if costs:
        return _columns(list(costs.items()), "Nats of KL divergence each group of tensors is predicted to lose.")
    errors = [(tensor.name, tensor.relative_error) for tensor in tensors if tensor.stored.startswith("int")]
    return _columns(errors, "Relative error of each quantized tensor.")


def _curve(report: Report) -> str:
    if not report.curve or report.predicted_kld is None:
        return "<p>Without calibration there is nothing to predict; <code>freehold eval</code> measures.</p>"
    points = sorted(report.curve)
    low, high = points[0][0], points[-1][0]
    top = max(cost for _, cost in points) or 1.0

    def at(bits: float, cost: float) -> tuple[float, float]:
        return 50 + (bits - low) / max(high - low, 1e-9) * (_WIDTH - 70), 10 + (1 - cost / top) * (_HEIGHT - 40)

    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in points))
    x, y = at(min(max(report.bits_per_weight, low), high), min(report.predicted_kld, top))
    body = f'<polyline points="{line}" fill="none" stroke="#2f6f9f" stroke-width="2"/>'
    body += f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" class="b"/>'
    for bits, _ in (points[0], points[len(points) // 2], points[-1]):
        body += f'<text x="{at(bits, 0)[0]:.0f}" y="{_HEIGHT - 10}">{bits:.2f} bits</text>'
    body += f'<text x="0" y="18">{top:.3f}</text><text x="0" y="{_HEIGHT - 28}">0 nats</text>'
    return _figure(body, _HEIGHT, "Predicted KL divergence of the best plan at each size; the dot is this model.")


def _tuning(report: Report) -> str:
    points = [(float(seconds) / 60, float(kld)) for seconds, kld in (report.tuning or {})["curve"]]
    last, top = max(points[-1][0], 1e-9), max(kld for _, kld in points) or 1.0
    at = [(50 + minute / last * (_WIDTH - 110), 10 + (1 - kld / top) * (_HEIGHT - 40)) for minute, kld in points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
    body = f'<polyline points="{line}" fill="none" stroke="#2f6f9f" stroke-width="2"/>'
    for (x, y), (minute, kld) in zip(at, points, strict=True):
        body += f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" class="b"><title>{minute:.1f} min: {kld:.4f}</title></circle>'
    body += f'<text x="0" y="18">{top:.3f}</text><text x="0" y="{_HEIGHT - 28}">0 nats</text>'
    body += f'<text x="{_WIDTH - 60}" y="{_HEIGHT - 10}">{last:.1f} min</text>'
    words = f"{report.tuned_words[:1].upper()}{report.tuned_words[1:]}."
    return f"<p>{html.escape(words)}</p>" + _figure(
        body, _HEIGHT, "KL divergence on text held out while scales were tuned."
    )


def _higher(report: Report) -> str:
    rows = [
        (tensor.name, tensor.stored, tensor.reason)
        for tensor in report.tensors
        if len(tensor.shape) == 2 and not tensor.stored.startswith(("int3", "int4"))
    ]
    if not rows:
        return "<p>No matrix: all of them have 4 bits or fewer.</p>"
    return _table(("Tensor", "Format", "Why"), rows)


def _tensors(tensors: Sequence[TensorReport]) -> str:
    rows = [
        (t.name, t.source_dtype, t.stored, f"{t.bytes:,}", f"{t.relative_error:.4f}", t.reason)
        for t in tensors
        if len(t.shape) > 1
    ]
    return _table(("Tensor", "From", "To", "Bytes", "Error", "Why"), rows)


def _rows(bars: Sequence[tuple[str, float]], caption: str) -> str:
    body = ""
    for number, (label, share) in enumerate(bars):
        y = 24 * number
        body += f'<rect class="a" x="240" y="{y + 4}" width="{share * (_WIDTH - 260):.1f}" height="16"/>'
        body += f'<text x="0" y="{y + 16}">{html.escape(label)}</text>'
    return _figure(body, 24 * len(bars) + 4, caption)


def _columns(bars: Sequence[tuple[str, float]], caption: str) -> str:
    top = max((value for _, value in bars), default=0.0) or 1.0
    width = (_WIDTH - 60) / max(len(bars), 1)
    body = f'<text x="0" y="14">{top:.4f}</text>'
    for number, (label, value) in enumerate(bars):
        tall = value / top * (_HEIGHT - 20)
        body += (
            f'<rect class="a" x="{56 + number * width:.1f}" y="{_HEIGHT - tall:.1f}" width="{max(width - 1, 0.5):.1f}" '
            f'height="{tall:.1f}"><title>{html.escape(label)}: {value:.5f}</title></rect>'
        )
    return _figure(body, _HEIGHT, caption)


def _figure(body: str, height: int, caption: str) -> str:
    svg = f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{html.escape(caption)}">{body}</svg>'
    return f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header) if any(header) else ""
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>" if head else f"<table>{body}</table>"
