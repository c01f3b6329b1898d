"""Signing against the vectors of RFC 8785, RFC 8032 and DSSE's protocol."""

from __future__ import annotations

import base64
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from freehold.errors import FormatError, FreeholdError
from freehold.signing import IN_TOTO, Identity, PublicKey, Vault, canonical, open_envelope, pae, sign_envelope

SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")  # RFC 8032, 7.1, test 1


def test_canonical_json_is_that_of_rfc_8785() -> None:
    value = {
        "numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 0.000000000000000000000000001],
        "string": "\u20ac$\u000f\u000aA'\u0042\u0022\u005c\\\"/",
        "literals": [None, True, False],
    }
    expected = (
        '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )
    assert canonical(value) == expected.encode()


def test_keys_are_sorted_by_utf_16_as_the_rfc_says() -> None:
    assert canonical({"\ufb33": 1, "\U0001f600": 2, "é": 3, "1": 4}) == '{"1":4,"é":3,"😀":2,"\ufb33":1}'.encode()


@pytest.mark.parametrize("value", [2**53 + 1, float("nan"), float("inf"), b"bytes", {1: 2}, "\ud800"])
def test_what_json_cannot_carry_is_an_error(value: object) -> None:
    with pytest.raises(FormatError, match="no canonical JSON"):
        canonical(value)


def test_signatures_are_those_of_rfc_8032() -> None:
    # RFC 8032, section 7.1, test 1
    identity = Identity.from_seed(SEED)
    assert identity.public.raw.hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    signature = identity.sign(b"")
    assert signature.hex() == (
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
        "d25bf5f0595bbe24655141438e7a100b"
    )
    assert identity.public.verify(signature, b"")
    assert not identity.public.verify(signature, b"x")
    assert not Identity.new().public.verify(signature, b"")


def test_a_key_is_made_on_first_use_and_found_again(tmp_path: Path) -> None:
    path = tmp_path / "state" / "key.pem"
    made = Identity.at(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Identity.at(path).public == made.public == Identity.load(path).public
    assert [entry.name for entry in path.parent.iterdir()] == ["key.pem"]


def test_a_key_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_text("nothing")
    with pytest.raises(FormatError, match="expected an Ed25519 private key"):
        Identity.at(path)
    pem = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(pem)
    with pytest.raises(FormatError, match="found RSAPrivateKey"):
        Identity.load(path)
    with pytest.raises(FreeholdError, match="can't read the key"):
        Identity.load(tmp_path / "absent.pem")


def test_a_key_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FreeholdError, match="can't write the key"):
        Identity.at(tmp_path / "file" / "key.pem")


def test_a_public_key_survives_its_text() -> None:
    public = Identity.from_seed(SEED).public
    assert PublicKey.from_pem(public.pem) == public
    assert len(public.id) == 64
    with pytest.raises(FormatError, match="Ed25519 public key"):
        PublicKey.from_pem("x")
    other_kind = public.pem.replace("MCowBQYDK2Vw", "MCowBQYDK2Vy")  # another object identifier: no kind of key at all
    with pytest.raises(FormatError, match="Ed25519 public key"):
        PublicKey.from_pem(other_kind)
    with pytest.raises(FormatError, match="32 bytes, found 3"):
        PublicKey(b"abc").verify(b"", b"")


def test_the_signed_text_is_that_of_dsse() -> None:
    # https://github.com/secure-systems-lab/dsse/blob/master/protocol.md#test-vectors
    assert pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )
    assert pae("é", b"") == b"DSSEv1 2 \xc3\xa9 0 "


def test_an_envelope_opens_for_its_signer_and_its_type_only() -> None:
    identity = Identity.from_seed(SEED)
    envelope = sign_envelope(identity, b'{"a":1}')
    assert envelope["payloadType"] == IN_TOTO
    assert open_envelope(envelope, identity.public) == b'{"a":1}'
    signature = base64.b64decode(envelope["signatures"][0]["sig"])
    raw = ed25519.Ed25519PublicKey.from_public_bytes(identity.public.raw)
    raw.verify(signature, b'DSSEv1 28 application/vnd.in-toto+json 7 {"a":1}')
    with pytest.raises(FormatError, match="no signature of key"):
        open_envelope(envelope, Identity.new().public)
    with pytest.raises(FormatError, match="expected an envelope of other, found application"):
        open_envelope(envelope, identity.public, "other")


def test_a_changed_payload_does_not_open() -> None:
    identity = Identity.new()
    envelope = sign_envelope(identity, b"one") | {"payload": base64.b64encode(b"two").decode()}
    with pytest.raises(FormatError, match="no signature of key"):
        open_envelope(envelope, identity.public)


@pytest.mark.parametrize(
    "envelope",
    [
        {},
        {"payloadType": IN_TOTO, "payload": "?", "signatures": []},
        {"payloadType": IN_TOTO, "payload": "", "signatures": 3},
    ],
)
def test_what_is_no_envelope_is_an_error(envelope: dict[str, object]) -> None:
    with pytest.raises(FormatError, match="expected a DSSE envelope"):
        open_envelope(envelope, Identity.new().public)


def test_a_vault_opens_what_it_sealed_and_nothing_else() -> None:
    vault = Vault(b"k" * 32)
    sealed = vault.seal(b"a prompt")
    assert b"prompt" not in sealed
    assert vault.open(sealed) == b"a prompt"
    assert vault.seal(b"a prompt") != sealed
    for wrong in (sealed[:-1], b"", sealed[:-1] + bytes([sealed[-1] ^ 1])):
        with pytest.raises(FormatError, match="sealed under our secret"):
            vault.open(wrong)
    with pytest.raises(FormatError, match="sealed under our secret"):
        Vault(b"x" * 32).open(sealed)
