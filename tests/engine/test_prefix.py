"""Shared beginnings: less to compute, the same text, and pages that are given back when their room is needed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine import tiny

from freehold.engine.blocks import PageAllocator
from freehold.engine.prefix import PrefixCache
from freehold.engine.request import GenerateRequest
from freehold.engine.runner import Engine
from freehold.engine.sampler import SamplerState
from freehold.engine.sequence import Sequence

SYSTEM = np.random.default_rng(5).integers(0, tiny.VOCABULARY, 150).tolist()


def run(engine: Engine, name: str, prompt: list[int], **sampling: object) -> tuple[list[int | None], int]:
    """A request's text and how many of its prompt's tokens were there already."""
    engine.add(tiny.request(name, prompt, **sampling))
    outputs = tiny.drain(engine)[name]
    return [output.token for output in outputs], outputs[0].cached_tokens


@pytest.mark.parametrize("tier", ["reference", "portable"])
def test_a_prompt_that_begins_alike_computes_only_the_rest_and_says_the_same(tier: str) -> None:
    with_cache, without = tiny.engine(tier=tier), tiny.engine(tier=tier, prefix_cache=False)
    for number, (tail, cached) in enumerate([([1, 2], 0), ([3, 4, 5], 128), ([1, 2], 128), ([], 128)]):
        expected, none = run(without, str(number), SYSTEM + tail)
        assert none == 0
        assert run(with_cache, str(number), SYSTEM + tail) == (expected, cached)


def test_the_last_token_of_a_known_prompt_is_computed_again_because_its_logits_are_wanted() -> None:
    engine = tiny.engine()
    prompt = SYSTEM[:128]
    first, _ = run(engine, "a", prompt)
    assert run(engine, "b", prompt) == (first, 64)


def test_a_prompt_that_is_known_but_for_its_last_token_is_computed_in_the_step_that_admits_it() -> None:
    engine = tiny.engine()
    prompt = SYSTEM[:129]
    run(engine, "a", prompt)
    engine.add(tiny.request("b", prompt))
    assert [output.cached_tokens for output in engine.step()] == [128]


def test_an_answer_is_a_beginning_of_the_next_turn() -> None:
    engine = tiny.engine()
    answer, _ = run(engine, "a", SYSTEM[:60], max_tokens=80)
    turn = [*SYSTEM[:60], *(token for token in answer if token is not None), 7, 8]
    assert run(engine, "b", turn)[1] == 128


def test_requests_that_run_together_share_what_one_of_them_has_computed() -> None:
    engine = tiny.engine(max_step_tokens=256)
    engine.add(tiny.request("a", [*SYSTEM, 1], max_tokens=20))
    engine.step()
    engine.add(tiny.request("b", [*SYSTEM, 2], max_tokens=20))
    engine.step()
    assert engine.stats.kv_pages_used == 4, "two pages are shared, one is each one's own"
    outputs = tiny.drain(engine)
    assert outputs["b"][0].cached_tokens == 128
    alone = tiny.engine(prefix_cache=False)
    assert [o.token for o in outputs["b"]] == run(alone, "b", [*SYSTEM, 2], max_tokens=20)[0][-len(outputs["b"]) :]


def test_a_cancelled_request_holds_no_pages() -> None:
    engine = tiny.engine(pages=4)
    engine.add(tiny.request("a", SYSTEM))
    engine.step()
    engine.cancel("a")
    assert engine.stats.kv_pages_used == 0
    assert run(engine, "b", list(range(90)) * 2, max_tokens=30)[1] == 0, "all four pages can be had"


def test_kept_pages_give_way_before_a_running_request_does() -> None:
    engine = tiny.engine(pages=5)
    run(engine, "old", SYSTEM)
    text, _ = run(engine, "new", [1] * 130, max_tokens=150)
    assert len(text) == 150
    assert engine.stats.preemptions == 0
    assert run(engine, "again", SYSTEM)[1] < 128, "what was kept of the first had to go"


def test_preempted_requests_say_the_same_with_shared_pages() -> None:
    prompts = {str(i): [*SYSTEM[:70], i] for i in range(5)}

    def texts(**options: object) -> tuple[dict[str, list[int | None]], int]:
        engine = tiny.engine(**options)  # type: ignore[arg-type]
        for name, prompt in prompts.items():
            engine.add(tiny.request(name, prompt, max_tokens=90))
        return tiny.texts(tiny.drain(engine)), engine.stats.preemptions

    expected, _ = texts(prefix_cache=False)
    given, preemptions = texts(pages=7)
    assert preemptions > 0
    assert given == expected


def test_embeddings_see_every_token_whatever_is_known() -> None:
    engine = tiny.engine()
    run(engine, "a", SYSTEM)
    for pooling, expected in (("mean", []), (None, [0, 1])):
        request = GenerateRequest("b", SYSTEM, pooling=pooling)
        sequence = Sequence(request, 0, 200, SamplerState(request.sampling, SYSTEM))
        assert len(engine._scheduler._shared(sequence)) == len(expected)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_pages_are_never_lost_nor_held_twice_by_one_beginning(data: st.DataObject) -> None:
    total = data.draw(st.integers(2, 12))
    pages, running = PageAllocator(total), list[list[int]]()
    cache = PrefixCache(pages)
    beginnings = [[0] * 64, [1] * 64]
    for _ in range(data.draw(st.integers(1, 40))):
        if running and data.draw(st.booleans()):
            for page in running.pop(data.draw(st.integers(0, len(running) - 1))):
                pages.release(page)
            continue
        tokens = [
            t for choice in data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=4)) for t in beginnings[choice]
        ]
        held = cache.match(tokens)
        while len(held) < len(tokens) // 64:
            page = pages.take()
            if page is None and not cache.evict():
                break
            held += [page] if page is not None else []
        if len(held) == len(tokens) // 64:
            cache.keep(tokens, held)
        assert len(set(held)) == len(held)
        running.append(held)
        assert pages.used == len({page for pages_held in running for page in pages_held})
        assert pages.free + pages.used <= total
    for held in running:
        for page in held:
            pages.release(page)
    assert pages.used == 0 and pages.available == total
    while cache.evict():
        pass
    assert pages.free == total
