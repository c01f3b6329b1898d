"""`freehold eval`: how far compressed models stray from their original, on a text and on tasks.

Finds the text and turns it into token ids; the measuring is `engine.evaluate`'s, the judging of programs `humaneval`'s.
"""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from freehold.cli.compress import read_text
from freehold.cli.options import as_json, with_settings
from freehold.cli.output import emit, emit_json, progress, say, table
from freehold.errors import UsageError
from freehold.settings import Settings

if TYPE_CHECKING:
    from freehold.engine.evaluate import Evaluation

DEFAULT_TOKENS = 20_480  # 40 windows of 512: the mean of the divergence moves by a few percent beyond that


@click.command("eval")
@click.argument("original")
@click.argument("compressed", nargs=-1, required=True)
@click.option("--text", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="UTF-8 text to measure on.")
@click.option(
    "--max-tokens", type=click.IntRange(min=0), default=DEFAULT_TOKENS, show_default=True, help="0 = the whole text."
)
@click.option("--task", type=click.Choice(["divergence", "humaneval"]), default="divergence", show_default=True)
@click.option("--problems", type=click.IntRange(min=1), help="HumanEval: only the first so many. [default: all 164]")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Write size against divergence as PNG.")
@with_settings("engine.threads", "engine.isa", "engine.kv_dtype")
@as_json
def command(
    original: str,
    compressed: tuple[str, ...],
    text: Path | None,
    max_tokens: int,
    task: str,
    problems: int | None,
    plot: Path | None,
    settings: Settings,
    as_json: bool,
) -> None:
    """Compare compressed models with their original.

    Perplexity of both, mean and 99th percentile of the KL divergence from ORIGINAL to COMPRESSED, how often both hold
    the same token most likely, bits per weight, and the size ratio. Without --text: the help topics of Python. With
    several models also a plot of size against divergence. --task humaneval: pass@1 of all of them, ORIGINAL included.
    """
    if task == "humaneval":
        if plot or text:
            raise UsageError("--plot and --text are for --task divergence")
        _humaneval([original, *compressed], problems, settings, as_json)
        return
    from freehold.engine.evaluate import evaluate_all
    from freehold.formats import load_tokenizer, store

    words, source = (
        (read_text(text), str(text))
        if text
        else (help_topics(), f"pydoc_data.topics, Python {platform.python_version()}")
    )
    with progress() as bar:
        first, *others = (store.resolve(reference, progress=bar) for reference in (original, *compressed))
        tokenizer = load_tokenizer(first)
        ids = tokenizer.encode(words, special=False)
        chosen = ids[:max_tokens] if max_tokens else ids
        results = evaluate_all(first, others, chosen, bos=tokenizer.begin, progress=bar, settings=settings.engine)
    facts = {"original": original, "text": source, "text_sha256": hashlib.sha256(words.encode()).hexdigest()}
    _report(facts, list(compressed), results, plot, as_json)


def help_topics() -> str:
    """The help topics that come with Python: entries in sorted order, joined by blank lines."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def _humaneval(models: list[str], limit: int | None, settings: Settings, as_json: bool) -> None:
    from freehold.cli.humaneval import humaneval, isolated, paired, problems
    from freehold.formats import store

    chosen = problems(limit)
    if not isolated():
        say("warning: this system gives no network namespace: completions run with time and memory limits only")
    with progress() as bar:
        found = [humaneval(store.resolve(model, progress=bar), chosen, settings.engine, bar) for model in models]
    pairs = [paired(found[0][1], passed) for _, passed in found]
    if as_json:
        rows = [
            {"model": m, "passed_problems": p} | _facts(r) | ({"against_original": _facts(pair)} if place else {})
            for place, (m, (r, p), pair) in enumerate(zip(models, found, pairs, strict=True))
        ]
        emit_json({"task": "humaneval", "tasks": [problem["task_id"] for problem in chosen], "models": rows})
        return
    shown = [
        (
            model,
            f"{r.passed} of {r.problems}",
            f"{r.rate:.1%}",
            f"{r.low:.1%} to {r.high:.1%}",
            f"{pair.difference:+.1%}, {pair.low:+.1%} to {pair.high:+.1%} (+{pair.gained} -{pair.lost})"
            if place
            else "",
        )
        for place, (model, (r, _), pair) in enumerate(zip(models, found, pairs, strict=True))
    ]
    emit(table(shown, ("MODEL", "PASSED", "PASS@1", "95% INTERVAL", "AGAINST THE ORIGINAL, PAIRED")))


def _facts(value: Any) -> dict[str, Any]:
    import msgspec

    found: dict[str, Any] = msgspec.to_builtins(value)
    return found


def _report(
    facts: dict[str, Any], names: list[str], results: list[Evaluation], plot: Path | None, as_json: bool
) -> None:
    """One model as a table of measures (a flat object in JSON), several as a row each (a list `models`) and a plot."""
    from freehold.cli.plot import Point, png, terminal

    points = [Point(name, r.bits_per_weight, r.kld_mean, r.kld_ci95) for name, r in zip(names, results, strict=True)]
    if plot is not None:
        png(points, plot, f"{facts['original']} on {facts['text']}")
    models = [{"compressed": name} | _facts(result) for name, result in zip(names, results, strict=True)]
    if as_json:
        emit_json(facts | models[0] if len(models) == 1 else facts | {"models": models})
    elif len(models) == 1:
        rows = [
            (key.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else str(value))
            for key, value in (facts | models[0]).items()
        ]
        emit(table(rows, ("MEASURE", "VALUE")))
    else:
        shown = [
            (
                name,
                f"{r.bits_per_weight:.3f}",
                f"{r.kld_mean:.4f} +- {r.kld_ci95:.4f}",
                f"{r.kld_p99:.3f}",
                f"{r.top1_agreement:.1%}",
                f"{r.perplexity_original:.3f}",
                f"{r.perplexity_compressed:.3f}",
                f"{1 - r.size_ratio:.1%}",
            )
            for name, r in zip(names, results, strict=True)
        ]
        header = ("MODEL", "BITS", "KLD", "P99", "TOP-1", "PPL ORIGINAL", "PPL", "BELOW BF16")
        emit(table(shown, header) + "\n\n" + terminal(points))
