"""Texts into vectors by the local engine. Knows requests of the engine; no events, no HTTP."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from pathlib import Path

from freehold.engine.request import GenerateRequest, TokenOutput
from freehold.errors import EngineDownError, EngineError, FormatError
from freehold.formats.reading import read_json
from freehold.formats.tokenizer import Tokenizer
from freehold.gateway.conversation import Prompt
from freehold.gateway.failures import RequestError

AT_ONCE = 16
"""Inputs of one request in the engine at the same time: others get their turn too."""

Generate = Callable[[GenerateRequest], AsyncGenerator[TokenOutput, None]]


def pooling_of(model: Path) -> tuple[str, str]:
    """How a model wants its hidden states pooled ("mean" or "last"), and why.

    Embedding models say so in `1_Pooling/config.json`, the file of sentence-transformers.
    """
    file = model / "1_Pooling" / "config.json"
    if not file.is_file():
        return "mean", "the model says nothing of pooling"
    try:
        config = read_json(file, "pooling file")
    except FormatError as error:
        return "mean", f"the model's pooling file can't be read: {error.message}"
    if config.get("pooling_mode_lasttoken") is True:
        return "last", "1_Pooling/config.json says lasttoken"
    return "mean", "1_Pooling/config.json does not say lasttoken"


def encode(tokenizer: Tokenizer, inputs: Sequence[Prompt]) -> list[list[int]]:
    """Inputs as ids.

    Raises:
        RequestError: an input is empty or has an id beyond the vocabulary; names it.
    """
    found = []
    for i, given in enumerate(inputs):
        ids = tokenizer.encode(given, special=False, bos=True) if isinstance(given, str) else list(given)
        if not ids:
            raise RequestError(f"Invalid 'input[{i}]': it is empty.", param=f"input[{i}]", code="invalid_value")
        if max(ids) >= tokenizer.vocabulary:
            message = (
                f"Invalid token id in 'input[{i}]': expected less than {tokenizer.vocabulary}, but got {max(ids)}."
            )
            raise RequestError(message, param=f"input[{i}]", code="invalid_value")
        found.append(ids)
    return found


async def embed(generate: Generate, name: str, inputs: Sequence[list[int]], pooling: str) -> list[list[float]]:
    """Vectors of length 1, in order."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(i: int, ids: list[int]) -> list[float]:
        async with turns:
            return await _vector(generate(GenerateRequest(f"{name}-{i}", ids, pooling=pooling)))

    tasks = [asyncio.create_task(one(i, ids)) for i, ids in enumerate(inputs)]
    try:
        return await asyncio.gather(*tasks)
    finally:  # after the first failure, and when the client has left
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def shortened(vector: list[float], dimensions: int | None) -> tuple[float, ...]:
    """The first dimensions, of length 1 again.

    Raises:
        RequestError: there are not so many.
    """
    if dimensions is None or dimensions == len(vector):
        return tuple(vector)
    if dimensions > len(vector):
        message = f"Invalid 'dimensions': the model has {len(vector)}, but got {dimensions}."
        raise RequestError(message, param="dimensions", code="invalid_value")
    head = vector[:dimensions]
    length = math.sqrt(math.fsum(value * value for value in head))
    return tuple(value / length for value in head) if length else tuple(head)


async def _vector(outputs: AsyncGenerator[TokenOutput, None]) -> list[float]:
    async with aclosing(outputs):
        async for output in outputs:
            if output.embedding is not None:
                return output.embedding
            if output.finish == "cancelled":
                raise EngineDownError("the engine gave up the request", hint="try again")
            if output.finish is not None:
                raise EngineError(f"the engine failed: {output.error or 'no embedding came'}")
    raise EngineError("the engine ended without an embedding")
