"""What some backends can do besides answering: counting a prompt's tokens, embedding texts. Knows no HTTP."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from freehold.errors import EngineDownError, FreeholdError
from freehold.gateway.conversation import EmbeddingRequest, Embeddings, Request
from freehold.gateway.failures import CapabilityError
from freehold.gateway.router import Router


@runtime_checkable
class Counter(Protocol):
    """A backend that can count."""

    async def count(self, request: Request) -> int:
        """Tokens of the prompt, as the answer's usage will say."""


@runtime_checkable
class Embedder(Protocol):
    """A backend that can embed."""

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """One vector for each input."""


async def count_tokens(router: Router, request: Request) -> int:
    """The count by the backend that would answer.

    Raises:
        FreeholdError: the request is wrong, or that backend can't count.
    """
    first = router.plan(request)[0]
    if isinstance(first.backend, Counter):
        return await first.backend.count(first.request)
    raise CapabilityError(
        f"The backend '{first.backend.name}' does not count tokens.",
        param="model",
        code="unsupported_value",
        hint="ask for the local model",
    )


async def embed(router: Router, request: EmbeddingRequest) -> tuple[str, Embeddings]:
    """The vectors, and the name of the backend that made them: the one whose model was asked for, and no other, because
    vectors of different models can't be compared.

    Raises:
        FreeholdError: no such model, it does not embed, or its backend failed.
    """
    candidate = router.plan(Request(id=request.id, model=request.model, prompts=("",)))[0]
    backend = candidate.backend
    if not isinstance(backend, Embedder):
        raise CapabilityError(
            f"The model '{request.model[:200]}' does not make embeddings.", param="model", code="unsupported_value"
        )
    if backend.state != "ready":
        raise EngineDownError(f"the backend '{backend.name}' is {backend.state}", hint="try again in a few seconds")
    asked = EmbeddingRequest(
        id=request.id,
        model=candidate.request.model,
        inputs=request.inputs,
        dimensions=request.dimensions,
        user=request.user,
        key_id=request.key_id,
    )
    try:
        return backend.name, await backend.embed(asked)
    except FreeholdError as error:
        router.failed(backend, error)
        raise
