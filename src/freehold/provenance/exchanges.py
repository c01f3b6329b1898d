"""What the gateway hands over about an exchange: plain data, encoded for the journal and read back from it.

An exchange is handed over in two pieces: `Begun` before the client gets the first word, `Ended` before it gets the last.
Knows no HTTP, no database and no rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

Outcome = Literal["finished", "failed", "left", "interrupted"]
"""`left`: the client went away. `interrupted`: the gateway was killed while it answered."""


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call; `arguments` is the JSON text as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn as text. Raw prompts have the role `prompt`.

    Args:
        images, documents: each named by the SHA-256 of its URL, or of the id by which its provider has it.
    """

    role: str
    content: str
    calls: tuple[Call, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    images: tuple[str, ...] = ()
    reasoning: str = ""
    documents: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """Everything it says."""
        return f"{self.content}\n\n{self.reasoning}" if self.reasoning else self.content

    def chat(self) -> dict[str, Any]:
        """As a message of OpenAI's chat format."""
        found: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.calls:
            found["tool_calls"] = [
                {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
                for c in self.calls
            ]
        if self.tool_call_id is not None:
            found["tool_call_id"] = self.tool_call_id
        if self.name is not None:
            found["name"] = self.name
        if self.reasoning:
            found["reasoning_content"] = self.reasoning
        return found


@dataclass(frozen=True, slots=True)
class Part:
    """What one backend did for an exchange.

    Args:
        local: the engine on this machine; `files` then says which weight files it runs (see `weights.py`).
        provider: as in the settings; the host of its address where they name none.
        model: asked for there.
        request_id: the provider's own name for it.
        heard: some of its words reached the client.
        failure: one word, when it failed.
        finished: it came to an end.
    """

    backend: str
    local: bool
    provider: str
    model: str
    at: int
    files: str = ""
    request_id: str | None = None
    heard: bool = False
    finished: bool = False
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Begun:
    """An exchange that somebody has committed to answer. Times in microseconds since 1970.

    Args:
        id: of the record, as the client is told it.
        kind: "chat", "completion" or "embedding".
        tools: the tools offered, as a JSON text; empty without.
        parts: so far.
        keep: whether its texts are to be kept; set by the ledger, and heeded by whoever writes the record.
    """

    id: str
    request_id: str
    at: int
    kind: str
    dialect: str
    asked_model: str
    key_id: str
    messages: tuple[Message, ...]
    tools: str
    parts: tuple[Part, ...]
    keep: bool = False


@dataclass(frozen=True, slots=True)
class Ended:
    """How it ended.

    Args:
        answers: one for each choice, as far as the client got it.
        finish: each choice's finish reason; shorter than `answers` when it was cut.
        parts: all of them.
    """

    id: str
    at: int
    outcome: Outcome
    answers: tuple[Message, ...]
    finish: tuple[str, ...]
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Deed:
    """Anything else that made or used something: a pull, a compression, an export, a deletion.

    Args:
        kind: "ingest", "quantize", "train", "filter", "export", "forget" or "gap".
        used, generated: what went in and what came out; each an object with at least an `id`.
    """

    id: str
    kind: str
    at: int
    used: tuple[Mapping[str, Any], ...] = ()
    generated: tuple[Mapping[str, Any], ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


_encoder = msgspec.msgpack.Encoder()
_begun = msgspec.msgpack.Decoder(Begun)
_ended = msgspec.msgpack.Decoder(Ended)


def encode(piece: Begun | Ended) -> bytes:
    """For the journal."""
    return _encoder.encode(piece)


def decode_begun(data: bytes) -> Begun:
    """From the journal; raises msgspec.DecodeError when a newer version wrote it otherwise."""
    return _begun.decode(data)


def decode_ended(data: bytes) -> Ended:
    """From the journal."""
    return _ended.decode(data)


def interrupted(begun: Begun) -> Ended:
    """The end of an exchange whose end nobody saw."""
    return Ended(begun.id, begun.at, "interrupted", (), (), begun.parts)
