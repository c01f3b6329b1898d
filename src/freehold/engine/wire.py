"""What the engine process and its owner say to each other: length-prefixed msgpack frames over a socket pair.

A frame is a little-endian uint32 length and a msgpack map with a `type`. Both sides bound it, and neither trusts the
other to be well: a frame that is too long or doesn't decode is a FrameError, never a guess.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import msgspec

from freehold import errors
from freehold.engine.request import EngineStats, GenerateRequest, ModelFacts, TokenOutput
from freehold.errors import ContextLengthError, EngineError, FreeholdError
from freehold.settings import EngineSettings

MAX_FRAME = 16 << 20
"""Bytes of the largest frame: a prompt of three million tokens."""

HEADER = struct.Struct("<I")


class FrameError(Exception):
    """The other side sent something that is not a frame of this protocol."""


class Load(msgspec.Struct, frozen=True, tag=True):
    """The first word: what to load."""

    model: str
    settings: EngineSettings
    precision: str = "stored"


class Add(msgspec.Struct, frozen=True, tag=True):
    """Start a request."""

    request: GenerateRequest


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """Drop a request."""

    id: str


class Stop(msgspec.Struct, frozen=True, tag=True):
    """Finish: the process exits at once with code 0."""


class Ping(msgspec.Struct, frozen=True, tag=True):
    """Say something between two steps."""


class Pong(msgspec.Struct, frozen=True, tag=True):
    """Still here."""


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The model is loaded."""

    facts: ModelFacts
    stats: EngineStats


class Failure(msgspec.Struct, frozen=True, tag=True):
    """A FreeholdError, on its way: of one request, or (id empty) of loading."""

    id: str
    kind: str
    message: str
    hint: str | None = None
    limit: int = 0
    requested: int = 0

    @classmethod
    def of(cls, request_id: str, error: FreeholdError) -> Failure:
        """The error as a message."""
        limit, requested = (error.limit, error.requested) if isinstance(error, ContextLengthError) else (0, 0)
        return cls(request_id, type(error).__name__, error.message, error.hint, limit, requested)

    def error(self) -> FreeholdError:
        """The message as an error of the same class."""
        if self.kind == "ContextLengthError":
            return ContextLengthError(self.message, limit=self.limit, requested=self.requested, hint=self.hint)
        cls = getattr(errors, self.kind, EngineError)
        if not (isinstance(cls, type) and issubclass(cls, FreeholdError)) or cls is errors.UpstreamError:
            cls = EngineError
        return cls(self.message, hint=self.hint)


class Outputs(msgspec.Struct, frozen=True, tag=True):
    """All tokens of one step, and the state after it."""

    outputs: list[TokenOutput]
    stats: EngineStats


ToEngine = Load | Add | Cancel | Ping | Stop
FromEngine = Ready | Failure | Outputs | Pong

_encoder = msgspec.msgpack.Encoder()
_to_engine = msgspec.msgpack.Decoder(ToEngine)
_from_engine = msgspec.msgpack.Decoder(FromEngine)


def encode(message: ToEngine | FromEngine) -> bytes:
    """A message as a frame."""
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME:
        raise FrameError(f"a frame has at most {MAX_FRAME} bytes, this would have {len(body)}")
    return HEADER.pack(len(body)) + body


def body_length(header: bytes) -> int:
    """Length of the body that follows a header."""
    length: int = HEADER.unpack(header)[0]
    if length > MAX_FRAME:
        raise FrameError(f"a frame has at most {MAX_FRAME} bytes, the header says {length}")
    return length


def decode_to_engine(body: bytes) -> ToEngine:
    """The body of a frame for the engine."""
    return _checked(_to_engine, body)  # type: ignore[no-any-return]


def decode_from_engine(body: bytes) -> FromEngine:
    """The body of a frame from the engine."""
    return _checked(_from_engine, body)  # type: ignore[no-any-return]


def load_message(model: Path, settings: EngineSettings, precision: str) -> Load:
    """What the owner says first."""
    return Load(str(model), settings, precision)


def _checked(decoder: msgspec.msgpack.Decoder[Any], body: bytes) -> Any:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, FreeholdError, RecursionError) as error:
        raise FrameError(f"not a frame of this protocol: {error}") from None


class FrameBuffer:
    """Bytes in, whole bodies out, however the stream was cut."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes; gives the bodies that are now whole."""
        self._data += data
        bodies: list[bytes] = []
        while len(self._data) >= HEADER.size:
            end = HEADER.size + body_length(bytes(self._data[: HEADER.size]))
            if len(self._data) < end:
                break
            bodies.append(bytes(self._data[HEADER.size : end]))
            del self._data[:end]
        return bodies
