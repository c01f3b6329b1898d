"""Stored responses: bounded, in order, and each key's own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.gateway import fakes

from freehold.database import Database
from freehold.engine.request import GenerateRequest
from freehold.errors import DatabaseError
from freehold.gateway import virtual_keys
from freehold.gateway.budget import Budget
from freehold.gateway.failures import RequestError
from freehold.gateway.service import Gateway
from freehold.gateway.stored import LONGEST_CHAIN, Library, MemoryStore, Store, Stored
from freehold.gateway.stored_in_database import DatabaseStore
from freehold.settings import ResponsesSettings

DAY = 86_400.0


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def kept(database: Database, clock: Clock) -> Callable[..., DatabaseStore]:
    """A store in the database, with limits."""

    def make(**limits: Any) -> DatabaseStore:
        return DatabaseStore(database, ResponsesSettings(**limits), clock)

    return make


@pytest.fixture(params=["memory", "database"])
def any_store(request: pytest.FixtureRequest) -> Iterator[Store]:
    if request.param == "memory":
        yield MemoryStore()
        return
    path = request.getfixturevalue("tmp_path") / "responses.db"
    with Database(f"sqlite:///{path}") as database:
        yield DatabaseStore(database, ResponsesSettings())


def there(store: Store, names: Iterable[str], owner: str = "") -> str:
    """Those of the names that the store still has, without counting as their use."""
    return "".join(name for name in names if store.get(name, owner) is not None)


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


def test_nobody_finds_deletes_or_continues_another_keys_response(any_store: Store) -> None:
    mine, theirs = Library(any_store, "key-1"), Library(any_store, "key-2")
    mine.keep(response("a"), [])
    assert mine.response("resp_a")["id"] == "resp_a" and mine.item("msg_a_0") is not None
    for attempt in (theirs.response, theirs.delete, theirs.recall, theirs.input):
        with pytest.raises(RequestError, match="not found"):
            attempt("resp_a")
    assert theirs.item("msg_a_0") is None
    assert mine.response("resp_a")["id"] == "resp_a"


def test_a_chain_is_recalled_oldest_first(any_store: Store) -> None:
    library = Library(any_store, "")
    library.keep(response("a"), [{"id": "in_a"}])
    library.keep(response("b", "resp_a"), [{"id": "in_b"}])
    assert [item["id"] for item in library.recall("resp_b")] == ["in_a", "msg_a_0", "in_b", "msg_b_0"]
    assert [item["id"] for item in library.input("resp_b")] == ["in_a", "msg_a_0", "in_b"]


def test_a_chain_that_bites_its_tail_ends(any_store: Store) -> None:
    library = Library(any_store, "")
    library.keep(response("a", "resp_b"), [])
    library.keep(response("b", "resp_a"), [])
    with pytest.raises(RequestError, match="not found"):
        library.recall("resp_b")


def test_a_chain_that_misses_a_response_says_which(any_store: Store) -> None:
    library = Library(any_store, "")
    library.keep(response("b", "resp_a"), [])
    with pytest.raises(RequestError, match="'resp_a' not found"):
        library.recall("resp_b")
    assert len(any_store.chain("resp_b", "")) == 1 < LONGEST_CHAIN


def test_in_the_database_each_key_has_its_own_room_and_the_unused_go_first(
    kept: Callable[..., DatabaseStore], clock: Clock
) -> None:
    store = kept(responses_per_key=2)
    store.put(stored("x", "other"))
    for name in "ab":
        store.put(stored(name))
        clock.now += 2 * 3600
    assert there(store, "a") == "a"  # its use is noted
    store.put(stored("c"))
    assert there(store, "abc") == "ac" and there(store, "x", "other") == "x"


def test_in_the_database_bytes_are_bounded(kept: Callable[..., DatabaseStore], clock: Clock) -> None:
    store = kept(responses_mb=100 / 2**20)
    for name in "abcdef":
        store.put(stored(name, size=30))
        clock.now += 1
    store.put(stored("huge", size=101))
    assert there(store, "abcdef") == "def" and store.get("huge", "") is None
    assert store.delete("f", "") and not store.delete("f", "")
    store.put(stored("g", size=30))
    assert there(store, "deg") == "deg"


def test_in_the_database_what_nobody_used_for_so_many_days_is_gone(
    kept: Callable[..., DatabaseStore], database: Database, clock: Clock
) -> None:
    store = kept(responses_days=2.0)
    store.put(stored("a"))
    clock.now += 1.5 * DAY
    assert there(store, "a") == "a"
    clock.now += 1.5 * DAY
    assert there(store, "a") == "a"  # three days old, but used
    clock.now += 2.5 * DAY
    assert there(store, "a") == ""
    store.put(stored("b"))
    rows = database.now(lambda transaction: transaction.rows("select id from responses"))
    assert rows == [("b",)]


def test_with_no_room_nothing_is_written(kept: Callable[..., DatabaseStore], database: Database) -> None:
    kept(responses_per_key=0).put(stored("a"))
    assert database.now(lambda transaction: transaction.rows("select id from responses")) == []


def test_text_of_any_kind_comes_back_as_it_was(kept: Callable[..., DatabaseStore]) -> None:
    library = Library(kept(), "")
    said = "nul \0, line \u2028, emoji \U0001f600, quote ' and :name"
    library.keep(response("a"), [{"id": "in_a", "text": said}])
    assert library.recall("resp_a")[0]["text"] == said


@pytest.mark.parametrize("id", ["", "resp_\0", "'; drop table responses; --", "x" * 100_000, "\U0001f600"])
def test_an_id_of_any_kind_is_not_found(kept: Callable[..., DatabaseStore], id: str) -> None:
    store = kept()
    library = Library(store, "")
    library.keep(response("a"), [])
    for attempt in (library.response, library.delete, library.recall, library.input):
        with pytest.raises(RequestError, match="not found"):
            attempt(id)
    assert library.item(id) is None and there(store, ["resp_a"]) == "resp_a"


def test_a_database_that_is_away_costs_the_memory_and_not_the_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = DatabaseStore(Database(f"sqlite:///{tmp_path / 'x.db'}"), ResponsesSettings())
    with caplog.at_level(logging.WARNING, logger="freehold.gateway"):
        store.put(stored("a"))
    assert "response a is not stored: the database is not open" in caplog.text
    with pytest.raises(DatabaseError):
        store.get("a", "")


def repeat(prompt: str, request: GenerateRequest) -> str:
    """All that users said, newest last."""
    return "|".join(part.split("<|end|>")[0] for part in prompt.split("<|user|>")[1:])


def asking(live: fakes.Live, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=live.url + "/v1", api_key=key, max_retries=0)


def test_a_conversation_goes_on_after_a_restart_and_only_for_the_key_that_began_it(
    directory: Path, database_url: str
) -> None:
    def gateway() -> Gateway:
        return Gateway(fakes.core(directory, repeat), budget=Budget(Database(database_url)))

    keys = []
    with Database(database_url) as database:
        for name in ("mine", "theirs"):
            key, work = virtual_keys.create(name, virtual_keys.Limits(), 0.0)
            database.now(work)
            keys.append(key)
    with fakes.live(gateway()) as live, asking(live, keys[0]) as mine:
        first = mine.responses.create(model="tiny", input="one")
    with fakes.live(gateway()) as live, asking(live, keys[0]) as mine, asking(live, keys[1]) as theirs:
        second = mine.responses.create(model="tiny", input="two", previous_response_id=first.id)
        assert second.output_text == "one|two"
        assert mine.responses.retrieve(first.id).output_text == "one"
        items = mine.responses.input_items.list(second.id, order="asc").data
        assert [item.type for item in items] == ["message", "message", "message"]
        for stranger in (theirs.responses.retrieve, theirs.responses.delete):
            with pytest.raises(openai.NotFoundError):
                stranger(first.id)
        with pytest.raises(openai.BadRequestError, match="not found"):
            theirs.responses.create(model="tiny", input="two", previous_response_id=first.id)
        mine.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError):
            mine.responses.retrieve(first.id)
