"""Requests: every bad value is one clear error, and what travels arrives unchanged."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from freehold.engine.request import GenerateRequest, Sampling, TokenOutput
from freehold.errors import UsageError


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 1e-45),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("seed", 2**64),
        ("max_tokens", 0),
        ("logprobs", -1),
        ("logprobs", 101),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_name_and_value(field: str, value: float) -> None:
    with pytest.raises(UsageError) as caught:
        Sampling(**{field: value})
    assert field in caught.value.message
    assert str(value) in caught.value.message


def test_a_bad_bias_is_refused_by_its_token() -> None:
    with pytest.raises(UsageError, match=r"logit_bias\[5\] must be at least -100 and at most 100, got 101"):
        Sampling(logit_bias={5: 101})
    with pytest.raises(UsageError, match="at most 4096 entries"):
        Sampling(logit_bias=dict.fromkeys(range(4097), 1.0))


def test_an_empty_prompt_or_id_is_refused() -> None:
    with pytest.raises(UsageError, match="prompt of request a must have at least one token"):
        GenerateRequest("a", [], Sampling())
    with pytest.raises(UsageError, match="needs an id"):
        GenerateRequest("", [1], Sampling())


def test_limits_themselves_are_allowed() -> None:
    Sampling(
        temperature=0, top_p=1, min_p=1, presence_penalty=-2, frequency_penalty=2, seed=-1, max_tokens=1, logprobs=0
    )


@pytest.mark.parametrize(
    "value",
    [
        GenerateRequest(
            "a",
            [1, 2],
            Sampling(logit_bias={7: -1.5}, seed=2**64 - 1, stop_ids=frozenset({3, 4}), max_tokens=9, logprobs=2),
        ),
        TokenOutput("a", 5, -0.25, [(5, -0.25), (6, -1.0)], "stop", 10, 0, None),
        TokenOutput("a", None, finish="error", error="why"),
    ],
)
def test_messages_survive_encoding(value: Any) -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=type(value)) == value
