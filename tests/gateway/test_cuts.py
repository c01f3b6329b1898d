"""A provider's stream is cut at each of sixty places, in every dialect: the client sees one whole answer."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.gateway import fakes
from tests.gateway.fakes import provider, response

from freehold.gateway.policy import Policy
from freehold.gateway.service import Gateway
from freehold.settings import BreakerSettings, GuardSettings, RouterSettings, RouteSettings

CUTS = 60
QUIET = BreakerSettings(ping_seconds=0)
STORY = "".join(f"word{i} ünd 你好 🙂 " if i % 7 == 3 else f"word{i} " for i in range(CUTS + 5))
PIECES = STORY.replace(" ", " \n").split("\n")[: CUTS + 5]


def chunk(delta: dict[str, Any]) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    return b"data: " + json.dumps({"model": "gpt", "choices": [choice]}).encode() + b"\n\n"


def cut_after(pieces: int) -> list[bytes | None]:
    said = b"".join(chunk({"content": piece}) for piece in PIECES[:pieces])
    return [response(chunk({"role": "assistant", "content": ""}) + said)]


def events(raw: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in raw.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def chat(raw: str) -> tuple[str, int]:
    seen = events(raw)
    choices = [choice for chunk in seen for choice in chunk["choices"]]
    assert raw.rstrip().endswith("data: [DONE]") and raw.count("[DONE]") == 1
    assert len({chunk["id"] for chunk in seen}) == 1
    assert [c["finish_reason"] for c in choices if c["finish_reason"]] == ["stop"]
    (usage,) = [chunk["usage"] for chunk in seen if chunk.get("usage")]
    return "".join(c["delta"].get("content") or "" for c in choices), usage["completion_tokens"]


def messages(raw: str) -> tuple[str, int]:
    seen = events(raw)
    kinds = Counter(event["type"] for event in seen)
    for once in ("message_start", "content_block_start", "content_block_stop", "message_delta", "message_stop"):
        assert kinds[once] == 1, kinds
    (end,) = [event for event in seen if event["type"] == "message_delta"]
    assert end["delta"]["stop_reason"] == "end_turn" and seen[-1]["type"] == "message_stop"
    text = "".join(event["delta"]["text"] for event in seen if event["type"] == "content_block_delta")
    return text, end["usage"]["output_tokens"]


def responses(raw: str) -> tuple[str, int]:
    seen = events(raw)
    assert [event["sequence_number"] for event in seen] == list(range(len(seen)))
    kinds = Counter(event["type"] for event in seen)
    for once in ("response.created", "response.output_text.done", "response.completed"):
        assert kinds[once] == 1, kinds
    done = seen[-1]["response"]
    assert {event["response"]["id"] for event in seen if "response" in event} == {done["id"]}
    text = "".join(event["delta"] for event in seen if event["type"] == "response.output_text.delta")
    assert done["output"][-1]["content"][0]["text"] == text
    return text, done["usage"]["output_tokens"]


ASK = [{"role": "user", "content": "Tell me a story."}]
DIALECTS: dict[str, tuple[str, dict[str, Any], Any]] = {
    "chat": ("/v1/chat/completions", {"messages": ASK, "stream_options": {"include_usage": True}}, chat),
    "messages": ("/v1/messages", {"messages": ASK, "max_tokens": 4000}, messages),
    "responses": ("/v1/responses", {"input": "Tell me a story."}, responses),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_sixty_cuts_lose_nothing_and_repeat_nothing(directory: Path, dialect: str) -> None:
    path, body, read = DIALECTS[dialect]

    def rest(prompt: str, request: Any) -> str:
        return STORY.removeprefix(prompt.rpartition("<|assistant|>")[2])

    core = fakes.core(directory, rest)
    policy = Policy(RouterSettings(), (RouteSettings("story", ("one", "local")),))
    with provider(*[cut_after(n) for n in range(1, CUTS + 1)]) as found:
        gateway = Gateway(core, [fakes.upstream(found.url, "one")], GuardSettings(), policy=policy, breaker=QUIET)
        with fakes.live(gateway) as live, httpx2.Client(timeout=30) as client:
            for cut in range(1, CUTS + 1):
                answer = client.post(live.url + path, json=body | {"model": "story", "stream": True})
                assert answer.headers["x-freehold-backend"] == "one", (cut, answer.text)
                text, tokens = read(answer.text)
                assert text == STORY, cut
                assert tokens == pytest.approx(len(STORY.encode()), abs=2)  # a byte is a token of this model
                assert len(found.requests) == cut  # each really began at the provider
                live.loop.soon(lambda: gateway.router.breaker.succeeded("one"))
                live.until(lambda: gateway.router.breaker.state("one") == "closed")
