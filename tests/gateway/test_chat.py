"""Chat completions over HTTP through the official SDK, on a scripted engine whose every answer is known."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.gateway import fakes
from tests.gateway.fakes import Live

from freehold.engine.request import GenerateRequest
from freehold.gateway.service import Gateway

ASK: list[Any] = [{"role": "user", "content": "hi"}]


def reply(prompt: str, request: GenerateRequest) -> str:
    """Repeats the last user's words; seeds make choices differ."""
    text = prompt.rsplit("<|user|>", 1)[-1].split("<|end|>")[0]
    return text if request.sampling.seed is None else f"{text}#{request.sampling.seed}"


@pytest.fixture(scope="module")
def served(directory: Path) -> Iterator[Live]:
    with fakes.live(Gateway(fakes.core(directory, reply))) as found:
        yield found


@pytest.fixture
def client(served: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0) as found:
        yield found


def engine(served: Live) -> fakes.FakeEngine:
    assert served.gateway.core is not None
    found = served.gateway.core.engine
    assert isinstance(found, fakes.FakeEngine)
    return found


def test_a_chat_is_answered_whole(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=ASK)
    choice = answer.choices[0]
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "hi", "stop")
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-") and answer.model == "tiny"
    assert answer.system_fingerprint and answer.system_fingerprint.startswith("fp_")
    usage = answer.usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (5, 3, 8)  # marks, "hi"; h, i, end
    assert usage.prompt_tokens_details is not None and usage.prompt_tokens_details.cached_tokens == 1


def test_turns_reach_the_template_in_order_and_developer_means_system(client: openai.OpenAI, served: Live) -> None:
    messages: list[Any] = [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "d"},
    ]
    client.chat.completions.create(model="tiny", messages=messages)
    prompt = engine(served).tokenizer.decode(engine(served).requests[-1].prompt, skip_special=False)
    assert prompt == "<|system|>be kind<|end|><|user|>ab<|end|><|assistant|>c<|end|><|user|>d<|end|><|assistant|>"


def test_a_stream_says_the_role_first_one_finish_and_usage_last(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="tiny", messages=ASK, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[0].choices[0].delta.content == ""
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "hi"
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["stop"]
    assert chunks[-1].choices == [] and chunks[-1].usage is not None and chunks[-1].usage.total_tokens == 8
    assert all(c.usage is None for c in chunks[:-1])
    assert len({c.id for c in chunks}) == 1


def test_usage_is_not_streamed_unasked(client: openai.OpenAI) -> None:
    assert all(c.choices for c in client.chat.completions.create(model="tiny", messages=ASK, stream=True))


def test_characters_of_several_tokens_are_streamed_whole(client: openai.OpenAI) -> None:
    text = "日本 🙂 é"
    stream = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": text}], stream=True)
    pieces = [c.choices[0].delta.content or "" for c in stream]
    assert "".join(pieces) == text and not any("\ufffd" in piece for piece in pieces)


def test_every_choice_has_its_own_text_seed_and_finish(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=ASK, n=3, seed=7)
    assert [(c.index, c.message.content, c.finish_reason) for c in answer.choices] == [
        (0, "hi#7", "stop"), (1, "hi#8", "stop"), (2, "hi#9", "stop"),
    ]  # fmt: skip
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 15)


def test_streamed_choices_each_get_a_role_a_text_and_one_finish(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="tiny", messages=ASK, n=3, seed=7, stream=True))
    for index, text in enumerate(("hi#7", "hi#8", "hi#9")):
        mine = [c.choices[0] for c in chunks if c.choices[0].index == index]
        assert mine[0].delta.role == "assistant"
        assert "".join(c.delta.content or "" for c in mine) == text
        assert [c.finish_reason for c in mine if c.finish_reason] == ["stop"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_answer_and_no_part_of_it_leaks(
    client: openai.OpenAI, served: Live, stream: bool
) -> None:
    messages: list[Any] = [{"role": "user", "content": "one END two STOP three"}]
    given = {"model": "tiny", "messages": messages, "stop": ["STOP", "never"], "stream": stream}
    if stream:
        chunks = list(client.chat.completions.create(**given))
        text = "".join(c.choices[0].delta.content or "" for c in chunks)
        finish = chunks[-1].choices[0].finish_reason
    else:
        answer = client.chat.completions.create(**given)
        text, finish = answer.choices[0].message.content, answer.choices[0].finish_reason
    assert (text, finish) == ("one END two ", "stop")
    served.until(lambda: engine(served).requests[-1].id in engine(served).left)  # the engine was told to stop


def test_a_limit_finishes_with_length(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "abcdef"}]
    answer = client.chat.completions.create(model="tiny", messages=messages, max_completion_tokens=3)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("abc", "length")
    assert (
        client.chat.completions.create(model="tiny", messages=messages, max_tokens=2).choices[0].message.content == "ab"
    )


def test_logprobs_cover_exactly_the_text_that_is_shown(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "aé STOP"}]
    answer = client.chat.completions.create(model="tiny", messages=messages, logprobs=True, top_logprobs=2, stop="STOP")
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert b"".join(bytes(token.bytes or []) for token in logprobs.content).decode() == "aé "
    assert [token.token for token in logprobs.content] == ["a", "\ufffd", "\ufffd", " "]
    assert all(
        token.logprob == -0.5 and [t.logprob for t in token.top_logprobs] == [-0.5, -2.0] for token in logprobs.content
    )


def test_streamed_logprobs_are_those_of_the_whole_answer(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "aé ST or"}]
    given = {"model": "tiny", "messages": messages, "logprobs": True, "stop": "STOP"}
    whole = client.chat.completions.create(**given).choices[0].logprobs
    streamed = [
        token.token
        for chunk in client.chat.completions.create(**given, stream=True)
        if (found := chunk.choices[0].logprobs) and found.content
        for token in found.content
    ]
    assert whole is not None and streamed == [token.token for token in whole.content or ()]
    assert len(streamed) == len("aé ST or".encode())


def test_sampling_reaches_the_engine_and_silence_means_its_defaults(client: openai.OpenAI, served: Live) -> None:
    client.chat.completions.create(
        model="tiny", messages=ASK, temperature=0.5, top_p=0.25, presence_penalty=1, frequency_penalty=-1, seed=3,
        logit_bias={"5": -100}, extra_body={"top_k": 7, "min_p": 0.125, "repetition_penalty": 1.5},
    )  # fmt: skip
    s = engine(served).requests[-1].sampling
    assert (s.temperature, s.top_p, s.top_k, s.min_p, s.repetition_penalty) == (0.5, 0.25, 7, 0.125, 1.5)
    assert (s.presence_penalty, s.frequency_penalty, s.seed, s.logit_bias) == (1, -1, 3, {5: -100})
    assert s.stop_ids == engine(served).tokenizer.eos
    client.chat.completions.create(model="tiny", messages=ASK)
    s = engine(served).requests[-1].sampling
    assert (s.temperature, s.top_p, s.top_k, s.seed, s.max_tokens, s.logprobs) == (1.0, 1.0, 0, None, None, None)


def test_asynchronous_clients_are_answered_side_by_side(served: Live) -> None:
    async def ask() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0) as client:

            async def one(i: int) -> str | None:
                messages: list[Any] = [{"role": "user", "content": f"number {i}"}]
                return (
                    (await client.chat.completions.create(model="tiny", messages=messages)).choices[0].message.content
                )

            return await asyncio.gather(*[one(i) for i in range(16)])

    assert asyncio.run(ask()) == [f"number {i}" for i in range(16)]


def test_headers_say_who_answered_and_why(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model="tiny", messages=ASK)
    assert raw.headers["x-freehold-backend"] == "local" and raw.headers["x-freehold-reason"] == "core"
    assert len(raw.headers["x-request-id"]) == 32
    assert raw.parse().id == "chatcmpl-" + raw.headers["x-request-id"]


def test_aliases_mean_the_core(client: openai.OpenAI) -> None:
    for name in ("tiny", "local", "default", "local.tiny"):
        assert client.chat.completions.create(model=name, messages=ASK).model == "tiny"


def test_tools_that_may_not_be_called_are_no_obstacle(client: openai.OpenAI) -> None:
    tools: list[Any] = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    answer = client.chat.completions.create(model="tiny", messages=ASK, tools=tools, tool_choice="none")
    assert answer.choices[0].message.content == "hi"


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    assert [(m.id, m.owned_by, m.object) for m in client.models.list()] == [("tiny", "local", "model")]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("org/other")
    assert caught.value.code == "model_not_found"
