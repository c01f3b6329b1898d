"""Signed tree heads: the promise "my log had this many records and this root", to be handed to somebody else.

A head that left the house is what makes the ledger tamper-evident: without one, whoever owns the database and the key
could write another history. A published head is a JSON file with the DSSE envelope and the public key. Knows no
records.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from freehold.errors import FormatError, UsageError
from freehold.signing import Identity, PublicKey, canonical, open_envelope, sign_envelope

PAYLOAD_TYPE = "application/vnd.freehold.tree-head+json"
LARGEST_FILE = 64 << 20  # about a hundred thousand heads: more than ten years of one an hour


class _Payload(msgspec.Struct, forbid_unknown_fields=True):
    log: str
    size: int
    root: str
    at: int


@dataclass(frozen=True, slots=True)
class Head:
    """A tree head and who signed it.

    Args:
        log: id of the log.
        size: records.
        root: of 32 bytes.
        at: when it was signed, microseconds since 1970.
        envelope: the DSSE envelope it came in.
    """

    log: str
    size: int
    root: bytes
    at: int
    key: PublicKey
    envelope: Mapping[str, Any]

    def published(self) -> dict[str, Any]:
        """As a JSON object to hand to others."""
        return {"head": dict(self.envelope), "key": self.key.pem}


def sign(identity: Identity, log: str, size: int, root: bytes, at: int) -> Head:
    """A new head."""
    payload = canonical({"log": log, "size": size, "root": root.hex(), "at": at})
    return Head(log, size, root, at, identity.public, sign_envelope(identity, payload, PAYLOAD_TYPE))


def opened(published: Any) -> Head:
    """The head in a published object; it is signed by the key beside it.

    Raises:
        FormatError: it is not, or no head at all.
    """
    if not isinstance(published, dict) or not isinstance(published.get("key"), str):
        raise FormatError("expected a published head: an object with `head` and `key`")
    key, envelope = PublicKey.from_pem(published["key"]), published.get("head")
    if not isinstance(envelope, dict):
        raise FormatError("expected a published head: `head` is not an envelope")
    try:
        found = msgspec.json.decode(open_envelope(envelope, key, PAYLOAD_TYPE), type=_Payload)
        root = bytes.fromhex(found.root)
    except (msgspec.DecodeError, ValueError) as error:
        raise FormatError(f"a signed head that is not as documented: {error}") from None
    if len(root) != 32 or found.size < 0:
        raise FormatError("a signed head that is not as documented: its root or size is impossible")
    return Head(found.log, found.size, root, found.at, key, envelope)


def read(path: Path) -> list[Head]:
    """The heads in a file: one object, or one a line as `provenance.publish_heads` writes them.

    Raises:
        UsageError: it can't be read.
        FormatError: it holds something else, or a signature is wrong.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise UsageError(f"can't read the head {path}: {error.strerror}") from None
    if len(data) > LARGEST_FILE:
        raise FormatError(f"{path}: expected a published head, found more than {LARGEST_FILE} bytes")
    try:
        texts = [data] if data.lstrip()[:2] == b"{\n" else [line for line in data.splitlines() if line.strip()]
        found = [opened(json.loads(text)) for text in texts]
    except (ValueError, RecursionError):
        raise FormatError(f"{path}: expected a published head in JSON") from None
    except FormatError as error:
        raise FormatError(f"{path}: {error.message}", hint=error.hint) from None
    if not found:
        raise FormatError(f"{path}: expected a published head, found nothing")
    return found


def text(head: Head) -> str:
    """Its envelope as JSON text."""
    return canonical(dict(head.envelope)).decode()


def from_row(envelope: str, key: str) -> Head:
    """From what the database keeps of a head; raises FormatError when that was changed."""
    try:
        found = json.loads(envelope)
    except ValueError:
        raise FormatError("a signed head in the database is not JSON") from None
    return opened({"head": found, "key": key})
