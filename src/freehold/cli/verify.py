"""`freehold verify`: a certificate judged again, without the network."""

from __future__ import annotations

from pathlib import Path

import click

from freehold.cli.options import as_json
from freehold.cli.output import emit, emit_json, say
from freehold.errors import FormatError


@click.command("verify")
@click.argument("certificate", type=click.Path(path_type=Path))
@click.option("--reference", type=click.Path(path_type=Path), help="The certificate it was compared with, for level 4.")
@click.option("--key", default="", help="Id of the key that must have signed it, or its beginning (16 digits or more).")
@as_json
@click.pass_context
def command(context: click.Context, certificate: Path, reference: Path | None, key: str, as_json: bool) -> None:
    """Judge a certificate again, offline.

    Checks the signature and the transcript's Merkle root, makes every request again from the seed, and judges every
    requirement anew. Exit code 1 when anything does not hold.
    """
    from freehold.certify import read, report, today

    now = today()
    try:
        compared = read(reference, now=now) if reference else None
        found = read(certificate, now=now, reference=compared)
    except FormatError as error:
        if as_json:
            emit_json({"valid": False, "problems": [error.message]})
        else:
            say(f"not valid: {error.message}" + (f"\nhint: {error.hint}" if error.hint else ""))
        context.exit(1)
    problems = list(found.problems)
    if key and (len(key) < 16 or not found.key.id.startswith(key)):
        problems.append(f"it was signed by {found.key.id}, not by {key}")
    if as_json:
        emit_json({"valid": not problems} | report.summary(found) | {"problems": problems})
    else:
        _show(problems, report.headline(found), found.key.id, found.predicate, found.notes)
    context.exit(1 if problems else 0)


def _show(problems: list[str], headline: str, key: str, said: dict[str, object], notes: tuple[str, ...]) -> None:
    for problem in problems:
        say(f"not valid: {problem}")
    for note in notes:
        say(f"note: {note}")
    if not problems:
        endpoint = said["endpoint"]
        assert isinstance(endpoint, dict)  # noqa: S101  (a certificate that was verified has one)
        emit(f"valid: {headline}")
        emit(f"{endpoint['model']} at {endpoint['url']}, until {str(said['expires'])[:10]}, signed by {key}")
