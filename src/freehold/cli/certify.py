"""`freehold certify`: an endpoint judged, and the certificate signed."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from freehold.cli.options import as_json
from freehold.cli.output import emit, emit_json, progress, say, table
from freehold.errors import UsageError

if TYPE_CHECKING:
    from freehold.certify import Certificate, Declaration, Endpoint, Plan
    from freehold.signing import Identity

QUICK_SECONDS = 60.0
KEY_FILE = "identity.pem"
HIGHEST_BY_ITSELF, HIGHEST = 3, 4
SUFFIXES = {"json": ".report.json", "markdown": ".md", "junit": ".xml", "github": ".github.txt", "badge": ".svg"}


@dataclass(frozen=True)
class Wanted:
    """The options of a run."""

    url: str
    model: str
    dialects: str
    declare: Path | None
    without: str
    key_env: str
    limited_key_env: str
    level: int | None
    quick: bool
    seed: str
    concurrency: int
    seconds: float
    timeout: float


@click.command("certify")
@click.argument("url", required=False)
@click.option(
    "--model", "-m", default="", help="Name of the model; by default the one declared, else the first listed."
)
@click.option("--dialect", "dialects", default="", help="chat, responses, messages, joined by commas. [default: all]")
@click.option("--declare", type=click.Path(path_type=Path), help="YAML file with what the server says it can do.")
@click.option("--without", default="", help="Capabilities not declared, joined by commas.")
@click.option(
    "--level", type=click.IntRange(1, HIGHEST), help="Highest level to judge. [default: 3; 4 with a reference]"
)
@click.option("--quick", is_flag=True, help="Level 1 only, within a minute.")
@click.option(
    "--reference", type=click.Path(path_type=Path), help="Certificate of the server to be interchangeable with."
)
@click.option("--against", default="", help="URL of a live server to be interchangeable with; it is certified first.")
@click.option("--key-env", default="", help="Environment variable that holds the key.")
@click.option("--limited-key-env", default="", help="Environment variable that holds a key with a rate limit.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("certificate.json"), show_default=True, help="File."
)
@click.option(
    "--format", "formats", multiple=True, type=click.Choice(sorted(SUFFIXES)), help="Also write this, beside it."
)
@click.option("--identity", type=click.Path(path_type=Path), help="Ed25519 key in PEM form that signs.")
@click.option("--seed", default="", help="Seed in hexadecimal, to repeat a run. [default: random]")
@click.option("--concurrency", type=click.IntRange(1, 16), default=1, show_default=True, help="Scenarios at a time.")
@click.option("--seconds", type=float, default=1800.0, show_default=True, help="Longest time for the whole run.")
@click.option(
    "--timeout", type=float, default=120.0, show_default=True, help="Longest wait for one answer, in seconds."
)
@click.option("--self-test", is_flag=True, help="Test the suite itself: the reference server and all its faults.")
@as_json
@click.pass_context
def command(
    context: click.Context, /, out: Path, formats: tuple[str, ...], identity: Path | None, reference: Path | None, against: str,
    self_test: bool, as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Judge whether an endpoint is interchangeable, and sign a certificate.

    Any server that speaks OpenAI's Chat Completions or Responses, or Anthropic's Messages, is judged over plain HTTP, in
    levels: 1 Wire, 2 Function, 3 Interop, 4 Switchable. Exit code 1 when the asked level was not reached.
    """
    if self_test:
        context.exit(_self_test(as_json))
    wanted = Wanted(**options)
    if not wanted.url:
        raise UsageError("expected the URL of an API", hint="for example `freehold certify http://127.0.0.1:7411`")
    certificate = _certified(wanted, out, identity, reference, against)
    for name in formats:
        _write(out.with_suffix(SUFFIXES[name]), _formatted(certificate, name).encode())
    _show(certificate, formats, as_json)
    said = certificate.predicate
    say(f"certificate: {out}")
    context.exit(0 if said["level"] >= said["asked"] else 1)


def _certified(wanted: Wanted, out: Path, identity: Path | None, reference: Path | None, against: str) -> Certificate:
    """The certificate, written; first the reference's, where it is a live server."""
    from freehold.certify import certificate as certificates

    if reference and against:
        raise UsageError("expected --reference or --against, found both")
    key = _identity(identity)
    compared: Certificate | None = None
    if against:
        other = replace(wanted, url=against, model="", level=HIGHEST)
        compared = _run(other, None, key)
        _write(out.with_suffix(".reference.json"), compared.data)
        say(f"reference: {out.with_suffix('.reference.json')}")
    elif reference:
        compared = certificates.read(reference, now=certificates.today())
        if compared.problems:
            raise UsageError(f"{reference}: {compared.problems[0]}")
    made = _run(wanted, compared, key)
    _write(out, made.data)
    return made


def _run(wanted: Wanted, compared: Certificate | None, key: Identity) -> Certificate:
    import asyncio

    from freehold.certify import make, run, today

    endpoint, plan = _endpoint(wanted), _plan(wanted, compared)
    began = today()
    with progress() as bar:
        found = asyncio.run(run(endpoint, plan, lambda done, total, what: bar(done, total, what.partition(".")[0])))
    return make(found, endpoint.base.geturl(), key, began=began, reference=compared)


def _plan(wanted: Wanted, compared: Certificate | None) -> Plan:
    import secrets

    from freehold.certify import Plan

    seed = compared.run.plan.seed if compared is not None else wanted.seed or secrets.token_hex(32)
    try:
        bytes.fromhex(seed)
    except ValueError:
        raise UsageError(f"--seed: expected hexadecimal digits in pairs, found {wanted.seed!r}") from None
    level = 1 if wanted.quick else wanted.level or (HIGHEST if compared is not None else HIGHEST_BY_ITSELF)
    seconds = min(wanted.seconds, QUICK_SECONDS) if wanted.quick else wanted.seconds
    evidence = compared.run.evidence() if compared is not None else None
    return Plan(seed, level, _declaration(wanted), wanted.concurrency, seconds, evidence)


def _declaration(wanted: Wanted) -> Declaration:
    from freehold.certify import declaration

    declared = declaration.load(wanted.declare) if wanted.declare else declaration.Declaration()
    declared = declared.without(_words(wanted.without))
    if wanted.dialects:
        declared = declared.speaking(_words(wanted.dialects))
    return replace(declared, model=wanted.model) if wanted.model else declared


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _endpoint(wanted: Wanted) -> Endpoint:
    from freehold.certify import Endpoint

    keys = {"good": _key(wanted.key_env), "limited": _key(wanted.limited_key_env)}
    return Endpoint(wanted.url, keys, wanted.timeout)


def _key(name: str) -> str:
    if name and not os.environ.get(name):
        raise UsageError(f"the environment variable {name} is not set")
    return os.environ.get(name, "") if name else ""


def _identity(path: Path | None) -> Identity:
    from freehold.database import state_directory
    from freehold.signing import Identity

    return Identity.load(path) if path is not None else Identity.at(state_directory() / KEY_FILE)


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise UsageError(f"can't write {path}: {error.strerror}") from None


def _formatted(certificate: Certificate, name: str) -> str:
    from freehold.certify import report

    return report.FORMATS[name](certificate)


def _show(certificate: Certificate, formats: tuple[str, ...], as_json: bool) -> None:
    from freehold.certify import report

    if as_json:
        emit_json(report.summary(certificate))
        return
    for line in report.explained(certificate):
        say(line)
    emit(table(list(_rows(certificate)), ("GROUP", "PASS", "FAIL", "WARN", "UNTESTABLE", "NOT DECLARED")))
    emit(f"\n{report.headline(certificate)}")
    if "github" in formats:
        emit(report.as_github(certificate).rstrip())
    if certificate.predicate["blocking"]:
        say(f"what stands before the next level: {', '.join(certificate.predicate['blocking'])}")


def _rows(certificate: Certificate) -> list[tuple[str, ...]]:
    from freehold.certify import report

    statuses = ("PASS", "FAIL", "WARN", "UNTESTABLE", "NOT_DECLARED")
    return [
        (group["group"], *(str(group.get(status, "-")) for status in statuses)) for group in report.groups(certificate)
    ]


def _self_test(as_json: bool) -> int:
    from freehold.certify import self_test

    with progress() as bar:
        found = self_test(bar)
    if as_json:
        emit_json(found)
    else:
        rows = [
            (row["fault"], row["turns"], " ".join(id for id in row["red"] if id != row["turns"]))
            for row in found["rows"]
        ]
        emit(table(rows, ("FAULT", "TURNS RED", "AND")))
        for name in ("requirements", "reference_passed", "mutations"):
            emit(f"{name}: {found[name]}")
        emit(f"uncaught: {' '.join(found['uncaught']) or 'none'}")
        emit(f"collateral without a stated reason: {', '.join(found['collateral']) or 'none'}")
    good = found["reference_passed"] == found["requirements"] and not found["uncaught"] and not found["collateral"]
    return 0 if good else 1
