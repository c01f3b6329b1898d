"""The certificate: signed, complete, and judged again from its own bytes."""

from __future__ import annotations

import base64
import json
import random
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from freehold.certify import Certificate, make, read
from freehold.certify.certificate import VALID, root, verify
from freehold.certify.runner import Plan, Run
from freehold.errors import FormatError, FreeholdError
from freehold.signing import Identity, canonical, sign_envelope

from .conftest import DAY, URL


def changed(certificate: Certificate, identity: Identity, **said: Any) -> bytes:
    """A certificate whose signer lies: the predicate changed and signed anew."""
    whole = json.loads(certificate.data)
    statement = json.loads(base64.b64decode(whole["envelope"]["payload"]))
    statement["predicate"] |= said
    whole["envelope"] = sign_envelope(identity, canonical(statement))
    return canonical(whole) + b"\n"


def test_what_was_judged_is_judged_alike_from_the_file_alone(certificate: Certificate, tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    file.write_bytes(certificate.data)
    again = read(file, now=DAY)
    assert (
        again.problems == () and again.judgement == certificate.judgement and again.statement == certificate.statement
    )
    assert again.predicate["level"] == 3 and again.key == certificate.key


def test_one_flipped_byte_anywhere_fails(certificate: Certificate) -> None:
    chance = random.Random(11)
    envelope = certificate.data.index(b'"envelope"')
    places = [0, envelope, len(certificate.data) - 1, *(chance.randrange(len(certificate.data)) for _ in range(20))]
    places += [certificate.data.index(b'"key":') + 60, certificate.data.index(b'"keyid":') + 12]
    for place in places:
        data = bytearray(certificate.data)
        data[place] ^= 1
        with pytest.raises(FormatError):
            verify(bytes(data), now=DAY)


def test_a_signer_who_claims_more_than_the_transcript_shows_is_found_out(
    certificate: Certificate, identity: Identity
) -> None:
    verdicts = [
        verdict | {"k": 999} if verdict["id"] == "CC.3" else verdict for verdict in certificate.predicate["verdicts"]
    ]
    assert "CC.3" in verify(changed(certificate, identity, verdicts=verdicts), now=DAY).problems[0]
    assert "reaches level 3, not 4" in " ".join(verify(changed(certificate, identity, level=4), now=DAY).problems)
    with pytest.raises(FormatError, match="not the one that the seed gives"):
        verify(changed(certificate, identity, seed="11" * 32), now=DAY)


def test_a_transcript_that_was_edited_and_signed_again_must_still_have_the_seeds_requests(
    certificate: Certificate, identity: Identity
) -> None:
    whole = json.loads(certificate.data)
    record = next(record for record in whole["transcript"] if record["key"] == "chat.echo/0")
    record["request"]["body"] = record["request"]["body"].replace("Please", "Kindly")
    statement = json.loads(base64.b64decode(whole["envelope"]["payload"]))
    statement["subject"][1]["digest"]["sha256"] = root(whole["transcript"])
    whole["envelope"] = sign_envelope(identity, canonical(statement))
    with pytest.raises(FormatError, match=r"chat\.echo/0"):
        verify(canonical(whole) + b"\n", now=DAY)


def test_an_exchange_that_was_left_out_or_added_is_noticed(certificate: Certificate, identity: Identity) -> None:
    whole = json.loads(certificate.data)
    extra = json.loads(json.dumps(whole["transcript"][0])) | {"key": "chat.echo/99"}
    for transcript, told in (([*whole["transcript"], extra], "does not give"), (whole["transcript"][:-1], None)):
        statement = json.loads(base64.b64decode(whole["envelope"]["payload"]))
        statement["subject"][1]["digest"]["sha256"] = root(transcript)
        data = canonical(whole | {"transcript": transcript, "envelope": sign_envelope(identity, canonical(statement))})
        if told:
            with pytest.raises(FormatError, match=told):
                verify(data + b"\n", now=DAY)
        else:
            assert verify(data + b"\n", now=DAY).problems != ()


def test_it_expires_after_ninety_days(certificate: Certificate) -> None:
    assert verify(certificate.data, now=DAY + VALID).problems == ()
    assert "expired" in verify(certificate.data, now=DAY + VALID + timedelta(seconds=1)).problems[0]


def test_a_comparison_needs_the_very_certificate_it_was_made_with(
    well: Run, certificate: Certificate, identity: Identity
) -> None:
    plan = replace(well.plan, reference=well.evidence())
    compared = make(replace(well, plan=plan), URL, identity, began=DAY, reference=certificate)
    assert compared.predicate["level"] == 4
    with pytest.raises(FormatError, match="compares with the certificate"):
        verify(compared.data, now=DAY)
    with pytest.raises(FormatError, match="compares with the certificate"):
        verify(compared.data, now=DAY, reference=compared)
    assert verify(compared.data, now=DAY, reference=verify(certificate.data, now=DAY)).problems == ()


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b"\xff", b'{"mediaType": "x"}', b"[" * 100_000])
def test_what_is_no_certificate_is_said_to_be_none(data: bytes) -> None:
    with pytest.raises(FormatError, match="expected a certificate"):
        verify(data, now=DAY)


def test_a_file_that_is_not_there_is_a_dependency_that_failed(tmp_path: Path) -> None:
    with pytest.raises(FreeholdError, match="can't read"):
        read(tmp_path / "none", now=DAY)


def test_no_key_is_in_it(certificate: Certificate, well: Run) -> None:
    from freehold.certify.reference.server import KEY, LIMITED_KEY

    assert KEY.encode() + b'"' not in certificate.data and LIMITED_KEY.encode() not in certificate.data
    assert isinstance(well.plan, Plan)
