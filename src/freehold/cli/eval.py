"""`freehold eval`: how far a compressed model strays from its original, on a text.

Finds the text and turns it into token ids; the measuring is `engine.evaluate`'s.
"""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from freehold.cli.compress import read_text
from freehold.cli.options import as_json, with_settings
from freehold.cli.output import emit, emit_json, progress, table
from freehold.settings import Settings

if TYPE_CHECKING:
    from freehold.engine.evaluate import Evaluation

DEFAULT_TOKENS = 20_480  # 40 windows of 512: the mean of the divergence moves by a few percent beyond that


@click.command("eval")
@click.argument("original")
@click.argument("compressed")
@click.option("--text", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="UTF-8 text to measure on.")
@click.option(
    "--max-tokens", type=click.IntRange(min=0), default=DEFAULT_TOKENS, show_default=True, help="0 = the whole text."
)
@with_settings("engine.threads", "engine.isa", "engine.kv_dtype")
@as_json
def command(
    original: str, compressed: str, text: Path | None, max_tokens: int, settings: Settings, as_json: bool
) -> None:
    """Compare a compressed model with its original.

    Perplexity of both, mean and 99th percentile of the KL divergence from ORIGINAL to COMPRESSED, how often both hold
    the same token most likely, bits per weight, and the size ratio. Without --text: the help topics of Python.
    """
    from freehold.engine.evaluate import evaluate
    from freehold.formats import load_tokenizer, store

    words, source = (
        (read_text(text), str(text))
        if text
        else (help_topics(), f"pydoc_data.topics, Python {platform.python_version()}")
    )
    with progress() as bar:
        first, second = (store.resolve(reference, progress=bar) for reference in (original, compressed))
        ids = load_tokenizer(first).encode(words, special=False)
        result = evaluate(
            first, second, ids[:max_tokens] if max_tokens else ids, progress=bar, settings=settings.engine
        )
    facts = {"text": source, "text_sha256": hashlib.sha256(words.encode()).hexdigest()}
    _report({"original": original, "compressed": compressed, **facts}, result, as_json)


def help_topics() -> str:
    """The help topics that come with Python: entries in sorted order, joined by blank lines."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def _report(facts: dict[str, Any], result: Evaluation, as_json: bool) -> None:
    import msgspec

    report = facts | msgspec.to_builtins(result)
    if as_json:
        emit_json(report)
    else:
        rows = [
            (key.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else str(value))
            for key, value in report.items()
        ]
        emit(table(rows, ("MEASURE", "VALUE")))
