"""`freehold bom`: an artefact's bill of materials in a format that others ask for."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import click

from freehold.cli.output import progress, save, say
from freehold.errors import UsageError

FORMATS = ("spdx", "cyclonedx", "croissant", "mof", "eu-summary", "notice")


@click.command("bom")
@click.argument("reference")
@click.option("--format", "form", type=click.Choice(FORMATS), required=True, help="What to write.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="File to write to, instead of stdout.")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@click.option("--supplier", default="", help="Who gives it out, where the artefact does not say.")
@click.option("--released", metavar="DATE", help="Since when, as 2026-11-25; some profiles of SPDX ask for it.")
@click.option("--as-version", "version", default="", help="Its version, where the artefact does not say.")
@click.option("--url", default="", help="Where it can be fetched, where the artefact does not say.")
@click.option("--offline", is_flag=True, help="Never use the network.")
def command(reference: str, form: str, out: Path | None, force: bool, released: str | None, **told: Any) -> None:
    """Write a bill of materials of a model, data set or package.

    REFERENCE is what `freehold audit` takes. spdx: SPDX 3.0.1 as JSON-LD. cyclonedx: CycloneDX 1.7 with model cards.
    croissant: a data set's description with PROV-O. mof: the class of the Model Openness Framework with its reasons.
    eu-summary: a draft of the public summary of training content. notice: a NOTICE file.
    """
    from freehold.provenance.bom import write

    moment = None if released is None else _moment(released)
    with progress() as bar:
        text = write(reference, form, released=moment, progress=bar, **told)
    if out is None:
        click.echo(text, nl=False)
        return
    save(out, text, replace=force)
    say(f"wrote {out}")


def _moment(text: str) -> dt.datetime:
    try:
        return dt.datetime.combine(dt.date.fromisoformat(text), dt.time(), dt.UTC)
    except ValueError:
        raise UsageError(f"--released: expected a date as 2026-11-25, found {text!r}") from None
