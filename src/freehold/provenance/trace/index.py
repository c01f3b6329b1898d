"""An index of a corpus: shards and the manifest that says which files are in them; how it is built, opened and checked.

    INDEX/manifest.json     files with their contents' hashes, what was skipped, the shards in order
    INDEX/shards/NAME/      see `shard`; named after its content
    INDEX/lock              held while somebody builds

A build writes what is missing, then the manifest, then removes what nobody needs: it may be interrupted anywhere and goes
on from the last whole shard. It knows nothing of queries.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
from collections import defaultdict
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Final

import msgspec

from freehold.errors import FormatError, StoreError, UsageError
from freehold.formats.reading import Closing
from freehold.formats.store import home
from freehold.formats.writing import locked, tree_size, write_file
from freehold.progress import Progress, silent
from freehold.provenance import minhash
from freehold.provenance.trace.plan import FORMAT, Piece, ShardPlan, pieces_of, shards_of
from freehold.provenance.trace.shard import REBUILD, Shard, build_shard
from freehold.provenance.trace.sources import Skipped, SourceFile, differing, scan

MOST_WORKERS: Final = 4  # each takes up to seven times a shard's text while it sorts
Task = tuple[Path, ShardPlan, dict[str, SourceFile], Path]  # what build_shard is given
MANIFEST: Final = "manifest.json"
_OWN = {MANIFEST, f"{MANIFEST}.partial", "shards", "lock"}


class IndexedFile(msgspec.Struct, frozen=True):
    """A file and the hash of its (expanded) content."""

    file: SourceFile
    digest: str


class Manifest(msgspec.Struct, frozen=True):
    """What `manifest.json` holds."""

    format: str
    algorithm: str
    root: str
    files: list[IndexedFile]
    skipped: list[Skipped]
    shards: list[str]


class Built(msgspec.Struct, frozen=True):
    """What a build did: counts of files, bytes of source (equal contents once), bytes on disk, shards."""

    index: Path
    files: int
    distinct: int
    skipped: int
    source_bytes: int
    index_bytes: int
    shards: int
    shards_built: int


def default_index(corpus: Path) -> Path:
    """Where the index of a corpus lies unless somebody says otherwise."""
    name = hashlib.blake2b(os.fsencode(corpus.resolve()), digest_size=8).hexdigest()
    return home() / "trace" / f"{corpus.resolve().name or 'root'}-{name}"


def build_index(corpus: Path, index: Path, *, jobs: int = 0, progress: Progress = silent) -> Built:
    """Index a corpus, or bring its index up to date; shards whose content did not change stay as they are.

    Args:
        corpus: a directory, or one file.
        index: directory of the index; made if missing.
        jobs: processes; 0 = one for each CPU, MOST_WORKERS at most.
        progress: shown how far the work is.

    Raises:
        UsageError: no such corpus, no text in it, or `index` is a directory of something else.
        StoreError: a file changed meanwhile, or the disk refused.
    """
    corpus, index = corpus.resolve(), index.resolve()
    files, skipped = scan(corpus, leave_out=index)
    _claim(index)
    with locked(index / "lock"):
        for left in (index / "shards").glob("*.partial"):
            shutil.rmtree(left)
        indexed, pieces, more = _plan(corpus, files, progress)
        if not pieces:
            raise UsageError(f"no text in {corpus}: {len(skipped) + len(more)} files were skipped, none can be read")
        plans = list(shards_of(pieces))
        built = _build_missing(corpus, index / "shards", plans, indexed, jobs, progress)
        names = [plan.name for plan in plans]
        skipped = sorted([*skipped, *more], key=lambda one: one.path)
        manifest = Manifest(FORMAT, minhash.ALGORITHM, str(corpus), indexed, skipped, names)
        write_file(index / MANIFEST, msgspec.json.encode(manifest))
        for folder in (index / "shards").iterdir():
            if folder.name not in names:
                shutil.rmtree(folder)
    source_bytes = sum(plan.size for plan in plans)
    distinct = len({one.digest for one in indexed})
    return Built(index, len(indexed), distinct, len(skipped), source_bytes, tree_size(index), len(plans), built)


def _claim(index: Path) -> None:
    """Make the directory, unless it is somebody else's."""
    try:
        index.mkdir(parents=True, exist_ok=True)
        foreign = sorted(entry.name for entry in index.iterdir() if entry.name not in _OWN)
        if foreign:
            raise UsageError(
                f"expected an index or nothing at {index}, found {foreign[0]!r}", hint="choose another --index"
            )
        (index / "shards").mkdir(exist_ok=True)
    except OSError as error:
        raise StoreError(f"can't write the index at {index}: {error.strerror}") from None


def _plan(
    corpus: Path, files: list[SourceFile], progress: Progress
) -> tuple[list[IndexedFile], list[Piece], list[Skipped]]:
    """Files with text and their hashes, the pieces of distinct contents in order, and files that turned out to be none."""
    indexed: list[IndexedFile] = []
    pieces: list[Piece] = []
    skipped: list[Skipped] = []
    seen: set[str] = set()
    done, total = 0, sum(file.size for file in files)
    for file in files:
        found = pieces_of(corpus, file)
        done += file.size
        progress(done, total, "reading")
        if isinstance(found, Skipped):
            skipped.append(found)
            continue
        indexed.append(IndexedFile(file, found[0].digest))
        if found[0].digest not in seen:
            seen.add(found[0].digest)
            pieces += found
    return indexed, pieces, skipped


def _build_missing(
    corpus: Path, shards: Path, plans: list[ShardPlan], indexed: list[IndexedFile], jobs: int, progress: Progress
) -> int:
    """Build the shards that are not there; their number."""
    missing = [plan for plan in plans if not _whole(shards / plan.name, plan.name)]
    by_digest = {one.digest: one.file for one in reversed(indexed)}
    jobs = min(jobs or min(len(os.sched_getaffinity(0)), MOST_WORKERS), len(missing))
    total = sum(plan.size for plan in missing)
    tasks = [
        (corpus, plan, {p.digest: by_digest[p.digest] for p in plan.pieces}, shards / plan.name) for plan in missing
    ]
    if jobs <= 1:
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress(done, total, "indexing")

        for task in tasks:
            build_shard(*task, advance)
    else:
        _build_in_processes(tasks, jobs, total, progress)
    return len(missing)


def _whole(folder: Path, name: str) -> bool:
    """Is this shard there? One that lacks something is removed, to be built again."""
    try:
        Shard(folder, name)
    except FormatError:
        shutil.rmtree(folder, ignore_errors=True)
        return False
    return True


def _build_in_processes(tasks: list[Task], jobs: int, total: int, progress: Progress) -> None:
    context = multiprocessing.get_context("spawn")
    done = context.Value("q", 0)
    with ProcessPoolExecutor(jobs, context, _begin, (done,)) as pool:
        waiting: set[Future[None]] = {pool.submit(_build_one, task) for task in tasks}
        try:
            while waiting:
                finished, waiting = wait(waiting, timeout=0.5, return_when="FIRST_COMPLETED")
                progress(done.value, total, "indexing")
                for future in finished:
                    future.result()
        except BrokenProcessPool:
            hint = "the system may have been out of memory; --jobs 1 takes least"
            raise StoreError("a process that built the index was killed", hint=hint) from None
        finally:
            for future in waiting:
                future.cancel()


_done: Any = None  # in a worker: bytes done by all of them


def _begin(done: Any) -> None:
    global _done
    _done = done


def _build_one(task: Task) -> None:
    build_shard(*task, _advance)


def _advance(count: int) -> None:
    with _done.get_lock():
        _done.value += count


class Index(Closing):
    """An index open for reading.

    Raises:
        UsageError: there is none.
        FormatError: it is damaged, or of another version.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = _manifest(folder)
        self.shards = [Shard(folder / "shards" / name, name) for name in self.manifest.shards]
        self._files: dict[str, list[SourceFile]] = defaultdict(list)
        for one in self.manifest.files:
            self._files[one.digest].append(one.file)

    def files(self, digest: str) -> list[SourceFile]:
        """The files that have this content, by path; at least one."""
        found = self._files.get(digest)
        if not found:
            raise FormatError(f"{self.folder / MANIFEST}: no file for content {digest[:64]}", hint=REBUILD)
        return found

    @property
    def text_bytes(self) -> int:
        """Bytes of text that can be found."""
        return sum(len(shard.text) for shard in self.shards)

    def changed(self, corpus: Path) -> list[str]:
        """Files of the corpus that are new, gone, or of another size or time than when they were indexed."""
        skipped = {one.path for one in self.manifest.skipped}
        files = [file for file in scan(corpus.resolve(), self.folder.resolve())[0] if file.path not in skipped]
        return list(differing([one.file for one in self.manifest.files], files))

    def check(self) -> list[str]:
        """Files of the index whose bytes are not those that were written."""
        return [path for shard in self.shards for path in shard.check()]

    def close(self) -> None:
        """Let go of the mapped files."""
        self.shards = []


def _manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except FileNotFoundError:
        raise UsageError(f"no index at {folder}", hint="`freehold trace --build --corpus DIR` makes one") from None
    except OSError as error:
        raise FormatError(f"can't read {path}: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"{path}: expected the manifest of an index: {error}", hint=REBUILD) from None
    found, expected = (manifest.format, manifest.algorithm), (FORMAT, minhash.ALGORITHM)
    if found != expected:
        hint = "`freehold trace --build` brings it up to date"
        raise FormatError(f"{path}: expected format {expected}, found {found}", hint=hint)
    bad = [name for name in manifest.shards if not name.isalnum()]
    if bad:
        raise FormatError(f"{path}: expected names of shards, found {bad[0][:64]!r}", hint=REBUILD)
    return manifest
