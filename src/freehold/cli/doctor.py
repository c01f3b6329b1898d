"""`freehold doctor`: what was found on this machine, what was chosen, and why. Keys are told to be there, never shown.

Each check is a function that yields findings; a finding that is not good makes the exit code 1.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from freehold import __version__
from freehold.cli.options import as_json, with_settings
from freehold.cli.output import emit, emit_json, size, table
from freehold.errors import FreeholdError
from freehold.settings import Settings

if TYPE_CHECKING:
    from freehold.gateway.quarantine import Quarantine

LOW_MEMORY = 1 << 30  # less than this free, and even the built-in model with its KV cache gets tight
LOW_DISK = 1 << 30


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report: what was found or chosen, why, and whether it is as it should be."""

    topic: str
    value: str
    reason: str = ""
    good: bool = True


@click.command("doctor")
@with_settings("engine.threads", "engine.isa")
@as_json
def command(settings: Settings, as_json: bool) -> None:
    """Check this machine and say what was chosen and why.

    Exit code 1 when something is wrong. Keys are only ever said to be present or missing.
    """
    findings = [finding for check in CHECKS for finding in _guarded(check, settings)]
    bad = [finding for finding in findings if not finding.good]
    if as_json:
        emit_json({"good": not bad, "findings": findings})
    else:
        rows = [("ok" if f.good else "WRONG", f.topic, f.value, f.reason) for f in findings]
        emit(table(rows, ("", "TOPIC", "FOUND", "WHY")))
    if bad:
        raise click.exceptions.Exit(1)


def _guarded(check: Callable[[Settings], Iterator[Finding]], settings: Settings) -> Iterator[Finding]:
    """The check's findings; an error of ours is one of them, not the end of the report."""
    try:
        yield from check(settings)
    except FreeholdError as error:
        yield Finding(check.__name__.strip("_"), error.message, error.hint or "", good=False)


def _python(settings: Settings) -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("freehold", __version__, f"Python {version} at {sys.executable}")


def _kernels(settings: Settings) -> Iterator[Finding]:
    try:
        from freehold.kernels import cpu

        found = cpu.features()
    except ImportError as error:
        yield Finding("kernels", "not loaded", f"{error}; build them with `make install`", good=False)
        return
    present = " ".join(name for name, there in found.items() if there)
    yield Finding("cpu", present or "no vector features", "of those the kernels ask for")
    choice = cpu.choose_tier(settings.engine.isa)
    yield Finding("isa", choice.value, choice.reason)
    threads, reason = cpu.choose_threads(settings.engine.threads)
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if threads > cpus:  # they wait for each other at every barrier: 99 on 2 CPUs give a hundredth of the speed
        reason += f", but only {cpus} can run at a time and the rest slow them down; 0 chooses"
    yield Finding("threads", str(threads), reason, good=threads <= cpus)


def _memory(settings: Settings) -> Iterator[Finding]:
    from freehold.engine.memory import free_memory

    free = free_memory()
    reason = "the machine's available memory, or what the cgroup leaves"
    yield Finding("memory", f"{size(free)} free", reason, good=free >= LOW_MEMORY)


def _store(settings: Settings) -> Iterator[Finding]:
    from freehold.formats import store

    models = store.list_models()
    home = store.home()
    existing = next(path for path in (home, *home.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    writable = os.access(existing, os.W_OK)
    why = "FREEHOLD_HOME" if os.environ.get("FREEHOLD_HOME") else "default place"
    yield Finding("store", str(home), why if writable else f"{existing} can't be written", good=writable)
    yield Finding("disk", f"{size(free)} free", f"at {existing}", good=free >= LOW_DISK)
    yield Finding("models", str(len(models)), ", ".join(model.name for model in models[:8]))


def _hub(settings: Settings) -> Iterator[Finding]:
    from freehold.formats.hub import HubSettings

    hub = HubSettings.from_environment()
    yield Finding("hub token", "present" if hub.token else "none", "needed for gated models only")
    if hub.offline:
        yield Finding("hub", "offline", "HF_HUB_OFFLINE is set: only cached models are found")


def _server(settings: Settings) -> Iterator[Finding]:
    from freehold.gateway.loopback import is_loopback

    server = settings.server
    where = f"{server.host}:{server.port}"
    key = "clients must send a key" if server.api_key else "no key asked"
    if not server.api_key and not is_loopback(server.host):
        yield Finding("server", where, "reachable from outside without a key: set FREEHOLD_API_KEY", good=False)
        return
    yield Finding("server", where, key + ("; port in use" if _taken(server.host, server.port) else ""))


def _taken(host: str, port: int) -> bool:
    """Whether something answers there already (our own server, perhaps: not wrong by itself)."""
    try:
        socket.create_connection((host, port), timeout=0.5).close()
    except OSError:
        return False
    return True


def _standbys(settings: Settings) -> Iterator[Finding]:
    from freehold.gateway.backends.keys import read_keys
    from freehold.gateway.backends.providers import known
    from freehold.gateway.backends.upstreams import upstream_backend
    from freehold.gateway.quarantine import QuarantineStore, state_directory

    store = QuarantineStore(state_directory(settings.breaker.state_dir))
    quarantined = store.load()
    if not settings.upstreams:
        yield Finding("standby", "none", "when the engine can't answer, nobody can; `freehold config init` shows how")
    for upstream in settings.upstreams:
        try:
            filled, _ = known(upstream)
            source, keys = filled.key_env or filled.key_file, read_keys(filled)
        except FreeholdError as error:
            yield Finding(f"standby {upstream.name}", "key missing", f"{error.message}. {error.hint or ''}", good=False)
            continue
        try:
            upstream_backend(upstream, settings.guards)
        except FreeholdError as error:
            yield Finding(f"standby {upstream.name}", "refused", error.message, good=False)
            continue
        found = f"key present ({source})" if any(keys) else "no key"
        if upstream.name in quarantined:
            yield _quarantined(upstream.name, quarantined[upstream.name], store.path, found)
        else:
            yield Finding(f"standby {upstream.name}", found, f"{filled.model or 'any model'} at {filled.base_url}")


def _quarantined(name: str, found: Quarantine, file: Path, key: str) -> Finding:
    since, again = (
        datetime.fromtimestamp(at, UTC).isoformat(timespec="minutes") for at in (found.since, found.next_probe)
    )
    why = f"{key}, but it refused our account ({found.kind}) at {since}; one request tries it at {again}. "
    end = f"To end this, settle the matter with the provider, delete {file} and restart the server"
    return Finding(f"standby {name}", "quarantined", why + end, good=False)


CHECKS = (_python, _kernels, _memory, _store, _hub, _server, _standbys)
