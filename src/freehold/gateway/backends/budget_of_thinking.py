"""Keeps a model's thinking within its budget: when the tokens are spent, the block is closed and the answer begins.

As Qwen's documentation does it (https://qwen.readthedocs.io/en/latest/getting_started/quickstart.html):
the engine is stopped, the mark that closes thinking is put behind what it wrote, and it goes on from there. Knows tokens;
no marks, no prompt and no engine.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Protocol

from freehold.engine.request import TokenOutput
from freehold.gateway.conversation import Request

EFFORTS: Mapping[str, int] = {"none": 0, "minimal": 256, "low": 1024, "medium": 4096}
"""Tokens of thinking for a `reasoning_effort`; high and above think as long as they like. The numbers are ours: OpenAI tells
none for its own models."""


class Thinker(Protocol):
    """How far a choice has come."""

    @property
    def thinks(self) -> bool: ...  # noqa: D102

    @property
    def thought(self) -> int: ...  # noqa: D102

    @property
    def whole(self) -> bool: ...  # noqa: D102


def budget_of(request: Request) -> int | None:
    """Most tokens of thinking that a request wants; None = as many as the model likes."""
    if request.reasoning_budget is not None:
        return request.reasoning_budget
    return EFFORTS.get(request.reasoning_effort or "")


async def within(
    budget: int | None,
    reading: Thinker,
    closing: Sequence[int],
    generate: Callable[[], AsyncGenerator[TokenOutput, None]],
) -> AsyncGenerator[TokenOutput, None]:
    """What the engine says; once the budget is spent, `closing`, and what the engine says behind it.

    Args:
        reading: told of each token before the next is asked for.
        closing: tokens that end thinking.
        generate: asks the engine to go on behind all tokens so far.
    """
    while True:
        if _spent(budget, reading):
            budget = None  # once: a model that begins to think anew has closed the block itself
            for token in closing:
                yield TokenOutput("", token)
        async with aclosing(generate()) as outputs:
            async for output in outputs:
                yield output
                if _spent(budget, reading):
                    break
            else:
                return


def _spent(budget: int | None, reading: Thinker) -> bool:
    """Whether thinking must end here; never inside a character, which may have up to four tokens."""
    return budget is not None and reading.thinks and reading.thought >= budget and reading.whole
