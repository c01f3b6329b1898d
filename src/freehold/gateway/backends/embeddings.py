"""OpenAI's embeddings seen from the other side: https://platform.openai.com/docs/api-reference/embeddings.

Knows no HTTP. What arrives is not trusted: the number of vectors, their places, lengths and values are checked.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import msgspec

from freehold.gateway.conversation import EmbeddingRequest, Embeddings

MAX_EMBEDDINGS = 256 << 20
"""Bytes of an answer: 2048 inputs, OpenAI's limit, of 4096 numbers with some 20 characters each, and as much again."""


class WireVector(msgspec.Struct):
    """One vector and the input it belongs to."""

    embedding: list[float]
    index: Annotated[int, msgspec.Meta(ge=0)]


class WireCounts(msgspec.Struct):
    """Token counts."""

    prompt_tokens: Annotated[int, msgspec.Meta(ge=0, le=1 << 40)] = 0


class WireEmbeddings(msgspec.Struct):
    """The answer."""

    data: list[WireVector]
    model: str = ""
    usage: WireCounts | None = None


def encode_embeddings(request: EmbeddingRequest) -> bytes:
    """The body; numbers as numbers, because not every provider knows base64."""
    body: dict[str, Any] = {"model": request.model, "input": request.inputs, "encoding_format": "float"}
    if request.dimensions is not None:
        body["dimensions"] = request.dimensions
    if request.user is not None:
        body["user"] = request.user
    return msgspec.json.encode(body)


def decode_embeddings(body: bytes, request: EmbeddingRequest) -> Embeddings:
    """The vectors in the order of the inputs.

    Raises:
        ValueError: another shape, missing or doubled vectors, unequal lengths, or numbers that are none.
    """
    try:
        found = msgspec.json.decode(body, type=WireEmbeddings)
    except RecursionError:
        raise ValueError("nested too deep") from None
    vectors = {vector.index: tuple(vector.embedding) for vector in found.data}
    if len(found.data) != len(request.inputs) or set(vectors) != set(range(len(request.inputs))):
        raise ValueError(f"{len(found.data)} vectors for {len(request.inputs)} inputs, or doubled ones")
    lengths = {len(vector) for vector in vectors.values()}
    if len(lengths) > 1 or lengths == {0}:
        raise ValueError(f"vectors of different lengths: {sorted(lengths)[:4]}")
    if request.dimensions is not None and lengths != {request.dimensions}:
        raise ValueError(f"vectors of {max(lengths)} numbers, asked for {request.dimensions}")
    if not all(map(math.isfinite, (number for vector in vectors.values() for number in vector))):
        raise ValueError("a number that is not finite")
    tokens = found.usage.prompt_tokens if found.usage else 0
    return Embeddings(found.model or request.model, tuple(vectors[i] for i in range(len(vectors))), tokens)
