"""Tracing at size: a corpus of what this machine has installed, planted spans and near-duplicates, and every figure asked.

python bench/trace.py [--megabytes 1024] [--queries 300] [--jobs 2] [--work DIR] [--keep]

A DIR that was kept is used again: nothing is built, only the queries are measured.

The corpus is text found below /usr and this Python (packages, headers, manuals, documentation), equal files once; where
that is too little, wheels of some large packages are fetched with pip. One file in twenty is stored as .gz, one in ten as a
record of a .jsonl file. Into it go spans of 50 random words, anywhere, and paragraphs of 80 to 200 words at line ends.
Each query is an answer of about 500 words: an excerpt of the corpus, one planted span, one edited paragraph, new text.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from freehold.provenance import minhash
from freehold.provenance.trace import Index, Report, build_index, trace
from freehold.provenance.trace.plan import digest_of
from freehold.provenance.trace.sources import Skipped, read, scan

ROOTS = ["/usr/share/doc", "/usr/include", "/usr/share/man", "/usr/lib", "/usr/share", "/usr/local"]
WHEELS = ["sympy", "django", "sqlalchemy", "scipy", "pandas", "matplotlib", "plotly", "babel", "botocore", "nltk"]
WHEELS += ["transformers", "google-api-python-client", "pulumi-aws", "pulumi-azure-native"]
SEED = 7
LARGEST_FILE = 8 << 20
PLANTED_SHARE = 0.03  # of files that get a span, and as many that get a paragraph
COLD_QUERIES = 20


@dataclass
class Plant:
    """Where something was planted: `text` stands in `path` at `offset` of its expanded content, in `line`."""

    text: str
    path: str = ""
    offset: int = -1
    line: int = 0


@dataclass
class Corpus:
    """A corpus as it was written, and what is in it."""

    root: str
    text_bytes: int = 0
    files: int = 0
    spans: list[Plant] = field(default_factory=list)
    paragraphs: list[Plant] = field(default_factory=list)
    excerpts: list[str] = field(default_factory=list)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--megabytes", type=int, default=1024)
    arguments.add_argument("--queries", type=int, default=300)
    arguments.add_argument("--jobs", type=int, default=2)
    arguments.add_argument("--work", type=Path)
    arguments.add_argument("--keep", action="store_true")
    given = arguments.parse_args()
    work = given.work or Path(tempfile.mkdtemp(prefix="freehold-trace-"))
    try:
        run(work, given.megabytes * 1_000_000, given.queries, given.jobs)
    finally:
        if not given.keep:
            shutil.rmtree(work, ignore_errors=True)


def run(work: Path, target: int, queries: int, jobs: int) -> None:
    generator = random.Random(SEED)
    show("load at the start", " ".join(f"{n:.1f}" for n in os.getloadavg()))
    kept = work / "planted.json"
    if kept.exists():
        corpus = msgspec.json.decode(kept.read_bytes(), type=Corpus)
    else:
        corpus = make_corpus(work, target, generator)
        kept.write_bytes(msgspec.json.encode(corpus))
    show("corpus", f"{corpus.text_bytes / 1e6:,.0f} MB of text in {corpus.files:,} files")
    show("planted", f"{len(corpus.spans)} spans, {len(corpus.paragraphs)} paragraphs")
    if not (work / "index" / "manifest.json").exists():
        measure_build(corpus, work / "index", jobs)
    with Index(work / "index") as index:
        measure_minhash(index)
        measure_queries(index, corpus, generator, queries)
    measure_cold(work / "index", corpus, generator)
    show("load at the end", " ".join(f"{n:.1f}" for n in os.getloadavg()))


def show(what: str, value: object) -> None:
    print(f"{what + ':':<34} {value}", flush=True)


# -- the corpus -----------------------------------------------------------------------------------------------------------


def make_corpus(work: Path, target: int, generator: random.Random) -> Corpus:
    root = work / "corpus"
    root.mkdir(parents=True)
    corpus = Corpus(str(root))
    packed: list[tuple[str, list[Plant]]] = []
    words = Words(generator)
    for number, (name, data) in enumerate(installed_texts(work)):
        plain = Path(name).suffix not in (".json", ".jsonl", ".html", ".htm", ".xhtml")
        text, plants = plant(data, corpus, words, generator) if plain and number % 3 == 0 else (data, [])
        corpus.text_bytes += len(text)
        corpus.files += 1
        if number % 101 == 0 and len(text) > 4000:
            at = generator.randrange(len(text) - 2000)
            corpus.excerpts.append(text[at : at + 1200].decode("utf-8", "ignore"))
        if plain and number % 10 == 3:
            packed.append((text.decode("utf-8", "replace"), plants))
        else:
            store(root, f"{name}.gz" if plain and number % 20 == 6 else name, text, plants)
        if len(packed) == 200:
            store_records(root, f"records/{number:06d}.jsonl", packed)
            packed = []
        if corpus.text_bytes >= target:
            break
    if packed:
        store_records(root, "records/last.jsonl", packed)
    return corpus


def installed_texts(work: Path) -> Iterator[tuple[str, bytes]]:
    """Distinct texts by name, from this machine, then from wheels."""
    seen: set[str] = set()
    roots = [Path(root) for root in (*ROOTS, sys.prefix) if Path(root).is_dir()]
    for root in roots:
        yield from texts_below(root, root.name, seen)
    wheels = work / "wheels"
    for package in WHEELS:
        fetch = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(wheels), package]
        subprocess.run(fetch, check=True, stdout=sys.stderr)
        wheel = next(iter(wheels.glob("*.whl")))
        with zipfile.ZipFile(wheel) as opened:
            opened.extractall(wheels / package)  # refuses paths outside
        wheel.unlink()
        yield from texts_below(wheels / package, f"wheels/{package}", seen)


def texts_below(root: Path, prefix: str, seen: set[str]) -> Iterator[tuple[str, bytes]]:
    for file in scan(root)[0]:
        if file.size > LARGEST_FILE or file.compressed:
            continue
        data = read(root, file)
        if isinstance(data, Skipped) or not data or (digest := digest_of(data)) in seen:
            continue
        seen.add(digest)
        yield f"{prefix}/{file.path}", data


class Words:
    """Words that look like words and stand nowhere else."""

    def __init__(self, generator: random.Random) -> None:
        parts = [
            "ka",
            "ro",
            "mi",
            "sel",
            "tan",
            "vor",
            "eb",
            "ul",
            "nis",
            "dra",
            "pho",
            "gri",
            "lum",
            "ost",
            "zen",
            "qua",
        ]
        self.all = ["".join(generator.choices(parts, k=generator.randint(1, 4))) for _ in range(20_000)]
        self.generator = generator

    def take(self, count: int) -> str:
        return " ".join(self.generator.choices(self.all, k=count))


def plant(data: bytes, corpus: Corpus, words: Words, generator: random.Random) -> tuple[bytes, list[Plant]]:
    """The text with a span, a paragraph, or neither."""
    chance = generator.random()
    if chance < PLANTED_SHARE:
        found = Plant(words.take(50))
        corpus.spans.append(found)
        at = generator.randrange(len(data) + 1)
        return data[:at] + b"(" + found.text.encode() + b")" + data[at:], [found]
    if chance < 2 * PLANTED_SHARE:
        found = Plant(textwrap.fill(words.take(generator.randint(80, 200)), 72))
        corpus.paragraphs.append(found)
        at = data.find(b"\n", generator.randrange(len(data))) + 1
        return data[:at] + b"\n\n" + found.text.encode() + b"\n\n" + data[at:], [found]
    return data, []


def store(root: Path, name: str, text: bytes, plants: list[Plant]) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text, 1) if name.endswith(".gz") else text)
    for one in plants:
        locate(one, text, name, 0)


def store_records(root: Path, name: str, records: list[tuple[str, list[Plant]]]) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = []
    for number, (text, plants) in enumerate(records):
        line = json.dumps({"id": f"{name}/{number}", "text": text}, ensure_ascii=number % 2 == 0).encode() + b"\n"
        for one in plants:
            locate(one, line, name, sum(map(len, parts)), number + 1, escaped=True)
        parts.append(line)
    written = b"".join(parts)
    path.write_bytes(written)


def locate(one: Plant, data: bytes, name: str, before: int, line: int = 0, escaped: bool = False) -> None:
    text = json.dumps(one.text)[1:-1] if escaped else one.text
    at = data.index(text.encode())
    one.path, one.offset = name, before + at
    one.line = line or data.count(b"\n", 0, at) + 1


# -- the figures ----------------------------------------------------------------------------------------------------------


def measure_build(corpus: Corpus, index: Path, jobs: int) -> None:
    memory = PeakMemory()
    began, before = time.perf_counter(), sum(os.times()[:4])
    built = build_index(Path(corpus.root), index, jobs=jobs)
    took = time.perf_counter() - began
    peak = memory.stop()
    worked = sum(os.times()[:4]) - before
    rate = f"{corpus.text_bytes / 1e6 / took:.1f} MB/s, {jobs} processes, {worked:.0f} s of CPU"
    show("index time", f"{took / 60:.1f} min ({rate}; <= 20 min)")
    show(
        "index size",
        f"{built.index_bytes / 1e6:,.0f} MB, {built.index_bytes / corpus.text_bytes:.2f} x the text (<= 8)",
    )
    show("peak memory of all processes", f"{peak / 1e9:.1f} GB (resident; < 20 GB)")
    began = time.perf_counter()
    again = build_index(Path(corpus.root), index, jobs=jobs)
    show("second build, nothing changed", f"{time.perf_counter() - began:.0f} s, {again.shards_built} shards built")


class PeakMemory:
    """The most that this process and its children held at once, looked at five times a second."""

    def __init__(self) -> None:
        self.peak = 0
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()

    def _watch(self) -> None:
        while not self.over.wait(0.2):
            self.peak = max(self.peak, sum(resident(pid) for pid in family(os.getpid())))

    def stop(self) -> int:
        self.over.set()
        self.thread.join()
        return self.peak


def family(pid: int) -> list[int]:
    try:
        children = " ".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")).split()
    except OSError:
        return []
    return [pid, *(one for child in children for one in family(int(child)))]


def resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def measure_minhash(index: Index) -> None:
    """Words, passages, signatures and bands of up to 128 MB, in one process."""
    block, total, took, worked = 8 << 20, 0, 0.0, 0.0
    for shard in index.shards:
        for at in range(0, len(shard.text), block):
            text = shard.text[at : at + block].tobytes()
            began, cpu = time.perf_counter(), time.process_time()
            found = minhash.passages(text)
            minhash.bands(minhash.signatures(found.shingles, found.offsets))
            took += time.perf_counter() - began
            worked += time.process_time() - cpu
            total += len(text)
            if total >= 128_000_000:
                break
    rate = f"{total / 1e6 / took:.1f} MB/s in one process (>= 20), {total / 1e6 / worked:.1f} MB per second of CPU"
    show("MinHash", rate)


def measure_queries(index: Index, corpus: Corpus, generator: random.Random, count: int) -> None:
    """Twice as many queries as asked, none like another: the second half finds more of the index in memory."""
    words = Words(random.Random(SEED + 1))
    exact = near = similar = 0
    times: list[float] = []
    count = min(count, len(corpus.spans) // 2, len(corpus.paragraphs) // 2)
    spans, paragraphs = generator.sample(corpus.spans, 2 * count), generator.sample(corpus.paragraphs, 2 * count)
    worked = time.process_time()
    for span, paragraph in zip(spans, paragraphs, strict=True):
        edited = edit(paragraph.text, words, generator)
        alike = plain_jaccard(paragraph.text, edited)
        query = answer(corpus, span.text, edited, words, generator)
        began = time.perf_counter()
        report = trace(index, query)
        times.append((time.perf_counter() - began) * 1000)
        exact += found_exactly(report, query, span)
        if alike >= 0.8:
            similar += 1
            near += found_nearly(report, paragraph)
    worked = time.process_time() - worked
    show("exact spans at the right place", f"{exact}/{2 * count} = {exact / 2 / count:.1%} (file, byte and line; 100%)")
    show("near-duplicates, Jaccard >= 0.8", f"{near}/{similar} = {near / similar:.1%} (file and byte; >= 92%)")
    for name, part in (("first", sorted(times[:count])), ("next", sorted(times[count:]))):
        found = f"p50 {part[count // 2]:.0f} ms, p95 {part[count * 95 // 100]:.0f} ms (<= 300)"
        show(f"trace, {name} {count} 500-word answers", found)
    show("CPU of one trace", f"{worked * 500 / count:.0f} ms on average, checks included")


def measure_cold(folder: Path, corpus: Corpus, generator: random.Random) -> None:
    """The same with none of the index in memory: the disk's time for random reads."""
    words = Words(random.Random(SEED + 2))
    times = []
    for _ in range(COLD_QUERIES):
        for path in folder.rglob("*.bin"):
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        query = answer(corpus, words.take(50), words.take(100), words, generator)
        with Index(folder) as index:
            began = time.perf_counter()
            trace(index, query)
            times.append((time.perf_counter() - began) * 1000)
    times.sort()
    show("the same, index not in memory", f"p50 {times[len(times) // 2]:.0f} ms, worst {times[-1]:.0f} ms")
    began = time.perf_counter()
    Index(folder).close()
    show("opening the index", f"{(time.perf_counter() - began) * 1000:.0f} ms")


def answer(corpus: Corpus, span: str, paragraph: str, words: Words, generator: random.Random) -> str:
    """About 500 words: an excerpt, new text around the span, the paragraph, new text."""
    parts = [generator.choice(corpus.excerpts), f"{words.take(20)}. {span}, {words.take(20)}.", paragraph]
    rest = max(20, 500 - sum(len(part.split()) for part in parts))
    return "\n\n".join([*parts, words.take(rest)])


def edit(text: str, words: Words, generator: random.Random) -> str:
    """Up to one word in twenty replaced, dropped or added, other line ends, case and punctuation."""
    found = text.split()
    for _ in range(generator.randint(1, max(1, len(found) // 20))):
        at = generator.randrange(len(found))
        found[at : at + 1] = generator.choice([[words.take(1)], [], [found[at], words.take(1)]])
    found = [word.capitalize() + "," if generator.random() < 0.1 else word for word in found]
    return textwrap.fill(" ".join(found), 100)


def plain_jaccard(one: str, other: str) -> float:
    """By the definition, without the code that is measured."""
    sets = []
    for text in (one, other):
        words = re.findall(r"\w+", text.lower())
        sets.append(set(zip(words, words[1:], words[2:], strict=False)))
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def found_exactly(report: Report, query: str, planted: Plant) -> bool:
    at = len(query[: query.index(planted.text)].encode())
    for span in report.spans:
        if span.start <= at and at + len(planted.text) <= span.start + span.length:
            return any(
                (source.file, source.offset + at - span.start, source.line + lines_before(span, at))
                == (planted.path, planted.offset, planted.line)
                for source in span.sources
            )
    return False


def lines_before(span: Any, at: int) -> int:
    return int(span.text.encode()[: at - span.start].count(b"\n"))


def found_nearly(report: Report, planted: Plant) -> bool:
    places = [(one.source.file, one.source.offset) for near in report.near_duplicates for one in near.similar]
    return (planted.path, planted.offset) in places


if __name__ == "__main__":
    main()
