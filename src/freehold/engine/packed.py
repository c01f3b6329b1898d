"""Weights in the kernels' own layout, kept in the cache: packed once, mapped by every later start.

A file is named by what it was made from: the contents of the checkpoint, the program's weights, and the layout's
version. Contents are hashed once; as long as a checkpoint's files keep their size, time and inode, the hash is
remembered. Whoever finds no usable file makes one, under a lock, and renames it into place, so that neither a second
builder nor a crash leaves half of one. Where the cache can't be written, weights are packed in memory.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freehold.engine.loading import LoadedWeights, WeightReader, expected_shapes, first_names
from freehold.formats.checkpoint import Checkpoint
from freehold.formats.store import home
from freehold.formats.writing import locked, replacing, sha256, write_file
from freehold.kernels import packfile
from freehold.kernels.executor import PackedMatrix, pack_matrix
from freehold.kernels.matrix import Matrix
from freehold.kernels.program import Program

F32 = NDArray[np.float32]
Packed = dict[str, PackedMatrix | F32]
logger = logging.getLogger(__name__)

SMALLEST = 16 << 20
"""Checkpoints of fewer bytes are packed in memory at each start: that takes less than a tenth of a second."""
SHAPE = "shape:"
"""Beginning of the source of random weights, see `shapes`."""
SETTLED = 2_000_000_000
"""Nanoseconds since a file was changed after which its time can be trusted to tell the next change."""


def directory() -> Path:
    """Where packed files are kept."""
    return home() / "packed"


def packed_weights(checkpoint: Checkpoint, program: Program, *, keep: bool = True) -> tuple[Packed, LoadedWeights]:
    """A program's weights as stored, in the kernels' layout, and their facts (without weights).

    Args:
        keep: map them from the cache, which is filled if need be; else, and for small models, pack them in memory.

    Raises:
        FormatError, UnsupportedError: see `loading.load_weights`.
    """
    reader = WeightReader(checkpoint, program, "stored")
    notes: list[str] = []
    weights: Packed | None = None
    if keep and reader.stored_bytes >= SMALLEST:
        try:
            weights, notes = _kept(checkpoint.path, program, reader)
        except OSError as error:
            notes = [f"weights are packed in memory: the cache in {directory()} can't be used ({error.strerror})"]
            logger.warning(notes[0])
    if weights is None:
        weights = dict(_packing(reader))
        notes = reader.notes() + notes
    shared = {name: weights[first] for name, first in first_names(program).items()}
    return shared, LoadedWeights({}, reader.parameters, reader.stored_bytes, notes)


def _packing(reader: WeightReader) -> Iterable[tuple[str, PackedMatrix | F32]]:
    for name, weight in reader:
        yield name, pack_matrix(weight) if isinstance(weight, Matrix) else weight


def _kept(source: Path, program: Program, reader: WeightReader) -> tuple[Packed, list[str]]:
    """From the cache; the notes are the builder's."""
    weights, facts = obtain(
        key_of(contents(source), program),
        program,
        lambda: _packing(reader),
        lambda: {"source": str(source.absolute()), "notes": reader.notes()},
    )
    return weights, list(facts["notes"])


def key_of(what: str, program: Program) -> str:
    """The name of a file: what it was made from, into which weights, in which layout."""
    wanted = [(name, spec.kind, spec.sources) for name, spec in program.weights.items() if spec.kind != "constant"]
    constants = [
        (name, hashlib.sha256(np.ascontiguousarray(spec.value, np.float32).tobytes()).hexdigest())
        for name, spec in program.weights.items()
        if spec.value is not None
    ]
    return hashlib.sha256(json.dumps([packfile.LAYOUT, what, wanted, constants]).encode()).hexdigest()


def obtain(
    key: str,
    program: Program,
    weights: Callable[[], Iterable[tuple[str, PackedMatrix | F32]]],
    facts: Callable[[], dict[str, Any]],
) -> tuple[Packed, dict[str, Any]]:
    """The weights and facts of a file of the cache, made by the first who needs it.

    Args:
        key: its name, see `key_of`.
        weights: what to write, one after the other; only called by a builder.
        facts: what the file says of itself: its `source` (a path, or `shape:NAME`) and more; called last.

    Raises:
        OSError: the file can't be made.
    """
    path = directory() / f"{key}.packed"
    expected = expected_shapes(program)
    shapes = {name: expected[name] for name in first_names(program).values()}
    if (found := _usable(path, shapes)) is not None:
        return found
    directory().mkdir(parents=True, exist_ok=True)
    with locked(home() / "locks" / "packed.lock"):
        if (found := _usable(path, shapes)) is not None:  # somebody built it meanwhile
            return found
        with replacing(path) as file:
            packfile.write(file, weights(), facts)
        os.utime(path, ns=(packfile.STAMP, packfile.STAMP))
        _clear(path)
    if (found := _usable(path, shapes)) is None:
        raise OSError(errno.EIO, f"{path} can't be read back")
    return found


def _usable(path: Path, shapes: dict[str, tuple[int, ...]]) -> tuple[Packed, dict[str, Any]] | None:
    """What a file holds, if it is whole. One that was changed since it was made is compared with its checksum first."""
    try:
        changed = path.stat().st_mtime_ns != packfile.STAMP
        weights, facts = packfile.read(path, whole=changed)
    except FileNotFoundError:
        return None
    except packfile.DamagedError as error:
        logger.warning("%s; it is made again", error)
        return None
    if {name: weight.shape for name, weight in weights.items()} != shapes:
        logger.warning("%s holds other weights than it should; it is made again", path)
        return None
    if changed:
        os.utime(path, ns=(packfile.STAMP, packfile.STAMP))
    return weights, facts


def _clear(kept: Path) -> None:
    """Remove what crashed builders left, and files whose source is gone or has become `kept`. The lock is held."""
    for partial in directory().glob("*.partial"):
        partial.unlink()
    source = packfile.facts_of(kept)["source"]
    for path in directory().glob("*.packed"):
        try:
            made_from = packfile.facts_of(path).get("source", "")
        except packfile.DamagedError:
            made_from = ""
        gone = not made_from.startswith(SHAPE) and not Path(made_from or "/nowhere").exists()
        if path != kept and (gone or made_from == source):
            path.unlink()


def contents(source: Path) -> str:
    """SHA-256 over a checkpoint's files, remembered as long as they keep size, time and inode.

    Raises:
        OSError: a file can't be read.
    """
    files = (
        [source] if source.is_file() else sorted(p for p in source.iterdir() if p.suffix in (".safetensors", ".json"))
    )
    states = _states(files)
    memo = directory() / "sources" / f"{hashlib.sha256(str(source.absolute()).encode()).hexdigest()[:32]}.json"
    try:
        remembered = json.loads(memo.read_bytes())
        if remembered["states"] == states:
            return str(remembered["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        logger.debug("the contents of %s are hashed", source)
    digest = hashlib.sha256(json.dumps([[file.name, sha256(file)] for file in files]).encode()).hexdigest()
    newest = max(file.stat().st_mtime_ns for file in files)
    if time.time_ns() - newest > SETTLED and _states(files) == states:
        memo.parent.mkdir(parents=True, exist_ok=True)
        write_file(memo, json.dumps({"source": str(source.absolute()), "states": states, "digest": digest}))
    return digest


def _states(files: list[Path]) -> list[list[str | int]]:
    found = [(file.name, file.stat()) for file in files]
    return [[name, state.st_size, state.st_mtime_ns, state.st_ino, state.st_dev] for name, state in found]
