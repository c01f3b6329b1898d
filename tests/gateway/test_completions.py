"""Raw completions over HTTP through the official SDK."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from tests.gateway import fakes
from tests.gateway.fakes import Live

from freehold.engine.request import GenerateRequest
from freehold.gateway.service import Gateway


def reply(prompt: str, request: GenerateRequest) -> str:
    return prompt.upper()


@pytest.fixture(scope="module")
def served(directory: Path) -> Iterator[Live]:
    with fakes.live(Gateway(fakes.core(directory, reply))) as found:
        yield found


@pytest.fixture
def client(served: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0) as found:
        yield found


def test_a_text_is_continued(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt="abc")
    assert (answer.choices[0].text, answer.choices[0].finish_reason, answer.object) == (
        "ABC",
        "stop",
        "text_completion",
    )
    assert answer.usage is not None and (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 4)


def test_without_a_limit_sixteen_tokens_come(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt="x" * 40)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("X" * 16, "length")


def test_several_prompts_times_n_are_numbered_prompt_by_prompt(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt=["a", "b"], n=2)
    assert [(c.index, c.text) for c in answer.choices] == [(0, "A"), (1, "A"), (2, "B"), (3, "B")]
    assert answer.usage is not None and (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 8)


def test_prompts_may_be_token_ids(client: openai.OpenAI, served: Live) -> None:
    assert served.gateway.core is not None
    ids = served.gateway.core.tokenizer.encode("ids")
    assert client.completions.create(model="tiny", prompt=ids).choices[0].text == "IDS"
    both = client.completions.create(model="tiny", prompt=[ids, ids[:1]])
    assert [c.text for c in both.choices] == ["IDS", "I"]


def test_echo_puts_the_prompt_first_and_zero_tokens_give_only_it(client: openai.OpenAI) -> None:
    assert client.completions.create(model="tiny", prompt="abc", echo=True).choices[0].text == "abcABC"
    nothing = client.completions.create(model="tiny", prompt="abc", echo=True, max_tokens=0)
    assert (nothing.choices[0].text, nothing.choices[0].finish_reason) == ("abc", "length")


def test_a_stream_joins_to_the_whole(client: openai.OpenAI) -> None:
    chunks = list(client.completions.create(model="tiny", prompt=["abc", "de"], stream=True))
    for index, text in enumerate(("ABC", "DE")):
        mine = [c.choices[0] for c in chunks if c.choices[0].index == index]
        assert "".join(c.text for c in mine) == text
        assert [c.finish_reason for c in mine if c.finish_reason] == ["stop"]


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_name_split_characters_by_their_bytes_and_say_where_tokens_begin(
    client: openai.OpenAI, stream: bool
) -> None:
    if stream:
        found = [
            c.choices[0].logprobs for c in client.completions.create(model="tiny", prompt="aé", logprobs=1, stream=True)
        ]
        tokens = [t for part in found if part for t in part.tokens or ()]
        offsets = [o for part in found if part for o in part.text_offset or ()]
    else:
        logprobs = client.completions.create(model="tiny", prompt="aé", logprobs=1).choices[0].logprobs
        assert logprobs is not None
        tokens, offsets = logprobs.tokens or [], logprobs.text_offset or []
        assert logprobs.token_logprobs == [-0.5] * 3
        assert logprobs.top_logprobs == [{"A": -0.5}, {"bytes:\\xc3": -0.5}, {"bytes:\\x89": -0.5}]
    assert tokens == ["A", "bytes:\\xc3", "bytes:\\x89"]
    assert offsets == [0, 1, 1]  # both halves begin where the character does


def test_an_empty_prompt_starts_from_the_end_of_turn_mark(client: openai.OpenAI, served: Live) -> None:
    assert client.completions.create(model="tiny", prompt="").usage.prompt_tokens == 1  # type: ignore[union-attr]


def test_a_model_without_a_chat_template_completes_but_does_not_chat(tmp_path: Path) -> None:
    from tests.gateway import byte_model

    directory = byte_model.write(tmp_path, template=None)
    with (
        fakes.live(Gateway(fakes.core(directory, reply))) as served,
        openai.OpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0) as client,
    ):
        assert client.completions.create(model="tiny", prompt="abc").choices[0].text == "ABC"
        with pytest.raises(openai.BadRequestError, match="no chat template") as caught:
            client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "hi"}])
        assert caught.value.param == "messages"


@pytest.mark.parametrize(("turns", "text", "aside"), [(1, "hi", False), (1, "x" * 20_000, True), (1_000, "", True)])
def test_what_takes_long_to_tokenize_or_render_holds_up_nobody(
    tmp_path: Path, turns: int, text: str, aside: bool
) -> None:
    from tests.gateway import byte_model

    from freehold.gateway.conversation import Request, TextPart, Turn

    backend = fakes.core(byte_model.write(tmp_path, context=1 << 20), "ok")
    threads: list[int] = []
    render = backend.template.render  # type: ignore[union-attr]
    backend.template.render = lambda *a, **k: (threads.append(threading.get_ident()), render(*a, **k))[1]  # type: ignore

    async def ask() -> None:
        await backend.start()
        request = Request(id="a", model="tiny", turns=(Turn("user", (TextPart(text),)),) * turns)
        assert [event async for event in backend.stream(request)]

    asyncio.run(ask())
    assert (threads != [threading.get_ident()]) is aside
