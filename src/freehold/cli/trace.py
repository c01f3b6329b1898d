"""`freehold trace`: where a text may be from. Reads the query, draws the report; finding is `provenance.trace`'s."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from freehold.cli.options import as_json
from freehold.cli.output import emit, emit_json, printable, progress, save, say, size
from freehold.errors import FormatError, UsageError

if TYPE_CHECKING:
    from freehold.provenance.trace import Built, Index, Report, Source

PLAIN_SHOWN = 240  # characters of a part of the query that nothing covers
SNIPPET = 200  # characters of a source
STYLES = {"exact": "black on yellow", "similar": "black on cyan"}
FOLDER = click.Path(path_type=Path)


@click.command("trace")
@click.argument("text", required=False)
@click.option("--file", "-f", type=click.Path(dir_okay=False, path_type=Path), help="Trace what is in this file.")
@click.option("--corpus", "-c", type=FOLDER, help="Directory of texts to search: plain text, code, HTML, JSON(L), .gz.")
@click.option(
    "--index", "folder", type=FOLDER, help="The corpus's index. [default: in the cache, by the corpus's path]"
)
@click.option("--build", is_flag=True, help="Bring the index up to date first; without TEXT, only that.")
@click.option("--check", is_flag=True, help="Compare the index's files with the hashes written beside them.")
@click.option("--skipped", is_flag=True, help="Name every file that is not in the index, and why.")
@click.option("--min-bytes", type=click.IntRange(1), default=50, show_default=True, help="Shortest exact span.")
@click.option(
    "--min-words", type=click.IntRange(0), default=8, show_default=True, help="Fewest words of an exact span."
)
@click.option(
    "--similar",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.8,
    show_default=True,
    help="Least Jaccard similarity of a near-duplicate.",
)
@click.option("--sources", type=click.IntRange(1), default=5, show_default=True, help="Most sources of a finding.")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write the report as an HTML page too.")
@click.option("--jobs", "-j", type=click.IntRange(0), default=0, help="Processes that index. [default: CPUs, up to 4]")
@as_json
@click.pass_context
def command(
    context: click.Context,
    text: str | None,
    file: Path | None,
    corpus: Path | None,
    folder: Path | None,
    build: bool,
    check: bool,
    skipped: bool,
    min_bytes: int,
    min_words: int,
    similar: float,
    sources: int,
    html: Path | None,
    jobs: int,
    as_json: bool,
) -> None:
    """Find where a text may be from, in a corpus of yours.

    TEXT is the text itself, or - for standard input. Reported are its spans that stand in the corpus word for word and
    its passages that nearly do, each with file, byte, line and the nearest licence file.

    The corpus is indexed when it is first asked; `--build` brings the index up to date, and indexes only what changed.
    """
    from freehold.provenance.trace import Index, Limits, default_index, trace

    query = _checked(_query(text, file))
    if corpus is None and folder is None:
        raise UsageError("no corpus named", hint="--corpus DIR, or --index DIR of one that was indexed")
    if query is None and not (build or check or skipped):
        raise UsageError("nothing to trace", hint="give a text, - for standard input, --file, or --build to index only")
    folder = folder or default_index(corpus or Path())
    built = _build(corpus, folder, build, jobs)
    with Index(folder) as index:
        if check and (damaged := index.check()):
            raise FormatError(f"{len(damaged)} files of the index are damaged, the first is {damaged[0]}", hint=REMOVE)
        if query is None:
            _tell_index(index, built, skipped, as_json)
            return
        if corpus is not None and built is None:
            _warn_if_changed(index, corpus)
        with progress() as bar:
            report = trace(index, query, Limits(min_bytes, min_words, similar, sources), progress=bar)
    if html is not None:
        _write_page(report, html)
    if as_json:
        emit_json(report)
    else:
        _draw(report)


REMOVE = "remove those shards' directories and run `freehold trace --build`"


def _query(text: str | None, file: Path | None) -> bytes | None:
    from freehold.provenance.trace import LONGEST_QUERY

    if text is not None and file is not None:
        raise UsageError("expected a text or --file, found both")
    if file is not None:
        try:
            with file.open("rb") as opened:
                return opened.read(LONGEST_QUERY + 1)  # `trace` says what is too much
        except OSError as error:
            raise UsageError(f"can't read {file}: {error.strerror}") from None
    if text == "-":
        return sys.stdin.buffer.read(LONGEST_QUERY + 1)
    return None if text is None else text.encode("utf-8", "surrogateescape")


def _checked(query: bytes | None) -> bytes | None:
    """The query, if it is text."""
    if query is not None and not query.strip():
        raise UsageError("expected a text to trace, found nothing but white space")
    if query is not None and (place := query.find(b"\0")) >= 0:
        raise UsageError(
            f"expected a text to trace, found a zero byte at {place:,}", hint="trace the text of a binary file"
        )
    return query


def _build(corpus: Path | None, folder: Path, wanted: bool, jobs: int) -> Built | None:
    """Index the corpus if that is wanted or was never done."""
    from freehold.provenance.trace import build_index

    if wanted and corpus is None:
        raise UsageError("--build needs the corpus", hint="--corpus DIR")
    if corpus is None or not (wanted or not (folder / "manifest.json").exists()):
        return None
    with progress() as bar:
        built = build_index(corpus, folder, jobs=jobs, progress=bar)
    say(
        f"indexed {built.files:,} files ({built.distinct:,} distinct, {size(built.source_bytes)}) in {built.index}: "
        f"{size(built.index_bytes)}, {built.shards_built} of {built.shards} shards new"
    )
    return built


def _tell_index(index: Index, built: Built | None, every: bool, as_json: bool) -> None:
    """What is in the index and what is not."""
    skipped = index.manifest.skipped
    if as_json:
        files, found = len(index.manifest.files), {"index": index.folder, "corpus": index.manifest.root}
        emit_json({**found, "files": files, "text_bytes": index.text_bytes, "built": built, "skipped": skipped})
        return
    emit(
        f"{index.folder}: {len(index.manifest.files):,} files of {index.manifest.root}, {size(index.text_bytes)} of text"
    )
    if every:
        for one in skipped:
            emit(f"skipped {printable(one.path)}: {printable(one.reason)}")
    elif skipped:
        reasons = Counter(one.reason for one in skipped).most_common()
        why = ", ".join(f"{count:,} {printable(reason)}" for reason, count in reasons)
        say(f"skipped {len(skipped):,} files: {why}; `--skipped` names them")


def _warn_if_changed(index: Index, corpus: Path) -> None:
    if changed := index.changed(corpus):
        say(f"warning: {len(changed):,} files changed since the corpus was indexed (first: {printable(changed[0])})")
        say("hint: `--build` brings the index up to date")


def _write_page(report: Report, target: Path) -> None:
    from freehold.provenance.trace import page

    save(target, page(report).encode("utf-8", "replace"))
    say(f"report: {target}")


def _draw(report: Report) -> None:
    """The query with what was found marked, then each finding with its sources."""
    from rich.console import Console
    from rich.text import Text

    from freehold.provenance.trace import stretches, visible

    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    drawn = Text()
    for one in stretches(report):
        if one.kind:
            drawn.append(f"⟦{visible(one.text)}⟧", STYLES[one.kind])
            drawn.append("".join(f"[{number}]" for number in one.ends), "bold")
        else:
            drawn.append(_shortened(visible(one.text), PLAIN_SHOWN))
    console.print(drawn)
    nothing = "" if report.spans or report.near_duplicates else "nothing found; "
    console.print(
        f"\n{nothing}{report.covered:.1%} of {size(report.query_bytes)} word for word in {size(report.corpus_bytes)} of "
        f"text, {report.similar_bytes / max(1, report.query_bytes):.1%} more nearly"
    )
    for line in _findings(report):
        console.print(line)


def _findings(report: Report) -> Iterator[str]:
    for number, span in enumerate(report.spans, 1):
        times = "once" if span.count == 1 else f"{span.count:,} times"
        yield f"\n[{number}] {span.length:,} bytes, {span.words} words from byte {span.start:,}; stands there {times}"
        for source in span.sources:
            yield from _source(source, "")
    for number, near in enumerate(report.near_duplicates, len(report.spans) + 1):
        yield f"\n[{number}] nearly: {near.length:,} bytes from byte {near.start:,}"
        for one in near.similar:
            yield from _source(one.source, f"{one.jaccard:.0%} similar, ")


def _source(source: Source, how: str) -> Iterator[str]:
    licence = f"licence file {printable(source.licence)}" if source.licence else "no licence file above it"
    expanded = " of the expanded text" if source.compressed else ""
    yield f"    {how}{printable(source.file)}:{source.line} (byte {source.offset:,}{expanded}; {licence})"
    if source.copies_count:
        more = f" and {source.copies_count - 1:,} more" if source.copies_count > 1 else ""
        yield f"      the same file: {printable(source.copies[0])}{more}"
    yield f"      … {_shortened(printable(f'{source.before}{source.text}{source.after}'), SNIPPET)} …"


def _shortened(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]} … {text[-half:]}"
