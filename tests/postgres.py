"""A real PostgreSQL in a temporary directory, for as long as a test run lasts.

It listens on a socket in that directory only. PostgreSQL refuses to run as root, so root lends it another user's name.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REASON = "no PostgreSQL server on this machine: `apt-get install postgresql` (make test does it when run by root)"


def programs() -> Path | None:
    """The directory of initdb and pg_ctl; None when PostgreSQL is not installed."""
    if found := shutil.which("initdb"):
        return Path(found).parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    return versions[-1].parent if versions else None


def _user() -> str | None:
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


@contextmanager
def server(bin: Path) -> Iterator[str]:
    """Yields the URL of the server's `postgres` database."""
    user = _user()
    home = Path(tempfile.mkdtemp(prefix="freehold-postgres-"))
    if user is not None:
        shutil.chown(home, user)

    def call(*words: str) -> None:
        done = subprocess.run(words, user=user, cwd=home, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{words[0]}: {done.stdout}{done.stderr}"

    data, log = str(home / "data"), str(home / "log")
    options = f"-k {home} -c listen_addresses='' -c fsync=off -c max_connections=50"
    try:
        call(str(bin / "initdb"), "-D", data, "-A", "trust", "-U", "freehold", "-E", "UTF8", "--locale=C", "--no-sync")
        # Its output must not hold our pipes: the server would keep them open for as long as it lives.
        call(str(bin / "pg_ctl"), "-D", data, "-l", log, "-o", options, "-w", "start")
        try:
            yield f"postgresql://freehold@/postgres?host={home}"
        finally:
            call(str(bin / "pg_ctl"), "-D", data, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(home, ignore_errors=True)
