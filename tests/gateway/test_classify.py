"""Every refusal in tests/vectors/providers is understood for what it is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.gateway.fakes import VECTORS

from freehold.gateway.classify import classify, one_line, told_delay
from freehold.gateway.rates import retry_after

NOON = 1_795_435_200.0  # 2026-11-23T12:00:00Z, when the recorded headers were current
CASES: list[dict[str, Any]] = [
    case for file in sorted(VECTORS.glob("refusals_*.json")) for case in json.loads(file.read_text(encoding="utf-8"))
]
KINDS = ["auth", "banned", "region", "billing", "rate", "overload", "transport", "context", "content_policy", "invalid",
         "capability"]  # fmt: skip


def body_of(case: dict[str, Any]) -> bytes:
    body = case["body"]
    return body.encode() if isinstance(body, str) else json.dumps(body).encode()


@pytest.mark.parametrize("case", CASES, ids=[f"{case['status']} {case['name']}" for case in CASES])
def test_a_recorded_refusal_has_its_kind_and_its_delay(case: dict[str, Any]) -> None:
    body = body_of(case)
    assert classify(case["status"], body)[0] == case["kind"]
    told = retry_after(case["headers"], NOON)
    assert (told_delay(body) if told is None else told) == case["retry_after"]


def test_every_kind_and_every_provider_of_the_table_has_a_vector() -> None:
    assert sorted({case["kind"] for case in CASES}) == sorted(KINDS)
    assert all(case["source"].startswith("https://") for case in CASES)
    assert len(CASES) >= 60


def test_a_status_alone_would_miss_every_ban() -> None:
    banned = [case for case in CASES if case["kind"] == "banned"]
    assert {case["status"] for case in banned} == {400, 401, 403}
    assert all(classify(case["status"], b"")[0] != "banned" for case in banned)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"null", b"5", b'"x"', b'{"error": null}', b'{"error": [1]}', b'{"error": {"code": {}}}', b"\xff",
        b'{"error": {"details": [1, null, {"retryDelay": 5}]}}', b'{"error": {"details": {"retryDelay": "soon"}}}',
        b'{"error": {"innererror": 5, "message": {"x": 1}}}', b"[" * 100_000, b'{"a":' * 100_000,
    ],
)  # fmt: skip
def test_a_refusal_without_sense_is_still_one(body: bytes) -> None:
    assert classify(418, body)[0] == "invalid"
    assert classify(503, body)[0] == "overload"
    assert told_delay(body) is None


def test_a_providers_words_come_on_one_line_without_control_characters() -> None:
    kind, words = classify(500, json.dumps({"error": {"message": "a\nWARNING forged\x1b[2J\r\u2028b\u202ec"}}).encode())
    assert words == "a WARNING forged [2J b c" and kind == "transport"
    assert one_line("\x00é\t漢") == "é 漢"


def test_hostile_words_are_searched_in_linear_time() -> None:
    for words in ("try again in " + "1" * 60_000, "account " * 8_000, "spend limit " * 5_000, "consumer " * 7_000):
        body = json.dumps({"error": {"message": words}}).encode()
        assert classify(400, body)[0] == "invalid"
        assert told_delay(body) is None
