"""Where client and provider speak the same dialect, the client's own bytes go on."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.gateway.backends.anthropic_wire import AnthropicWire
from freehold.gateway.backends.openai_wire import OpenAIWire
from freehold.gateway.backends.providers import OPENAI, Provider
from freehold.gateway.backends.splice import JsonObject
from freehold.gateway.conversation import Request, Sampling
from freehold.gateway.dialects import anthropic_messages, openai_chat, openai_completions

CHAT = (
    b'{ "model" : "freehold",\n "messages":[{"role":"user","content":"h\\u00e9","audio":{"x":[1.50,2e0]}}],'
    b'"temperature":0.70, "stream": true ,"stream_options":{"include_usage":true},'
    b'"metadata":{"model":"inner"}, "service_tier":"flex" ,"n":1 }\n'
)
OTHER = Provider()


def chat(body: bytes = CHAT) -> Request:
    request, _ = openai_chat.decode(body, "r")
    return replace(request, model="gpt-4o")


def relayed(request: Request, provider: Provider = OTHER) -> bytes:
    return OpenAIWire("openai", provider).body(request)


def test_only_the_model_is_changed_in_a_chat_that_is_streamed_already() -> None:
    assert relayed(chat()) == CHAT.replace(b'"freehold"', b'"gpt-4o"')
    assert OpenAIWire("openai", OTHER).dropped(chat()) == ()


def test_a_chat_that_is_not_streamed_is_asked_for_as_a_stream_with_usage_and_nothing_else_changes() -> None:
    body = b'{"model":"freehold", "messages":[{"role":"user","content":"x"}],"future":[1.0]}'
    assert relayed(chat(body)) == (
        b'{"stream":true,"stream_options":{"include_usage":true},"model":"gpt-4o", '
        b'"messages":[{"role":"user","content":"x"}],"future":[1.0]}'
    )


def test_other_stream_options_stay() -> None:
    body = CHAT.replace(b'{"include_usage":true}', b'{"include_usage":false,"include_obfuscation":false}')
    assert json.loads(relayed(chat(body)))["stream_options"] == {"include_usage": True, "include_obfuscation": False}


def test_what_the_router_took_away_does_not_come_back_through_the_body() -> None:
    body = CHAT.replace(b'"n":1', b'"top_k":40,"min_p":0.1,"repetition_penalty":1.1,"logit_bias":{"5":1},"n":1')
    request = chat(body)
    assert json.loads(relayed(request))["top_k"] == 40
    portable = replace(request, sampling=Sampling(temperature=0.7))
    assert relayed(portable) == relayed(chat())


def test_a_provider_that_refuses_extensions_does_not_get_them_and_they_are_named() -> None:
    request = chat(CHAT.replace(b'"n":1', b'"top_k":40,"n":1'))
    assert b"top_k" not in relayed(request, OPENAI)
    assert OpenAIWire("openai", OPENAI).dropped(request) == ("top_k",)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("provider", [OPENAI, OTHER])
def test_the_limit_goes_by_the_providers_name_for_it(name: str, provider: Provider) -> None:
    sent = json.loads(relayed(chat(CHAT.replace(b'"n":1', f'"{name}":7,"n":1'.encode())), provider))
    assert {key: sent[key] for key in sent if key.startswith("max_")} == {provider.limit_field: 7}


def test_a_limit_that_a_budget_lowered_is_the_one_that_is_sent() -> None:
    request = replace(chat(CHAT.replace(b'"n":1', b'"max_tokens":700,"n":1')), max_tokens=5)
    assert json.loads(relayed(request))["max_tokens"] == 5


@pytest.mark.parametrize(
    "change",
    [
        {"dialect": "openai_responses"},
        {"dialect": ""},
        {"body": b""},
        {"body": b"[]"},
        {"body": b'{"model":"a","messages":[],"model":"b"}'},
    ],
)
def test_a_body_that_cannot_be_relayed_is_written_anew(change: dict[str, Any]) -> None:
    sent = json.loads(relayed(replace(chat(), **change)))
    assert sent == {
        "model": "gpt-4o", "messages": [{"role": "user", "content": "hé"}], "temperature": 0.7, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip


def test_thinking_in_the_messages_is_kept_from_those_who_would_refuse_it_and_named() -> None:
    body = CHAT.replace(b'"messages":[', b'"messages":[{"role":"assistant","content":"a","reasoning_content":"hm"},')
    assert b"reasoning_content" in relayed(chat(body)) and b"reasoning_content" not in relayed(chat(body), OPENAI)
    assert "thinking" in OpenAIWire("openai", OPENAI).dropped(chat(body))


def test_completions_are_relayed_too() -> None:
    body = b'{"model":"freehold","prompt":"x","stream":true,"stream_options":{"include_usage":true},"future":1.0}'
    request, _ = openai_completions.decode(body, "r")
    assert relayed(replace(request, model="m")) == body.replace(b"freehold", b"m")


MESSAGES = (
    b'{"model":"freehold","max_tokens":9000,"stream":true,"thinking":{"type":"enabled","budget_tokens":2048},'
    b'"system":[{"type":"text","text":"s","cache_control":{"type":"ephemeral"}}],"tools":[{"type":"web_search_20250305",'
    b'"name":"web_search"}],"messages":[{"role":"user","content":"x"},{"role":"assistant","content":[{"type":"thinking",'
    b'"thinking":"t","signature":"s"},{"type":"text","text":"y"}]},{"role":"user","content":"z"}],"top_p":0.950}'
)
ANTHROPIC = AnthropicWire("anthropic")


def messages(body: bytes = MESSAGES) -> Request:
    request, _ = anthropic_messages.decode(body, "r")
    return replace(request, model="claude")


def test_a_messages_body_keeps_its_caching_its_seals_and_the_providers_own_tools() -> None:
    assert ANTHROPIC.body(messages()) == MESSAGES.replace(b'"freehold"', b'"claude"')
    assert ANTHROPIC.dropped(messages()) == ()


def test_thinking_of_another_backend_is_not_relayed_for_anthropic_would_refuse_it() -> None:
    body = MESSAGES.replace(b',"signature":"s"', b',"signature":""')
    sent = json.loads(ANTHROPIC.body(messages(body)))
    assert "thinking" not in json.dumps(sent["messages"])
    assert "thinking" in ANTHROPIC.dropped(messages(body))


def test_the_clients_own_prefill_is_relayed_and_another_beginning_is_added() -> None:
    body = (
        b'{"model":"f","max_tokens":5,"messages":[{"role":"user","content":"x"},{"role":"assistant","content":"It"}]}'
    )
    request = messages(body)
    assert request.continue_from == "It"
    assert json.loads(ANTHROPIC.body(request))["messages"] == json.loads(body)["messages"]
    later = json.loads(ANTHROPIC.body(replace(request, continue_from="It is")))["messages"]
    assert later[-1] == {"role": "assistant", "content": "It is"} and len(later) == 2


def test_sampling_that_was_taken_away_is_taken_from_messages_too() -> None:
    body = MESSAGES.replace(b'"top_p":0.950', b'"top_k":5')
    assert json.loads(ANTHROPIC.body(messages(body)))["top_k"] == 5
    assert "top_k" not in json.loads(ANTHROPIC.body(replace(messages(body), sampling=Sampling())))


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)


@settings(deadline=None, derandomize=True)
@given(
    st.dictionaries(st.text(), VALUES),
    st.dictionaries(st.text(), st.none() | VALUES),
    st.randoms(use_true_random=False),
)
def test_splicing_does_to_the_text_what_it_says_about_the_object(
    given_: dict[str, Any], changes: dict[str, Any], chance: random.Random
) -> None:
    separators = (chance.choice([",", " , ", ",\n"]), chance.choice([":", " :\t"]))
    body = json.dumps(given_, ensure_ascii=chance.random() < 0.5, separators=separators)
    try:
        raw = body.encode()
    except UnicodeEncodeError:
        raw = json.dumps(given_, separators=separators).encode()
    names = [name for name in changes if not any("\ud800" <= c <= "\udfff" for c in name)]
    spliced = JsonObject(raw).spliced(
        {name: None if changes[name] is None else json.dumps(changes[name]).encode() for name in names}
    )
    expected = {name: value for name, value in given_.items() if name not in names}
    expected |= {name: changes[name] for name in names if changes[name] is not None}
    assert json.loads(spliced) == expected
    assert JsonObject(raw).spliced({}) == raw


BAD = [b"", b"[]", b"{", b'{"a":1', b'{"a":1,}', b'{"a":1,"a":1}', b'{"a":1,"b":2,"a":3}', b'{"a":3,"b":2,"a":3}',
       b'{"a":1}x', b'{"\\u0061":1,"a":1}', b"\xff", b'{"a":' * 9999]  # fmt: skip


@pytest.mark.parametrize("body", BAD)
def test_what_is_no_object_or_names_a_member_twice_is_not_spliced(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"not a JSON object|twice"):
        JsonObject(body)
