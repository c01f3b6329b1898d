"""Taint: who wrote an answer, and from whose words it was made (R7, R10, R12)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from freehold.database import Database
from freehold.provenance.exchanges import Call, Message
from freehold.provenance.ledger import Ledger
from tests.provenance.made import add, body, exchange, ledger, part, state

CLOSED = (
    "The harbour of the old town freezes only every other winter, because warm water from the power station "
    "runs along the quay, past the fish market and out to the lighthouse on the northern breakwater."
)
OPEN = (
    "Bread keeps longest when it is baked dark, cooled on a rack for two hours, wrapped in linen and never put into "
    "the refrigerator, where the starch turns back faster than at the temperature of the room."
)


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Ledger]:
    with Database(f"sqlite:///{tmp_path / 'x.db'}") as database, ledger(database, tmp_path) as found:
        yield found


def reasons(ledger: Ledger, id: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = body(ledger, id)["training"]["because"]
    return found


def one(ledger: Ledger, *given: object, **more: object) -> str:
    (id,) = add(ledger, exchange(*given, **more))  # type: ignore[arg-type]
    return id


@pytest.mark.parametrize(
    ("who", "expected", "rule"),
    [("local", "clean", None), ("deepseek", "clean", None), ("openai", "barred", "R7"), ("nobody", "unknown", "R10")],
)
def test_an_answer_is_what_its_writers_terms_say(kept: Ledger, who: str, expected: str, rule: str | None) -> None:
    id = one(kept, "hello", who=who)
    assert state(kept, id) == expected
    assert [reason["rule"] for reason in reasons(kept, id)] == ([] if rule is None else [rule])


def test_an_answer_that_a_barred_backend_went_on_with_is_barred(kept: Ledger) -> None:
    both = part(finished=False, failure="engine_down"), part("openai")
    assert state(kept, one(kept, "hello", "half and half", *both)) == "barred"


def test_a_backend_that_said_nothing_taints_nothing(kept: Ledger) -> None:
    tried = part("openai", heard=False, finished=False, failure="rate"), part()
    id = one(kept, "hello", "An answer.", *tried)
    assert state(kept, id) == "clean"
    assert [attempt["backend"] for attempt in body(kept, id)["attempts"]] == ["openai", "local"]
    assert [who["backend"] for who in body(kept, id)["served_by"]] == ["local"]


def test_a_local_answer_after_a_closed_providers_turn_is_tainted_and_so_is_what_follows(kept: Ledger) -> None:
    closed = one(kept, "hi", "Closed words.", who="openai")
    turns = [("user", "hi"), ("assistant", "Closed words."), ("user", "and?")]
    second = one(kept, turns, "Open words.")
    third = one(kept, [*turns, ("assistant", "Open words."), ("user", "more")], "Even more.")
    assert [state(kept, id) for id in (closed, second, third)] == ["barred", "tainted", "tainted"]
    assert body(kept, second)["parents"] == [closed] and set(body(kept, third)["parents"]) == {closed, second}
    assert reasons(kept, second)[0] | {"what": ""} == {"rule": "R12", "turn": 1, "record": closed, "what": ""}


def test_a_client_that_drops_the_closed_turn_does_not_wash_what_came_of_it(kept: Ledger) -> None:
    one(kept, "hi", "Closed words.", who="openai")
    one(kept, [("user", "hi"), ("assistant", "Closed words."), ("user", "and?")], "Open words after closed.")
    id = one(kept, [("user", "and?"), ("assistant", "Open words after closed."), ("user", "more")], "More.")
    assert state(kept, id) == "tainted"


def test_a_conversation_with_the_local_model_alone_stays_clean(kept: Ledger) -> None:
    first = one(kept, "hi", OPEN)
    second = one(kept, [("user", "hi"), ("assistant", OPEN + "\n"), ("user", "and?")], "More.")
    assert state(kept, second) == "clean" and body(kept, second)["parents"] == [first]


def test_the_same_short_words_of_a_closed_provider_elsewhere_taint_no_other_conversation(kept: Ledger) -> None:
    one(kept, "is it late?", "Yes.", who="openai")
    mine = one(kept, "is it raining?", "Yes.")
    second = one(kept, [("user", "is it raining?"), ("assistant", "Yes."), ("user", "sure?")], "Quite.")
    assert state(kept, second) == "clean" and body(kept, second)["parents"] == [mine]


def test_an_assistants_turn_that_nobody_recorded_is_unknown(kept: Ledger) -> None:
    id = one(kept, [("user", "hi"), ("assistant", "Never said here."), ("user", "and?")], "More.")
    assert state(kept, id) == "unknown" and reasons(kept, id)[0]["turn"] == 1


def test_an_edited_turn_of_a_closed_provider_is_found_by_its_words(kept: Ledger) -> None:
    closed = one(kept, "harbour?", CLOSED, who="openai")
    edited = CLOSED.replace("fish market", "fish hall")
    id = one(kept, [("user", "harbour?"), ("assistant", edited), ("user", "and?")], "More.")
    assert state(kept, id) == "tainted" and reasons(kept, id)[0]["record"] == closed


@pytest.mark.parametrize(
    "quote",
    [
        f"Rewrite this for children, please: {CLOSED}",
        "I read that " + CLOSED[4:110].upper() + " - is that true?",
        "> " + "\n> ".join(CLOSED.split(", ")),
    ],
)
def test_a_prompt_that_quotes_closed_output_taints_the_answer(kept: Ledger, quote: str) -> None:
    closed = one(kept, "harbour?", CLOSED, who="openai")
    id = one(kept, quote, "A local answer.")
    assert state(kept, id) == "tainted"
    assert reasons(kept, id)[0]["record"] == closed and reasons(kept, id)[0]["turn"] == 0


def test_a_near_duplicate_without_any_long_quotation_is_found(kept: Ledger) -> None:
    words = [f"word{i}" for i in range(240)]
    one(kept, "list?", " ".join(words), who="openai")
    changed = [f"other{i}" if i % 11 == 5 else word for i, word in enumerate(words)]  # ten words in common at a time
    kept.database.now(lambda t: t.run("delete from ledger_runs"))
    id = one(kept, "Continue: " + " ".join(changed), "More.")
    assert state(kept, id) == "tainted" and "passage" in str(reasons(kept, id)[0]["what"])


def test_quoting_clean_output_or_writing_something_else_is_clean(kept: Ledger) -> None:
    one(kept, "harbour?", CLOSED, who="openai")
    one(kept, "bread?", OPEN)
    other = "A cat sleeps on the warm stones of the wall behind the house until the sun is gone from the garden."
    assert state(kept, one(kept, f"Rewrite: {OPEN}", "Done.")) == "clean"
    assert state(kept, one(kept, other, "Done.")) == "clean"


def test_the_clients_own_words_said_back_by_a_closed_provider_stay_the_clients(kept: Ledger) -> None:
    mine = "My grandmother kept her letters in a tin box under the stairs, next to the coal, for more than forty years."
    one(kept, f"Correct this: {mine}", mine, who="openai")
    assert state(kept, one(kept, f"Translate this: {mine}", "Done.")) == "clean"


def test_a_tool_result_and_a_system_prompt_are_searched_too(kept: Ledger) -> None:
    one(kept, "harbour?", CLOSED, who="openai")
    for role in ("system", "tool"):
        assert state(kept, one(kept, [(role, CLOSED), ("user", "go on")], "More.")) == "tainted"


def test_a_turn_that_is_a_tool_call_is_recognized_whatever_the_spaces_in_its_arguments(kept: Ledger) -> None:
    said = Message("assistant", "", (Call("c1", "look", '{"at": "sea"}'),))
    closed = one(kept, "look", said, who="openai", finish=("tool_calls",))
    back = Message("assistant", "", (Call("c1", "look", '{"at":"sea"}'),))
    turns = (Message("user", "look"), back, Message("tool", "water", tool_call_id="c1"))
    id = one(kept, "", "Water.", messages=turns)
    assert state(kept, id) == "tainted" and body(kept, id)["parents"] == [closed]


def test_closed_thinking_that_is_quoted_is_found(kept: Ledger) -> None:
    one(kept, "harbour?", Message("assistant", "It freezes.", reasoning=CLOSED), who="openai")
    assert state(kept, one(kept, f"Explain: {CLOSED}", "Done.")) == "tainted"


def test_within_one_batch_the_order_counts(kept: Ledger) -> None:
    closed = exchange("harbour?", CLOSED, who="openai")
    quoting = exchange(f"Rewrite: {CLOSED}", "Done.")
    following = exchange([("user", "harbour?"), ("assistant", CLOSED), ("user", "and?")], "More.")
    ids = add(kept, closed, quoting, following)
    assert [state(kept, id) for id in ids] == ["barred", "tainted", "tainted"]


def test_every_choice_of_an_answer_is_remembered(kept: Ledger) -> None:
    answers = (Message("assistant", "First."), Message("assistant", "Second."))
    one(kept, "hi", who="openai", answers=answers, finish=("stop", "stop"))
    assert state(kept, one(kept, [("user", "hi"), ("assistant", "Second."), ("user", "?")], "More.")) == "tainted"


def test_an_overlong_turn_is_unknown_beyond_what_is_compared(kept: Ledger) -> None:
    assert state(kept, one(kept, "x y " * (1 << 19), "Done.")) == "unknown"
