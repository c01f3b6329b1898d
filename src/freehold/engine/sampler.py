"""From logits to tokens. Knows nothing of models, pages or processes.

Each request has a generator of its own and draws one number per token, so what a seed gives never depends on the
requests beside it. Order: penalties, logit_bias, top-k, temperature, min-p, top-p, draw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from freehold.engine.grammar import GrammarStuck
from freehold.engine.request import Sampling

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

_BLOCK = 512
"""Tokens summed together before the one that is drawn is looked for."""


NOT_FINITE = "the model's logits are not finite numbers"


class Constraint(Protocol):
    """What an output must follow; `grammar.Matcher` is one."""

    def allowed(self) -> NDArray[np.uint8]: ...  # noqa: D102

    def take(self, token: int, /) -> bool: ...  # noqa: D102


class SamplerState:
    """What sampling remembers of one request: its generator, the tokens seen, and where it is in its grammar.

    Args:
        replayed: so many ids at the end of the prompt are earlier output: penalties and generator go on from there.
    """

    def __init__(self, sampling: Sampling, prompt: Sequence[int], replayed: int = 0) -> None:
        self.sampling = sampling
        self.penalized = sampling.penalized
        self.plain = (
            sampling.greedy and not sampling.penalized and not sampling.logit_bias
        )  # the largest logit, as it is
        self.constraint: Constraint | None = None
        self._seen: dict[int, int] = {}  # token -> times in the output; 0 for those of the prompt alone
        # no seed: entropy from the system; seeds may be negative in the API, generators take none
        seed = None if sampling.seed is None else sampling.seed % 2**64
        self.generator = None if sampling.greedy else np.random.Generator(np.random.PCG64(seed))
        if self.generator is not None and replayed:
            bits = self.generator.bit_generator
            assert isinstance(bits, np.random.PCG64)  # noqa: S101  (one output of 64 bits for each number drawn)
            bits.advance(replayed)
        if self.penalized:
            self._seen = dict.fromkeys(prompt[: len(prompt) - replayed], 0)
            for token in prompt[len(prompt) - replayed :]:
                self._count(token)

    def note(self, token: int) -> None:
        """A token of the output."""
        if self.penalized:
            self._count(token)
        if self.constraint is not None:
            self.constraint.take(token)

    def _count(self, token: int) -> None:
        self._seen[token] = self._seen.get(token, 0) + 1

    def adjust(self, logits: F32) -> None:
        """Penalties and bias, in place, on the logits [V] of the next token."""
        sampling = self.sampling
        if self._seen and self.penalized:
            ids = np.fromiter(self._seen, np.int64, len(self._seen))
            counts = np.fromiter(self._seen.values(), np.float32, len(self._seen))
            values = logits[ids]
            penalty = np.float32(sampling.repetition_penalty)
            values = np.where(values > 0, values / penalty, values * penalty)
            values -= np.float32(sampling.frequency_penalty) * counts
            values -= np.float32(sampling.presence_penalty) * (counts > 0)
            logits[ids] = values
        if sampling.logit_bias:
            ids = np.fromiter(sampling.logit_bias, np.int64, len(sampling.logit_bias))
            logits[ids] += np.fromiter(sampling.logit_bias.values(), np.float32, len(sampling.logit_bias))


@dataclass(
    slots=True
)  # not frozen: one is made for each token, and setting fields one by one past the lock takes longer
class Sampled:
    """A chosen token; None when there can be none, for the `reason` given."""

    token: int | None
    logprob: float | None = None
    top: list[tuple[int, float]] = field(default_factory=list)
    reason: str = ""


def sample(logits: F32, states: Sequence[SamplerState]) -> list[Sampled]:
    """The next token of each row of logits [R, V], by its request's sampling.

    Rows whose largest value is not finite, and grammars that can't go on, give Sampled(None).
    """
    out: list[Sampled] = []
    for row, state in zip(logits, states, strict=True):
        best = int(row.argmax())  # NaN counts as largest, so this finds it too
        if not math.isfinite(row[best]):
            out.append(Sampled(None, reason=NOT_FINITE))
            continue
        try:
            token = _pick(row, state, best)
        except GrammarStuck as error:
            out.append(Sampled(None, reason=str(error)))
            continue
        if state.sampling.logprobs is None:
            out.append(Sampled(token))
        else:
            out.append(_with_logprobs(token, row, state.sampling.logprobs))
    return out


def _pick(logits: F32, state: SamplerState, best: int) -> int:
    """The token of one row; a grammar's mask comes before everything else."""
    if state.constraint is None:
        return best if state.plain else _choose(logits, state)
    bits = state.constraint.allowed()
    if state.plain and bits[best >> 3] >> (best & 7) & 1:
        return best
    allowed = np.flatnonzero(np.unpackbits(bits, bitorder="little", count=len(logits)))
    if state.plain:
        return int(allowed[logits[allowed].argmax()])
    masked = np.full_like(logits, -np.inf)
    masked[allowed] = logits[allowed]
    return _choose(masked, state)


def _choose(logits: F32, state: SamplerState) -> int:
    if state.penalized or state.sampling.logit_bias:
        logits = logits.copy()
        state.adjust(logits)
    if state.generator is None:
        return int(logits.argmax())
    ids, mass = _candidates(logits, state.sampling)
    place = _draw(mass, state.generator.random())
    return place if ids is None else int(ids[place])


def _draw(mass: F32, uniform: float) -> int:
    """The place where the running sum of mass passes `uniform` times the whole; blocks first, as most lie before it."""
    starts = np.arange(0, len(mass), _BLOCK)
    blocks = np.cumsum(np.add.reduceat(mass, starts), dtype=np.float64)
    target = uniform * blocks[-1]
    block = min(int(np.searchsorted(blocks, target, side="right")), len(blocks) - 1)
    inside = mass[block * _BLOCK : (block + 1) * _BLOCK]
    running = np.cumsum(inside, dtype=np.float64) + (blocks[block - 1] if block else 0.0)
    place = int(np.searchsorted(running, target, side="right"))
    if place == len(inside):  # rounding: the block's sum and its running sum may differ in their last digits
        place = int(np.flatnonzero(inside)[-1])
    return block * _BLOCK + place


def _candidates(logits: F32, sampling: Sampling) -> tuple[I64 | None, F32]:
    """(ids, unnormalized mass) of tokens that may be drawn; ids None = the whole vocabulary in order."""
    ids: I64 | None = None
    if 0 < sampling.top_k < len(logits):
        ids = _largest(logits, sampling.top_k)
        logits = logits[ids]
    mass: F32 = np.exp((logits - logits.max()) / np.float32(sampling.temperature))
    if sampling.min_p > 0:
        mass[mass < sampling.min_p] = 0.0  # the peak's mass is 1
    if sampling.top_p < 1:
        kept = _nucleus(mass, sampling.top_p)
        ids, mass = (kept if ids is None else ids[kept]), mass[kept]
    return ids, mass


def _largest(values: F32, count: int) -> I64:
    """Places of the `count` largest, largest first, smaller place first among equals."""
    if count < len(values):
        threshold = np.partition(values, -count)[-count]
        above = np.flatnonzero(values > threshold)
        places = np.concatenate([above, np.flatnonzero(values == threshold)[: count - len(above)]])
    else:
        places = np.arange(len(values))
    return places[np.argsort(-values[places], kind="stable")]


def _nucleus(mass: F32, top_p: float) -> I64:
    """Places of the fewest largest that reach top_p of the whole.

    All places below (1 - top_p) / V of the whole hold less than 1 - top_p together, so only the others are sorted;
    often those that are no rarer than a thousandth of the likeliest are enough.
    """
    total = float(mass.sum(dtype=np.float64))
    floor = (1 - top_p) * total / len(mass)
    places = np.flatnonzero(mass >= max(float(mass.max()) / 1000, floor))
    if float(mass[places].sum(dtype=np.float64)) <= top_p * total:
        places = np.flatnonzero(mass >= floor)
    places = places[np.argsort(-mass[places], kind="stable")]
    reached = np.cumsum(mass[places], dtype=np.float64)
    return places[: int(np.searchsorted(reached, top_p * total)) + 1]


def _with_logprobs(token: int, logits: F32, count: int) -> Sampled:
    peak = logits.max()
    normalizer = float(peak) + float(np.log(np.exp(logits - peak).sum(dtype=np.float64)))
    ids = _largest(logits, min(count, len(logits))) if count else ()
    top = [(int(i), float(logits[i]) - normalizer) for i in ids]
    return Sampled(token, float(logits[token]) - normalizer, top)
