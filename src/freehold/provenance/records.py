"""Records: what the ledger says of an exchange or another deed, as canonical JSON.

A record holds no text, only salted hashes of it; the texts lie beside it (or nowhere) and can be deleted. Its JSON is
canonical by construction: sorted ASCII keys, strings and integers only, for which msgspec writes what RFC 8785 asks,
forty times faster than the general way (`signing.canonical`; a test holds them equal). Knows no database.
"""

from __future__ import annotations

import hashlib
import random
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from freehold import __version__
from freehold.provenance.exchanges import Begun, Deed, Ended, Message, Part
from freehold.provenance.merkle_log import SALT_BYTES, Entry
from freehold.provenance.taint import Judgement
from freehold.provenance.terms import Source, Terms

_encoder = msgspec.json.Encoder(order="sorted")


_random = random.Random(secrets.randbits(256))


def new_id(now: float | None = None) -> str:
    """A record's id: it sorts by time, and no two are the same. It is no secret."""
    return f"rec_{round((time.time() if now is None else now) * 1_000_000):014x}{_random.getrandbits(64):016x}"


def text_of(value: Any) -> str:
    """A value of sorted ASCII keys, strings and integers as its canonical JSON."""
    return _encoder.encode(value).decode()


@dataclass(frozen=True, slots=True)
class Texts:
    """The texts of an exchange as canonical JSON, with the salt of their hashes."""

    salt: bytes
    prompt: str
    answer: str


def text_hash(salt: bytes, kind: str, text: str) -> str:
    """SHA-256 of salt, kind ("prompt", "answer") and text, in hexadecimal."""
    return hashlib.sha256(b"%b%b\0%b" % (salt, kind.encode(), text.encode("utf-8", "replace"))).hexdigest()


def texts_of(begun: Begun, ended: Ended) -> Texts:
    """The texts of an exchange under a fresh salt."""
    prompt: dict[str, Any] = {"messages": [_plain(message) for message in begun.messages]}
    if begun.tools:
        prompt["tools"] = begun.tools
    answer = {"messages": [_plain(message) for message in ended.answers]}
    return Texts(secrets.token_bytes(SALT_BYTES), text_of(prompt), text_of(answer))


def exchange_entry(
    begun: Begun,
    ended: Ended,
    sources: Sequence[tuple[Part, Source, Terms]],
    judgement: Judgement,
    texts: Texts,
    *,
    kept: bool,
) -> Entry:
    """The record of an exchange.

    Args:
        sources: every part, with the terms it was under.
        kept: whether the texts are kept beside it.
    """
    served = [_served(part, source, terms) for part, source, terms in sources if part.heard]
    body = {
        "kind": "exchange",
        "id": begun.id,
        "at": begun.at,
        "ended": ended.at,
        "activity": "embed" if begun.kind == "embedding" else "generate",
        "agents": [f"freehold {__version__}", *([f"key {begun.key_id}"] if begun.key_id else [])],
        "request_id": begun.request_id,
        "asked": {"kind": begun.kind, "dialect": begun.dialect, "model": begun.asked_model},
        "served_by": served,
        "attempts": [_attempt(part) for part, _, _ in sources],
        "outcome": ended.outcome,
        "finish": list(ended.finish),
        "prompt": {"hash": text_hash(texts.salt, "prompt", texts.prompt), "turns": len(begun.messages), "kept": kept},
        "answer": {"hash": text_hash(texts.salt, "answer", texts.answer), "choices": len(ended.answers)},
        "parents": list(judgement.parents),
        "training": {"state": judgement.state, "because": [dict(reason) for reason in judgement.because]},
    }
    return Entry(begun.id, "exchange", begun.at, secrets.token_bytes(SALT_BYTES), text_of(body))


def deed_entry(deed: Deed) -> Entry:
    """The record of anything else."""
    body = {
        "kind": deed.kind, "id": deed.id, "at": deed.at, "agents": [f"freehold {__version__}"],
        "used": [dict(thing) for thing in deed.used], "generated": [dict(thing) for thing in deed.generated],
        "facts": dict(deed.facts),
    }  # fmt: skip
    return Entry(deed.id, deed.kind, deed.at, secrets.token_bytes(SALT_BYTES), text_of(body))


def _served(part: Part, source: Source, terms: Terms) -> Mapping[str, Any]:
    who: dict[str, Any] = {"backend": part.backend, "model": part.model}
    if source.local:
        who |= {"weights": source.weights, "licence": source.licence}
    else:
        who |= {"provider": source.provider, "request_id": part.request_id}
    return who | {"terms": {"digest": terms.digest, "training": terms.training, "why": terms.why}}


def _attempt(part: Part) -> Mapping[str, Any]:
    return {
        "backend": part.backend, "model": part.model, "at": part.at, "heard": part.heard, "finished": part.finished,
        "failure": part.failure, "request_id": part.request_id,
    }  # fmt: skip


def _plain(message: Message) -> dict[str, Any]:
    attached = {"images": list(message.images), "documents": list(message.documents)}
    return message.chat() | {kind: names for kind, names in attached.items() if names}
