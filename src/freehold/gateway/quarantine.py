"""What must be remembered across a crash: which backends refused our account, and when each may be asked again.

One small JSON file, replaced whole and flushed to the disk, so that `kill -9` at any moment leaves the old state or the
new. It holds names, kinds and times; nothing a provider said. Knows no breaker and no backend.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

log = logging.getLogger("freehold.gateway")

FILE = "quarantine.json"
MAX_BYTES = 1 << 20


class Quarantine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One backend's. Times in seconds since 1970, because they outlive the process."""

    kind: str
    since: float
    next_probe: float


class QuarantineStore:
    """Quarantines on disk. A disk that refuses them costs their memory, never an answer.

    Args:
        directory: made when the first one is saved.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / FILE

    def load(self) -> dict[str, Quarantine]:
        """What was saved last; nothing, with a warning, when the file is not one of ours."""
        try:
            with self.path.open("rb") as file:
                raw = file.read(MAX_BYTES)
            return msgspec.json.decode(raw, type=dict[str, Quarantine])
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.DecodeError, RecursionError) as error:
            log.warning("can't read %s, so no backend is known to be quarantined: %s", self.path, error)
            return {}

    def save(self, quarantines: Mapping[str, Quarantine]) -> None:
        """Replaces the file. Blocks for the disk: this happens once per event, not once per request."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            partial = self.path.with_suffix(f".{os.getpid()}.partial")
            try:
                _write_through(partial, msgspec.json.encode(dict(quarantines)))
                partial.replace(self.path)
            finally:
                with suppress(FileNotFoundError):
                    partial.unlink()
            _flush_directory(self.path.parent)
        except OSError as error:
            log.error("can't write %s: a restart will forget who is quarantined (%s)", self.path, error)


def state_directory(named: str = "") -> Path:
    """Where state lives: as named, else `freehold` below XDG_STATE_HOME (default ~/.local/state)."""
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "freehold"


def _write_through(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        path.chmod(0o600)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
