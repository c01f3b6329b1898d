"""Every dialect on the real engine: a tiny random model in a process of its own, through the official SDKs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from tests.gateway import fakes
from tests.gateway.fakes import Live

from freehold.engine.process import EngineProcess
from freehold.gateway.backends.local import LocalBackend, load_text_side
from freehold.gateway.service import Gateway
from freehold.settings import EngineSettings

ENGINE = EngineSettings(threads=1, kv_memory_mb=64)
PROMPT = "tell me about the sea"
GREEDY: dict[str, Any] = {"temperature": 0.0}


@pytest.fixture(scope="module")
def served(directory: Path) -> Iterator[Live]:
    tokenizer, template = load_text_side(directory)
    core = LocalBackend(EngineProcess(directory, ENGINE), tokenizer, template, "tiny")
    with fakes.live(Gateway(core)) as found:
        yield found


@pytest.fixture
def claude(served: Live) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=served.url, api_key="none", max_retries=0) as found:
        yield found


@pytest.fixture
def client(served: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0) as found:
        yield found


def test_all_dialects_get_the_same_answer_streamed_or_not(claude: anthropic.Anthropic, client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": PROMPT}]
    chat = client.chat.completions.create(model="tiny", messages=messages, max_tokens=12, **GREEDY)
    response = client.responses.create(model="tiny", input=PROMPT, max_output_tokens=12, **GREEDY)
    message = claude.messages.create(model="tiny", messages=messages, max_tokens=12, extra_body=GREEDY)
    text = chat.choices[0].message.content
    assert text and response.output_text == text
    assert message.content[0].type == "text" and message.content[0].text == text
    with claude.messages.stream(model="tiny", messages=messages, max_tokens=12, extra_body=GREEDY) as stream:
        assert stream.get_final_text() == text
    events = client.responses.create(model="tiny", input=PROMPT, max_output_tokens=12, stream=True, **GREEDY)
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == text
    usage = chat.usage
    assert usage is not None and response.usage is not None
    assert usage.prompt_tokens == response.usage.input_tokens == message.usage.input_tokens
    assert usage.completion_tokens == response.usage.output_tokens == message.usage.output_tokens


def test_a_count_is_what_the_answer_reports_and_the_stream_begins_with(claude: anthropic.Anthropic) -> None:
    given: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": PROMPT}], "system": "be brief"}
    count = claude.messages.count_tokens(**given).input_tokens
    assert claude.messages.create(max_tokens=4, **given).usage.input_tokens == count
    events = list(claude.messages.create(max_tokens=4, stream=True, **given))
    assert events[0].type == "message_start" and events[0].message.usage.input_tokens == count


def test_a_stored_conversation_asks_what_a_spelled_out_one_does(client: openai.OpenAI) -> None:
    first = client.responses.create(model="tiny", input=PROMPT, max_output_tokens=6, **GREEDY)
    stored = client.responses.create(
        model="tiny", input="and then?", previous_response_id=first.id, max_output_tokens=6, **GREEDY
    )
    spelled: list[Any] = [
        {"role": "user", "content": PROMPT},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "and then?"},
    ]
    again = client.responses.create(model="tiny", input=spelled, max_output_tokens=6, **GREEDY)
    assert stored.output_text == again.output_text
    assert stored.usage is not None and again.usage is not None
    assert stored.usage.input_tokens == again.usage.input_tokens


def test_a_prefill_is_gone_on_from_and_not_repeated(claude: anthropic.Anthropic) -> None:
    def behind(begun: str, tokens: int) -> str:
        turns: list[Any] = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": begun}]
        block = claude.messages.create(model="tiny", messages=turns, max_tokens=tokens, extra_body=GREEDY).content[0]
        assert block.type == "text"
        return block.text

    rest = behind("The sea", 11)
    assert rest[:1].isascii() and len(rest) > 4  # its first character is one byte, so one token of the eleven
    assert behind("The sea" + rest[:1], 10) == rest[1:]
    assert behind("The sky", 11) != rest


def test_asynchronous_clients_of_both_kinds_are_answered_side_by_side(served: Live) -> None:
    async def run() -> list[str]:
        async with (
            anthropic.AsyncAnthropic(base_url=served.url, api_key="none", max_retries=0) as claude,
            openai.AsyncOpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0) as client,
        ):

            async def message() -> str:
                ask: list[Any] = [{"role": "user", "content": PROMPT}]
                async with claude.messages.stream(model="tiny", messages=ask, max_tokens=8, extra_body=GREEDY) as s:
                    return await s.get_final_text()

            async def response() -> str:
                got = await client.responses.create(model="tiny", input=PROMPT, max_output_tokens=8, **GREEDY)
                return got.output_text

            return list(await asyncio.gather(*[work() for _ in range(4) for work in (message, response)]))

    assert len(set(asyncio.run(run()))) == 1
