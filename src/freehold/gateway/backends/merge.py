"""Several asynchronous streams as one, in the order in which their items arrive. Knows nothing of what they carry."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

QUEUE = 64
"""Items waiting for a slow reader before the sources are held up."""


@dataclass(frozen=True, slots=True)
class _End:
    error: BaseException | None


async def merge(sources: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[T, None]:
    """Yields from all sources until all have ended; the first error ends everything and is raised.

    Closing the merged stream closes every source.
    """
    queue: asyncio.Queue[T | _End] = asyncio.Queue(QUEUE)
    tasks = [asyncio.create_task(_pump(source, queue)) for source in sources]
    running = len(tasks)
    try:
        while running:
            item = await queue.get()
            if not isinstance(item, _End):
                yield item
            elif item.error is not None:
                raise item.error
            else:
                running -= 1
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(source: AsyncGenerator[T, None], queue: asyncio.Queue[T | _End]) -> None:
    error: BaseException | None = None
    try:
        async with aclosing(source):
            async for item in source:
                await queue.put(item)
    except Exception as problem:
        error = problem
    await queue.put(_End(error))
