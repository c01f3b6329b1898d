"""`freehold compress`: a model in, a smaller model and a report out.

Brings the two rooms together: `engine.calibrate` measures a text's passage through the model and leaves files,
`compress` plans and rounds by them, `engine.tune` moves what was rounded towards the original.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import click

from freehold.cli.on_record import on_record
from freehold.cli.options import as_json
from freehold.cli.output import emit, emit_json, printable, progress, say, size, table
from freehold.errors import UnsupportedError, UsageError
from freehold.progress import Progress

if TYPE_CHECKING:
    from freehold.compress import CompressOptions, Report, Tuner

DEFAULT_BITS = 4.75  # 70% below bfloat16; more where what transformers loads needs more
DEFAULT_TOKENS = 8192
RULES = "none"


@click.command("compress")
@click.argument("source")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Directory to write.")
@click.option("--name", help="Name in the store to write to instead. [default: SOURCE's, with -int4 or -int8]")
@click.option(
    "--bits",
    type=click.FloatRange(4, 16),
    help=f"Bits for each weight of the whole model, embeddings included. [default: {DEFAULT_BITS}, or as few more as "
    "an 8-bit embedding needs]",
)
@click.option("--uniform", metavar="FORMAT", help='One format for everything instead: "int4 g32", "int8 per row".')
@click.option("--plan", type=click.Path(dir_okay=False, path_type=Path), help="Follow this plan file.")
@click.option("--plan-only", is_flag=True, help="Print the plan with its reasons; write nothing.")
@click.option(
    "--calibration",
    metavar="builtin|none|FILE",
    default="builtin",
    show_default=True,
    help="Text to measure on; none = round to nearest, formats by rule.",
)
@click.option(
    "--calibration-tokens", type=click.IntRange(min=64), default=DEFAULT_TOKENS, show_default=True, help="Its tokens."
)
@click.option(
    "--statistics",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory to keep the calibration in, for other budgets. [default: removed at the end]",
)
@click.option(
    "--tune",
    metavar="MINUTES",
    type=click.FloatRange(min=0, min_open=True),
    help="Then tune scales and norm gains to the original on that text (all of it), for so many minutes.",
)
@click.option("--asymmetric", is_flag=True, help="Consider grids with zero points too: better, but not loaded by all.")
@click.option(
    "--widths",
    metavar="BITS,...",
    help="Bits that a plan may use. 3, 5 and 6 pay by size, but in memory they take 4, 8 and 8. [default: 3,4,5,6,8]",
)
@click.option(
    "--fused", is_flag=True, help="One format for query, key and value, and one for gate and up, as vLLM wants."
)
@click.option("--group-size", type=click.Choice(["32", "64", "128"]), help="Without calibration. [default: 32]")
@click.option(
    "--embedding-bits",
    type=click.Choice(["3", "4", "5", "6", "8", "16"]),
    help="Of the embedding: 8 for transformers, 16 for vLLM. [default: any with --bits, else 8]",
)
@click.option(
    "--gguf", type=click.Path(dir_okay=False, path_type=Path), help="Write the result as this .gguf file too."
)
@click.option("--force", is_flag=True, help="Replace an earlier result.")
@as_json
def command(
    source: str,
    out: Path | None,
    name: str | None,
    bits: float | None,
    uniform: str | None,
    plan: Path | None,
    plan_only: bool,
    calibration: str,
    calibration_tokens: int,
    statistics: Path | None,
    tune: float | None,
    asymmetric: bool,
    widths: str | None,
    fused: bool,
    group_size: str | None,
    embedding_bits: str | None,
    gguf: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Compress a model, spending a budget of bits where they count, and report what it cost.

    SOURCE is anything `freehold pull` takes, a directory or a .gguf file. The model is measured on a text, layer by
    layer; each layer then gets the number format that is worth its bytes. The result is a Hugging Face directory in the
    compressed-tensors format. A run that was cut off is taken up again where it stopped.
    """
    # Windows, rows and tensors are shared out among threads of our own: with BLAS's on top, small products wait for
    # each other (37 s instead of 0.5 s for one matrix on a busy machine). Read when NumPy is imported.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from freehold.compress import Destination, compress, export_gguf, plan_text
    from freehold.formats import store
    from freehold.provenance.deeds import compressed

    if out is not None and name is not None:
        raise UsageError("--out and --name both say where to write", hint="give one of them")
    if tune is not None and (plan_only or calibration == RULES):
        raise UsageError("--tune needs a text and a result", hint="leave out --plan-only and --calibration none")
    options = _options(bits, uniform, plan, calibration, asymmetric, widths, fused, group_size, embedding_bits, force)
    called = default_name(source, 8 if options.bits == 8 or (bits or 0) >= 8 else 4) if name is None else name
    target = out or store_path(called)
    if not plan_only:
        Destination(target, overwrite=force).check()  # before minutes are spent on measuring
    with progress() as bar:
        path = store.resolve(source, progress=bar)
        kept = statistics or target.with_name(target.name + ".calibration.partial")
        try:
            measured = None if calibration == RULES else _calibrate(path, kept, calibration, calibration_tokens, bar)
            if plan_only:
                emit(plan_text(path, options, bar, statistics=measured).rstrip())
                return
            tuner = None if tune is None else _tuner(path, kept / "tuning", calibration, tune, bar)
            report = compress(path, target, options, bar, statistics=measured, plan=plan, tuner=tuner)
        except KeyboardInterrupt:
            say(f"\ncut off: the same command takes it up again; the work so far is in {target}.partial and {kept}")
            raise
    if measured is not None and statistics is None:
        shutil.rmtree(measured)
    exported = export_gguf(target, path, gguf) if gguf else None
    shown = called if out is None else str(out)
    record = on_record(
        lambda settings: compressed(
            settings, report.source_name or report.source, report.source_sha256, target, shown, report.options
        )
    )
    if as_json:
        emit_json({"model": shown, "path": target, "report": report, "gguf": exported, "record": record})
    else:
        _print(report, shown)
        if exported is not None:
            kinds = ", ".join(f"{count} {kind}" for kind, count in exported.types.items())
            say(f"{gguf}: {size(exported.bytes)}, {kinds}; {exported.rounded_scales} scales rounded to float16")


def _options(
    bits: float | None,
    uniform: str | None,
    plan: Path | None,
    calibration: str,
    asymmetric: bool,
    widths: str | None,
    fused: bool,
    group_size: str | None,
    embedding_bits: str | None,
    force: bool,
) -> CompressOptions:
    from freehold.compress import ANY, WIDTHS, CompressOptions

    if [bits is not None, uniform is not None, plan is not None].count(True) > 1:
        raise UsageError("--bits, --uniform and --plan all say what becomes of each layer", hint="give one of them")
    if (widths or fused) and (uniform or plan or calibration == RULES):
        raise UsageError("--widths and --fused are for a plan made by measured cost", hint="leave them out")
    if calibration != RULES:
        if group_size:
            raise UsageError("--group-size is for --calibration none", hint='or say --uniform "int4 g64"')
        if plan:
            return CompressOptions(symmetric=not asymmetric, overwrite=force)
        asked = bits is not None or uniform is not None
        return CompressOptions(
            budget=None if uniform else bits or DEFAULT_BITS,
            uniform=uniform,
            stretch=not asked,
            embedding_bits=int(embedding_bits or (ANY if asked else 8)),
            symmetric=not asymmetric,
            widths=WIDTHS if widths is None else _widths(widths),
            fused=fused,
            overwrite=force,
        )
    if uniform is not None:
        raise UsageError("--uniform needs a calibration", hint="with --calibration none, give --bits and --group-size")
    if bits not in (None, 4, 8):
        raise UsageError(f"without calibration --bits is 4 or 8, found {bits:g}", hint="a budget needs --calibration")
    return CompressOptions(
        bits=int(bits or 4),
        group_size=int(group_size or 32),
        embedding_bits=int(embedding_bits or 8),
        symmetric=not asymmetric,
        overwrite=force,
    )


def _widths(text: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise UsageError(f"expected --widths as numbers with commas, found {printable(text)!r}", hint="4,8") from None


def _calibrate(path: Path, out: Path, which: str, tokens: int, bar: Progress) -> Path:
    """Statistics of the model on a text, measured now or found finished."""
    from freehold.engine.calibrate import calibrate
    from freehold.formats import load_tokenizer
    from freehold.formats.digest import digest

    words = _words(which)
    tokenizer = load_tokenizer(path)
    ids = spread(tokenizer.encode(words, special=False), tokens)
    say(f"calibrating on {len(ids):,} tokens ({which}); a run that is cut off goes on from {out}")
    try:
        facts = calibrate(
            path,
            ids,
            out,
            source=digest(path, lambda done, total: bar(done, total, "reading source")),
            text=hashlib.sha256(words.encode()).hexdigest(),
            bos=tokenizer.begin,
            progress=bar,
        )
    except UnsupportedError as error:
        raise UnsupportedError(
            error.message, hint="--calibration none rounds to nearest, whatever the model"
        ) from error
    say(f"calibrated in {facts.seconds:.0f} s; perplexity on that text {facts.perplexity:.1f}")
    return out


def spread(ids: list[int], tokens: int) -> list[int]:
    """So many tokens of a text as windows in even steps over all of it: a text's beginning is not all there is."""
    from freehold.engine.calibrate import WINDOW

    if len(ids) <= tokens or tokens < 2 * WINDOW:
        return ids[:tokens]
    count, last = tokens // WINDOW, len(ids) // WINDOW - 1
    begins = (WINDOW * (last * number // (count - 1)) for number in range(count))
    return [token for begin in begins for token in ids[begin : begin + WINDOW]]


def _tuner(path: Path, work: Path, which: str, minutes: float, bar: Progress) -> Tuner:
    """What `compress` hands the rounded model to."""
    from freehold.engine.tune import tune
    from freehold.formats import load_tokenizer
    from freehold.formats.digest import digest

    def tuner(rounded: Path, start: str) -> Path:
        words = _words(which)
        tokenizer = load_tokenizer(path)
        ids = tokenizer.encode(words, special=False)
        say(f"tuning on {len(ids):,} tokens ({which}) for up to {minutes:g} minutes; a run that is cut off goes on")
        return tune(
            path,
            rounded,
            ids,
            work,
            minutes=minutes,
            source=digest(path),
            text=hashlib.sha256(words.encode()).hexdigest(),
            start=start,
            bos=tokenizer.begin,
            progress=bar,
        )

    return tuner


def _words(which: str) -> str:
    """The calibration text."""
    from freehold.compress import builtin_text

    return builtin_text() if which == "builtin" else read_text(Path(which))


def read_text(path: Path) -> str:
    """A file of UTF-8 text.

    Raises:
        UsageError: it is none.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"can't read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} must be UTF-8 text, found byte {error.object[error.start]:#04x} at {error.start}"
        ) from None


def default_name(source: str, bits: int) -> str:
    """A name for the store: the last part of the reference, without suffix and variant, and the bits."""
    last = source.rstrip("/").rsplit("/", 1)[-1].removesuffix(".gguf")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-.") + f"-int{bits}"


def store_path(name: str) -> Path:
    """Where a compressed model of that name lives.

    Raises:
        UsageError: it could not be found again by such a name.
    """
    from freehold.formats import store
    from freehold.formats.builtin import BUILTINS
    from freehold.formats.references import is_alias

    if name in BUILTINS:
        raise UsageError(f"{name} is a built-in model's name", hint="--name another one")
    if not is_alias(name):
        raise UsageError(f"{printable(name)!r} can't be a model's name", hint="use letters, digits, dots, dashes")
    return store.models() / name


def _print(report: Report, target: str) -> None:
    """The table by kind of tensor to stdout, what came of it to stderr."""
    from freehold.compress import by_kind

    rows = [
        (r["role"], r["source_dtype"], r["stored"], str(r["tensors"]), size(r["bytes"]), f"{r['error_max']:.4f}")
        for r in by_kind(report.tensors)
    ]
    emit(table(rows, ("ROLE", "FROM", "TO", "TENSORS", "SIZE", "WORST ERROR")))
    for warning in report.warnings:
        say(f"warning: {printable(warning)}")
    against = f"{report.smaller_than_bf16:.1%} smaller than bf16's {size(report.bf16_bytes)}"
    say(f"{target}: {size(report.bytes)}, {against}, {report.bits_per_weight:.2f} bits a weight")
    say(f"relative error {report.error_mean:.4f}, worst {report.error_max:.4f} in {printable(report.error_max_tensor)}")
    if report.tuning is not None:
        say(report.tuned_words)
        if report.tuning["kld_after"] >= report.tuning["kld_before"]:
            say("warning: tuning found nothing better than the rounded model: give it more minutes, or more text")
    say(f"in {report.seconds:.1f} s, at most {size(report.peak_rss_bytes)} of memory")
