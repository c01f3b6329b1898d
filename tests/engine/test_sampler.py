"""Sampling: what it draws follows the distribution asked for, and the penalties mean what the APIs say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from freehold.engine.request import Sampling
from freehold.engine.sampler import SamplerState, _draw, sample

DRAWS = 4000
# upper 0.1% points of chi-square by degrees of freedom (NIST/SEMATECH e-Handbook, 1.3.6.7.4)
CHI_SQUARE = {1: 10.828, 2: 13.816, 3: 16.266, 4: 18.467, 5: 20.515, 7: 24.322}

LOGITS = np.log(np.array([0.05, 0.3, 0.1, 0.25, 0.02, 0.08, 0.15, 0.05])).astype(np.float32)


def draws(
    logits: NDArray[np.float32] = LOGITS, *, prompt: list[int] | None = None, **sampling: Any
) -> NDArray[np.int64]:
    """How often each token is drawn by one seeded request."""
    state = SamplerState(Sampling(**({"seed": 1} | sampling)), prompt or [])
    tokens = [sample(logits[None, :], [state])[0].token for _ in range(DRAWS)]
    return np.bincount(np.array(tokens), minlength=len(logits))


def check(counts: NDArray[np.int64], expected: NDArray[np.float64]) -> None:
    """Chi-square test of counts against probabilities; what has none must never be drawn."""
    expected = expected / expected.sum()
    assert counts[expected == 0].sum() == 0
    kept = expected > 0
    statistic = ((counts[kept] - DRAWS * expected[kept]) ** 2 / (DRAWS * expected[kept])).sum()
    assert statistic < CHI_SQUARE[int(kept.sum()) - 1]


P = np.exp(LOGITS.astype(np.float64))


def test_temperature_one_draws_from_the_models_own_distribution() -> None:
    check(draws(), P)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_sharpens_and_flattens(temperature: float) -> None:
    check(draws(temperature=temperature), P ** (1 / temperature))


def test_top_k_keeps_the_k_likeliest() -> None:
    check(draws(top_k=3), np.where(P >= 0.15 - 1e-6, P, 0))


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    check(draws(top_p=0.6), np.where(P >= 0.15 - 1e-6, P, 0))  # .3 + .25 = .55 is not enough, with .15 it is


def test_min_p_drops_what_is_much_less_likely_than_the_best() -> None:
    check(draws(min_p=0.3), np.where(P >= 0.09, P, 0))


def test_the_filters_combine() -> None:
    # of the four likeliest (.3 .25 .15 .1; sum .8) top_p = 0.9 keeps all, 0.85 drops the last
    check(draws(top_k=4, top_p=0.85), np.where(P >= 0.15 - 1e-6, P, 0))


def test_a_draw_from_many_tokens_follows_the_distribution_across_blocks() -> None:
    generator = np.random.default_rng(0)
    logits = generator.standard_normal(3000).astype(np.float32)
    state = SamplerState(Sampling(seed=5), [])
    tokens = np.array([sample(logits[None, :], [state])[0].token for _ in range(DRAWS)])
    mass = np.exp(logits.astype(np.float64))
    owner = np.arange(3000) % 6  # six classes, each spread over all blocks
    classes = np.bincount(owner[tokens], minlength=6)
    check(classes, np.bincount(owner, weights=mass, minlength=6))
    sixths = np.bincount(tokens // 500, minlength=6)
    check(sixths, np.bincount(np.arange(3000) // 500, weights=mass, minlength=6))


def test_a_draw_of_zero_never_gives_a_token_without_mass() -> None:
    assert _draw(np.array([0, 0, 1, 0], np.float32), 0.0) == 2
    assert _draw(np.array([0, 0, 1, 0], np.float32), 1 - 2**-53) == 2
    spread = np.zeros(2000, np.float32)
    spread[[600, 1999]] = 1
    assert [_draw(spread, uniform) for uniform in (0.0, 0.499, 0.5, 0.999)] == [600, 600, 1999, 1999]


def test_a_wide_nucleus_is_exact() -> None:
    logits = np.zeros(5000, np.float32)
    logits[4000:] = -200
    state = SamplerState(Sampling(top_p=0.9, seed=3), [])
    tokens = [sample(logits[None, :], [state])[0].token for _ in range(2000)]
    assert all(token is not None and token < 3600 for token in tokens)
    assert len(set(tokens)) > 1300


def test_greedy_takes_the_largest_and_the_first_among_equals() -> None:
    logits = np.array([[0, 3, 1, 3], [9, 3, 1, 3]], np.float32)
    states = [SamplerState(Sampling(temperature=t), []) for t in (0.0, 1e-9)]
    assert [choice.token for choice in sample(logits, states)] == [1, 0]


def test_a_tiny_temperature_is_greedy_and_a_low_one_does_not_overflow() -> None:
    counts = draws(temperature=2e-5)
    assert counts[1] == DRAWS


def next_token(logits: list[float], prompt: list[int], output: list[int], **sampling: Any) -> int | None:
    state = SamplerState(Sampling(temperature=0, **sampling), prompt)
    for token in output:
        state.note(token)
    return sample(np.array([logits], np.float32), [state])[0].token


def test_repetition_penalty_covers_prompt_and_output_and_pushes_both_signs_down() -> None:
    assert next_token([2.0, 1.5, 0.0], [0], [], repetition_penalty=1.5) == 1  # 2 / 1.5 < 1.5
    assert next_token([2.0, 1.5, 0.0], [], [0], repetition_penalty=1.5) == 1
    assert next_token([-1.0, -1.2, -9.0], [0], [], repetition_penalty=1.5) == 1  # -1 * 1.5 < -1.2
    assert next_token([2.0, 1.5, 0.0], [0, 0, 0], [0, 0], repetition_penalty=1.2) == 0  # once, however often seen


def test_the_strongest_penalty_leaves_numbers_that_can_be_drawn_from() -> None:
    for temperature, top_p in ((1e-5, 0.9), (1.0, 0.9), (100.0, 1.0)):
        sampling = Sampling(repetition_penalty=0.01, temperature=temperature, top_p=top_p, seed=1)
        logits = np.array([[3e4, -3e4, 0.0]], np.float32)
        assert sample(logits, [SamplerState(sampling, [0, 1, 2])])[0].token == 0


def test_presence_penalty_counts_once_and_only_the_output() -> None:
    assert next_token([2.0, 1.5], [0], [], presence_penalty=1.0) == 0
    assert next_token([2.0, 1.5], [], [0], presence_penalty=1.0) == 1
    assert next_token([2.0, 0.5], [], [0, 0, 0], presence_penalty=1.0) == 0


def test_frequency_penalty_counts_each_time_and_only_the_output() -> None:
    assert next_token([2.0, 0.5], [0, 0, 0], [], frequency_penalty=1.0) == 0
    assert next_token([2.0, 0.5], [], [0], frequency_penalty=1.0) == 0
    assert next_token([2.0, 0.5], [], [0, 0], frequency_penalty=1.0) == 1


def test_logit_bias_bans_and_forces() -> None:
    assert next_token([2.0, 1.5, 0.0], [], [], logit_bias={0: -100}) == 1
    assert next_token([2.0, 1.5, 0.0], [], [], logit_bias={2: 100}) == 2


def test_logprobs_are_the_models_own_whatever_the_sampling() -> None:
    sampling = Sampling(temperature=0.3, top_k=2, logit_bias={4: 100}, repetition_penalty=2.0, logprobs=3, seed=1)
    choice = sample(LOGITS[None, :], [SamplerState(sampling, [1, 2])])[0]
    assert choice.token == 4
    assert choice.logprob == pytest.approx(np.log(0.02), abs=1e-6)
    assert [token for token, _ in choice.top] == [1, 3, 6]
    assert [value for _, value in choice.top] == pytest.approx(np.log([0.3, 0.25, 0.15]), abs=1e-6)


def test_logprobs_zero_gives_the_token_alone_and_none_gives_nothing() -> None:
    for asked, expected in ((0, pytest.approx(np.log(0.3), abs=1e-6)), (None, None)):
        choice = sample(LOGITS[None, :], [SamplerState(Sampling(temperature=0, logprobs=asked), [])])[0]
        assert (choice.logprob, choice.top) == (expected, [])


def test_the_same_seed_draws_the_same_whatever_the_batch() -> None:
    alone = SamplerState(Sampling(seed=42), [])
    first = [sample(LOGITS[None, :], [alone])[0].token for _ in range(50)]
    crowd = [SamplerState(Sampling(seed=s), []) for s in (1, 42, 3)]
    batch = [[choice.token for choice in sample(np.stack([LOGITS] * 3), crowd)] for _ in range(50)]
    assert [row[1] for row in batch] == first
    assert [row[0] for row in batch] != first


def test_requests_without_a_seed_differ() -> None:
    logits = np.zeros((1, 1000), np.float32)
    runs = [
        [sample(logits, [state])[0].token for _ in range(8)] for state in (SamplerState(Sampling(), []) for _ in "ab")
    ]
    assert runs[0] != runs[1]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rows_that_are_not_finite_give_no_token_and_spare_the_others(bad: float) -> None:
    logits = np.stack([LOGITS, LOGITS])
    logits[0, 2] = bad
    choices = sample(logits, [SamplerState(Sampling(seed=1), []), SamplerState(Sampling(temperature=0), [])])
    assert [choice.token for choice in choices] == [None, 1]


@given(
    st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=40),
    st.floats(0.001, 5),
    st.integers(0, 50),
    st.floats(0.01, 1),
    st.floats(0, 1),
    st.integers(0, 2**32),
)
def test_any_sampling_draws_a_token_that_its_filters_allow(
    values: list[float], temperature: float, top_k: int, top_p: float, min_p: float, seed: int
) -> None:
    logits = np.array(values, np.float32)
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    token = sample(logits[None, :], [SamplerState(sampling, [])])[0].token
    assert token is not None
    assert 0 <= token < len(logits)
    if top_k:
        assert (logits > logits[token]).sum() < top_k
