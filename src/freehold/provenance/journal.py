"""The journal: where an exchange is safe from a killed process before its record is in the database.

One file for each process, appended with one `write` for each piece; what `write` took survives the process, not the machine.
Pieces are sealed (see `signing.Vault`), so no text lies on the disk in the open. The file is locked while its owner lives:
a file that can be locked is an orphan, and whoever starts next writes its exchanges into the ledger. When nothing waits
any more the file is emptied.

    frame = kind (B begun, E ended) · id length (2) · data length (4) · id · sealed data

Knows no database.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import secrets
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from freehold.errors import FormatError, LedgerError
from freehold.provenance.exchanges import Begun, Ended, decode_begun, decode_ended, encode, interrupted
from freehold.signing import Vault

log = logging.getLogger("freehold.ledger")

SUFFIX = ".journal"
COMPACT_BYTES = 4 << 20
"""A file larger than this, and more than half of which is done with, is written anew with what still waits."""
_HEAD = struct.Struct(">cHI")


class Journal:
    """This process's journal, open from `open` to `close`. Safe to use from several threads.

    Args:
        directory: where journals lie; made when it is not there.
        vault: seals what is written.
    """

    def __init__(self, directory: Path, vault: Vault) -> None:
        self._directory = directory
        self._vault = vault
        self._lock = threading.Lock()
        self._waiting: dict[str, list[bytes]] = {}  # frames by exchange
        self._descriptor = -1
        self._size = 0  # of the file, and how many of its bytes still wait
        self._live = 0
        self.path = directory / f"{os.getpid()}-{secrets.token_hex(4)}{SUFFIX}"

    def open(self) -> None:
        """Makes the file.

        Raises:
            LedgerError: it can't be made.
        """
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            part = self.path.with_suffix(".part")
            self._descriptor = _locked(part, os.O_CREAT)
            part.rename(self.path)  # under its name it was never unlocked: nobody takes it for an orphan
        except OSError as error:
            hint = "set provenance.journal_dir to a directory that can be written"
            raise LedgerError(f"can't write the journal {self.path}: {error.strerror}", hint=hint) from None

    def close(self) -> None:
        """Closes the file; an empty one goes away, any other is for the next start."""
        with self._lock:
            if self._descriptor >= 0:
                if not self._waiting:
                    self.path.unlink(missing_ok=True)
                os.close(self._descriptor)
                self._descriptor = -1

    def begin(self, begun: Begun) -> None:
        """An exchange is about to be answered.

        Raises:
            LedgerError: it could not be written.
        """
        self._write(b"B", begun.id, begun)

    def end(self, ended: Ended) -> None:
        """An exchange is complete: when this returns, killing the process does not lose it.

        Raises:
            LedgerError: it could not be written.
        """
        self._write(b"E", ended.id, ended)

    def release(self, ids: list[str]) -> None:
        """These are in the database."""
        with self._lock:
            for id in ids:
                self._live -= sum(map(len, self._waiting.pop(id, ())))
            if self._descriptor < 0:
                return
            try:
                if not self._waiting:
                    os.ftruncate(self._descriptor, 0)
                    self._size = 0
                elif self._size > max(COMPACT_BYTES, 2 * self._live):  # so that a backlog is not copied for each batch
                    self._compact()
            except OSError as error:  # nothing is lost: what is there twice is written once
                log.warning("the journal can't be shortened: %s", error.strerror)

    def _write(self, kind: bytes, id: str, piece: Begun | Ended) -> None:
        plain, name = encode(piece), id.encode()
        with self._lock:
            data = self._vault.seal(plain)
            frame = _HEAD.pack(kind, len(name), len(data)) + name + data
            try:
                _append(self._descriptor, frame, self._size)
            except OSError as error:
                raise LedgerError(f"can't write the journal {self.path}: {error.strerror}") from None
            self._size += len(frame)
            self._live += len(frame)
            self._waiting.setdefault(id, []).append(frame)

    def _compact(self) -> None:
        part = self.path.with_suffix(".part")
        data = b"".join(frame for frames in self._waiting.values() for frame in frames)
        descriptor = _locked(part, os.O_CREAT | os.O_TRUNC)
        try:
            _append(descriptor, data, 0)
            part.replace(self.path)
        except OSError:
            part.unlink(missing_ok=True)
            os.close(descriptor)
            raise
        os.close(self._descriptor)
        self._descriptor, self._size = descriptor, len(data)


@dataclass(frozen=True, slots=True)
class Orphan:
    """A journal whose process is gone, with its exchanges in the order they ended. `remove` it once they are written."""

    path: Path
    exchanges: tuple[tuple[Begun, Ended], ...]
    descriptor: int

    def remove(self) -> None:
        """Deletes the file."""
        self.path.unlink(missing_ok=True)
        os.close(self.descriptor)

    def keep(self) -> None:
        """Leaves it for another start."""
        os.close(self.descriptor)


def orphans(directory: Path, vault: Vault) -> Iterator[Orphan]:
    """Journals that nobody holds."""
    for path in sorted(directory.glob(f"*{SUFFIX}")):
        with suppress(OSError):
            descriptor = _locked(path, 0)
            if not os.path.samestat(os.fstat(descriptor), path.stat()):  # another one has just removed it
                os.close(descriptor)
                continue
            yield Orphan(path, tuple(_exchanges(path, vault)), descriptor)


def _exchanges(path: Path, vault: Vault) -> Iterator[tuple[Begun, Ended]]:
    begun: dict[str, Begun] = {}
    for kind, data in _frames(path):
        try:
            if kind == b"B":
                piece = decode_begun(vault.open(data))
                begun[piece.id] = piece
            else:
                ended = decode_ended(vault.open(data))
                if ended.id in begun:
                    yield begun.pop(ended.id), ended
        except (FormatError, msgspec.DecodeError) as error:
            log.error("%s: a piece can't be read and is lost: %s", path, error)
    for rest in begun.values():
        yield rest, interrupted(rest)


def _frames(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """The whole frames; the last may have been cut by the end of its process, before its answer was sent."""
    data = memoryview(path.read_bytes())
    at = 0
    while at + _HEAD.size <= len(data):
        kind, name, size = _HEAD.unpack_from(data, at)
        end = at + _HEAD.size + name + size
        if kind not in (b"B", b"E") or end > len(data):
            return
        yield kind, bytes(data[end - size : end])
        at = end


def _append(descriptor: int, data: bytes, size: int) -> None:
    """Writes all of it behind the first `size` bytes, or nothing: half a frame would hide what follows."""
    if os.write(descriptor, data) < len(data):
        os.ftruncate(descriptor, size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _locked(path: Path, flags: int) -> int:
    """A descriptor of the file, locked; raises OSError when another process holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
