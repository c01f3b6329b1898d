"""`freehold compress`: a model in, a smaller model and a report out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from freehold.cli.options import as_json

if TYPE_CHECKING:
    from freehold.compress import Report


@click.command("compress")
@click.argument("source")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Directory to write; see also --name.")
@click.option("--name", help="Name in the store to write to. [default: SOURCE's name with -int4 or -int8]")
@click.option(
    "--bits", type=click.IntRange(4, 8), default=4, show_default=True, help="Bits of the linear layers: 4 or 8."
)
@click.option("--group-size", type=int, help="Weights that share a scale: 32, 64 or 128.")
@click.option("--force", is_flag=True, help="Replace what is there.")
@as_json
def command(
    source: str, out: Path | None, name: str | None, bits: int, group_size: int | None, force: bool, as_json: bool
) -> None:
    """Compress a model to int4 and report what it cost.

    SOURCE is anything `freehold pull` takes, a directory or a .gguf file. The result is a Hugging Face directory that
    freehold, transformers and vLLM read. Work that was cut off is taken up again where it stopped.
    """
