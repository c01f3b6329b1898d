"""Train-safe export: nothing that leans on others' words, and a reason for everything that is left out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from freehold.database import Database
from freehold.errors import FreeholdError, UsageError
from freehold.provenance import deeds
from freehold.provenance.exchanges import Call, Message
from freehold.provenance.export import REASONS, export, manifest_path
from freehold.provenance.ledger import Ledger
from tests.provenance.conversations import conversations, flat
from tests.provenance.made import add, body, exchange, ledger


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Ledger]:
    with Database(f"sqlite:///{tmp_path / 'x.db'}") as database, ledger(database, tmp_path) as found:
        yield found


def exported(ledger: Ledger, out: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    export(ledger.database, out, log=ledger.id, now=1, overwrite=True)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    return lines, json.loads(manifest_path(out).read_text())


def left_out(manifest: dict[str, Any]) -> dict[str, str]:
    return {entry["record"]: entry["reason"] for entry in manifest["left_out"]}


def test_of_a_thousand_mixed_conversations_no_tainted_turn_is_exported_and_no_clean_one_lost(tmp_path: Path) -> None:
    with Database(f"sqlite:///{tmp_path / 'x.db'}") as database, ledger(database, tmp_path) as kept:
        turns = flat(list(conversations(1000)))
        add(kept, *[(turn.begun, turn.ended) for turn in turns])
        lines, manifest = exported(kept, tmp_path / "train.jsonl")
    safe = {turn.begun.id for turn in turns if turn.safe}
    bad_words = {turn.text for turn in turns if not turn.safe}
    out = {line["provenance"]["record"] for line in lines}
    reasons = left_out(manifest)
    assert len(out) > 300 and out <= safe
    assert not any(message["content"] in bad_words for line in lines for message in line["messages"])
    assert {turn.begun.id for turn in turns} == out | set(reasons) and not out & set(reasons)
    assert {reasons[id] for id in safe - out} == {"contained"}
    assert {reasons[turn.begun.id] for turn in turns if not turn.safe} <= {"barred", "tainted", "unknown"}
    exported_words = {message["content"] for line in lines for message in line["messages"]}
    assert {turn.text for turn in turns if turn.safe} <= exported_words  # what is contained is really there


def test_a_line_is_a_chat_with_the_record_it_came_from(kept: Ledger, tmp_path: Path) -> None:
    call = Message("assistant", "", (Call("c", "look", '{"at":"sea"}'),))
    tools = '[{"type":"function","function":{"name":"look"}}]'
    (id,) = add(kept, exchange([("system", "Be brief."), ("user", "look")], call, tools=tools, finish=("tool_calls",)))
    ((line,), manifest) = exported(kept, tmp_path / "train.jsonl")
    assert line["messages"][:2] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "look"}]
    assert line["messages"][2]["tool_calls"][0]["function"] == {"name": "look", "arguments": '{"at":"sea"}'}
    assert line["tools"] == json.loads(tools)
    assert line["provenance"]["record"] == id and line["provenance"]["served_by"] == body(kept, id)["served_by"]
    assert manifest["exported"] == [[id, 0]] and manifest["lines"] == 1 and manifest["log"] == kept.id


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"who": "openai"}, "barred"),
        ({"who": "nobody"}, "unknown"),
        ({"outcome": "left", "finish": ()}, "unfinished"),
        ({"outcome": "failed", "finish": ()}, "unfinished"),
        ({"finish": ("length",)}, "cut"),
        ({"finish": ("content_filter",)}, "cut"),
        ({"answer": ""}, "empty"),
        ({"kind": "completion"}, "not-chat"),
        ({"messages": (Message("user", "see", images=("a" * 64,)),)}, "images"),
        ({"messages": (Message("user", "see", documents=("a" * 64,)),)}, "documents"),
    ],
)
def test_what_is_left_out_is_named_with_its_reason(
    kept: Ledger, tmp_path: Path, given: dict[str, Any], reason: str
) -> None:
    (id,) = add(kept, exchange("hello", **({"answer": "Hi."} | given)))
    lines, manifest = exported(kept, tmp_path / "train.jsonl")
    assert lines == [] and left_out(manifest) == {id: reason}
    assert manifest["by_reason"] == {reason: 1} and manifest["reasons"] == REASONS


def test_texts_that_were_not_kept_or_were_forgotten_are_named(database: Database, tmp_path: Path) -> None:
    with ledger(database, tmp_path, keep=False) as kept:
        (unkept,) = add(kept, exchange("one"))
    with ledger(database, tmp_path) as kept:
        forgotten, gone = add(kept, exchange("two"), exchange("three"))
        deeds.forget(kept, forgotten)
        deeds.forget(kept, gone, whole=True)
        lines, manifest = exported(kept, tmp_path / "train.jsonl")
    assert lines == [] and left_out(manifest) == {unkept: "no-text", forgotten: "no-text", gone: "forgotten"}


def test_what_was_changed_afterwards_is_not_exported(kept: Ledger, tmp_path: Path) -> None:
    text, judged = add(kept, exchange("one", "An honest answer."), exchange("two", who="openai"))
    kept.database.now(
        lambda t: t.run(
            "update ledger_contents set answer = replace(answer, 'honest', 'forged') where record = :r", r=text
        )
    )
    sql = "update ledger_records set body = replace(body, 'barred', 'clean') where id = :id"
    kept.database.now(lambda t: t.run(sql, id=judged))
    lines, manifest = exported(kept, tmp_path / "train.jsonl")
    assert lines == [] and left_out(manifest) == {text: "altered", judged: "altered"}


def test_the_same_chat_is_exported_once(kept: Ledger, tmp_path: Path) -> None:
    first, second = add(kept, exchange("hello", "Hi."), exchange("hello", "Hi."))
    lines, manifest = exported(kept, tmp_path / "train.jsonl")
    assert [line["provenance"]["record"] for line in lines] == [second] and left_out(manifest) == {first: "duplicate"}


def test_a_clean_beginning_of_a_conversation_that_was_tainted_later_is_exported(kept: Ledger, tmp_path: Path) -> None:
    turns = [("user", "hi"), ("assistant", "Open words."), ("user", "and?")]
    clean, barred = add(kept, exchange("hi", "Open words."), exchange(turns, "Closed words.", who="openai"))
    lines, manifest = exported(kept, tmp_path / "train.jsonl")
    assert [line["provenance"]["record"] for line in lines] == [clean] and left_out(manifest) == {barred: "barred"}


def test_a_beginning_whose_system_prompt_differs_is_not_contained(kept: Ledger, tmp_path: Path) -> None:
    turns = [("user", "hi"), ("assistant", "Words."), ("user", "and?")]
    ids = add(kept, exchange([("system", "Be odd."), ("user", "hi")], "Words."), exchange(turns, "More."))
    lines, _ = exported(kept, tmp_path / "train.jsonl")
    assert {line["provenance"]["record"] for line in lines} == set(ids)


def test_every_good_choice_is_a_line(kept: Ledger, tmp_path: Path) -> None:
    answers = (Message("assistant", "One."), Message("assistant", "Two."), Message("assistant", "Thr"))
    (id,) = add(kept, exchange("hi", answers=answers, finish=("stop", "stop", "length")))
    lines, manifest = exported(kept, tmp_path / "train.jsonl")
    assert [line["messages"][-1]["content"] for line in lines] == ["One.", "Two."]
    assert manifest["exported"] == [[id, 0], [id, 1]]


def test_an_export_replaces_nothing_unasked_and_leaves_no_half_file(kept: Ledger, tmp_path: Path) -> None:
    out = tmp_path / "train.jsonl"
    out.write_text("mine")
    with pytest.raises(UsageError, match="exists"):
        export(kept.database, out, log=kept.id, now=1)
    assert out.read_text() == "mine"
    with pytest.raises(FreeholdError, match="can't write"):
        export(kept.database, tmp_path / "absent" / "x.jsonl", log=kept.id, now=1)
    assert not list(tmp_path.glob("*.partial"))
