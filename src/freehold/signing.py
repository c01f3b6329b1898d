"""Who we are and what we signed: canonical JSON (RFC 8785), an Ed25519 identity in a file, DSSE envelopes.

DSSE signs the bytes as they are carried, with their type: PAE of
https://github.com/secure-systems-lab/dsse/blob/master/protocol.md. Knows nothing of what is signed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rfc8785
from cryptography.exceptions import InvalidSignature, InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from freehold.errors import FormatError, FreeholdError

IN_TOTO = "application/vnd.in-toto+json"
"""Payload type of an in-toto statement: https://github.com/in-toto/attestation/blob/main/spec/v1/envelope.md"""


def canonical(value: Any) -> bytes:
    """The one JSON text of a value, by RFC 8785.

    Raises:
        FormatError: something JSON can't carry, or an integer beyond 2^53.
    """
    try:
        return rfc8785.dumps(value)
    except rfc8785.CanonicalizationError as error:
        raise FormatError(f"no canonical JSON: {error}") from None


@dataclass(frozen=True, slots=True)
class PublicKey:
    """The public half: checks signatures. `id` is the SHA-256 of its DER form, in hexadecimal."""

    raw: bytes

    @classmethod
    def from_pem(cls, pem: str) -> PublicKey:
        """From `-----BEGIN PUBLIC KEY-----`.

        Raises:
            FormatError: not an Ed25519 public key.
        """
        try:
            key = serialization.load_pem_public_key(pem.encode())
        except (ValueError, UnsupportedAlgorithm):
            raise FormatError("expected an Ed25519 public key in PEM form, found something else") from None
        if not isinstance(key, Ed25519PublicKey):
            raise FormatError(f"expected an Ed25519 public key, found {type(key).__name__}")
        return cls(key.public_bytes_raw())

    @property
    def id(self) -> str:
        """Names the key."""
        return hashlib.sha256(self._key.public_bytes(_DER, _SPKI)).hexdigest()

    @property
    def pem(self) -> str:
        """As text, to hand around."""
        return self._key.public_bytes(serialization.Encoding.PEM, _SPKI).decode()

    def verify(self, signature: bytes, data: bytes) -> bool:
        """Whether the signature is this key's over these bytes."""
        try:
            self._key.verify(signature, data)
        except InvalidSignature:
            return False
        return True

    @property
    def _key(self) -> Ed25519PublicKey:
        try:
            return Ed25519PublicKey.from_public_bytes(self.raw)
        except ValueError:
            raise FormatError(f"expected an Ed25519 public key of 32 bytes, found {len(self.raw)}") from None


_DER = serialization.Encoding.DER
_SPKI = serialization.PublicFormat.SubjectPublicKeyInfo


class Identity:
    """A private key that signs, and its public half."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = PublicKey(key.public_key().public_bytes_raw())

    @classmethod
    def new(cls) -> Identity:
        """A fresh one, in memory."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> Identity:
        """The one of a secret seed of 32 bytes (RFC 8032)."""
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @classmethod
    def load(cls, path: Path) -> Identity:
        """From a PEM file.

        Raises:
            FormatError: no Ed25519 private key there.
            FreeholdError: it can't be read.
        """
        try:
            key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except OSError as error:
            raise FreeholdError(f"can't read the key {path}: {error.strerror}") from None
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise FormatError(f"{path}: expected an Ed25519 private key in PEM form without a password") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise FormatError(f"{path}: expected an Ed25519 private key, found {type(key).__name__}")
        return cls(key)

    @classmethod
    def at(cls, path: Path) -> Identity:
        """The one in the file; made there, with mode 0600, when there is none yet.

        Raises:
            FreeholdError: the file can't be read or written.
        """
        if path.exists():
            return cls.load(path)
        made = cls.new()
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            part = path.with_name(f".{path.name}.{os.getpid()}")
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(made._pem())
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(part, path)  # whoever else is first wins, and both end up with the same key
            except FileExistsError:
                return cls.load(path)
            finally:
                part.unlink()
        except OSError as error:
            raise FreeholdError(f"can't write the key {path}: {error.strerror}", hint="set FREEHOLD_HOME") from None
        return made

    def sign(self, data: bytes) -> bytes:
        """A signature of 64 bytes."""
        return self._key.sign(data)

    def _pem(self) -> bytes:
        return self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )


class Vault:
    """Encrypts what must lie on a disk for a moment (AES-256-GCM), under a secret of 32 bytes kept elsewhere."""

    def __init__(self, secret: bytes) -> None:
        self._cipher = AESGCM(secret)
        self._begin, self._count = os.urandom(8), 0

    def seal(self, data: bytes) -> bytes:
        """Encrypted, with its nonce in front."""
        # Random beginning and a counter: never the same twice, and no system call each time (90 µs on some machines).
        self._count += 1
        if self._count == 1 << 32:
            self._begin, self._count = os.urandom(8), 0
        nonce = self._begin + self._count.to_bytes(4, "big")
        return nonce + self._cipher.encrypt(nonce, data, None)

    def open(self, sealed: bytes) -> bytes:
        """The data.

        Raises:
            FormatError: changed, cut, or sealed under another secret.
        """
        try:
            return self._cipher.decrypt(sealed[:12], sealed[12:], None)
        except (InvalidTag, ValueError):
            raise FormatError("expected data sealed under our secret, found something else") from None


def pae(payload_type: str, payload: bytes) -> bytes:
    """What DSSE signs: type and payload with their lengths."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def sign_envelope(identity: Identity, payload: bytes, payload_type: str = IN_TOTO) -> dict[str, Any]:
    """A DSSE envelope around the payload, as a JSON object."""
    signature = identity.sign(pae(payload_type, payload))
    return {
        "payloadType": payload_type,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [{"keyid": identity.public.id, "sig": base64.b64encode(signature).decode()}],
    }


def open_envelope(envelope: Mapping[str, Any], key: PublicKey, payload_type: str = IN_TOTO) -> bytes:
    """The payload, if the key signed it as that type.

    Raises:
        FormatError: not an envelope, of another type, or not signed by the key.
    """
    try:
        found, payload = envelope["payloadType"], base64.b64decode(envelope["payload"], validate=True)
        signatures = [base64.b64decode(entry["sig"], validate=True) for entry in envelope["signatures"]]
    except (KeyError, TypeError, ValueError, binascii.Error):
        raise FormatError("expected a DSSE envelope with payload, payloadType and signatures") from None
    if found != payload_type:
        raise FormatError(f"expected an envelope of {payload_type}, found {found}")
    if not any(key.verify(signature, pae(payload_type, payload)) for signature in signatures):
        raise FormatError(f"the envelope has no signature of key {key.id[:16]}")
    return payload
