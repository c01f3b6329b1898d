"""Keys, budgets and accounts through the whole gateway: over HTTP, with real providers' bodies, to rows of usage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from tests.gateway import fakes
from tests.gateway.fakes import Live, provider, recorded, response

from freehold.cost import usage
from freehold.cost.meter import UsageRow
from freehold.database import Database
from freehold.gateway import virtual_keys
from freehold.gateway.budget import Budget
from freehold.gateway.service import Gateway
from freehold.gateway.virtual_keys import Limits
from freehold.settings import CostSettings, GuardSettings, UpstreamSettings

GOOD = response(recorded("openai_chat_stream.txt"))
OWNER = "owner-key"
PRICES = '[[price]]\nprovider = "openai"\nmodel = "gpt-4o-mini"\ninput = 10\noutput = 10\n'


@contextmanager
def served(
    tmp_path: Path, directory: Path | None, url: str = "", api_key: str = OWNER, **upstream: Any
) -> Iterator[Live]:
    file = tmp_path / "prices.toml"
    file.write_text(PRICES)
    found = UpstreamSettings(name="openai", base_url=url or "http://127.0.0.1:9/v1", model="gpt-4o-mini", **upstream)
    cost = CostSettings(prices=str(file), machine_usd_per_hour=3600.0)
    budget = Budget(Database(f"sqlite:///{tmp_path / 'x.db'}"), cost=cost, upstreams=[found])
    core = None if directory is None else fakes.core(directory)
    standby = fakes.upstream(found.base_url)
    gateway = Gateway(core, [standby], GuardSettings(), upstreams=[found], budget=budget)
    with fakes.live(gateway, api_key=api_key) as live:
        yield live


def new_key(live: Live, name: str = "alice", **limits: Any) -> str:
    assert live.gateway.accounts is not None
    key, work = virtual_keys.create(name, Limits(**limits), 1.0)
    budget = live.gateway.accounts.budget
    live.loop.run(budget.database.run(work))
    live.loop.run(budget.ring.refresh())
    return key


def rows(live: Live) -> list[UsageRow]:
    assert live.gateway.accounts is not None
    return list(usage.read(live.gateway.accounts.budget.database))


def ask(live: Live, key: str, model: str = "openai.gpt-4o-mini", **given: Any) -> httpx2.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "Paris?"}], "max_tokens": 90} | given
    headers = {"authorization": f"Bearer {key}"}
    return httpx2.post(live.url + "/v1/chat/completions", json=body, headers=headers, timeout=30)


def test_the_door_opens_to_the_owners_key_and_to_keys_in_use_only(tmp_path: Path, directory: Path) -> None:
    with served(tmp_path, directory) as live:
        key = new_key(live)
        forged = key[:-9] + ("A" if key[-9] != "A" else "B") + key[-8:]
        statuses = [ask(live, given, "tiny").status_code for given in (OWNER, key, forged, key[:-1], "sk-fh-", "x")]
        assert statuses == [200, 200, 401, 401, 401, 401]
        headers = {"x-api-key": key}
        assert httpx2.get(live.url + "/v1/models", headers=headers).status_code == 200
        assert httpx2.get(live.url + "/metrics", headers=headers).status_code == 403
        assert live.gateway.accounts is not None
        budget = live.gateway.accounts.budget
        live.loop.run(budget.database.run(virtual_keys.revoke("alice", 2.0)))
        live.loop.run(budget.ring.refresh())
        assert ask(live, key, "tiny").status_code == 401
        assert sorted(row.key_id[:4] for row in rows(live)) == ["", "key_"]


def test_a_key_sees_only_the_models_it_may_ask_for(tmp_path: Path, directory: Path) -> None:
    with served(tmp_path, directory) as live:
        headers = {"authorization": f"Bearer {new_key(live, models=('ti*',))}"}
        seen = httpx2.get(live.url + "/v1/models", headers=headers).json()["data"]
        assert [model["id"] for model in seen] == ["tiny"]
        everything = httpx2.get(live.url + "/v1/models", headers={"authorization": f"Bearer {OWNER}"}).json()["data"]
        hidden = next(model["id"] for model in everything if model["id"] != "tiny")
        assert httpx2.get(f"{live.url}/v1/models/{hidden}", headers=headers).status_code == 404
        assert httpx2.get(f"{live.url}/v1/models/tiny", headers=headers).status_code == 200


def test_without_an_owners_key_the_first_virtual_key_closes_the_door(tmp_path: Path, directory: Path) -> None:
    with served(tmp_path, directory, api_key="") as live:
        assert ask(live, "none", "tiny").status_code == 200
        key = new_key(live)
        assert [ask(live, given, "tiny").status_code for given in ("none", key)] == [401, 200]


def test_revoking_the_last_virtual_key_does_not_open_the_door_again(tmp_path: Path, directory: Path) -> None:
    with served(tmp_path, directory, api_key="") as live:
        key = new_key(live)
        assert live.gateway.accounts is not None
        budget = live.gateway.accounts.budget
        live.loop.run(budget.database.run(virtual_keys.revoke("alice", 2.0)))
        live.loop.run(budget.ring.refresh())
        assert [ask(live, given, "tiny").status_code for given in ("none", key)] == [401, 401]
    with served(tmp_path, directory, api_key="") as restarted:
        assert ask(restarted, "none", "tiny").status_code == 401
        assert ask(restarted, new_key(restarted, "bob"), "tiny").status_code == 200


def test_until_the_keys_are_read_nobody_without_one_gets_in(tmp_path: Path, directory: Path) -> None:
    with served(tmp_path, directory, api_key="") as live:
        assert live.gateway.accounts is not None
        live.gateway.accounts.budget.ring._made = None  # as it is before the database was asked
        assert ask(live, "none", "tiny").status_code == 503


def test_no_key_and_no_hash_of_one_is_in_the_log_or_in_an_answer(
    tmp_path: Path, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "freehold")
    with served(tmp_path, directory) as live:
        key = new_key(live, requests_per_minute=1)
        answers = [ask(live, key, "tiny"), ask(live, key, "tiny"), ask(live, key + "x", "tiny")]
        assert [answer.status_code for answer in answers] == [200, 429, 401]
        shown = caplog.text + "".join(answer.text + str(answer.headers) for answer in answers)
        assert key not in shown and virtual_keys.digest(key) not in shown and "key_" in shown


def test_an_upstreams_answer_is_charged_as_it_counted(tmp_path: Path) -> None:
    with provider([GOOD]) as upstream, served(tmp_path, None, upstream.url) as live:
        key = new_key(live, usd_per_day=10**9)
        assert ask(live, key, stream=True, stream_options={"include_usage": True}).status_code == 200
        (row,) = rows(live)
        assert row.prompt_tokens and row.completion_tokens and not row.estimated and row.finished
        assert row.nanos == (row.prompt_tokens + row.completion_tokens) * 10_000
        assert (row.key_id[:4], row.backend, row.model) == ("key_", "openai", "gpt-4o-mini")


def test_an_answer_that_moved_on_charges_each_backend_its_part(tmp_path: Path, directory: Path) -> None:
    refused = response(b'{"error": {"message": "no"}}', "500 Internal Server Error", "application/json")
    with provider([refused]) as upstream, served(tmp_path, directory, upstream.url) as live:
        live.gateway.core.engine.error = fakes.EngineDownError("gone")  # type: ignore[union-attr]
        assert ask(live, OWNER, "tiny").status_code >= 500
        found = rows(live)
        assert [(row.backend, row.failure, row.prompt_tokens, row.nanos) for row in found[1:]] == [
            ("openai", "transport", 0, 0)
        ]
        assert (found[0].backend, found[0].failure) == ("local", "engine_down")


def test_a_client_that_leaves_is_charged_an_estimate_and_its_reservation_is_freed(tmp_path: Path) -> None:
    beginning = GOOD[: GOOD.index(b"\n\n", len(GOOD) // 2) + 2]
    with provider([beginning, None]) as upstream, served(tmp_path, None, upstream.url) as live:
        upstream.script = [[beginning, None]]
        key = new_key(live, usd_per_day=10**9)
        with openai.OpenAI(base_url=live.url + "/v1", api_key=key, max_retries=0) as client:
            messages: Any = [{"role": "user", "content": "x" * 400}]
            stream = client.chat.completions.create(model="openai.gpt-4o-mini", messages=messages, stream=True)
            next(iter(stream))
            stream.close()
        live.until(lambda: len(rows(live)) == 1)
        (row,) = rows(live)
        assert row.estimated and row.prompt_tokens == 104 and row.completion_tokens > 0 and row.nanos
        assert live.gateway.accounts is not None
        database = live.gateway.accounts.budget.database
        assert database.now(lambda t: t.rows("select * from reservations")) == []


def test_the_local_engine_costs_its_seconds(tmp_path: Path, directory: Path) -> None:
    with served(tmp_path, directory) as live:
        assert ask(live, OWNER, "tiny").status_code == 200
        (row,) = rows(live)
        assert row.nanos == round(row.seconds * 10**9) > 0 and row.price_snapshot == "machine:3600.0/h"


def test_a_key_out_of_money_gets_openais_answer_and_the_core_still_answers(tmp_path: Path, directory: Path) -> None:
    with provider([GOOD]) as upstream, served(tmp_path, directory, upstream.url) as live:
        key = new_key(live, usd_per_day=1000)
        with (
            openai.OpenAI(base_url=live.url + "/v1", api_key=key) as client,
            pytest.raises(openai.RateLimitError) as caught,
        ):
            client.chat.completions.create(model="openai.gpt-4o-mini", messages=[{"role": "user", "content": "x"}])
        assert caught.value.code == "insufficient_quota" and upstream.requests == []
        assert ask(live, key, "tiny").status_code == 200


def test_rates_are_told_with_every_answer_and_a_refusal_says_when(tmp_path: Path, directory: Path) -> None:
    with served(tmp_path, directory) as live:
        key = new_key(live, requests_per_minute=2, tokens_per_minute=100_000)
        answers = [ask(live, key, "tiny") for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        left = [int(answer.headers["x-ratelimit-remaining-requests"]) for answer in answers]
        assert left == [1, 0, 0] and 1 <= int(answers[2].headers["retry-after"]) <= 30
        assert answers[2].json()["error"]["code"] == "rate_limit_exceeded"


def test_a_standby_with_nothing_left_of_its_month_is_not_asked(tmp_path: Path) -> None:
    with provider([GOOD]) as upstream, served(tmp_path, None, upstream.url, usd_per_month=0.00125) as live:
        statuses = []
        for _ in range(4):
            statuses.append(ask(live, OWNER, stream=True, stream_options={"include_usage": True}).status_code)
        charged = sum(row.nanos or 0 for row in rows(live))
        assert statuses[0] == 200 and statuses[-1] == 429 and 0 < charged <= 1_250_000
        assert len(upstream.requests) == statuses.count(200)
