"""`freehold certify` and `freehold verify` as a person runs them: a real server on loopback, a home of one's own."""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from freehold.certify.reference.faulty import FAULTS
from freehold.certify.reference.server import KEY, ReferenceServer
from freehold.certify.selftest import DECLARED

Run = Callable[..., "subprocess.CompletedProcess[str]"]
ENV = {"REFERENCE_KEY": KEY}


def serving(server: ReferenceServer) -> Iterator[str]:
    """The server's URL, while it runs in a thread of its own."""
    url: list[str] = []
    ready, loop, over = threading.Event(), asyncio.new_event_loop(), asyncio.Event()

    async def main() -> None:
        async with server.running() as address:
            url.append(address)
            ready.set()
            await over.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),))
    thread.start()
    ready.wait()
    yield url[0]
    loop.call_soon_threadsafe(over.set)
    thread.join()
    loop.close()


@pytest.fixture
def well() -> Iterator[str]:
    yield from serving(ReferenceServer())


@pytest.fixture
def declared(tmp_path: Path) -> str:
    """The reference server's declaration without the key that has a limit."""
    file = tmp_path / "declared.yaml"
    capabilities = [name for name in DECLARED.capabilities if name != "limits"]
    file.write_text(yaml.safe_dump(DECLARED.record() | {"capabilities": capabilities}))
    return str(file)


def certify(freehold: Run, url: str, declared: str, *words: str) -> subprocess.CompletedProcess[str]:
    return freehold("certify", url, "--declare", declared, "--key-env", "REFERENCE_KEY", *words, env=ENV)


def test_a_certificate_is_made_shown_and_judged_again_offline(
    freehold: Run, well: str, declared: str, tmp_path: Path
) -> None:
    done = certify(freehold, well, declared, "--format", "junit", "--format", "badge", "--format", "markdown")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].split()[:3] == ["GROUP", "PASS", "FAIL"] and "L3 Interop" in done.stdout
    for name in ("certificate.json", "certificate.xml", "certificate.svg", "certificate.md"):
        assert (tmp_path / name).stat().st_size > 100
    assert ((tmp_path / "home/state/identity.pem").stat().st_mode & 0o777) == 0o600
    verified = freehold("verify", "certificate.json", "--json")
    found = json.loads(verified.stdout)
    assert verified.returncode == 0 and found["valid"] and found["level"] == 3 and found["failures"] == []
    assert freehold("verify", "certificate.json", "--key", found["key"][:16]).returncode == 0
    other = freehold("verify", "certificate.json", "--key", "0" * 16)
    assert other.returncode == 1 and "signed by" in other.stderr
    data = (tmp_path / "certificate.json").read_bytes()
    (tmp_path / "certificate.json").write_bytes(
        data.replace(b'"PASS"', b'"FAIL"').replace(b"naive", b"naiv3").replace(b"e", b"f", 1)
    )
    tampered = freehold("verify", "certificate.json")
    assert tampered.returncode == 1 and tampered.stderr.startswith("not valid: ") and tampered.stdout == ""


def test_against_a_live_server_the_fourth_level_can_be_reached_and_a_swapped_model_can_not(
    freehold: Run, well: str, declared: str
) -> None:
    same = certify(freehold, well, declared, "--against", well)
    assert same.returncode == 0 and "L4 Switchable" in same.stdout, same.stderr
    assert freehold("verify", "certificate.json").returncode == 1
    assert freehold("verify", "certificate.json", "--reference", "certificate.reference.json").returncode == 0
    for url in serving(ReferenceServer(FAULTS["another model answers open questions"])):
        swapped = certify(freehold, url, declared, "--reference", "certificate.reference.json")
    assert swapped.returncode == 1 and "L3 Interop" in swapped.stdout and "DF.11 FAIL" in swapped.stderr


def test_a_failure_is_explained_and_the_exit_code_says_so(freehold: Run, declared: str) -> None:
    for url in serving(ReferenceServer(FAULTS["stop strings are ignored"])):
        done = certify(freehold, url, declared, "--quick", "--format", "github")
    assert done.returncode == 1 and "no level" in done.stdout and "::error title=CC.8::" in done.stdout
    assert "CC.8 FAIL" in done.stderr and "  repeat   curl" in done.stderr and KEY not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("words", "told", "code"),
    [
        ([], "expected the URL", 2),
        (["ftp://x"], "expected the URL", 2),
        (["http://127.0.0.1:1", "--model", "m"], "can't connect", 3),
        (["http://127.0.0.1:1", "--dialect", "x"], "no dialect 'x'", 2),
        (["http://127.0.0.1:1", "--without", "x"], "no capability 'x'", 2),
        (["http://127.0.0.1:1", "--seed", "xyz"], "--seed: expected hexadecimal", 2),
        (["http://127.0.0.1:1", "--key-env", "NOT_SET"], "NOT_SET is not set", 2),
        (["http://127.0.0.1:1", "--against", "http://a", "--reference", "b"], "found both", 2),
    ],
)
def test_wrong_use_is_an_error_with_its_reason(words: list[str], told: str, code: int, freehold: Run) -> None:
    done = freehold("certify", *words)
    assert done.returncode == code and told in done.stderr and done.stdout == ""
