"""`freehold ledger`: what was recorded, whether it still is, and how to prove it to somebody else."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from freehold.cli.options import as_json, load_settings, moment
from freehold.cli.output import counted, emit, emit_json, printable, progress, save, say, table
from freehold.errors import UsageError

if TYPE_CHECKING:
    from freehold.database import Database
    from freehold.provenance.checking import Checked
    from freehold.provenance.heads import Head
    from freehold.provenance.reading import Stored
    from freehold.provenance.verify import Report

KINDS = ("exchange", "ingest", "quantize", "train", "filter", "export", "forget", "gap")
FELL_SHORT = 1
MOST_SHOWN = 20
MOST_BYTES = 1 << 31
_config = click.option("--config", type=click.Path(dir_okay=False, path_type=Path), help="Settings file.")
_file = click.Path(dir_okay=False, path_type=Path)
_force = click.option("--force", is_flag=True, help="Replace a file that is there.")
_heads = click.option(
    "--head", "heads", multiple=True, type=_file, help="A head that was published before; may be repeated."
)


@click.group("ledger")
def command() -> None:
    """Show, verify and prove what was recorded.

    Every exchange of the gateway, every pull and every compression is a record in an append-only Merkle log. A head that
    you hand to somebody else makes it tamper-evident: nobody can change what was recorded before it unnoticed. What no
    ledger can prove is that nothing was left out.
    """


@command.command("log")
@click.argument("record", required=False)
@click.option("--kind", type=click.Choice(KINDS), help="Only records of that kind.")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1), help="Most records.")
@_config
@as_json
def log(record: str | None, kind: str | None, limit: int, config: Path | None, as_json: bool) -> None:
    """List the newest records, or show RECORD (an id, or its beginning) with its text."""
    from freehold.provenance import reading
    from freehold.provenance.deeds import opened

    with opened(load_settings(config), sign=False) as ledger:
        database = ledger.database
        if record is not None:
            found = database.now(lambda t: reading.find(t, record))
            texts = database.now(lambda t: reading.texts(t, found.id))
            _show(found, texts, as_json)
            return
        records = database.now(lambda t: reading.page(t, 1 << 60, kind or "", limit))
    if as_json:
        emit_json([{"position": each.position, "leaf": each.leaf.hex()} | _body(each) for each in records])
    elif not records and kind:
        say(f"no record of kind {kind}")
    elif not records:
        say("nothing is recorded yet; `freehold serve` records what it answers")
    else:
        emit(table([_row(each) for each in records], ("POSITION", "RECORD", "TIME", "KIND", "BY", "TRAINING")))


@command.command("verify")
@_heads
@_config
@as_json
def verify(heads: tuple[Path, ...], config: Path | None, as_json: bool) -> None:
    """Compute the whole ledger anew and say what was changed.

    With a head from outside this finds every edit, deletion, reordering and fork in what the head covers. Exits with 1 when
    something is wrong.
    """
    from freehold.provenance.deeds import opened
    from freehold.provenance.verify import verify as check

    outside = _read_heads(heads)
    with opened(load_settings(config), sign=False) as ledger, progress() as bar:
        report = check(ledger.database, outside, bar)
    if as_json:
        emit_json({"good": report.good, "report": report})
    else:
        _print_report(report)
    raise click.exceptions.Exit(0 if report.good else FELL_SHORT)


@command.command("head")
@click.option("--out", type=_file, help="File to write it to, for somebody else to keep.")
@_force
@_config
@as_json
def head(out: Path | None, force: bool, config: Path | None, as_json: bool) -> None:
    """Sign a head over all records: number, root, time. Give it away, and the log before it can't be changed unnoticed."""
    from freehold.provenance.deeds import opened

    with opened(load_settings(config)) as ledger:
        signed = ledger.head()
    text = json.dumps(signed.published(), indent=2) + "\n"
    if out is not None:
        save(out, text, replace=force)
        say(f"{out}: head of {counted(signed.size, 'record')}; keep it where this machine's owner can't change it")
    if as_json:
        emit_json(signed.published() | _head_facts(signed))
    elif out is None:
        emit(text.rstrip())


@command.command("prove")
@click.argument("record")
@_config
@as_json
def prove(record: str, config: Path | None, as_json: bool) -> None:
    """Print the proof that RECORD is in the ledger: its JSON, its salt, the path to the root, and the signed head.

    The output is checked with `freehold ledger check FILE --head HEAD`.
    """
    from freehold.provenance.deeds import opened
    from freehold.provenance.proofs import prove as proof_of

    with opened(load_settings(config)) as ledger:
        found = proof_of(ledger, record)
    emit(json.dumps(found, indent=None if as_json else 2))


@command.command("pack")
@click.option("--out", required=True, type=_file, help="Archive to write.")
@click.option("--record", "records", multiple=True, help="A record to pack, with what it was made from; repeatable.")
@click.option("--provider", default="", help="Only exchanges in which this provider or backend took part.")
@click.option("--since", help="From a span ago (30d) or a date on.")
@click.option("--until", help="Before a span ago or a date.")
@click.option("--hide-texts", is_flag=True, help="Leave prompts and answers out; their hashes stay.")
@click.option("--overlap-report", type=_file, help="A report to put in, as `freehold trace` writes it.")
@_force
@_config
@as_json
def pack(out: Path, config: Path | None, as_json: bool, **given: Any) -> None:
    """Write an allegation pack: records, proofs, signed head and a list of what was not logged, in one archive.

    For whoever says that your model was made from theirs. They check it with `freehold ledger check PACK --head HEAD`, with
    nothing but a head that you published before.
    """
    from freehold.provenance.deeds import opened
    from freehold.provenance.packing import make_pack

    settings = load_settings(config)
    if out.exists() and not given["force"]:
        raise UsageError(f"{out} exists", hint="--force replaces it")
    report = given["overlap_report"]
    overlap = None if report is None else (report.name, _read(report))
    with opened(settings) as ledger:
        chosen = _selection(ledger.database, given)
        signed, now = ledger.head(), round(time.time() * 1_000_000)
        unseen = [upstream.name for upstream in settings.upstreams]
        made = make_pack(ledger.database, ledger.identity, signed, chosen, now=now, overlap=overlap, unseen=unseen)
    save(out, made.data)
    if as_json:
        emit_json({"pack": out, "bytes": len(made.data), "manifest": made.manifest})
        return
    emit(str(out))
    say(f"{counted(made.manifest['records'], 'record')}, proved against a head of {signed.size:,}; not logged:")
    for line in made.manifest["not_logged"]:
        say(f"  - {line}")


@command.command("check")
@click.argument("file", type=_file, metavar="PACK")
@_heads
@as_json
def check(file: Path, heads: tuple[Path, ...], as_json: bool) -> None:
    """Check a pack (or a proof) that somebody gave you, against a head that they published before.

    Needs no database and no network. Exits with 1 when something is wrong, and says where.
    """
    from freehold.provenance.proofs import check_file

    if not heads:
        raise UsageError("--head is needed", hint="a head that was published before the pack was asked for")
    found = check_file(_read(file), _read_heads(heads))
    if as_json:
        emit_json({"good": found.good, "checked": found})
    else:
        _print_checked(found)
    raise click.exceptions.Exit(0 if found.good else FELL_SHORT)


@command.command("forget")
@click.argument("record")
@click.option("--whole", is_flag=True, help="The record's own JSON too, not only its texts.")
@_config
@as_json
def forget(record: str, whole: bool, config: Path | None, as_json: bool) -> None:
    """Delete the texts of RECORD for good. Its place in the ledger stays provable; that it was forgotten is recorded."""
    from freehold.provenance import deeds

    with deeds.opened(load_settings(config)) as ledger:
        done = deeds.forget(ledger, record, whole=whole)
    if as_json:
        emit_json({"forgotten": record, "whole": whole, "record": done})
    else:
        say(f"forgotten; {done} says so. Backups and the free pages of the database file may still hold the text")


def _read_heads(files: tuple[Path, ...]) -> list[Head]:
    from freehold.provenance import heads

    return [found for file in files for found in heads.read(file)]


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            data = opened.read(MOST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"can't read {file}: {error.strerror}") from None
    if len(data) > MOST_BYTES:
        raise UsageError(f"{file}: expected at most {MOST_BYTES:,} bytes")
    return data


def _selection(database: Database, given: dict[str, Any]) -> Any:
    from freehold.provenance import reading
    from freehold.provenance.packing import Selection

    now = datetime.now(UTC)
    names = [database.now(lambda t, id=id: reading.find(t, id)).id for id in given["records"]]  # type: ignore[misc]
    return Selection(
        tuple(names),
        given["provider"],
        moment("--since", given["since"], now) if given["since"] else 0,
        moment("--until", given["until"], now) if given["until"] else 1 << 62,
        not given["hide_texts"],
    )


def _body(record: Stored) -> dict[str, Any]:
    return record.body or {"id": record.id, "kind": record.kind, "at": record.at, "forgotten": True}


def _row(record: Stored) -> tuple[str, ...]:
    body = _body(record)
    by = ",".join(dict.fromkeys(who["backend"] for who in body.get("served_by", ())))
    things = ",".join(str(thing.get("name", thing["id"])) for thing in body.get("generated", ()))
    state = "forgotten" if "forgotten" in body else body.get("training", {}).get("state", "")
    return (str(record.position), record.id, _time(record.at), record.kind, by or things, state)


def _show(record: Stored, texts: tuple[bytes, str | None, str | None] | None, as_json: bool) -> None:
    _, prompt, answer = texts or (b"", None, None)
    shown: dict[str, Any] = {"position": record.position, "leaf": record.leaf.hex(), "record": _body(record)}
    if prompt is not None and answer is not None:
        shown |= {"prompt": json.loads(prompt), "answer": json.loads(answer)}
    emit(json.dumps(shown) if as_json else json.dumps(shown, indent=2))
    if prompt is None and record.kind == "exchange" and not as_json:
        say("its text was not kept (provenance.keep_content), or was deleted")


def _print_report(report: Report) -> None:
    for problem in report.problems[:MOST_SHOWN]:
        emit(printable(f"{problem.kind}: {problem.what}" + (f" ({problem.id})" if problem.id else "")))
    if len(report.problems) > MOST_SHOWN:
        emit(f"... and {len(report.problems) - MOST_SHOWN} more")
    changed = f"{counted(len(report.problems), 'thing')} not as recorded"
    found = "nothing was changed" if report.good else changed
    covered = f", {report.covered:,} of them vouched for by a head from outside" if report.covered else ""
    held = f"{counted(report.texts, 'text')}, {counted(report.heads, 'kept head')}"
    say(f"{counted(report.size, 'record')}{covered}, {held}: {found}")
    say("not proved by this: " + "; ".join(report.not_proved))


def _print_checked(found: Checked) -> None:
    for problem in found.problems[:MOST_SHOWN]:
        emit(printable(problem))
    if len(found.problems) > MOST_SHOWN:
        emit(f"... and {len(found.problems) - MOST_SHOWN} more")
    if found.good:
        log = printable(found.log)
        held = f"{counted(found.records, 'record')} and {counted(found.texts, 'text')}"
        emit(f"good: {held} of ledger {log}, {counted(found.size, 'record')}")
        emit(f"the given head vouches for {found.vouched} of the {found.records}{_later(found)}")
        if found.overlap_report:
            say(f"with an overlap report: {printable(found.overlap_report)}")
        say("not logged, by the pack's own words:")
        for line in found.not_logged:
            say(f"  - {printable(line)}")


def _later(found: Checked) -> str:
    if found.vouched == found.records:
        return ""
    return "; the others were recorded after it, and only the pack's own head vouches for them"


def _head_facts(head: Head) -> dict[str, Any]:
    return {"log": head.log, "size": head.size, "root": head.root.hex(), "at": _time(head.at)}


def _time(micros: int) -> str:
    return datetime.fromtimestamp(micros / 1_000_000, UTC).isoformat(timespec="seconds")
