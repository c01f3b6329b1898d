"""The certificate: a signed statement and the whole transcript in one file, and the verifier that judges it again.

    file      = {mediaType, key, envelope (DSSE around an in-toto statement), transcript}, in canonical JSON
    statement = subject: the endpoint's descriptor and the transcript's Merkle root; predicate: seed, suite, verdicts, level

The verifier believes nothing: the file's bytes, the signature, the root, every request, every verdict and the level are
made again. https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from freehold import __version__, merkle
from freehold.certify import declaration, selftest
from freehold.certify.evidence import Evidence
from freehold.certify.judge import Judgement, judge
from freehold.certify.requirements import LEVELS, Revision, load
from freehold.certify.runner import Plan, Run, replay
from freehold.errors import FormatError, UsageError
from freehold.signing import Identity, PublicKey, canonical, open_envelope, sign_envelope

MEDIA_TYPE = "application/vnd.freehold.certificate+json;version=1"
STATEMENT, PREDICATE = "https://in-toto.io/Statement/v1", "urn:freehold:certificate:v1"
VALID = timedelta(days=90)
LARGEST = 512 << 20


@dataclass(frozen=True)
class Certificate:
    """A certificate that was read or made.

    Args:
        statement: what is signed.
        transcript: the records of all exchanges.
        key: whose signature it is.
        run, judgement: made again, or made just now.
        problems: what does not hold; a good certificate has none.
        notes: what is worth knowing and no problem.
    """

    statement: dict[str, Any]
    transcript: list[dict[str, Any]]
    key: PublicKey
    run: Run
    judgement: Judgement
    data: bytes
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def predicate(self) -> dict[str, Any]:
        """What is said of the endpoint."""
        found: dict[str, Any] = self.statement["predicate"]
        return found

    @property
    def digest(self) -> str:
        """SHA-256 of the file."""
        return hashlib.sha256(self.data).hexdigest()


def root(transcript: list[dict[str, Any]]) -> str:
    """The Merkle root (RFC 6962) over the records in canonical JSON, hexadecimal."""
    return merkle.root(merkle.leaf_hash(canonical(record)) for record in transcript).hex()


def make(
    run: Run, url: str, identity: Identity, *, began: datetime, reference: Certificate | None = None
) -> Certificate:
    """Judge a run and sign the outcome."""
    revision = load()
    judgement = judge(run.evidence(), revision, run.plan.level, run.errors)
    transcript = [exchange.record() for exchange in run.exchanges.values()]
    statement = _statement(run, judgement, revision, url, root(transcript), began, reference)
    envelope = sign_envelope(identity, canonical(statement))
    whole = {"mediaType": MEDIA_TYPE, "key": identity.public.pem, "envelope": envelope, "transcript": transcript}
    return Certificate(statement, transcript, identity.public, run, judgement, canonical(whole) + b"\n")


def _statement(
    run: Run,
    judgement: Judgement,
    revision: Revision,
    url: str,
    merkle_root: str,
    began: datetime,
    reference: Certificate | None,
) -> dict[str, Any]:
    descriptor = {"url": url, "model": run.model, "declared": run.plan.declared.record()}
    subjects = [
        {"name": "endpoint", "digest": {"sha256": hashlib.sha256(canonical(descriptor)).hexdigest()}},
        {"name": "transcript", "digest": {"sha256": merkle_root}},
    ]
    predicate = {
        "endpoint": descriptor,
        "suite": {
            "version": __version__, "revision": revision.name, "requirements": revision.digest,
            "matrix": selftest.matrix_digest(),
        },
        "seed": run.plan.seed,
        "asked": run.plan.level,
        "level": judgement.level,
        "name": LEVELS.get(judgement.level, "none"),
        "void": judgement.void,
        "late": run.late,
        "errors": dict(sorted(run.errors.items())),
        "blocking": list(judgement.blocking),
        "verdicts": [verdict.record() for verdict in judgement.verdicts],
        "reference": None if reference is None else {"sha256": reference.digest, "url": reference.predicate["endpoint"]["url"]},
        "began": began.isoformat(timespec="seconds"),
        "expires": (began + VALID).isoformat(timespec="seconds"),
    }  # fmt: skip
    return {"_type": STATEMENT, "subject": subjects, "predicateType": PREDICATE, "predicate": predicate}


def read(path: Path, *, now: datetime, reference: Certificate | None = None) -> Certificate:
    """Read a certificate and judge it again.

    Args:
        reference: the certificate it was compared with, where it was.

    Raises:
        UsageError: it can't be read.
        FormatError: it is no certificate, or was changed: nothing in it can be believed.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST)
    except OSError as error:
        raise UsageError(f"can't read {path}: {error.strerror}") from None
    return verify(data, now=now, reference=reference)


def verify(data: bytes, *, now: datetime, reference: Certificate | None = None) -> Certificate:
    """Judge a certificate again, from its bytes alone.

    Raises:
        FormatError: it is no certificate, or was changed.
    """
    whole = _parsed(data)
    key = PublicKey.from_pem(_part(whole, "key", str))
    statement = _opened(_part(whole, "envelope", dict), key)
    transcript = _part(whole, "transcript", list)
    try:
        said = statement["predicate"]
        merkle_root = statement["subject"][1]["digest"]["sha256"]
        declared = declaration.read(said["endpoint"]["declared"])
        plan = Plan(said["seed"], said["asked"], declared, reference=_compared(said, reference))
        revision = load(said["suite"]["revision"])
    except (KeyError, TypeError, IndexError) as error:
        raise FormatError(f"the statement lacks {error}") from None
    if root(transcript) != merkle_root:
        raise FormatError("the transcript is not the one that was signed: its Merkle root differs")
    run = asyncio.run(replay(transcript, plan))
    judgement = judge(run.evidence(), revision, plan.level, run.errors)
    problems = tuple(_problems(said, judgement, revision, run, now))
    notes = (
        []
        if said["suite"]["matrix"] == selftest.matrix_digest()
        else ["made with another mutation matrix than this version's"]
    )
    return Certificate(statement, transcript, key, run, judgement, data, problems, tuple(notes))


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        whole = json.loads(data)
    except (ValueError, RecursionError):
        raise FormatError("expected a certificate, found no JSON") from None
    if not isinstance(whole, dict) or whole.get("mediaType") != MEDIA_TYPE:
        raise FormatError(f"expected a certificate of type {MEDIA_TYPE}")
    if whole.keys() != {"mediaType", "key", "envelope", "transcript"} or canonical(whole) + b"\n" != data:
        raise FormatError("the certificate was changed: it is not in its canonical form")
    return whole


def _part(whole: dict[str, Any], name: str, kind: type) -> Any:
    if not isinstance(whole[name], kind):
        raise FormatError(f"{name}: expected {kind.__name__}, found {type(whole[name]).__name__}")
    return whole[name]


def _opened(envelope: dict[str, Any], key: PublicKey) -> dict[str, Any]:
    """The signed statement; the envelope's own id of the key must be the key's."""
    payload = open_envelope(envelope, key)
    expected = {
        "payloadType": envelope["payloadType"],
        "payload": envelope["payload"],
        "signatures": envelope["signatures"],
    }
    ids = [signature.get("keyid") for signature in envelope["signatures"]]
    if envelope != expected or ids != [key.id]:
        raise FormatError("the envelope's keyid is not that of the key")
    statement = json.loads(payload)
    if (
        not isinstance(statement, dict)
        or statement.get("predicateType") != PREDICATE
        or statement.get("_type") != STATEMENT
    ):
        raise FormatError(f"expected a statement of {PREDICATE}")
    return statement


def _compared(said: dict[str, Any], reference: Certificate | None) -> Evidence | None:
    wanted = said["reference"]
    if wanted is None:
        return None
    if reference is None:
        raise FormatError(
            f"it compares with the certificate {wanted['sha256'][:16]} of {wanted['url']}",
            hint="give that one with --reference",
        )
    if reference.digest != wanted["sha256"]:
        raise FormatError(f"it compares with the certificate {wanted['sha256'][:16]}, found {reference.digest[:16]}")
    return reference.run.evidence()


def _problems(said: dict[str, Any], judgement: Judgement, revision: Revision, run: Run, now: datetime) -> list[str]:
    """What the certificate says that is not so."""
    found = []
    if said["suite"]["requirements"] != revision.digest:
        found.append(f"revision {revision.name} of the requirements is not the one here: a revision must not change")
    again = [verdict.record() for verdict in judgement.verdicts]
    differ = [a["id"] for a, b in zip(said["verdicts"], again, strict=False) if a != b]
    if differ or len(again) != len(said["verdicts"]):
        found.append(f"judged again, these come out otherwise: {', '.join(differ) or 'the list of requirements'}")
    if said["level"] != judgement.level:
        found.append(f"judged again it reaches level {judgement.level}, not {said['level']}")
    if said["endpoint"]["model"] != run.model:
        found.append(f"the transcript is of model {run.model}")
    if datetime.fromisoformat(said["expires"]) < now:
        found.append(f"it expired on {said['expires'][:10]}")
    return found


def today() -> datetime:
    """Now, in UTC."""
    return datetime.now(UTC)
