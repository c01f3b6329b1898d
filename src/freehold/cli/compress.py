"""`freehold compress`: a model in, a smaller model and a report out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from freehold.cli.on_record import on_record
from freehold.cli.options import as_json
from freehold.cli.output import emit, emit_json, printable, progress, say, size, table
from freehold.errors import UsageError

if TYPE_CHECKING:
    from freehold.compress import Report


@click.command("compress")
@click.argument("source")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Directory to write.")
@click.option("--name", help="Name in the store to write to instead. [default: SOURCE's, with -int4 or -int8]")
@click.option("--bits", type=click.Choice(["4", "8"]), default="4", help="Bits of the linear layers. [default: 4]")
@click.option("--group-size", type=click.Choice(["32", "64", "128"]), help="Weights that share a scale. [default: 32]")
@click.option("--asymmetric", is_flag=True, help="Store zero points too: a smaller error for more bits.")
@click.option("--embedding-bits", type=click.Choice(["8", "16"]), help="16 leaves embeddings alone. [default: 8]")
@click.option("--force", is_flag=True, help="Replace an earlier result.")
@as_json
def command(
    source: str,
    out: Path | None,
    name: str | None,
    bits: str,
    group_size: str | None,
    asymmetric: bool,
    embedding_bits: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Compress a model to int4 and report what it cost.

    SOURCE is anything `freehold pull` takes, a directory or a .gguf file. The result is a Hugging Face directory in the
    compressed-tensors format. A run that was cut off is taken up again where it stopped.
    """
    from freehold.compress import CompressOptions, compress
    from freehold.formats import store
    from freehold.provenance.deeds import compressed

    if out is not None and name is not None:
        raise UsageError("--out and --name both say where to write", hint="give one of them")
    given = {"group_size": group_size, "embedding_bits": embedding_bits}
    chosen = {key: int(value) for key, value in given.items() if value is not None}
    options = CompressOptions(bits=int(bits), overwrite=force, symmetric=not asymmetric, **chosen)
    called = default_name(source, options.bits) if name is None else name
    target = out or store_path(called)
    with progress() as bar:
        path = store.resolve(source, progress=bar)
        try:
            report = compress(path, target, options, bar)
        except KeyboardInterrupt:
            say(f"\ncut off: the same command takes it up again; the work so far is in {target}.partial")
            raise
    shown = called if out is None else str(out)
    record = on_record(
        lambda settings: compressed(
            settings, report.source_name or report.source, report.source_sha256, target, shown, report.options
        )
    )
    if as_json:
        emit_json({"model": shown, "path": target, "report": report, "record": record})
    else:
        _print(report, shown)


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
    say(f"in {report.seconds:.1f} s, at most {size(report.peak_rss_bytes)} of memory")
