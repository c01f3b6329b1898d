"""Wheels from the user's package index, fetched by pip and never installed: index, proxy and certificates are those the
user configured. Knows pip, not what is inside a wheel.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

from freehold.errors import StoreError
from freehold.formats.writing import tree_size
from freehold.progress import Progress

POLL_SECONDS = 0.2


def download(
    requirement: str,
    work: Path,
    *,
    sha256: str | None = None,
    size: int | None = None,
    label: str | None = None,
    progress: Progress | None = None,
    python: str = sys.executable,
) -> Path:
    """One wheel without its dependencies; nothing of it is built, installed or run.

    Args:
        requirement: "name==version", or a name for the newest.
        work: an empty directory on a disk with room; the wheel is left in it.
        sha256: what the wheel has to have; pip refuses another one.
        size: bytes of the wheel, for `progress`.
        label: what errors and progress call it; the requirement by default.

    Raises:
        StoreError: pip is missing or fails, or there is no wheel of that name.
    """
    label = label or requirement
    requirements, log = work / "requirements.txt", work / "pip.log"
    requirements.write_text(requirement + (f" --hash=sha256:{sha256}" if sha256 else "") + "\n")
    (work / "tmp").mkdir()
    (work / "wheel").mkdir()
    command = [python, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--require-hashes"] if sha256 else []
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar=off"]
    command += ["--dest", str(work / "wheel"), "--requirement", str(requirements)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(work / "tmp")},  # so that the transfer can be watched
        )
        try:
            status = _watch(process, work, size, label, progress)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    wheels = list((work / "wheel").glob("*.whl"))
    if status != 0 or len(wheels) != 1:
        raise _failure(requirement, label, log.read_text(encoding="utf-8", errors="replace"))
    return wheels[0]


def changed(what: str, project: str) -> StoreError:
    """The error for a file that is not the pinned one."""
    return StoreError(
        f"{what} of {project} does not have the pinned SHA-256",
        hint="the package index serves something else under this name: don't use it, and tell its operator",
    )


def _watch(
    process: subprocess.Popen[bytes], work: Path, size: int | None, label: str, progress: Progress | None
) -> int:
    while True:
        try:
            return process.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:
            if progress is not None:
                with contextlib.suppress(FileNotFoundError):  # pip moves files while they are counted
                    done = tree_size(work)
                    progress(min(done, size) if size else done, size, label)


def _failure(requirement: str, label: str, log: str) -> StoreError:
    """What went wrong, from pip's output; credentials in index addresses are cut out."""
    if "No module named pip" in log:
        return StoreError(
            f"fetching {label!r} needs pip, and this Python has none",
            hint=f"run `{sys.executable} -m ensurepip`, or `uv pip install pip`, and try again",
        )
    if "DO NOT MATCH THE HASHES" in log:
        return changed("the wheel", requirement.replace("==", " "))
    if "No space left on device" in log:
        return StoreError(f"the disk filled up while fetching {label!r}", hint="free some space and try again")
    if "No matching distribution" in log:
        return StoreError(
            f"pip found no {requirement} for {label!r}",
            hint="check that pip's index is reachable (`pip config list`) and mirrors this project",
        )
    lines = [line for line in log.splitlines() if line.strip()]
    reason = next((line for line in reversed(lines) if "ERROR" in line), lines[-1] if lines else "no output")
    reason = re.sub(r"//[^/\s@]*@", "//", reason)[:500]
    return StoreError(
        f"pip could not fetch {requirement}: {reason}", hint="see `pip config list`; try again when online"
    )
