"""OpenAI Embeddings (https://platform.openai.com/docs/api-reference/embeddings): texts in, vectors out.

Knows the wire format only.
"""

from __future__ import annotations

import base64
import struct
from typing import Annotated, Literal

import msgspec

from freehold.gateway.conversation import EmbeddingRequest, Embeddings
from freehold.gateway.dialects import body as bodies
from freehold.gateway.dialects.openai_completions import TokenId, prompts_of

MAX_INPUTS = 2048


class EmbeddingsBody(msgspec.Struct, kw_only=True):
    """The body of POST /v1/embeddings."""

    model: Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
    input: str | Annotated[list[str | TokenId | list[TokenId]], msgspec.Meta(min_length=1)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)] | None = None
    user: str | None = None


def decode(body: bytes, request_id: str) -> tuple[EmbeddingRequest, str]:
    """A body as a neutral request, and the encoding its vectors are wanted in.

    Raises:
        RequestError: names the field at fault.
    """
    fields = bodies.decode(body, EmbeddingsBody)
    inputs = prompts_of(fields.input, "input", MAX_INPUTS)
    request = EmbeddingRequest(
        id=request_id, model=fields.model, inputs=inputs, dimensions=fields.dimensions, user=fields.user
    )
    return request, fields.encoding_format or "float"


def encode(found: Embeddings, encoding: str) -> bytes:
    """The vectors as a list object; base64 holds little-endian float32, as OpenAI's SDK reads it."""
    data = [
        {"object": "embedding", "index": i, "embedding": _packed(vector) if encoding == "base64" else vector}
        for i, vector in enumerate(found.vectors)
    ]
    usage = {"prompt_tokens": found.prompt_tokens, "total_tokens": found.prompt_tokens}
    return msgspec.json.encode({"object": "list", "data": data, "model": found.model, "usage": usage})


def _packed(vector: tuple[float, ...]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
