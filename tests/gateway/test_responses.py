"""OpenAI Responses over HTTP through the official SDK: typed events in legal order, stored conversations, tools."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import openai
import pydantic
import pytest
from tests.gateway import fakes
from tests.gateway import stage as stages
from tests.gateway.fakes import Live
from tests.gateway.stage import Stage

from freehold.engine.request import GenerateRequest
from freehold.errors import ContextLengthError, OverloadedError
from freehold.gateway.conversation import (
    Event,
    Finished,
    ImagePart,
    Reasoning,
    ReasoningDelta,
    Request,
    Started,
    TextDelta,
    TextPart,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from freehold.gateway.service import Gateway

WEATHER: dict[str, Any] = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}}
HELLO: list[Event] = [Started("play"), TextDelta("Hel"), TextDelta("lo"), Finished("stop"), Usage(4, 2, 1)]
EVERYTHING: list[Event] = [
    Started("play"),
    ReasoningDelta("Let me "),
    ReasoningDelta("look.", signature="sealed"),
    TextDelta("I look "),
    TextDelta("it up."),
    ToolCallDelta(0, "call_1", "weather", '{"city": '),
    ToolCallDelta(0, arguments='"Köln"}'),
    ToolCallDelta(1, "call_2", "weather", "{}"),
    Finished("tool_calls"),
    Usage(7, 9, cached_tokens=3, reasoning_tokens=4),
]


def reply(prompt: str, request: GenerateRequest) -> str:
    """Repeats all that users said, newest last."""
    return "|".join(part.split("<|end|>")[0] for part in prompt.split("<|user|>")[1:])


@pytest.fixture(scope="module")
def served(directory: Path) -> Iterator[Live]:
    with fakes.live(Gateway(fakes.core(directory, reply))) as found:
        yield found


@pytest.fixture
def client(served: Live) -> Iterator[openai.OpenAI]:
    with stages.openai_client(served) as found:
        yield found


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with stages.responses(HELLO) as found:
        yield found


def test_a_response_is_whole_and_typed(stage: Stage) -> None:
    answer = stage.ask(instructions="be kind", metadata={"a": "b"}, max_output_tokens=99)
    assert answer.output_text == "Hello" and answer.status == "completed" and answer.id.startswith("resp_")
    assert (answer.instructions, answer.metadata, answer.max_output_tokens) == ("be kind", {"a": "b"}, 99)
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.total_tokens) == (4, 2, 6)
    assert answer.usage.input_tokens_details.cached_tokens == 1
    assert answer.error is None and answer.incomplete_details is None and answer.model == "play"
    assert [(turn.role, turn.text) for turn in stage.backend.last.turns] == [("system", "be kind"), ("user", "hi")]


def test_a_stream_numbers_every_event_and_keeps_the_legal_order(stage: Stage) -> None:
    events = stage.stream(EVERYTHING, tools=[WEATHER])
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = ["response.content_part.added", "response.output_text.delta", "response.output_text.delta",
            "response.output_text.done", "response.content_part.done"]  # fmt: skip
    thought = [kind.replace("output_text", "reasoning_text") for kind in text]
    call = ["response.function_call_arguments.delta"]
    done = ["response.function_call_arguments.done"]

    def item(*inside: str) -> list[str]:
        return ["response.output_item.added", *inside, "response.output_item.done"]

    assert [event.type for event in events] == [
        "response.created", "response.in_progress", *item(*thought), *item(*text), *item(*call * 2, *done),
        *item(*call, *done), "response.completed",
    ]  # fmt: skip
    assert events[0].response.status == "in_progress" and events[0].response.output == []


def test_deltas_add_up_to_what_is_done_and_to_the_final_response(stage: Stage) -> None:
    events = stage.stream(EVERYTHING, tools=[WEATHER])
    final = events[-1].response
    items = [event.item for event in events if event.type == "response.output_item.done"]
    assert [item.model_dump() for item in items] == [item.model_dump() for item in final.output]
    for index, output in enumerate(final.output):
        mine = [event for event in events if getattr(event, "output_index", None) == index]
        deltas = "".join(event.delta for event in mine if event.type.endswith(".delta"))
        finals = [getattr(event, "text", None) or getattr(event, "arguments", None) for event in mine]
        assert deltas in finals
        assert {event.item_id for event in mine if hasattr(event, "item_id")} == {output.id}
    reasoning, message, first, second = final.output
    assert reasoning.content[0].text == "Let me look." and reasoning.encrypted_content == "sealed"
    assert message.content[0].text == "I look it up."
    assert (first.call_id, first.name, first.arguments) == ("call_1", "weather", '{"city": "Köln"}')
    assert second.arguments == "{}" and final.usage.output_tokens_details.reasoning_tokens == 4


def test_a_whole_response_is_the_streamed_one(stage: Stage) -> None:
    whole = stage.ask(EVERYTHING, tools=[WEATHER])
    streamed = stage.stream(EVERYTHING, tools=[WEATHER])[-1].response

    def shape(response: Any) -> Any:
        skipped = {"id", "created_at", "completed_at"}
        given = response.model_dump(exclude=skipped)
        for item in given["output"]:
            item["id"] = item["id"].replace(response.id.removeprefix("resp_"), "")
        return given

    assert shape(whole) == shape(streamed)


def test_thinking_is_a_summary_for_those_who_ask_for_summaries(stage: Stage) -> None:
    events = stage.stream(EVERYTHING, reasoning={"effort": "low", "summary": "auto"})
    kinds = [event.type for event in events if "reasoning" in event.type]
    assert kinds == ["response.reasoning_summary_part.added", "response.reasoning_summary_text.delta",
                     "response.reasoning_summary_text.delta", "response.reasoning_summary_text.done",
                     "response.reasoning_summary_part.done"]  # fmt: skip
    assert events[-1].response.output[0].summary[0].text == "Let me look."
    assert stage.backend.last.reasoning_effort == "low"


def test_the_stream_helper_and_the_parse_helper_understand_it(stage: Stage) -> None:
    class Point(pydantic.BaseModel):
        x: int

    script = [Started("play"), TextDelta('{"x": '), TextDelta("3}"), Finished("stop"), Usage(1, 1)]
    stage.backend.script = script
    parsed = stage.client.responses.parse(model="stage.play", input="hi", text_format=Point)
    assert parsed.output_parsed == Point(x=3)
    asked = stage.backend.last.response_format
    assert asked is not None and asked["json_schema"]["name"] == "Point" and asked["json_schema"]["strict"] is True
    with stage.client.responses.stream(model="stage.play", input="hi", text_format=Point) as stream:
        kinds = {event.type for event in stream}
        assert stream.get_final_response().output_parsed == Point(x=3)
    assert "response.output_text.delta" in kinds and "response.completed" in kinds


def test_asynchronous_clients_stream_too(stage: Stage) -> None:
    stage.backend.script = HELLO

    async def run() -> str:
        async with openai.AsyncOpenAI(base_url=stage.live.url + "/v1", api_key="none", max_retries=0) as client:
            stream = await client.responses.create(model="stage.play", input="hi", stream=True)
            return "".join([e.delta async for e in stream if e.type == "response.output_text.delta"])

    assert asyncio.run(run()) == "Hello"


def test_items_become_turns(stage: Stage) -> None:
    items = [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": [
            {"type": "input_text", "text": "look"},
            {"type": "input_image", "image_url": "https://example.com/a.png", "detail": "low"},
        ]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}],
         "encrypted_content": "sig"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "calling"}]},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
        {"type": "function_call", "call_id": "c2", "name": "weather", "arguments": "{ }"},
        {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "rain"}]},
    ]  # fmt: skip
    stage.ask(input=items, tools=[WEATHER], parallel_tool_calls=False, temperature=0.5, top_p=0.25, user="u")
    asked = stage.backend.last
    system, look, calling, sunny, rain = asked.turns
    assert (system.role, system.text) == ("system", "be kind")
    assert look.parts == (TextPart("look"), ImagePart("https://example.com/a.png", "low"))
    assert calling.reasoning == (Reasoning("hm", "sig"),) and calling.text == "calling"
    assert calling.tool_calls == (ToolCall("c1", "weather", "{}"), ToolCall("c2", "weather", "{ }"))
    assert (sunny.role, sunny.tool_call_id, sunny.text) == ("tool", "c1", "sunny")
    assert (rain.tool_call_id, rain.text) == ("c2", "rain")
    assert asked.parallel_tool_calls is False and asked.user == "u"
    assert (asked.sampling.temperature, asked.sampling.top_p) == (0.5, 0.25)
    assert asked.dialect == "openai_responses" and asked.body


def test_a_text_and_its_items_ask_the_same(stage: Stage) -> None:
    stage.ask(input="hi")
    first = stage.backend.last.turns
    stage.ask(input=[{"role": "user", "content": "hi"}])
    assert stage.backend.last.turns == first


def test_an_earlier_response_is_recalled_with_its_tools_results(stage: Stage) -> None:
    first = stage.ask(EVERYTHING, tools=[WEATHER])
    calls = [item for item in first.output if item.type == "function_call"]
    outputs = [{"type": "function_call_output", "call_id": call.call_id, "output": call.call_id} for call in calls]
    second = stage.ask(previous_response_id=first.id, input=outputs)
    third = stage.ask(previous_response_id=second.id, input="and now?")
    roles = [(turn.role, turn.text, turn.tool_call_id) for turn in stage.backend.last.turns]
    assert roles == [
        ("user", "hi", None), ("assistant", "I look it up.", None), ("tool", "call_1", "call_1"),
        ("tool", "call_2", "call_2"), ("assistant", "Hello", None), ("user", "and now?", None),
    ]  # fmt: skip
    assistant = stage.backend.last.turns[1]
    assert [call.id for call in assistant.tool_calls] == ["call_1", "call_2"]
    assert assistant.reasoning == (Reasoning("Let me look.", "sealed"),)
    assert third.previous_response_id == second.id and stage.backend.last.body == b""


def test_instructions_are_not_carried_over(stage: Stage) -> None:
    first = stage.ask(instructions="old")
    stage.ask(previous_response_id=first.id, input="b", instructions="new")
    assert [turn.text for turn in stage.backend.last.turns if turn.role == "system"] == ["new"]


def test_the_engine_recalls_too(client: openai.OpenAI) -> None:
    first = client.responses.create(model="tiny", input="nonce 4711")
    second = client.responses.create(model="tiny", input="again", previous_response_id=first.id)
    assert second.output_text == "nonce 4711|again"


def test_responses_are_found_listed_and_deleted(stage: Stage) -> None:
    first = stage.ask(EVERYTHING)
    second = stage.ask(previous_response_id=first.id, input="two")
    found = stage.client.responses.retrieve(second.id)
    assert found.model_dump() == second.model_dump()
    listed = list(stage.client.responses.input_items.list(second.id, order="asc"))
    assert listed[0].content[0].text == "hi" and listed[-1].content[0].text == "two"  # type: ignore[union-attr]
    newest = stage.client.responses.input_items.list(second.id, limit=1)
    assert newest.data[0].id == listed[-1].id and newest.has_more
    following = list(stage.client.responses.input_items.list(second.id, limit=2))  # the SDK turns the pages
    assert [item.id for item in following] == [item.id for item in reversed(listed)]
    stage.client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        stage.client.responses.retrieve(first.id)
    with pytest.raises(openai.BadRequestError) as caught:
        stage.ask(previous_response_id=first.id)
    assert (caught.value.code, caught.value.param) == ("previous_response_not_found", "previous_response_id")


def test_items_can_be_referred_to(stage: Stage) -> None:
    first = stage.ask()
    stage.ask(input=[{"type": "item_reference", "id": first.output[0].id}, {"role": "user", "content": "go on"}])
    assert [(turn.role, turn.text) for turn in stage.backend.last.turns] == [("assistant", "Hello"), ("user", "go on")]
    with pytest.raises(openai.NotFoundError):
        stage.ask(input=[{"type": "item_reference", "id": "msg_unknown_0"}])


def test_what_is_not_to_be_stored_is_not(stage: Stage) -> None:
    answer = stage.ask(store=False)
    assert answer.store is False  # type: ignore[attr-defined]
    with pytest.raises(openai.NotFoundError):
        stage.client.responses.retrieve(answer.id)


def test_a_limit_leaves_the_last_item_incomplete(stage: Stage) -> None:
    script = [*EVERYTHING[:6], Finished("length"), Usage(1, 1)]
    for response in (stage.ask(script), stage.stream(script)[-1].response):
        assert response.status == "incomplete" and response.incomplete_details.reason == "max_output_tokens"
        assert [item.status for item in response.output] == ["completed", "completed", "incomplete"]
    assert stage.stream(script)[-1].type == "response.incomplete"


def test_a_break_inside_a_stream_is_response_failed(stage: Stage) -> None:
    stage.backend.error = OverloadedError("the engine is full")
    try:
        events = stage.stream([Started("play"), TextDelta("half")])
    finally:
        stage.backend.error = None
        stage.live.gateway.router.breaker.succeeded(stage.backend.name)
    last = events[-1]
    assert last.type == "response.failed" and last.response.status == "failed"
    assert last.response.error.code == "server_error" and "full" in last.response.error.message
    assert last.sequence_number == len(events) - 1


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_are_included_when_asked_for(stage: Stage, stream: bool) -> None:
    tokens = (TokenLogprob(b"He", -0.5, (TokenLogprob(b"He", -0.5),)), TokenLogprob(b"y", -1.0))
    script = [Started("play"), TextDelta("Hey", tokens), Finished("stop"), Usage(1, 2)]
    given: dict[str, Any] = {"include": ["message.output_text.logprobs"], "top_logprobs": 1}
    answer = stage.stream(script, **given)[-1].response if stream else stage.ask(script, **given)
    found = answer.output[0].content[0].logprobs
    assert [(t.token, t.logprob, len(t.top_logprobs)) for t in found] == [("He", -0.5, 1), ("y", -1.0, 0)]
    assert stage.backend.last.logprobs == 1
    assert stage.ask(script).output[0].content[0].logprobs == []


def test_allowed_tools_are_all_that_is_offered(stage: Stage) -> None:
    other = WEATHER | {"name": "other"}
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "other"}]}
    answer = stage.ask(tools=[WEATHER, other], tool_choice=choice)
    assert [tool.name for tool in stage.backend.last.tools] == ["other"]
    assert stage.backend.last.tool_choice == "required"
    assert answer.tool_choice.model_dump(exclude_none=True) == choice
    assert [tool.name for tool in answer.tools] == ["weather", "other"]


def test_tools_are_echoed_with_their_nulls(stage: Stage) -> None:
    echoed = stage.post(tools=[{"type": "function", "name": "f"}]).json()["tools"]
    assert echoed == [{"type": "function", "name": "f", "description": None, "parameters": None, "strict": None}]


def test_what_cannot_be_carried_is_named(stage: Stage) -> None:
    answer = stage.post(
        tools=[{"type": "web_search"}, WEATHER], include=["file_search_call.results"], service_tier="auto"
    )
    assert set(answer.headers["x-freehold-dropped"].split(",")) == {
        "tools.web_search", "include.file_search_call.results", "service_tier",
    }  # fmt: skip


def test_truncation_leaves_out_the_oldest_turns_and_only_when_allowed(stage: Stage) -> None:
    def fits_three(request: Request) -> Sequence[Event]:
        if len(request.turns) > 3:
            raise ContextLengthError("too long", limit=30, requested=10 * len(request.turns))
        return HELLO

    items = [{"role": "system", "content": "s"}]
    for i in range(6):
        items += [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": f"answer {i}"}]
    items += [{"role": "user", "content": "the last"}]
    with pytest.raises(openai.BadRequestError) as caught:
        stage.ask(fits_three, input=items)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input")
    raw = stage.client.responses.with_raw_response.create(model="stage.play", input=items, truncation="auto")
    kept = [turn.text for turn in stage.backend.last.turns]
    assert kept[0] == "s" and kept[-1] == "the last" and len(kept) <= 3
    assert "input.oldest" in raw.headers["x-freehold-dropped"]


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"input": None}, "input", "missing_required_parameter"),
        ({"input": 5}, "input", "invalid_type"),
        ({"input": [{"type": "smell"}]}, "input[0].type", "invalid_value"),
        ({"input": [{"role": "user", "content": [{"type": "input_video"}]}]}, "input[0].content[0].type",
         "invalid_value"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": ""}]}, "input[0].call_id",
         "missing_required_parameter"),
        ({"background": True}, "background", "unsupported_parameter"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"tool_choice": {"type": "function", "name": "g"}, "tools": [WEATHER]}, "tool_choice.name", "invalid_value"),
        ({"tools": [{"type": "function"}]}, "tools[0].name", "missing_required_parameter"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema",
         "missing_required_parameter"),
        ({"temperature": 3}, "temperature", "decimal_above_max_value"),
        ({"metadata": {"k": "v" * 513}}, "metadata", "invalid_value"),
        ({"previous_response_id": "resp_none"}, "previous_response_id", "previous_response_not_found"),
        ({"truncation": "some"}, "truncation", "invalid_value"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_wrong_field_is_named(stage: Stage, changes: dict[str, Any], param: str, code: str) -> None:
    answer = stage.post(**changes)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, code)
