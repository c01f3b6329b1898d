"""Bodies that mean harm, in every dialect's decoder: each is taken or refused in words, none is a bug of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from freehold.gateway.dialects import anthropic_messages, openai_chat, openai_responses
from freehold.gateway.dialects.leftovers import LONGEST_NAME, MOST_NAMES, unknown
from freehold.gateway.dialects.openai_responses import Memory
from freehold.gateway.failures import RequestError

Decode = Callable[[bytes], Any]


def responses(body: bytes) -> Any:
    return openai_responses.decode(Memory(lambda id: [], lambda id: None, lambda kept: None), body, "id")


DIALECTS: dict[str, tuple[Decode, bytes]] = {
    "messages": (
        lambda body: anthropic_messages.decode(body, "id"),
        b'{"model":"m","max_tokens":5,"messages":[{"role":"user","content":"x","zz":%s}]}',
    ),
    "chat": (
        lambda body: openai_chat.decode(body, "id"),
        b'{"model":"m","messages":[{"role":"user","content":"x","zz":%s}]}',
    ),
    "responses": (responses, b'{"model":"m","input":[{"role":"user","content":"x","zz":%s}]}'),
}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    "junk", [b"1e999", b"[-1e400]", b'"\\ud800"', b"-", b'"\\x"', b"\xff", b"[" * 500 + b"]" * 500, b"{" * 9]
)
def test_junk_in_a_field_nobody_knows_is_refused_in_words(dialect: str, junk: bytes) -> None:
    decode, body = DIALECTS[dialect]
    with pytest.raises(RequestError):
        decode(body % junk)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("harmless", [b"1", b"9" * 60, b'"\\u0000"', b"[{}]"])
def test_what_is_only_strange_is_taken_and_named(dialect: str, harmless: bytes) -> None:
    decode, body = DIALECTS[dialect]
    request, _ = decode(body % harmless)
    assert [name.rpartition(".")[2] for name in request.dropped] == ["zz"]


def test_names_for_the_header_are_few_short_and_clean() -> None:
    many = b",".join(b'"a\\r\\nx-evil: %d,\\u00e9%s": 1' % (i, b"y" * 200) for i in range(500))
    names = unknown(b'{"model":"m","messages":[],%s}' % many, openai_chat.ChatBody)
    assert 0 < len(names) <= MOST_NAMES
    for name in names:
        assert len(name) <= LONGEST_NAME and name.isascii() and not set(name) & set("\r\n,: ")
