"""Stored responses: bounded, in order, and each key's own."""

from __future__ import annotations

from typing import Any

import pytest

from freehold.gateway.failures import RequestError
from freehold.gateway.stored import Library, MemoryStore, Stored


def stored(name: str, owner: str = "", size: int = 10) -> Stored:
    return Stored(name, owner, b"x" * size, b"")


def response(name: str, previous: str | None = None) -> dict[str, Any]:
    output = {"id": f"msg_{name}_0", "text": f"out {name}"}
    return {"id": f"resp_{name}", "previous_response_id": previous, "output": [output]}


def test_the_one_unused_for_longest_goes_first() -> None:
    store = MemoryStore(responses=2)
    store.put(stored("a"))
    store.put(stored("b"))
    assert store.get("a", "") is not None
    store.put(stored("c"))
    assert [store.get(name, "") is not None for name in "abc"] == [True, False, True]


def test_bytes_are_bounded_and_what_is_larger_than_all_is_not_kept() -> None:
    store = MemoryStore(size=100)
    for name in "abcdef":
        store.put(stored(name, size=30))
    assert [store.get(name, "") is not None for name in "abcdef"] == [False, False, False, True, True, True]
    store.put(stored("huge", size=101))
    assert store.get("huge", "") is None and store.get("f", "") is not None
    assert store.delete("f", "") and not store.delete("f", "")
    store.put(stored("g", size=30))
    assert [store.get(name, "") is not None for name in "deg"] == [True, True, True]  # what was deleted made room


def test_nobody_finds_deletes_or_continues_another_keys_response() -> None:
    store = MemoryStore()
    mine, theirs = Library(store, "key-1"), Library(store, "key-2")
    mine.keep(response("a"), [])
    assert mine.response("resp_a")["id"] == "resp_a" and mine.item("msg_a_0") is not None
    for attempt in (theirs.response, theirs.delete, theirs.recall, theirs.input):
        with pytest.raises(RequestError, match="not found"):
            attempt("resp_a")
    assert theirs.item("msg_a_0") is None
    assert mine.response("resp_a")["id"] == "resp_a"


def test_a_chain_is_recalled_oldest_first() -> None:
    library = Library(MemoryStore(), "")
    library.keep(response("a"), [{"id": "in_a"}])
    library.keep(response("b", "resp_a"), [{"id": "in_b"}])
    assert [item["id"] for item in library.recall("resp_b")] == ["in_a", "msg_a_0", "in_b", "msg_b_0"]
    assert [item["id"] for item in library.input("resp_b")] == ["in_a", "msg_a_0", "in_b"]


def test_a_chain_that_bites_its_tail_ends() -> None:
    library = Library(MemoryStore(), "")
    library.keep(response("a", "resp_b"), [])
    library.keep(response("b", "resp_a"), [])
    with pytest.raises(RequestError, match="not found"):
        library.recall("resp_b")
