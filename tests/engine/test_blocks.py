"""Pages of the KV cache are handed out once, and freed when the last holder lets go."""

from __future__ import annotations

import pytest

from freehold.engine.blocks import PageAllocator, pages_for
from freehold.kernels.program import PAGE


def test_pages_are_handed_out_once_each_and_then_there_are_none() -> None:
    pages = PageAllocator(3)
    taken = [pages.take() for _ in range(4)]
    assert sorted(page for page in taken if page is not None) == [0, 1, 2]
    assert taken[3] is None
    assert (pages.used, pages.free, pages.total) == (3, 0, 3)


def test_a_shared_page_is_free_only_when_the_last_holder_lets_go() -> None:
    pages = PageAllocator(1)
    page = pages.take()
    assert page is not None
    pages.share(page)
    pages.release(page)
    assert pages.free == 0
    pages.release(page)
    assert pages.free == 1


def test_freeing_twice_and_sharing_a_free_page_are_errors() -> None:
    pages = PageAllocator(1)
    with pytest.raises(ValueError, match="already free"):
        pages.release(0)
    with pytest.raises(ValueError, match="can't be shared"):
        pages.share(0)
    with pytest.raises(ValueError, match="at least one page"):
        PageAllocator(0)


def test_tokens_round_up_to_pages() -> None:
    assert [pages_for(n) for n in (0, 1, PAGE, PAGE + 1)] == [0, 1, 1, 2]
