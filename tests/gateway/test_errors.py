"""Every way to be refused: status, type, param and code as OpenAI's API has them, and the SDK's class for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from tests.gateway import fakes
from tests.gateway.fakes import Live

from freehold.errors import ContextLengthError, OverloadedError
from freehold.gateway.service import Gateway

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
USER = {"role": "user", "content": "hi"}


@pytest.fixture(scope="module")
def served(directory: Path) -> Iterator[Live]:
    with fakes.live(Gateway(fakes.core(directory)), max_body_mb=0.01) as found:
        yield found


@pytest.fixture
def http(served: Live) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=served.url, trust_env=False) as found:
        yield found


def body(**changes: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [USER]} | changes


def text_body(**changes: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": "hi"} | changes


def without(fields: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key != name}


CASES = [
    (CHAT, without(body(), "messages"), "messages", "missing_required_parameter"),
    (CHAT, without(body(), "model"), "model", "missing_required_parameter"),
    (CHAT, body(messages=[]), "messages", "empty_array"),
    (CHAT, body(messages="hi"), "messages", "invalid_type"),
    (CHAT, body(messages=[USER, {"content": "x"}]), "messages[1].role", "missing_required_parameter"),
    (CHAT, body(messages=[{"role": "king", "content": "x"}]), "messages[0].role", "invalid_value"),
    (CHAT, body(messages=[{"role": "user", "content": 5}]), "messages[0].content", "invalid_type"),
    (CHAT, body(messages=[{"role": "user", "content": None}]), "messages[0].content", "invalid_type"),
    (CHAT, body(messages=[{"role": "user", "content": [{"type": "text"}]}]), "messages[0].content[0].text",
     "missing_required_parameter"),
    (CHAT, body(messages=[{"role": "user", "content": [{"type": "smell"}]}]), "messages[0].content[0].type", "invalid_value"),
    (CHAT, body(messages=[{"role": "tool", "content": "x"}]), "messages[0].tool_call_id", "missing_required_parameter"),
    (CHAT, body(temperature=2.5), "temperature", "decimal_above_max_value"),
    (CHAT, body(temperature="hot"), "temperature", "invalid_type"),
    (CHAT, body(top_p=-0.1), "top_p", "decimal_below_min_value"),
    (CHAT, body(repetition_penalty=1e-45), "repetition_penalty", "decimal_below_min_value"),
    (CHAT, body(n=0), "n", "integer_below_min_value"),
    (CHAT, body(n=129), "n", "integer_above_max_value"),
    (CHAT, body(n=True), "n", "invalid_type"),
    (CHAT, body(max_tokens=0), "max_tokens", "integer_below_min_value"),
    (CHAT, body(stop=["a", "b", "c", "d", "e"]), "stop", "array_above_max_length"),
    (CHAT, body(stop=[1]), "stop[0]", "invalid_type"),
    (CHAT, body(stop="x" * 4097), "stop", "string_above_max_length"),
    (CHAT, body(logit_bias={"x": 1}), "logit_bias", "invalid_value"),
    (CHAT, body(logit_bias={"999999": 1}), "logit_bias", "invalid_value"),
    (CHAT, body(logit_bias={"5": 101}), "logit_bias[...]", "decimal_above_max_value"),
    (CHAT, body(top_logprobs=2), "top_logprobs", "invalid_value"),
    (CHAT, body(logprobs=True, top_logprobs=21), "top_logprobs", "integer_above_max_value"),
    (CHAT, body(stream_options={"include_usage": True}), "stream_options", "invalid_value"),
    (CHAT, body(tools=[{"type": "function", "function": {"name": "f"}}],
                tool_choice={"type": "function", "function": {"name": "g"}}), "tool_choice.function.name",
     "invalid_value"),
    (CHAT, body(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]),
     "messages[0].content[0]", "unsupported_parameter"),
    (CHAT, body(messages=[{"role": "user", "content": "hi"}, {"role": "tool", "content": "42", "tool_call_id": "call_x"}]),
     "messages[1].tool_call_id", "invalid_value"),
    (TEXT, without(text_body(), "prompt"), "prompt", "missing_required_parameter"),
    (TEXT, text_body(prompt=[]), "prompt", "invalid_value"),
    (TEXT, text_body(prompt=["a", 1]), "prompt", "invalid_value"),
    (TEXT, text_body(prompt=[[]]), "prompt", "invalid_value"),
    (TEXT, text_body(prompt=[-1]), "prompt[0]", "integer_below_min_value"),
    (TEXT, text_body(prompt=[999999]), "prompt", "invalid_value"),
    (TEXT, text_body(best_of=3), "best_of", "invalid_value"),
    (TEXT, text_body(suffix="x"), "suffix", "unsupported_parameter"),
    (TEXT, text_body(prompt=["a"] * 65, n=2), "n", "invalid_value"),
    (TEXT, text_body(logprobs=6), "logprobs", "integer_above_max_value"),
    (TEXT, text_body(echo=True, logprobs=1), "logprobs", "unsupported_parameter"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "sent", "param", "code"), CASES, ids=[f"{c[2]}-{c[3]}" for c in CASES])
def test_a_wrong_field_is_named(http: httpx2.Client, path: str, sent: dict[str, Any], param: str, code: str) -> None:
    answer = http.post(path, json=sent)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"], error["code"]) == (
        400,
        "invalid_request_error",
        param,
        code,
    )
    assert set(error) == {"message", "type", "param", "code"} and error["message"]


def test_fields_nobody_knows_are_ignored(http: httpx2.Client) -> None:
    assert http.post(CHAT, json=body(store=True, metadata={"a": "b"}, something={"new": [1]})).status_code == 200


def test_nulls_mean_absent(http: httpx2.Client) -> None:
    names = (
        "temperature",
        "top_p",
        "n",
        "stop",
        "max_tokens",
        "seed",
        "logit_bias",
        "stream",
        "tools",
        "logprobs",
        "user",
    )
    assert http.post(CHAT, json=body(**dict.fromkeys(names))).status_code == 200


def test_an_unknown_model_is_404_and_names_those_there_are(http: httpx2.Client) -> None:
    answer = http.post(CHAT, json=body(model="gpt-9"))
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["type"]) == (404, "model_not_found", "invalid_request_error")
    assert "gpt-9" in error["message"] and "known models: tiny" in error["message"]


def test_unknown_paths_and_wrong_methods_are_told_apart(http: httpx2.Client) -> None:
    answer = http.post("/v1/fine_tuning/jobs", json={})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_url")
    answer = http.get(CHAT)
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_supported")
    assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_over_the_limit_is_413(http: httpx2.Client, declared: bool) -> None:
    sent = b'{"model": "tiny", "x": "' + b"x" * 11_000 + b'"}'
    answer = http.post(CHAT, content=sent if declared else iter([sent[:9000], sent[9000:]]))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


def test_the_sdk_raises_its_own_classes(served: Live) -> None:
    with openai.OpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError) as bad:
            client.chat.completions.create(model="tiny", messages=[USER], temperature=9)  # type: ignore[list-item]
        assert (bad.value.param, bad.value.code) == ("temperature", "decimal_above_max_value")
        assert bad.value.request_id
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="other", messages=[USER])  # type: ignore[list-item]


def failing(directory: Path, error: Exception) -> Gateway:
    core = fakes.core(directory)
    assert isinstance(core.engine, fakes.FakeEngine)
    core.engine.error = error
    return Gateway(core)


def refused(gateway: Gateway, path: str = CHAT, sent: dict[str, Any] | None = None) -> httpx2.Response:
    with fakes.live(gateway) as served, httpx2.Client(base_url=served.url, trust_env=False) as http:
        return http.post(path, json=sent or body())


def test_an_over_long_context_is_400_with_its_numbers(directory: Path) -> None:
    error = ContextLengthError("the context is 10 tokens, but 12 were asked for", limit=10, requested=12)
    for path, sent, param in ((CHAT, body(), "messages"), (TEXT, text_body(), "prompt")):
        answer = refused(failing(directory, error), path, sent)
        found = answer.json()["error"]
        assert (answer.status_code, found["code"], found["param"]) == (400, "context_length_exceeded", param)
        assert "10 tokens" in found["message"]


def test_an_overloaded_engine_is_503_and_says_when_to_come_back(directory: Path) -> None:
    answer = refused(failing(directory, OverloadedError("the queue is full (1024 waiting)")))
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_overloaded")
    assert int(answer.headers["retry-after"]) >= 1


def test_a_bug_shows_the_client_nothing_but_that_it_happened(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    answer = refused(failing(directory, RuntimeError("secret detail")))
    assert answer.status_code == 500 and "secret detail" not in answer.text
    assert answer.json()["error"]["type"] == "server_error"
    assert "secret detail" in caplog.text


KEY = "sk-a-key-of-our-own"


@pytest.fixture(scope="module")
def guarded(directory: Path) -> Iterator[Live]:
    with fakes.live(Gateway(fakes.core(directory)), api_key=KEY) as found:
        yield found


def test_a_wrong_or_missing_key_is_401_and_is_not_repeated(guarded: Live, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    for headers in ({"authorization": "Bearer sk-wrong-key"}, {"x-api-key": "sk-wrong-key"}, {"x-api-key": "sk-wröng"}):
        answer = httpx2.post(
            guarded.url + CHAT, json=body(), headers=[(k, v.encode("latin-1")) for k, v in headers.items()]
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        assert "sk-wr" not in answer.text
    assert httpx2.get(guarded.url + "/v1/models").status_code == 401
    assert httpx2.get(guarded.url + "/metrics").status_code == 401
    assert httpx2.get(guarded.url + "/health").status_code == 200
    with (
        openai.OpenAI(base_url=guarded.url + "/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()
    assert "sk-wr" not in caplog.text


def test_the_right_key_is_taken_in_either_header(guarded: Live, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "freehold")
    for headers in ({"authorization": f"Bearer {KEY}"}, {"authorization": f"bearer {KEY}"}, {"x-api-key": KEY}):
        assert httpx2.post(guarded.url + CHAT, json=body(), headers=headers).status_code == 200
    assert KEY not in caplog.text
