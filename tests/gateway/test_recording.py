"""Exchanges on record through the whole gateway: every dialect, streamed or not, whoever answered, whatever happened."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from tests.gateway import fakes
from tests.gateway.fakes import Live, provider, recorded, response
from tests.gateway.scripted import Scripted
from tests.provenance.made import terms

from freehold.database import Database
from freehold.errors import DatabaseError
from freehold.gateway import recording
from freehold.gateway.budget import Budget
from freehold.gateway.conversation import Finished, Request, Started, TextDelta
from freehold.gateway.policy import Policy
from freehold.gateway.service import Gateway
from freehold.provenance import reading
from freehold.provenance.ledger import Ledger
from freehold.provenance.verify import verify
from freehold.settings import GuardSettings, ProvenanceSettings, RouterSettings, RouteSettings, UpstreamSettings

GOOD = response(recorded("openai_chat_stream.txt"))
HEADER = "x-freehold-provenance"


@contextmanager
def served(tmp_path: Path, core: Any, url: str = "http://127.0.0.1:9/v1", **settings: Any) -> Iterator[Live]:
    found = UpstreamSettings(name="openai", provider="openai", base_url=url, model="gpt-4o-mini")
    database = Database(f"sqlite:///{tmp_path / 'x.db'}")
    kept = ProvenanceSettings(keep_content=True, head_seconds=0.0, **settings)
    ledger = Ledger(database, kept, directory=tmp_path, terms=terms)
    budget = Budget(database, upstreams=[found])
    to = ("openai",) if core is None else ("openai", "local")
    policy = Policy(RouterSettings(), (RouteSettings("story", to),))
    gateway = Gateway(
        core, [fakes.upstream(url)], GuardSettings(), upstreams=[found], budget=budget, ledger=ledger, policy=policy
    )
    with fakes.live(gateway, api_key="") as live:
        yield live


def of(live: Live) -> Ledger:
    assert live.gateway.recorder is not None
    live.gateway.recorder.ledger.flush()
    return live.gateway.recorder.ledger


def on_record(live: Live, id: str) -> dict[str, Any]:
    database = of(live).database
    stored = database.now(lambda t: reading.find(t, id))
    assert stored.id == id
    _, prompt, answer = database.now(lambda t: reading.texts(t, id)) or (b"", None, None)
    return stored.body | {"texts": (json.loads(prompt or "{}"), json.loads(answer or "{}"))}


def only(live: Live) -> dict[str, Any]:
    (record,) = reading.newest(of(live).database)
    return on_record(live, record.id)


def said(record: dict[str, Any]) -> str:
    text: str = record["texts"][1]["messages"][0]["content"]
    return text


def post(live: Live, path: str, body: dict[str, Any]) -> httpx2.Response:
    return httpx2.post(live.url + path, json=body, timeout=30)


ASKED = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hello"}]},
    "/v1/completions": {"prompt": "hello"},
    "/v1/messages": {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 50},
    "/v1/responses": {"input": "hello"},
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ASKED)
def test_every_answer_names_its_record(tmp_path: Path, directory: Path, path: str, stream: bool) -> None:
    with served(tmp_path, fakes.core(directory)) as live:
        answer = post(live, path, {"model": "tiny", "stream": stream} | ASKED[path])
        assert answer.status_code == 200
        record = on_record(live, answer.headers[HEADER])
        assert record["outcome"] == "finished" and record["finish"] == ["stop"] and said(record) == "Hello!"
        (asked,) = record["texts"][0]["messages"]
        assert asked == {"role": "prompt" if path == "/v1/completions" else "user", "content": "hello"}
        assert record["request_id"] == answer.headers["x-request-id"]
        assert record["asked"]["model"] == "tiny"
        (who,) = record["served_by"]
        assert (who["backend"], who["model"], who["terms"]["training"]) == ("local", "tiny", "allowed")
        assert record["training"]["state"] == "clean"
        assert verify(of(live).database).good


def test_the_official_sdks_see_the_header(tmp_path: Path, directory: Path) -> None:
    with served(tmp_path, fakes.core(directory)) as live:
        with openai.OpenAI(base_url=live.url + "/v1", api_key="x") as client:
            raw = client.chat.completions.with_raw_response.create(
                model="tiny", messages=[{"role": "user", "content": "a"}]
            )
        with anthropic.Anthropic(base_url=live.url, api_key="x") as other:
            also = other.messages.with_raw_response.create(
                model="tiny", max_tokens=9, messages=[{"role": "user", "content": "a"}]
            )
        assert len({raw.headers[HEADER], also.headers[HEADER]}) == 2
        assert {on_record(live, each.headers[HEADER])["outcome"] for each in (raw, also)} == {"finished"}


def test_a_providers_answer_is_on_record_with_its_own_id_and_its_terms(tmp_path: Path) -> None:
    with provider([GOOD]) as upstream, served(tmp_path, None, upstream.url) as live:
        answer = post(live, "/v1/chat/completions", {"model": "openai.gpt-4o-mini"} | ASKED["/v1/chat/completions"])
        record = on_record(live, answer.headers[HEADER])
        (who,) = record["served_by"]
        first = next(line for line in recorded("openai_chat_stream.txt").splitlines() if line.startswith(b"data: {"))
        assert who["request_id"] == json.loads(first[6:])["id"]
        assert (who["provider"], who["terms"]["digest"]) == ("openai", "b" * 64)
        assert (
            record["training"]["state"] == "barred"
            and said(record) == answer.json()["choices"][0]["message"]["content"]
        )


def test_what_was_attached_is_named_by_its_digest_and_not_kept(tmp_path: Path) -> None:
    urls = "data:image/png;base64,iVBORw0KGgo=", "data:application/pdf;base64,JVBERi0xLjQ="
    content = [
        {"type": "text", "text": "what is this?"},
        {"type": "image_url", "image_url": {"url": urls[0]}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": urls[1]}},
        {"type": "file", "file": {"file_id": "file-7"}},
    ]
    with provider([GOOD]) as upstream, served(tmp_path, None, upstream.url) as live:
        body = {"model": "openai.gpt-4o-mini", "messages": [{"role": "user", "content": content}]}
        assert post(live, "/v1/chat/completions", body).status_code == 200
        (asked,) = only(live)["texts"][0]["messages"]
    image, document, known = (hashlib.sha256(each.encode()).hexdigest() for each in (*urls, "file-7"))
    assert asked["images"] == [image] and asked["documents"] == [document, known]


def test_a_local_answer_after_the_standbys_is_tainted(tmp_path: Path, directory: Path) -> None:
    with provider([GOOD]) as upstream, served(tmp_path, fakes.core(directory), upstream.url) as live:
        body: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}
        first = post(live, "/v1/chat/completions", {"model": "openai.gpt-4o-mini"} | body)
        turn = first.json()["choices"][0]["message"]
        messages = [
            *body["messages"],
            {"role": "assistant", "content": turn["content"]},
            {"role": "user", "content": "?"},
        ]
        second = post(live, "/v1/chat/completions", {"model": "tiny", "messages": messages})
        record = on_record(live, second.headers[HEADER])
        assert record["training"]["state"] == "tainted" and record["parents"] == [first.headers[HEADER]]


def test_an_answer_that_moved_on_names_every_attempt(tmp_path: Path, directory: Path) -> None:
    with provider([GOOD]) as upstream, served(tmp_path, fakes.core(directory), upstream.url) as live:
        live.gateway.core.engine.error = fakes.EngineDownError("gone")  # type: ignore[union-attr]
        answer = post(live, "/v1/chat/completions", {"model": "tiny"} | ASKED["/v1/chat/completions"])
        record = on_record(live, answer.headers[HEADER])
        assert [(a["backend"], a["failure"], a["heard"]) for a in record["attempts"]] == [
            ("local", "engine_down", False), ("openai", None, True),
        ]  # fmt: skip
        assert [who["backend"] for who in record["served_by"]] == ["openai"] and record["training"]["state"] == "barred"


def test_an_answer_that_broke_and_went_on_elsewhere_names_both(tmp_path: Path, directory: Path) -> None:
    cut = response(recorded("openai_chat_stream.txt").split(b'"finish_reason": "stop"')[0].rsplit(b"data:", 1)[0])
    with provider([cut]) as upstream, served(tmp_path, fakes.core(directory), upstream.url) as live:
        body = {"model": "story", "stream": True} | ASKED["/v1/chat/completions"]
        answer = post(live, "/v1/chat/completions", body)
        record = on_record(live, answer.headers[HEADER])
        assert record["outcome"] == "finished"
        assert [who["backend"] for who in record["served_by"]] == ["openai", "local"]
        assert record["attempts"][0]["failure"] == "transport" and record["training"]["state"] == "barred"


def test_a_client_that_leaves_is_on_record_with_what_it_got(tmp_path: Path, directory: Path) -> None:
    with served(tmp_path, fakes.core(directory, held=True)) as live:
        with openai.OpenAI(base_url=live.url + "/v1", api_key="x", max_retries=0) as client:
            messages: Any = [{"role": "user", "content": "hello"}]
            stream = client.chat.completions.create(model="tiny", messages=messages, stream=True)
            next(iter(stream))
            stream.close()
        live.until(lambda: next(reading.newest(of(live).database), None) is not None)
        record = only(live)
        assert record["outcome"] == "left" and said(record) in ("", "H")


def test_a_refused_request_leaves_no_record(tmp_path: Path, directory: Path) -> None:
    with served(tmp_path, fakes.core(directory)) as live:
        answer = post(live, "/v1/chat/completions", {"model": "nobody"} | ASKED["/v1/chat/completions"])
        assert answer.status_code == 404 and HEADER not in answer.headers
        assert list(reading.newest(of(live).database)) == []


def test_embeddings_are_on_record_too(tmp_path: Path) -> None:
    stage = Scripted([])
    database = Database(f"sqlite:///{tmp_path / 'x.db'}")
    ledger = Ledger(database, ProvenanceSettings(head_seconds=0.0), directory=tmp_path, terms=terms)
    gateway = Gateway(None, [stage], budget=Budget(database), ledger=ledger)
    with fakes.live(gateway, api_key="") as live:
        answer = post(live, "/v1/embeddings", {"model": "stage.play", "input": ["one", "two"]})
        record = on_record(live, answer.headers[HEADER])
        assert record["activity"] == "embed" and record["prompt"]["turns"] == 2 and record["texts"] == ({}, {})


def test_the_record_is_in_the_journal_before_the_client_gets_the_last_word(tmp_path: Path) -> None:
    stage = Scripted([Started("play"), TextDelta("Hi"), TextDelta("!"), Finished("stop")])
    database = Database(f"sqlite:///{tmp_path / 'x.db'}")
    ledger = Ledger(database, ProvenanceSettings(head_seconds=0.0), directory=tmp_path, terms=terms)
    gateway = Gateway(None, [stage], budget=Budget(database), ledger=ledger)
    order: list[str] = []

    async def run() -> None:
        async with gateway:
            assert ledger._journal is not None
            begin, end = ledger._journal.begin, ledger._journal.end
            ledger._journal.begin = lambda piece: (order.append("begun"), begin(piece))[1]  # type: ignore[method-assign]
            ledger._journal.end = lambda piece: (order.append("ended"), end(piece))[1]  # type: ignore[method-assign]
            answer = await gateway.answer(Request(id="r", model="stage.play", prompts=("x",), stream=True))
            async for event in answer.events:
                order.append(type(event).__name__)

    asyncio.run(run())
    assert order == ["begun", "Started", "TextDelta", "TextDelta", "ended", "Finished"]


def test_without_a_ledger_there_is_no_header(tmp_path: Path, directory: Path) -> None:
    with fakes.live(Gateway(fakes.core(directory))) as live:
        answer = post(live, "/v1/chat/completions", {"model": "tiny"} | ASKED["/v1/chat/completions"])
        assert answer.status_code == 200 and HEADER not in answer.headers


def test_nobody_is_answered_off_the_record_when_the_ledger_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    stage = Scripted([TextDelta("Hi"), Finished("stop")])
    database = Database(f"sqlite:///{tmp_path / 'x.db'}")
    settings = ProvenanceSettings(journal_dir=str(tmp_path / "file" / "x"))
    gateway = Gateway(None, [stage], budget=Budget(database), ledger=Ledger(database, settings, directory=tmp_path))

    async def run() -> None:
        with pytest.raises(Exception, match="can't write the journal"):
            await gateway.start()
        with pytest.raises(DatabaseError, match="not open"):
            await gateway.answer(Request(id="r", model="stage.play", prompts=("x",)))
        await gateway.close()

    asyncio.run(run())
    assert stage.requests == []


def test_a_journal_that_cannot_be_written_ends_the_answer_it_should_have_noted(
    tmp_path: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(tmp_path, fakes.core(directory, held=True)) as live:

        def full(begun: Any) -> None:
            raise DatabaseError("can't write the journal: no space left on device")

        monkeypatch.setattr(of(live), "begin", full)
        answer = post(live, "/v1/chat/completions", {"model": "tiny", "stream": True} | ASKED["/v1/chat/completions"])
        assert answer.status_code == 503 and answer.json()["error"]["code"] == "accounts_unavailable"
        engine = live.gateway.core.engine  # type: ignore[union-attr]
        live.until(lambda: engine.left == [request.id for request in engine.requests])


def test_a_ledger_that_cannot_keep_up_refuses_before_memory_is_gone(
    tmp_path: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(tmp_path, fakes.core(directory)) as live:
        monkeypatch.setattr(recording, "MOST_WAITING", -1)
        answer = post(live, "/v1/chat/completions", {"model": "tiny"} | ASKED["/v1/chat/completions"])
        assert answer.status_code in (429, 503) and "keep up" in answer.text
