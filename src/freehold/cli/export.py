"""`freehold export`: training data out of the ledger, without what others forbid to train on."""

from __future__ import annotations

import time
from pathlib import Path

import click

from freehold.cli.options import as_json, load_settings
from freehold.cli.output import emit, emit_json, progress, say
from freehold.errors import UsageError


@click.command("export")
@click.option("--train-safe", is_flag=True, help="Only chats that may be trained on: the one kind of export there is.")
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="JSONL file to write.")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@click.option("--config", type=click.Path(dir_okay=False, path_type=Path), help="Settings file.")
@as_json
def command(train_safe: bool, out: Path, force: bool, config: Path | None, as_json: bool) -> None:
    """Write recorded chats as training data, without what terms forbid.

    Chats in the JSONL form that fine-tuning takes, and OUT.manifest.json, which names every record that was left out and
    why. Nothing is exported whose terms bar training or are not known, nor what was made from such words. Texts must
    have been kept: set provenance.keep_content before you serve.
    """
    from freehold.provenance.deeds import exported, opened
    from freehold.provenance.export import REASONS, export, manifest_path

    if not train_safe:
        raise UsageError("--train-safe is needed", hint="nothing else is exported: say that this is what you want")
    with opened(load_settings(config)) as ledger, progress() as bar:
        now = round(time.time() * 1_000_000)
        made = export(ledger.database, out, log=ledger.id, now=now, overwrite=force, progress=bar)
        record = exported(ledger, made)
    if as_json:
        counts = {"lines": made.lines, "records": made.records, "left_out": made.by_reason, "sha256": made.sha256}
        emit_json({"file": out, "manifest": manifest_path(out), "record": record} | counts)
        return
    emit(str(out))
    say(f"{made.lines} chats from {made.records} exchanges; left out {len(made.left_out)} ({manifest_path(out)}):")
    for reason, count in sorted(made.by_reason.items(), key=lambda item: -item[1]):
        say(f"  {count:>7}  {reason}: {REASONS[reason]}")
