"""The directory under construction: `OUT.partial`, written in place, taken up again after any interruption.

Finished tensors are noted in a journal with their checksum; a later run over the same source and options checks the
bytes behind each note and does only what is missing, so that its result equals an uninterrupted run's byte for byte.
Nothing is seen under the final name before all of it is on the disk. Knows files and bytes, not what they mean.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from freehold.compress.layout import Layout, Slot
from freehold.errors import FormatError, FreeholdError, UnsupportedError, UsageError

JOURNAL = "freehold-journal.jsonl"
REPORT = "freehold-report.json"
_CHUNK = 1 << 20
_CLOSED = -1


class Destination:
    """OUT while it is being made; a context manager that holds a lock on it.

    Raises:
        UsageError: OUT exists (and is not ours to replace), or OUT.partial is something else's.
        FreeholdError: another process writes here, or the file system refuses.
    """

    def __init__(self, out: Path, *, overwrite: bool) -> None:
        # Not resolve(): a link at OUT itself is refused as existing, but its parents may well be links.
        self.out = Path(os.path.abspath(out))  # noqa: PTH100
        self.partial = self.out.with_name(self.out.name + ".partial")
        self._replaced = self.out.with_name(self.out.name + ".replaced.partial")
        self._overwrite = overwrite
        self._files: dict[str, int] = {}
        self._journal = self._lock = _CLOSED
        self._slots: dict[str, dict[str, Slot]] = {}
        self.done: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> Self:
        self.check()
        with _explained(self.partial):
            self.partial.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.partial, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._take_lock()
            strangers = [p.name for p in self.partial.iterdir()]
            if strangers and JOURNAL not in strangers:
                raise UsageError(
                    f"{self.partial} exists and is not an unfinished compression",
                    hint="move it away, or choose another --out",
                )
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What the user must fix in the source or the command can't be taken up again; anything else can, and keeps what
        # is done: Ctrl-C, a full disk, an OUT that somebody made meanwhile.
        hopeless = (
            (FormatError, UnsupportedError) if self._journal != _CLOSED else (FormatError, UnsupportedError, UsageError)
        )
        if kind is not None and issubclass(kind, hopeless):
            shutil.rmtree(self.partial, ignore_errors=True)
        for handle in [*self._files.values(), self._journal, self._lock]:
            if handle != _CLOSED:
                os.close(handle)

    def begin(self, fingerprint: Mapping[str, Any], layout: Layout) -> None:
        """Create the files, or take them up again; `done` then holds what the journal knows of finished tensors."""
        first = {"fingerprint": dict(fingerprint)}
        self._slots = layout.slots
        with _explained(self.partial):
            notes = self._open_journal(first)
            needed = sum(shard.size for shard in layout.shards)
            self._check_space(needed)
            for shard in layout.shards:
                handle = os.open(self.partial / shard.file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                self._files[shard.file] = handle
                os.truncate(handle, shard.size)
                _write_at(handle, shard.header, 0)
            for note in notes:
                if self._checksum(note["name"]) == note["sha256"]:
                    self.done[note["name"]] = note

    def tensor(self, name: str) -> TensorWriter:
        """A writer for one tensor's parts."""
        return TensorWriter(self._files, self._slots[name], self.partial)

    def note(self, name: str, facts: Mapping[str, Any]) -> None:
        """Record that all parts of a tensor are written, with the facts about it that a later run can't know."""
        with _explained(self.partial):
            note = {"name": name, "sha256": self._checksum(name), **facts}
            self._append(note)
        self.done[name] = note

    def write_file(self, name: str, content: bytes) -> None:
        """Write a small file beside the weights."""
        with _explained(self.partial / name), (self.partial / name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def finish(self) -> None:
        """Force everything to the disk and give it its final name."""
        with _explained(self.out):
            for handle in self._files.values():
                os.fsync(handle)
            os.fsync(self._lock)
            self.check()
            if self._empty_out():
                self.out.rmdir()
            elif self.out.exists():
                shutil.rmtree(self._replaced, ignore_errors=True)
                self.out.rename(self._replaced)
            self.partial.rename(self.out)
            # The journal goes last: without it a run that dies before the renaming could not be taken up again.
            (self.out / JOURNAL).unlink()
            _sync_directory(self.out.parent)
            shutil.rmtree(self._replaced, ignore_errors=True)

    def check(self) -> None:
        """Refuses an OUT that must not be written to.

        Raises:
            UsageError: it exists, and may not be replaced.
        """
        if not os.path.lexists(self.out):
            return
        if self._empty_out():
            return
        if not self._overwrite:
            raise UsageError(f"{self.out} exists already", hint="choose another --out, or replace it with --force")
        if self.out.is_symlink() or not (self.out / REPORT).is_file():
            raise UsageError(
                f"{self.out} was not written by freehold compress, so it is not replaced", hint="choose another --out"
            )

    def _empty_out(self) -> bool:
        return self.out.is_dir() and not self.out.is_symlink() and not any(self.out.iterdir())

    def _take_lock(self) -> None:
        busy = FreeholdError(
            f"another freehold compress is writing to {self.out}", hint="wait for it to end, or choose another --out"
        )
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise busy from error
        # The other run may have finished, and renamed what we opened, between the two calls.
        if not self.partial.is_dir() or not os.path.samestat(self.partial.stat(), os.fstat(self._lock)):
            raise busy

    def _open_journal(self, first: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Open the journal to append to it; gives the notes of an earlier run, if it had the same first line."""
        path = self.partial / JOURNAL
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        entries = list(_readable(lines))
        lines = lines[: len(entries)]
        if not entries or entries[0] != first:
            for stale in self.partial.iterdir():
                stale.unlink()
            lines = []
        self._journal = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        end = sum(map(len, lines))
        os.truncate(self._journal, end)
        os.lseek(self._journal, end, os.SEEK_SET)
        if not lines:
            self._append(first)
        return entries[1:] if lines else []

    def _check_space(self, needed: int) -> None:
        present = sum(path.stat().st_blocks * 512 for path in self.partial.iterdir())
        free = shutil.disk_usage(self.partial).free
        if needed > free + present:
            raise FreeholdError(
                f"expected {needed:,} bytes free at {self.partial.parent}, found {free + present:,}",
                hint="free some space, or choose an --out on another disk",
            )

    def _checksum(self, name: str) -> str:
        digest = hashlib.sha256()
        for kind in sorted(self._slots[name]):
            slot = self._slots[name][kind]
            position, end = slot.offset, slot.offset + slot.part.nbytes
            while position < end:
                chunk = os.pread(self._files[slot.file], min(_CHUNK, end - position), position)
                if not chunk:
                    raise OSError(errno.EIO, "the file ended early")
                digest.update(chunk)
                position += len(chunk)
        return digest.hexdigest()

    def _append(self, entry: Mapping[str, Any]) -> None:
        line = json.dumps(entry, sort_keys=True).encode() + b"\n"
        if os.write(self._journal, line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class TensorWriter:
    """Writes the parts of one tensor, each from its beginning in any number of pieces."""

    def __init__(self, files: Mapping[str, int], slots: Mapping[str, Slot], where: Path) -> None:
        self._files = files
        self._slots = slots
        self._where = where
        self._written = dict.fromkeys(slots, 0)

    def put(self, kind: str, data: bytes | memoryview) -> None:
        """Append to a part."""
        slot = self._slots[kind]
        size = memoryview(data).nbytes
        if self._written[kind] + size > slot.part.nbytes:
            raise AssertionError(f"{slot.part.name}: more than its {slot.part.nbytes} bytes")
        with _explained(self._where):
            _write_at(self._files[slot.file], data, slot.offset + self._written[kind])
        self._written[kind] += size

    def check(self) -> None:
        """Every part must have got all its bytes."""
        for kind, slot in self._slots.items():
            if self._written[kind] != slot.part.nbytes:
                raise AssertionError(f"{slot.part.name}: {self._written[kind]} of {slot.part.nbytes} bytes")


def _readable(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Entries up to the first line that is cut off or damaged: a power cut may leave half a line, or zeros."""
    for line in lines:
        try:
            entry = json.loads(line.decode("utf-8"))
        except ValueError:
            return
        if not isinstance(entry, dict) or not line.endswith(b"\n"):
            return
        yield entry


def _write_at(handle: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data).cast("B")
    while view:
        count = os.pwrite(handle, view, offset)
        view, offset = view[count:], offset + count


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _explained(where: Path) -> Iterator[None]:
    """File system errors as one clear sentence."""
    try:
        yield
    except OSError as error:
        hint = "check the path and its permissions"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            hint = "make room and run the same command again: it goes on where it stopped"
        raise FreeholdError(f"can't write {where}: {error.strerror or error}", hint=hint) from error
