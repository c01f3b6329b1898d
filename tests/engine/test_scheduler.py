"""Scheduling: who runs next, with how many tokens, and who gives way when the KV cache is full."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.engine.blocks import PageAllocator, pages_for
from freehold.engine.request import GenerateRequest, Sampling
from freehold.engine.sampler import SamplerState
from freehold.engine.scheduler import Chunk, Scheduler, step_of
from freehold.engine.sequence import Sequence
from freehold.errors import OverloadedError
from freehold.kernels.program import PAGE


def scheduler(*, pages: int = 100, batch: int = 64, tokens: int = 512, queue: int = 1024) -> Scheduler:
    return Scheduler(PageAllocator(pages), max_batch=batch, max_step_tokens=tokens, max_queue=queue)


def add(to: Scheduler, arrival: int, prompt: int, output: int = 100) -> Sequence:
    sampling = Sampling(temperature=0)
    request = GenerateRequest(str(arrival), list(range(1, prompt + 1)), sampling)
    sequence = Sequence(request, arrival, prompt + output, SamplerState(sampling, request.prompt))
    to.add(sequence)
    return sequence


def work(on: Scheduler) -> dict[str, int]:
    """One step without a model: every sequence that samples gets token 0. Tokens by request."""
    chunks = on.schedule()
    for chunk in chunks:
        samples = chunk.samples
        chunk.sequence.computed += chunk.count
        if samples and chunk.sequence.append(0):
            on.remove(chunk.sequence)
    return {chunk.sequence.id: chunk.count for chunk in chunks}


def test_decodes_come_before_prompts_and_prompts_fill_the_rest() -> None:
    s = scheduler(tokens=100)
    add(s, 0, 10)
    assert work(s) == {"0": 10}
    add(s, 1, 300)
    assert work(s) == {"0": 1, "1": 99}


def test_a_long_prompt_neither_holds_up_short_ones_nor_starves() -> None:
    s = scheduler(tokens=100)
    add(s, 0, 1000)
    add(s, 1, 20)
    add(s, 2, 15)
    assert work(s) == {"0": 65, "1": 20, "2": 15}
    for arrival in range(3, 60):
        add(s, arrival, 30, output=1)
    for _ in range(18):
        assert work(s)["0"] >= 49


def test_with_fewer_tokens_than_decodes_everyone_gets_a_turn() -> None:
    s = scheduler(tokens=2)
    for arrival in range(4):
        add(s, arrival, 1)
    while any(sequence.computed == 0 for sequence in (*s.running, *s.waiting)):
        work(s)
    served = [set(work(s)) for _ in range(4)]
    assert all(len(turn) == 2 for turn in served)
    assert served[0] | served[1] == served[2] | served[3] == {"0", "1", "2", "3"}


def test_admission_is_first_come_first_served_by_room_in_the_cache() -> None:
    s = scheduler(pages=4)
    add(s, 0, 2 * PAGE)
    add(s, 1, 3 * PAGE)
    add(s, 2, PAGE)
    assert set(work(s)) == {"0"}, "the second does not fit, and the third must not overtake it"
    assert [sequence.id for sequence in s.waiting] == ["1", "2"]


def test_no_more_than_max_batch_run_at_once() -> None:
    s = scheduler(batch=2)
    for arrival in range(5):
        add(s, arrival, 3, output=2)
    assert set(work(s)) == {"0", "1"}
    assert set(work(s)) == {"0", "1"}
    assert set(work(s)) == {"2", "3"}


def test_the_latest_arrival_gives_way_and_comes_back_before_later_ones() -> None:
    s = scheduler(pages=2)
    first, second = add(s, 0, PAGE), add(s, 1, PAGE)
    work(s)
    add(s, 2, PAGE)
    assert set(work(s)) == {"0"}, "the first takes the page that the second gave back"
    assert s.preemptions == 1
    assert [sequence.id for sequence in s.waiting] == ["1", "2"]
    assert (second.computed, second.pages) == (0, [])
    assert len(first.pages) == 2
    s.remove(first)
    assert work(s)["1"] == PAGE + 1, "its own output is computed again with its prompt"


def test_removing_a_sequence_frees_its_pages_at_once() -> None:
    s = scheduler(pages=4)
    sequence = add(s, 0, 3 * PAGE)
    work(s)
    assert s.pages.free == 1
    s.remove(sequence)
    assert s.pages.free == 4
    assert s.schedule() == []


def test_a_full_queue_is_refused() -> None:
    s = scheduler(queue=1)
    add(s, 0, 1)
    with pytest.raises(OverloadedError) as caught:
        add(s, 1, 1)
    assert caught.value.hint is not None


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 300), st.integers(1, 90)), min_size=1, max_size=12),
    st.integers(7, 12),
    st.integers(1, 200),
    st.integers(1, 6),
)
def test_whatever_the_load_everyone_finishes_and_no_page_is_lost_or_shared(
    requests: list[tuple[int, int]], pages: int, tokens: int, batch: int
) -> None:
    s = scheduler(pages=pages, tokens=tokens, batch=batch)
    for arrival, (prompt, output) in enumerate(requests):
        add(s, arrival, prompt, output)
    for _ in range(200_000):
        given_out = work(s)
        if not given_out:
            break
        assert sum(given_out.values()) <= tokens
        held = [page for sequence in s.running for page in sequence.pages]
        assert len(held) == len(set(held)) == s.pages.used
        assert all(len(sequence.pages) >= pages_for(sequence.computed) for sequence in s.running)
    assert not s.running
    assert not s.waiting
    assert s.pages.free == pages


def test_a_step_lists_tokens_positions_and_pages_of_each_chunk() -> None:
    s = scheduler(pages=8)
    one, two = add(s, 0, 3), add(s, 1, PAGE + 2)
    one.pages, two.pages = [5], [2, 7]
    two.computed = PAGE
    step = step_of([Chunk(one, 2), Chunk(two, 2)])
    assert step.tokens.tolist() == [1, 2, PAGE + 1, PAGE + 2]
    assert step.positions.tolist() == [0, 1, PAGE, PAGE + 1]
    assert step.sequences.tolist() == [0, 0, 1, 1]
    assert step.tables.tolist() == [[5, 0], [2, 7]]
    assert step.outputs.tolist() == [3], "only the second chunk reaches its last token"
    assert {array.dtype for array in (step.tokens, step.positions, step.sequences, step.tables, step.outputs)} == {
        np.dtype(np.int32)
    }
