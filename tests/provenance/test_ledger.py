"""The ledger at work, in SQLite and PostgreSQL: nothing lost, nothing twice, no text where none is wanted."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold import merkle
from freehold.database import Database
from freehold.errors import DatabaseError, LedgerError, UsageError
from freehold.provenance import deeds, heads, merkle_log, reading
from freehold.provenance import ledger as module
from freehold.provenance.checking import check_pack
from freehold.provenance.exchanges import Deed
from freehold.provenance.export import export
from freehold.provenance.packing import Selection, make_pack
from freehold.provenance.records import new_id, text_hash, text_of
from freehold.provenance.terms import Source, known_terms
from freehold.provenance.verify import verify
from freehold.provenance.weights import files_of
from freehold.signing import canonical
from tests.conftest import counted
from tests.provenance.made import NOW, add, body, exchange, ledger, part, state

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(1 - 2**53, 2**53 - 1) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(max_codepoint=127), max_size=8), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(JSON)
def test_records_are_written_as_rfc_8785_asks(value: object) -> None:
    assert text_of(value).encode() == canonical(value)


def test_ids_sort_by_time_and_differ() -> None:
    ids = [new_id(NOW + i) for i in range(10)]
    assert ids == sorted(ids) and new_id(NOW) != new_id(NOW)


def test_an_exchange_is_on_record_with_who_answered_under_which_terms(database: Database, tmp_path: Path) -> None:
    with ledger(database, tmp_path) as kept:
        tried = part("openai", heard=False, finished=False, failure="rate"), part("deepseek")
        (id,) = add(kept, exchange("hello", "Hi.", *tried))
        found = body(kept, id)
        assert found["served_by"] == [
            {
                "backend": "deepseek", "model": "deepseek-large", "provider": "deepseek", "request_id": "chatcmpl-deepseek",
                "terms": {"digest": "a" * 64, "training": "allowed", "why": "a test says so"},
            }
        ]  # fmt: skip
        assert [(a["backend"], a["failure"]) for a in found["attempts"]] == [("openai", "rate"), ("deepseek", None)]
        salt, prompt, answer = database.now(lambda t: reading.texts(t, id)) or (b"", None, None)
        assert prompt is not None and json.loads(prompt)["messages"] == [{"content": "hello", "role": "user"}]
        assert answer is not None and found["answer"]["hash"] == text_hash(salt, "answer", answer)
        assert found["prompt"]["hash"] == text_hash(salt, "prompt", prompt)
        assert "hello" not in json.dumps(found)


def test_without_being_told_to_no_text_is_kept_anywhere(database: Database, tmp_path: Path) -> None:
    with ledger(database, tmp_path, keep=False) as kept:
        (id,) = add(kept, exchange("the grandmother of the whole village", "a grandmother answers"))
        assert (database.now(lambda t: reading.texts(t, id)) or ())[1:] == (None, None)
        rows = database.now(
            lambda t: [
                str(t.rows(f"select * from {table}"))  # noqa: S608
                for table in ("ledger_records", "ledger_contents", "ledger_outputs", "ledger_runs", "ledger_passages")
            ]
        )
    assert not any("grandmother" in text for text in rows)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(b"grandmother" in path.read_bytes() for path in files)


def test_salts_differ_so_equal_prompts_do_not_show(database: Database, tmp_path: Path) -> None:
    with ledger(database, tmp_path) as kept:
        one, two = add(kept, exchange("hello"), exchange("hello"))
        assert body(kept, one)["prompt"]["hash"] != body(kept, two)["prompt"]["hash"]


def test_the_thread_writes_without_being_asked(database: Database, tmp_path: Path) -> None:
    with ledger(database, tmp_path) as kept:
        written = module.threading.Event()
        real = kept._write_batch

        def telling() -> None:
            real()
            written.set()

        kept._write_batch = telling  # type: ignore[method-assign]
        begun, ended = exchange("hello")
        kept.begin(begun)
        kept.end(ended)
        assert written.wait(30)
        assert counted(database, "ledger_records") == 1


def test_closing_writes_what_is_left_and_signs_a_head(database: Database, tmp_path: Path) -> None:
    with ledger(database, tmp_path, head_seconds=3600.0) as kept:
        for i in range(200):
            begun, ended = exchange(f"number {i}")
            kept.begin(begun)
            kept.end(ended)
    assert counted(database, "ledger_records") == 200
    assert database.now(lambda t: t.rows("select size from ledger_heads")) == [(200,)]
    assert list((tmp_path / "ledger").iterdir()) == []


def test_what_the_database_refuses_waits_in_the_journal_for_the_next_start(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'x.db'}").open()
    with ledger(database, tmp_path) as kept:
        add(kept, exchange("first"))
        begun, ended = exchange("second")
        kept.begin(begun)
        kept.end(ended)
        database.close()
        with pytest.raises(DatabaseError):
            kept.flush()
    with Database(f"sqlite:///{tmp_path / 'x.db'}") as again, ledger(again, tmp_path) as kept:
        assert next(reading.newest(again)).id == begun.id
        assert counted(again, "ledger_records") == 2 and verify(again).good


def test_a_journal_that_is_written_again_adds_nothing_twice(database: Database, tmp_path: Path) -> None:
    one = exchange("hello")
    with ledger(database, tmp_path) as kept:
        add(kept, one)
        add(kept, one, one)
        assert counted(database, "ledger_records") == 1


def test_an_exchange_under_way_when_the_process_died_is_on_record_as_interrupted(
    database: Database, tmp_path: Path
) -> None:
    begun, _ = exchange("hello", who="openai")
    first = ledger(database, tmp_path)
    dying = first.__enter__()
    dying.begin(begun)
    assert dying._journal is not None
    os.close(dying._journal._descriptor)  # as the kernel does it for a killed process
    dying._journal._descriptor = -1
    with ledger(database, tmp_path) as kept:
        found = body(kept, begun.id)
        assert found["outcome"] == "interrupted" and state(kept, begun.id) == "unknown"
    first.__exit__(None, None, None)


def test_kill_9_loses_no_exchange_that_was_ended(database_url: str, tmp_path: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom freehold.database import Database\n"
        "from tests.provenance.made import exchange, ledger\n"
        "with Database(sys.argv[1]) as database, ledger(database, Path(sys.argv[2])) as kept:\n"
        "    for i in range(100_000):\n"
        "        begun, ended = exchange(f'prompt number {i}', f'answer number {i}')\n"
        "        kept.begin(begun)\n        kept.end(ended)\n        print(begun.id, flush=True)\n"
    )
    command = [sys.executable, "-c", program, database_url, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    ids = [process.stdout.readline().strip() for _ in range(400)]
    process.send_signal(signal.SIGKILL)
    ids += process.stdout.read().split()
    process.stdout.close()
    assert process.wait(30) == -signal.SIGKILL
    told = {id for id in ids if len(id) == len(ids[0])}
    with Database(database_url) as database, ledger(database, tmp_path) as kept:
        there = {record.id: record.body["outcome"] for record in reading.newest(database)}
        assert len(told) >= 400 and all(there.get(id) == "finished" for id in told)
        assert verify(database, [kept.head()]).good


def test_two_processes_write_one_log(database_url: str, tmp_path: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom freehold.database import Database\n"
        "from tests.provenance.made import add, exchange, ledger\n"
        "with Database(sys.argv[1]) as database, ledger(database, Path(sys.argv[2])) as kept:\n"
        "    print('ready', flush=True)\n    sys.stdin.readline()\n"
        "    for i in range(60):\n        add(kept, exchange(f'{sys.argv[2]} {i}'))\n"
    )
    with Database(database_url) as database:
        command, pipe = [sys.executable, "-c", program, database_url], subprocess.PIPE
        processes = [
            subprocess.Popen([*command, str(tmp_path / name)], stdin=pipe, stdout=pipe, text=True) for name in "ab"
        ]
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for process in processes:
            process.communicate("go\n", timeout=60)
        assert [process.returncode for process in processes] == [0, 0]
        assert counted(database, "ledger_records") == 120 and verify(database).good


def test_a_journal_that_cannot_be_written_stops_no_answer_and_the_ledger_says_so(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ledger(database, tmp_path) as kept:
        assert kept._journal is not None

        def full(*given: object) -> None:
            raise LedgerError("can't write the journal: No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(kept._journal, "_write", full)
            (id,) = add(kept, exchange("hello"))
        assert state(kept, id) == "clean" and "can be lost" in caplog.text
        kept._note_lost()
        assert [record.body["facts"]["pieces"] for record in reading.newest(database, "gap")] == [2]


def test_a_loss_that_the_database_did_not_take_is_told_later(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ledger(database, tmp_path) as kept:
        kept._lost = 3

        def away(items: object) -> None:
            raise DatabaseError("away")

        with monkeypatch.context() as patched, pytest.raises(DatabaseError):
            patched.setattr(kept, "_store", away)
            kept._note_lost()
    assert [record.body["facts"]["pieces"] for record in reading.newest(database, "gap")] == [3]


def test_heads_are_published_where_the_settings_say(database: Database, tmp_path: Path) -> None:
    file = tmp_path / "elsewhere" / "heads.jsonl"
    with ledger(database, tmp_path, publish_heads=str(file)) as kept:
        add(kept, exchange("one"))
        first = kept.head()
        kept.head()  # nothing was added: nothing new to say
        add(kept, exchange("two"))
        second = kept.head()
        assert [head.size for head in heads.read(file)] == [1, 2]
        assert heads.read(file)[0].root == first.root and first.key == second.key
        proof = database.now(lambda t: merkle_log.consistency(t, 1, 2))
        assert merkle.verify_consistency(1, 2, first.root, second.root, proof)


def test_a_file_of_years_of_published_heads_can_be_read(database: Database, tmp_path: Path) -> None:
    file = tmp_path / "heads.jsonl"
    with ledger(database, tmp_path, publish_heads=str(file)) as kept:
        kept.head()
    line = file.read_bytes()
    assert len(line) * 24 * 365 * 10 < heads.LARGEST_FILE
    file.write_bytes(line * (2 + (1 << 20) // len(line)))
    assert {head.size for head in heads.read(file)} == {0}


def test_heads_are_signed_when_they_are_due(database: Database, tmp_path: Path) -> None:
    with ledger(database, tmp_path, head_seconds=3600.0) as kept:
        add(kept, exchange("one"))
        kept._sign_when_due()
        assert counted(database, "ledger_heads") == 0
        kept._now = lambda: NOW + 3601
        kept._sign_when_due()
        assert counted(database, "ledger_heads") == 1


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "found nothing"),
        ("[1]", "published head"),
        ("{}", "published head"),
        ("{", "in JSON"),
        ('{"key": "x"}', "Ed25519"),
    ],
)
def test_a_file_that_holds_no_head_is_refused(tmp_path: Path, content: str, problem: str) -> None:
    file = tmp_path / "head.json"
    file.write_text(content)
    with pytest.raises(Exception, match=problem):
        heads.read(file)


def test_forgetting_deletes_the_texts_and_keeps_the_proof(database: Database, tmp_path: Path) -> None:
    with ledger(database, tmp_path) as kept:
        one, two = add(kept, exchange("my address"), exchange("another"))
        signed = kept.head()
        done = deeds.forget(kept, one[:20])
        assert database.now(lambda t: reading.texts(t, one)) is None
        deeds.forget(kept, two, whole=True)
        assert database.now(lambda t: reading.find(t, two)).text is None
        report = verify(database, [signed])
        assert report.good and report.forgotten == 2 and report.covered == 2
        assert body(kept, done)["facts"] == {"record": one, "whole": False}
        with pytest.raises(LedgerError, match="can't be forgotten"):
            deeds.forget(kept, done)


def test_a_record_is_found_by_the_beginning_of_its_id(database: Database, tmp_path: Path) -> None:
    with ledger(database, tmp_path) as kept:
        one, two = add(kept, exchange("one"), exchange("two"))
        assert database.now(lambda t: reading.find(t, one[:-2])).id == one
        with pytest.raises(UsageError, match="several records"):
            database.now(lambda t: reading.find(t, two[:8]))
        for wrong in ("rec_zz", "", "%", "rec-' or 1=1"):
            with pytest.raises(UsageError, match=r"no record|a record's id"):
                database.now(lambda t, wrong=wrong: reading.find(t, wrong))  # type: ignore[misc]


def test_weights_are_named_by_their_bytes_and_licence(database: Database, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights")
    (model / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    with ledger(database, tmp_path) as kept:
        kept._terms = known_terms
        local = part(files=files_of(model))
        (id,) = add(kept, exchange("hello", "Hi.", local))
        (served,) = body(kept, id)["served_by"]
        assert served["licence"] == "apache-2.0" and len(served["weights"]) == 64
        assert served["terms"]["training"] == "allowed" and state(kept, id) == "clean"
        (model / "model.safetensors").write_bytes(b"others!")
        assert counted(database, "ledger_weights") == 1
        again = part(files=files_of(model))
        (other,) = add(kept, exchange("hello", "Hi.", again))
        assert body(kept, other)["served_by"][0]["weights"] != served["weights"]
        gone = part(files=files_of(model) + " ")
        kept._weights.clear()
        (model / "model.safetensors").unlink()
        with pytest.raises(json.JSONDecodeError):
            json.loads(gone.files + "x")
        (third,) = add(kept, exchange("hello", "Hi.", gone))
        assert body(kept, third)["served_by"][0]["weights"] is None and state(kept, third) == "unknown"


@pytest.mark.parametrize(
    ("provider", "day", "training"),
    [
        ("openai", "2026-01-01", "barred"),
        ("api.openai.com", "2023-05-01", "barred"),
        ("company.openai.azure.com", "2026-01-01", "barred"),
        ("api.anthropic.com", "2026-01-01", "barred"),
        ("deepseek", "2025-01-19", "unknown"),  # the same provider, a day apart
        ("deepseek", "2025-01-20", "allowed"),
        ("api.deepseek.com", "2025-06-01", "allowed"),
        ("openai", "2019-01-01", "unknown"),  # before any terms that are written down
        ("llm.example", "2026-01-01", "unknown"),
        ("", "2026-01-01", "unknown"),
    ],
)
def test_a_providers_terms_of_the_day_decide(provider: str, day: str, training: str) -> None:
    found = known_terms(Source(False, provider, "m"), datetime.fromisoformat(day).replace(tzinfo=UTC))
    assert found.training == training
    assert (found.digest is not None) == ("no terms of" not in found.why)


@pytest.mark.parametrize(
    ("licence", "training"),
    [
        ("MIT", "allowed"), ("apache-2.0", "allowed"), ("openmdw-1.0", "allowed"), ("MIT OR llama2", "allowed"),
        ("llama2", "barred"), ("MIT AND llama2", "barred"), ("llama3.1", "unknown"), ("gemma", "unknown"),
        ("cc-by-nc-4.0", "unknown"), ("other", "unknown"), (None, "unknown"), ("Some Words", "unknown"),
    ],
)  # fmt: skip
def test_open_weights_are_judged_by_the_licence_they_declare(licence: str | None, training: str) -> None:
    assert known_terms(Source(True, "", "m", "d", licence), datetime.now(UTC)).training == training


def test_a_deed_is_on_record_behind_what_ended_before_it(database: Database, tmp_path: Path) -> None:
    with ledger(database, tmp_path) as kept:
        begun, ended = exchange("hello")
        kept.begin(begun)
        kept.end(ended)
        kept.record(Deed(new_id(NOW), "train", round(NOW * 1e6), ({"id": "sha256:x"},), ({"id": "sha256:y"},)))
        assert [record.kind for record in reading.newest(database)] == ["train", "exchange"]


def test_a_ledger_that_waits_for_its_database_goes_on_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.0)
    caplog.set_level(logging.WARNING, "freehold.ledger")
    with Database(f"sqlite:///{tmp_path / 'x.db'}") as database, ledger(database, tmp_path) as kept:
        written, failures = module.threading.Event(), iter([DatabaseError("away"), DatabaseError("still away")])
        real = kept._store

        def failing(items: object) -> None:
            if (error := next(failures, None)) is not None:
                raise error
            real(items)  # type: ignore[arg-type]
            written.set()

        monkeypatch.setattr(kept, "_store", failing)
        begun, ended = exchange("hello")
        kept.begin(begun)
        kept.end(ended)
        assert written.wait(30)
        assert counted(database, "ledger_records") == 1 and "waits for its database" in caplog.text


def test_taint_export_and_packs_work_alike_on_both_databases(database: Database, tmp_path: Path) -> None:
    closed = "The harbour of the old town freezes only every other winter, because warm water runs along the quay."
    with ledger(database, tmp_path) as kept:
        first, quoting, clean = add(
            kept, exchange("harbour?", closed, who="openai"), exchange(f"Rewrite: {closed}"), exchange("bread?")
        )
        assert [state(kept, id) for id in (first, quoting, clean)] == ["barred", "tainted", "clean"]
        manifest = export(database, tmp_path / "train.jsonl", log=kept.id, now=1)
        assert manifest.exported == [(clean, 0)] and manifest.by_reason == {"barred": 1, "tainted": 1}
        head = kept.head()
        pack = make_pack(database, kept.identity, head, Selection(), now=1)
        checked = check_pack(pack.data, [head])
        assert checked.good and (checked.records, checked.texts) == (3, 3)


def test_an_exchange_that_breaks_us_stops_no_other_and_is_said_to_be_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Database(f"sqlite:///{tmp_path / 'x.db'}") as database, ledger(database, tmp_path) as kept:
        real = kept._item

        def breaking(item: object) -> object:
            if isinstance(item, tuple) and item[0].messages[0].content == "two":
                raise ValueError("a bug of ours")
            return real(item)  # type: ignore[arg-type]

        monkeypatch.setattr(kept, "_item", breaking)
        ids = add(kept, exchange("one"), exchange("two"), exchange("three"))
        kept._note_lost()
        there = [record.id for record in reading.newest(database, "exchange")]
        assert there == [ids[2], ids[0]] and "can't be recorded" in caplog.text
        assert kept._journal is not None and kept._journal.path.stat().st_size == 0
        assert next(reading.newest(database, "gap")).body["facts"]["pieces"] == 1
