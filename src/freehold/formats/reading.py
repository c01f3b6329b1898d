"""Reading parts of a large file, with every range checked against its size.

Reads copy into fresh memory instead of mapping the file: a file that shrinks while it is read gives an error where a
mapping would kill the process, and pages already used don't count as ours. Knows no file format but JSON.
"""

from __future__ import annotations

import json
import os
import stat
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from freehold.errors import FormatError

MAX_JSON_BYTES = 100_000_000
"""Largest JSON text we parse: the limit the safetensors library sets for its header (safetensors/src/tensor.rs)."""


class Closing:
    """A context manager that calls `close` at the end."""

    def close(self) -> None:
        """Free what is held."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ByteFile(Closing):
    """A file open for reading ranges; safe to use from several threads.

    Raises:
        FormatError: no such file, not a regular file, or unreadable.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            # Before opening: opening a named pipe would wait for a writer.
            if not stat.S_ISREG(path.stat().st_mode):
                raise FormatError(f"expected a file at {path}, found something else")
            self._file = path.open("rb", buffering=0)
        except FileNotFoundError:
            raise FormatError(f"no file at {path}") from None
        except (OSError, ValueError) as error:
            raise FormatError(f"can't open {path}: {error}") from None
        self.size = os.fstat(self._file.fileno()).st_size

    def read(self, offset: int, count: int) -> NDArray[np.uint8]:
        """`count` bytes from `offset`; FormatError when the file has fewer."""
        if offset < 0 or count < 0 or offset + count > self.size:
            raise FormatError(
                f"{self.path}: expected {count} bytes at offset {offset}, but the file has {self.size} bytes",
                hint="the file is truncated or damaged; fetch it again",
            )
        out = np.empty(count, np.uint8)
        view = out.data
        done = 0
        with self._lock:
            try:
                self._file.seek(offset)
                while done < count:
                    got = self._file.readinto(view[done:])
                    if not got:
                        raise FormatError(f"{self.path} shrank while it was read")
                    done += got
            except (OSError, ValueError) as error:
                raise FormatError(f"can't read {self.path}: {error}") from None
        return out

    def close(self) -> None:
        """Close the file; reading afterwards is an error."""
        self._file.close()


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The JSON object in a file; FormatError when it is missing, too large, not JSON, or not an object."""
    with ByteFile(path) as file:
        if file.size > MAX_JSON_BYTES:
            raise FormatError(f"expected {what} of at most {MAX_JSON_BYTES} bytes, found {file.size} in {path}")
        return parse_json(file.read(0, file.size).tobytes(), f"{what} {path}")


def parse_json(text: bytes, where: str) -> dict[str, Any]:
    """A JSON object with no key twice, no NaN and no infinity; `where` opens the message of the FormatError."""
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_constant)
    except UnicodeDecodeError as error:
        raise FormatError(f"{where}: expected UTF-8, found byte {text[error.start]:#04x} at {error.start}") from None
    except RecursionError:
        raise FormatError(f"{where}: JSON nested too deeply") from None
    except ValueError as error:
        raise FormatError(f"{where}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise FormatError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in pairs:
        if key in out:
            raise ValueError(f"key {key[:200]!r} appears twice")
        out[key] = value
    return out


def _constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")
