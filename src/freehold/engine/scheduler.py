"""Continuous batching: which sequences go through the model in the next step, and with how many tokens.

Decoding sequences come first, those served longest ago in front; what is left of `max_step_tokens` goes to prompts in
chunks. Half of that is the oldest prompt's, the rest is given to the shortest remaining ones: a long prompt neither
holds up short ones nor starves. Admission is first come, first served, by room in the KV cache; whole pages that hold
a prompt's beginning already are taken over (`prefix`). When pages run out, those kept for later prompts go first; then
the latest arrival gives its pages back and is computed again later, so the oldest always finishes.

This module knows no model, tensors or sampling.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from freehold.engine.blocks import PageAllocator, pages_for
from freehold.engine.prefix import PrefixCache
from freehold.engine.sequence import Sequence
from freehold.errors import OverloadedError
from freehold.kernels.program import PAGE, Step

WATERMARK = 100
"""One page in so many stays free at admission, so that running sequences can grow before anyone is preempted."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next `count` tokens of a sequence."""

    sequence: Sequence
    count: int

    @property
    def samples(self) -> bool:
        """True when the chunk reaches the sequence's last token, whose logits choose the next."""
        return self.count == self.sequence.pending and self.sequence.pool is None


class Scheduler:
    """Owns the queue, the running sequences and the KV pages."""

    def __init__(
        self,
        pages: PageAllocator,
        *,
        max_batch: int,
        max_step_tokens: int,
        max_queue: int,
        prefix: PrefixCache | None = None,
    ) -> None:
        self.pages = pages
        self._prefix = prefix
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.preemptions = 0
        self._max_batch = max_batch
        self._max_step_tokens = max_step_tokens
        self._max_queue = max_queue
        self._steps = 0

    @property
    def shares_pages(self) -> bool:
        """Whether prompts that begin alike share pages."""
        return self._prefix is not None

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence.

        Raises:
            OverloadedError: the queue is full.
        """
        if len(self.waiting) >= self._max_queue:
            raise OverloadedError(
                f"the queue is full: {self._max_queue} requests are waiting",
                hint="try again later, or raise max_queue",
            )
        self.waiting.append(sequence)

    def find(self, request_id: str) -> Sequence | None:
        """The sequence of a request, running or waiting."""
        return next((s for s in (*self.running, *self.waiting) if s.id == request_id), None)

    def remove(self, sequence: Sequence) -> None:
        """Drop a sequence and free its pages at once, or keep them for prompts that begin alike."""
        self._release(sequence)
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)

    def schedule(self) -> list[Chunk]:
        """The next step's work; empty when there is none."""
        self._steps += 1
        budget = self._max_step_tokens
        decodes = self._decodes(budget)
        budget -= len(decodes)
        self._admit(budget)
        chunks = [Chunk(sequence, 1) for sequence in decodes] + self._prefills(budget, decodes)
        for chunk in chunks:
            chunk.sequence.served = self._steps
        return chunks

    def _decodes(self, budget: int) -> list[Sequence]:
        candidates = sorted((s for s in self.running if s.pending == 1), key=lambda s: (s.served, s.arrival))
        chosen: list[Sequence] = []
        for sequence in candidates:
            if len(chosen) == budget:
                break
            if sequence not in self.running:  # preempted for one before it
                continue
            self._grow(sequence, chosen)
            if sequence in self.running:
                chosen.append(sequence)
        return chosen

    def _grow(self, sequence: Sequence, chosen: list[Sequence]) -> None:
        """Give a sequence the page its next token needs, preempting the latest arrivals if need be (maybe itself)."""
        while len(sequence.pages) < pages_for(sequence.computed + 1):
            if self._make_room(1):
                sequence.pages += self._take(1)
                continue
            victim = max(self.running, key=lambda s: s.arrival)
            self._preempt(victim)
            if victim in chosen:
                chosen.remove(victim)
            if victim is sequence:
                return

    def _preempt(self, victim: Sequence) -> None:
        self._release(victim)
        self.running.remove(victim)
        self._requeue(victim)
        self.preemptions += 1

    def _requeue(self, victim: Sequence) -> None:
        """Back into the queue in order of arrival: before everyone who came later."""
        place = next((i for i, s in enumerate(self.waiting) if s.arrival > victim.arrival), len(self.waiting))
        self.waiting.insert(place, victim)

    def _admit(self, budget: int) -> None:
        while budget > 0 and self.waiting and len(self.running) < self._max_batch:
            sequence = self.waiting[0]
            shared = self._shared(sequence)
            needed = pages_for(len(sequence.tokens)) - len(shared)
            spare = self.pages.total // WATERMARK if self.running else 0
            if not self._make_room(needed + spare):
                for page in shared:
                    self.pages.release(page)
                return
            self.waiting.popleft()
            sequence.pages = shared + self._take(needed)
            sequence.computed = len(shared) * PAGE
            if sequence.served < 0:
                sequence.cached = sequence.computed
            self.running.append(sequence)

    def _shared(self, sequence: Sequence) -> list[int]:
        """Pages that hold its beginning already; at least its last token is left to compute, as its logits are wanted."""
        if self._prefix is None or sequence.pool is not None:  # a pool wants the hidden states of every token
            return []
        return self._prefix.match(sequence.tokens[:-1])

    def _make_room(self, pages: int) -> bool:
        """Whether so many pages are free, after kept ones were given up if need be; those of others stay."""
        if self.pages.available < pages:
            return False
        while self.pages.free < pages and self._prefix is not None and self._prefix.evict():
            pass
        return self.pages.free >= pages

    def _take(self, count: int) -> list[int]:
        return [page for page in (self.pages.take() for _ in range(count)) if page is not None]

    def note_computed(self, chunk: Chunk) -> None:
        """A chunk is in the KV cache; whole pages of a prompt can serve others from now on."""
        sequence = chunk.sequence
        sequence.computed += chunk.count
        if chunk.count > 1:
            self._keep(sequence)

    def _keep(self, sequence: Sequence) -> None:
        if self._prefix is not None:
            self._prefix.keep(sequence.tokens[: sequence.computed], sequence.pages)

    def _prefills(self, budget: int, decodes: list[Sequence]) -> list[Chunk]:
        # a prompt that was just admitted with one token left to compute is pending like a decode, but was not among them
        unserved = (s for s in self.running if s not in decodes)
        prompts = sorted(unserved, key=lambda s: s.arrival)
        if not prompts or budget <= 0:
            return []
        oldest = prompts[0]
        counts = {oldest.arrival: min(oldest.pending, -(-budget // 2))}
        budget -= counts[oldest.arrival]
        for sequence in sorted(prompts[1:], key=lambda s: (s.pending, s.arrival)):
            counts[sequence.arrival] = min(sequence.pending, budget)
            budget -= counts[sequence.arrival]
        counts[oldest.arrival] += min(oldest.pending - counts[oldest.arrival], budget)
        return [Chunk(s, counts[s.arrival]) for s in prompts if counts[s.arrival] > 0]

    def _release(self, sequence: Sequence) -> None:
        self._keep(sequence)
        for page in sequence.pages:
            self.pages.release(page)
        sequence.pages = []
        sequence.computed = 0


def step_of(chunks: list[Chunk]) -> Step:
    """Chunks as the arrays an executor takes; logits are asked for the last row of each chunk that samples.

    Lists become arrays at the end: between two steps each call into NumPy finds its code out of the caches.
    """
    tokens: list[int] = []
    positions: list[int] = []
    sequences: list[int] = []
    outputs: list[int] = []
    width = max(len(chunk.sequence.pages) for chunk in chunks)
    tables: list[list[int]] = []
    for row, chunk in enumerate(chunks):
        sequence, begin, end = chunk.sequence, chunk.sequence.computed, chunk.sequence.computed + chunk.count
        tokens += sequence.tokens[begin:end]
        positions += range(begin, end)
        sequences += [row] * chunk.count
        tables.append(sequence.pages + [0] * (width - len(sequence.pages)))
        if chunk.samples:
            outputs.append(len(tokens) - 1)
    return Step(*(np.array(values, np.int32) for values in (tokens, positions, sequences, tables, outputs)))
