"""How the command line speaks: data to stdout, words to stderr, bars only on a terminal.

Knows click and (when a bar is drawn) rich; nothing of what is reported.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from freehold.errors import FreeholdError, UsageError
from freehold.progress import Progress, silent

BAR_AFTER_SECONDS = 1.0  # shorter work is over before a bar is read


def say(text: str) -> None:
    """A line of words, to stderr."""
    click.echo(text, err=True)


def emit(text: str) -> None:
    """A line of data, to stdout."""
    click.echo(text)


def emit_json(value: Any) -> None:
    """A value (dataclasses and structs included) as indented JSON on stdout; NaN and infinities become null."""
    import msgspec

    emit(msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=2).decode())


def save(path: Path, data: bytes | str, *, replace: bool = True) -> None:
    """A file that the user asked for, whole or not at all.

    Raises:
        UsageError: it is there, and `replace` is False.
        FreeholdError: it can't be written.
    """
    from freehold.formats.writing import write_file

    if path.exists() and not replace:
        raise UsageError(f"{path} exists", hint="--force replaces it")
    try:
        write_file(path, data)
    except OSError as error:
        raise FreeholdError(f"can't write {path}: {error.strerror}") from None


def printable(text: str) -> str:
    """Text from a model file or server on one line, without the control characters that could drive a terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    """Rows as aligned columns under a header; numbers (and "-" and "?") to the right."""
    shown = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(header), *shown]) for i in range(len(header))]
    right = [all(row[i][:1].isdigit() or row[i] in ("-", "?") for row in shown) for i in range(len(header))]
    lines = []
    for row in [list(header), *shown]:
        cells = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def counted(number: int, noun: str) -> str:
    """`1 record`, `2 records`, `10,000 records`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def size(count: int | float) -> str:
    """Bytes for people, in powers of 1000: `98.3 MB`."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


@contextmanager
def progress() -> Iterator[Progress]:
    """A callback `(done, total or None, what)`: draws a bar on stderr if that is a terminal and the work takes long."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield silent
        return
    bars = _Bars()
    try:
        yield bars
    finally:
        bars.close()


class _Bars:
    """One rich bar for each `what`, begun once the work has lasted a second."""

    def __init__(self) -> None:
        self.since = time.monotonic()
        self.drawn: Any = None
        self.tasks: dict[str, Any] = {}

    def __call__(self, done: int, total: int | None, what: str) -> None:
        if self.drawn is None:
            if time.monotonic() - self.since < BAR_AFTER_SECONDS:
                return
            self.drawn = _rich_progress()
            self.drawn.start()
        label = printable(what)
        if label not in self.tasks:
            for task in self.tasks.values():
                self.drawn.update(task, visible=False)
            self.tasks[label] = self.drawn.add_task(label, total=total)
        self.drawn.update(self.tasks[label], completed=done, total=total)

    def close(self) -> None:
        """Take the bar off the screen."""
        if self.drawn is not None:
            self.drawn.stop()


def _rich_progress() -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    left = TimeRemainingColumn(), TextColumn("left,", style="dim"), TimeElapsedColumn()
    columns = TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), *left
    return Progress(*columns, console=Console(stderr=True), transient=True)
