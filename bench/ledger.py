"""What the ledger promises, measured: verification, proofs, what a request pays, and export.

    python bench/ledger.py [--records 10000] [--leaves 1000000] [--requests 400] [--rounds 5] [--json] [--check]

Everything runs on SQLite files in a temporary directory. `verify` is timed on a ledger of `--records`, then every attack of
`tests/provenance/attacks.py` is made on a copy of it, careless and careful, and counted as found or not, given one head from
outside. A proof is timed in a log of `--leaves`. The gateway is asked over one connection with a scripted provider behind it,
with and without a ledger in turns within the same run. `--check` exits 1 when a target of `TARGETS` is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from bench.gateway import Client, _mock  # noqa: E402
from tests.gateway import fakes  # noqa: E402
from tests.provenance import attacks  # noqa: E402
from tests.provenance.conversations import conversations, flat, sentence  # noqa: E402
from tests.provenance.made import exchange, ledger, terms  # noqa: E402

from freehold import merkle  # noqa: E402
from freehold.database import Database  # noqa: E402
from freehold.gateway.budget import Budget  # noqa: E402
from freehold.gateway.server import bind, serve_on  # noqa: E402
from freehold.gateway.service import Gateway  # noqa: E402
from freehold.provenance import merkle_log  # noqa: E402
from freehold.provenance.export import export  # noqa: E402
from freehold.provenance.ledger import KEY_FILE, Ledger  # noqa: E402
from freehold.provenance.verify import verify  # noqa: E402
from freehold.settings import GuardSettings, ProvenanceSettings, ServerSettings, Settings, UpstreamSettings  # noqa: E402
from freehold.signing import Identity  # noqa: E402

TARGETS = {
    "verify_seconds": ("<=", 5.0),
    "verify_found_share": (">=", 1.0),
    "proof_ms": ("<=", 2.0),
    "added_ms": ("<=", 0.2),
    "export_records_per_second": (">=", 5000.0),
    "tainted_exported": ("<=", 0),
    "clean_lost_without_reason": ("<=", 0),
}
EACH_ATTACK = 4


def filled(database: Database, directory: Path, exchanges: list[Any]) -> float:
    """Writes exchanges and gives the seconds it took, off the request's path."""
    with ledger(database, directory) as kept:
        began = time.perf_counter()
        for begun, ended in exchanges:
            kept.begin(begun)
            kept.end(ended)
        kept.flush()
        return time.perf_counter() - began


def verification(directory: Path, count: int) -> dict[str, Any]:
    """Time on an honest ledger, and how many attacks are found."""
    r = random.Random(5)
    file = directory / "honest.db"
    with Database(f"sqlite:///{file}") as database:
        wrote = filled(database, directory, [exchange(sentence(r), sentence(r)) for _ in range(count)])
        with ledger(database, directory) as kept:
            head = kept.head()
        began = time.perf_counter()
        report = verify(database, [head])
        seconds = time.perf_counter() - began
        assert report.good and report.covered == count, report.problems[:3]
    identity = Identity.load(directory / KEY_FILE)
    kinds = [*attacks.CARELESS, *(attacks.careful(attack, identity) for attack in attacks.CAREFUL)]
    slowest, found, missed = seconds, 0, []
    for attack in kinds:
        for seed in range(EACH_ATTACK):
            copy = directory / "attacked.db"
            shutil.copyfile(file, copy)
            with Database(f"sqlite:///{copy}") as database:
                database.now(lambda t, attack=attack, seed=seed: attack(t, random.Random(seed), count))
                began = time.perf_counter()
                good = verify(database, [head]).good
                slowest = max(slowest, time.perf_counter() - began)
            found += not good
            missed += [f"{attack.__name__} {seed}"] if good else []
            for rest in directory.glob("attacked.db*"):
                rest.unlink()
    return {
        "verify_records": count,
        "verify_seconds": round(slowest, 3),
        "verify_attacks": len(kinds) * EACH_ATTACK,
        "verify_found_share": found / (len(kinds) * EACH_ATTACK),
        "verify_missed": missed,
        "written_per_second": round(count / wrote),
    }


def proofs(directory: Path, leaves: int) -> dict[str, Any]:
    """An inclusion proof out of a large log, everything included: the read, the hashing, the thread's turn."""
    with Database(f"sqlite:///{directory / 'large.db'}") as database:
        for first in range(0, leaves, 10_000):
            batch = [
                merkle_log.Entry(f"rec_{i}", "test", i, b"s" * 32, f'{{"n":{i}}}')
                for i in range(first, min(first + 10_000, leaves))
            ]
            database.now(lambda t, batch=batch: merkle_log.append(t, batch))
        root = database.now(lambda t: merkle_log.root(t, leaves))
        r = random.Random(1)
        took = []
        for _ in range(500):
            at = r.randrange(leaves)
            began = time.perf_counter()
            proof = database.now(lambda t, at=at: merkle_log.inclusion(t, at, leaves))
            took.append((time.perf_counter() - began) * 1000)
            leaf = merkle_log.leaf_of(b"s" * 32, f'{{"n":{at}}}')
            assert merkle.verify_inclusion(leaf, at, leaves, proof, root)
    took.sort()
    return {"proof_leaves": leaves, "proof_ms": round(took[249], 3), "proof_p99_ms": round(took[494], 3)}


def requests(directory: Path, count: int, rounds: int) -> dict[str, Any]:
    """Milliseconds a request takes longer through a gateway with a ledger than through one without, in turns.

    Four processes: the mock, the two gateways, and this client.
    """
    with ExitStack() as stack:
        mock = stack.enter_context(_process("mock"))
        ports = {name: stack.enter_context(_process(name, mock, str(directory))) for name in ("plain", "kept")}
        found = {shape: _measured(ports, count, rounds, *how) for shape, how in _SHAPES.items()}
    whole, stream = found["whole"], found["stream"]
    return {
        "added_ms": max(whole["added"], stream["added"]),
        "added_whole_ms": whole["added"],
        "added_stream_ms": stream["added"],
        "added_cpu_ms": {name: each["cpu"] for name, each in found.items()},
        "added_mean_ms": {name: each["mean"] for name, each in found.items()},
        "plain_p50_ms": {name: each["plain"] for name, each in found.items()},
    }


_SHAPES = {"whole": (False, 8), "stream": (True, 64)}


_pids: dict[str, int] = {}  # of our servers, by port


def _cpu_ms(port: str) -> float:
    """Processor time that a server has used, all threads together."""
    fields = Path(f"/proc/{_pids[port]}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")


@contextmanager
def _process(*words: str) -> Iterator[str]:
    """One of our servers in a process of its own; yields its port."""
    command = [sys.executable, str(Path(__file__)), "--serve", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        port = process.stdout.readline().strip()
        _pids[port] = process.pid
        yield port
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def _serve(name: str, mock: str = "", directory: str = "") -> None:
    if name == "mock":
        asyncio.run(_mock())
        return
    url, home = f"http://127.0.0.1:{mock}/v1", Path(directory) / name
    home.mkdir()
    found = UpstreamSettings(name="mock", base_url=url, model="mock")
    database = Database(f"sqlite:///{home / 'x.db'}")
    kept = Ledger(database, ProvenanceSettings(), directory=home, terms=terms) if name == "kept" else None
    budget = Budget(database, upstreams=[found])
    upstream = fakes.upstream(url, "mock", "mock")
    gateway = Gateway(None, [upstream], GuardSettings(), upstreams=[found], budget=budget, ledger=kept)
    settings = Settings(server=ServerSettings(port=0), upstreams=(found,))
    with bind(settings.server) as listener:
        port = listener.getsockname()[1]
        asyncio.run(serve_on(listener, settings, gateway, lambda line: print(port, flush=True)))


def _measured(ports: dict[str, str], count: int, rounds: int, stream: bool, chunks: int) -> dict[str, float]:
    clients = {name: Client(int(port)) for name, port in ports.items()}
    for client in clients.values():
        for _ in range(50):
            client.ask(stream, chunks)
    added, means, base = [], [], []
    before = {name: _cpu_ms(port) for name, port in ports.items()}
    for turn in range(rounds):
        took: dict[str, list[float]] = {"plain": [], "kept": []}
        for i in range(count):
            for name in ("plain", "kept") if (turn + i) % 2 else ("kept", "plain"):
                took[name].append(clients[name].ask(stream, chunks)[1] * 1000)
        added.append(statistics.median(took["kept"]) - statistics.median(took["plain"]))
        means.append(statistics.fmean(took["kept"]) - statistics.fmean(took["plain"]))
        base.append(statistics.median(took["plain"]))
    used = {name: (_cpu_ms(port) - before[name]) / (count * rounds) for name, port in ports.items()}
    return {
        "cpu": round(used["kept"] - used["plain"], 3),
        "added": round(statistics.median(added), 3),
        "mean": round(statistics.median(means), 3),
        "plain": round(statistics.median(base), 3),
    }


def exporting(directory: Path) -> dict[str, Any]:
    """Mixed conversations out again: how fast, and whether what came out is what may."""
    turns = flat(list(conversations(1000)))
    with Database(f"sqlite:///{directory / 'chats.db'}") as database:
        filled(database, directory, [(turn.begun, turn.ended) for turn in turns])
        out = directory / "train.jsonl"
        began = time.perf_counter()
        manifest = export(database, out, log="bench", now=1)
        seconds = time.perf_counter() - began
    safe = {turn.begun.id for turn in turns if turn.safe}
    bad = {turn.text for turn in turns if not turn.safe}
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    tainted = sum(message["content"] in bad for line in lines for message in line["messages"])
    told = {record for record, _ in manifest.exported} | {entry.record for entry in manifest.left_out}
    return {
        "export_conversations": 1000,
        "export_records": manifest.records,
        "export_records_per_second": round(manifest.records / seconds),
        "export_lines": manifest.lines,
        "export_left_out": manifest.by_reason,
        "tainted_exported": tainted,
        "clean_lost_without_reason": len(safe - told),
    }


def missed(found: dict[str, Any]) -> list[str]:
    """Targets that were not reached."""
    reached: dict[str, Callable[[float, float], bool]] = {"<=": lambda a, b: a <= b, ">=": lambda a, b: a >= b}
    return [
        f"{name}: {found[name]}, wanted {sign} {limit}"
        for name, (sign, limit) in TARGETS.items()
        if not reached[sign](found[name], limit)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--leaves", type=int, default=1_000_000)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("verify", "proofs", "requests", "export"), help="One of the measurements.")
    parser.add_argument("--serve", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    if given.serve:
        _serve(*given.serve)
        return
    parts: dict[str, Callable[[Path], dict[str, Any]]] = {
        "requests": lambda directory: requests(directory, given.requests, given.rounds),
        "verify": lambda directory: verification(directory, given.records),
        "proofs": lambda directory: proofs(directory, given.leaves),
        "export": exporting,
    }
    found: dict[str, Any] = {}
    for name, measure in parts.items():
        if given.only in (None, name):
            with tempfile.TemporaryDirectory() as directory:
                found |= measure(Path(directory))
    if given.json:
        print(json.dumps(found, indent=2))
    else:
        for name, value in found.items():
            sign, limit = TARGETS.get(name, ("", ""))
            print(f"{name:<28} {value}" + (f"   (target {sign} {limit})" if sign else ""))
    short = missed(found) if given.only is None else []
    for line in short:
        print(f"missed: {line}", file=sys.stderr)
    if given.check and short:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
