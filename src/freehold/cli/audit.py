"""`freehold audit`: what licence duties a model, a data set or a package carries, and whether a purpose is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from freehold.cli.options import as_json
from freehold.cli.output import emit, emit_json, printable, progress, table

if TYPE_CHECKING:
    from freehold.provenance.audit import Report

PURPOSES = ("commercial", "research", "train", "redistribute")
FELL_SHORT = 1


@click.command("audit")
@click.argument("reference")
@click.option(
    "--purpose", type=click.Choice(PURPOSES), default="commercial", show_default=True, help="What it is to be used for."
)
@click.option(
    "--basis",
    "bases",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="JSON file of a signed agreement that lifts a bar on training. Repeat for several.",
)
@click.option("--offline", is_flag=True, help="Never use the network.")
@as_json
def command(reference: str, purpose: str, bases: tuple[Path, ...], offline: bool, as_json: bool) -> None:
    """Judge the licences of a model, data set or package for a purpose.

    REFERENCE is a model as elsewhere, an installed package, a directory (a model, a data set, a project), a .gguf,
    .whl, .jsonl, .parquet or Croissant .json file, or pypi:NAME[==VERSION]. Weights are not loaded and no code is
    run. The verdict is allow, escalate (a person has to decide) or deny, with the facts that led there. Not legal
    advice.
    """
    from freehold.provenance.audit import audit, basis

    with progress() as bar:
        report = audit(reference, purpose, offline=offline, bases=tuple(basis(path) for path in bases), progress=bar)
    if as_json:
        emit_json(report)
    else:
        _show(report)
    if report.verdict != "allow":
        raise click.exceptions.Exit(FELL_SHORT)


def _show(report: Report) -> None:
    what = f"{report.name} {report.version}".strip()
    emit(f"{report.verdict.upper()}: {printable(what)} ({report.kind}) for {report.purpose}")
    declared = list(dict.fromkeys((item.licence or item.label, item.where) for item in report.declared))
    _list("declared", [f"{licence}  ({where})" for licence, where in declared] or ["nothing"])
    found = [
        (item.licence, item.how if item.how != "text" else f"text {item.score:.0%}", item.file, item.quote[:60])
        for item in report.detected
    ]
    _section("detected", found, ("LICENCE", "HOW", "FILE", "WORDS"))
    _why(report)
    duties = [
        (
            item.rule,
            item.kind,
            "now" if item.now else "if " + ", ".join(item.when),
            item.text,
            item.licence,
            item.clause,
        )
        for item in report.duties
    ]
    _section("duties", duties, _DUTIES)
    _list("conflicts", [f"{item['kind']}: {item['because']}" for item in report.conflicts])
    _list("notes", [*report.notes, "engineering encodings of licences and terms, not legal advice"])


_DUTIES = ("RULE", "DUTY", "WHEN", "WHAT", "LICENCE", "CLAUSE")


def _why(report: Report) -> None:
    """What decided, each with its path; that nothing stands against a part is said only when nothing else is."""
    told = [item for item in report.path if (item.rule, item.verdict) != ("R1", "allow")] or list(report.path)
    lines = [f"{item.rule:4}{item.verdict:10}{printable(item.because)}\n{'':14}{printable(item.path)}" for item in told]
    emit("\nwhy\n" + "\n".join(dict.fromkeys(lines)))


def _section(title: str, rows: Sequence[tuple[str, ...]], header: tuple[str, ...]) -> None:
    if rows:
        emit(f"\n{title}\n{table(list(dict.fromkeys(rows)), header)}")


def _list(title: str, lines: list[str]) -> None:
    if lines:
        emit(f"\n{title}\n" + "\n".join(f"- {printable(line)}" for line in lines))
