"""From logits to tokens. Knows nothing of models, pages or processes.

Each request has a generator of its own and draws one number per token, so what a seed gives never depends on the
requests beside it. Order: penalties, logit_bias, top-k, temperature, min-p, top-p, draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from freehold.engine.request import Sampling

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

_FIRST_LOOK = 1024
"""Likeliest tokens examined for top-p before the whole vocabulary is sorted."""


class SamplerState:
    """What sampling remembers of one request: its generator and the tokens seen."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int]) -> None:
        self.sampling = sampling
        self._seen: dict[int, int] = {}  # token -> times in the output; 0 for those of the prompt alone
        # no seed: entropy from the system; seeds may be negative in the API, generators take none
        seed = None if sampling.seed is None else sampling.seed % 2**64
        self.generator = None if sampling.greedy else np.random.Generator(np.random.PCG64(seed))
        if sampling.penalized:
            self._seen = dict.fromkeys(prompt, 0)

    def note(self, token: int) -> None:
        """A token of the output."""
        if self.sampling.penalized:
            self._seen[token] = self._seen.get(token, 0) + 1

    def adjust(self, logits: F32) -> None:
        """Penalties and bias, in place, on the logits [V] of the next token."""
        sampling = self.sampling
        if self._seen and sampling.penalized:
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


@dataclass(frozen=True, slots=True)
class Sampled:
    """A chosen token; None when the logits were not finite numbers."""

    token: int | None
    logprob: float | None = None
    top: list[tuple[int, float]] = field(default_factory=list)


def sample(logits: F32, states: Sequence[SamplerState]) -> list[Sampled]:
    """The next token of each row of logits [R, V], by its request's sampling.

    Rows whose largest value is not finite give Sampled(None).
    """
    best = logits.argmax(axis=1)  # NaN counts as largest, so this finds it too
    peak = logits[np.arange(len(states)), best]
    out: list[Sampled] = []
    for row, state in enumerate(states):
        if not np.isfinite(peak[row]):
            out.append(Sampled(None))
            continue
        token = int(best[row]) if _plain(state.sampling) else _choose(logits[row].copy(), state)
        if state.sampling.logprobs is None:
            out.append(Sampled(token))
        else:
            out.append(_with_logprobs(token, logits[row], state.sampling.logprobs))
    return out


def _plain(sampling: Sampling) -> bool:
    return sampling.greedy and not sampling.penalized and not sampling.logit_bias


def _choose(logits: F32, state: SamplerState) -> int:
    state.adjust(logits)
    if state.generator is None:
        return int(logits.argmax())
    ids, mass = _candidates(logits, state.sampling)
    cumulative = np.cumsum(mass, dtype=np.float64)
    draw = state.generator.random() * cumulative[-1]
    place = min(int(np.searchsorted(cumulative, draw, side="right")), len(mass) - 1)
    return place if ids is None else int(ids[place])


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


def _largest(mass: F32 | F64, count: int) -> I64:
    """Places of the `count` largest, largest first, smaller place first among equals."""
    if count < len(mass):
        threshold = np.partition(mass, -count)[-count]
        above = np.flatnonzero(mass > threshold)
        places = np.concatenate([above, np.flatnonzero(mass == threshold)[: count - len(above)]])
    else:
        places = np.arange(len(mass))
    return places[np.argsort(-mass[places], kind="stable")]


def _nucleus(mass: F32, top_p: float) -> I64:
    """Places of the fewest largest that reach top_p of the whole; a short list is tried before a full sort."""
    wanted = top_p * float(mass.sum(dtype=np.float64))
    for count in (min(_FIRST_LOOK, len(mass)), len(mass)):
        order = _largest(mass, count)
        reached = np.cumsum(mass[order], dtype=np.float64)
        if reached[-1] >= wanted:
            return order[: int(np.searchsorted(reached, wanted)) + 1]
    return order


def _with_logprobs(token: int, logits: F32, count: int) -> Sampled:
    shifted = logits.astype(np.float64) - float(logits.max())
    logprobs: F64 = shifted - np.log(np.exp(shifted).sum())
    top: list[tuple[int, float]] = []
    if count:
        ids = _largest(logprobs, min(count, len(logprobs)))
        top = [(int(i), float(logprobs[i])) for i in ids]
    return Sampled(token, float(logprobs[token]), top)
