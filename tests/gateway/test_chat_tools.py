"""Tools, thinking and structured output through Chat, with the official SDK and a scripted backend."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import openai
import pydantic
import pytest
from tests.gateway import stage as stages
from tests.gateway.stage import Stage

from freehold.gateway.conversation import (
    Event,
    Finished,
    Reasoning,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from freehold.gateway.dialects import openai_chat

ASK: list[Any] = [{"role": "user", "content": "hi"}]
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {"name": "weather", "description": "tells", "parameters": {"type": "object"}, "strict": True},
}
OTHER: dict[str, Any] = {"type": "function", "function": {"name": "other"}}
CALLS: list[Event] = [
    Started("play"),
    ReasoningDelta("Let me "),
    ReasoningDelta("look.", signature="sealed"),
    ReasoningDelta("", redacted="opaque"),
    TextDelta("I look."),
    ToolCallDelta(0, "call_1", "weather", '{"city": '),
    ToolCallDelta(1, None, "weather"),
    ToolCallDelta(0, arguments='"Köln"}'),
    ToolCallDelta(1, arguments="{}"),
    Finished("tool_calls"),
    Usage(7, 9, reasoning_tokens=4),
]


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with stages.chat(CALLS) as found:
        yield found


def test_whole_calls_have_ids_names_and_arguments(stage: Stage) -> None:
    choice = stage.ask(tools=[WEATHER]).choices[0]
    first, second = choice.message.tool_calls
    assert (first.id, first.type, first.function.name) == ("call_1", "function", "weather")
    assert json.loads(first.function.arguments) == {"city": "Köln"}
    assert second.id.startswith("call_") and second.id != "call_1" and second.function.arguments == "{}"
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "I look.")


def test_streamed_calls_begin_with_index_id_and_name_and_add_up_to_the_whole(stage: Stage) -> None:
    seen: dict[int, dict[str, str]] = {}
    for chunk in stage.ask(tools=[WEATHER], stream=True):
        for delta in chunk.choices[0].delta.tool_calls or ():
            if delta.index not in seen:
                assert delta.id and delta.type == "function" and delta.function.name == "weather"
                seen[delta.index] = {"id": delta.id, "arguments": ""}
            else:
                assert delta.id is None and delta.function.name is None
            seen[delta.index]["arguments"] += delta.function.arguments
    assert [call["arguments"] for call in seen.values()] == ['{"city": "Köln"}', "{}"]
    assert seen[0]["id"] == "call_1" and seen[1]["id"].startswith("call_")


def test_the_stream_helper_understands_calls_and_thinking(stage: Stage) -> None:
    stage.backend.script = CALLS
    tools: Any = [openai.pydantic_function_tool(City, name="weather")]
    with stage.client.chat.completions.stream(model="stage.play", messages=ASK, tools=tools) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion().choices[0].message
    assert kinds.count("tool_calls.function.arguments.done") == 2
    assert final.tool_calls and final.tool_calls[0].function.parsed_arguments == City(city="Köln")


class City(pydantic.BaseModel):
    """What the weather is asked of."""

    city: str = ""


def test_the_parse_helper_gets_its_format_to_the_backend(stage: Stage) -> None:
    stage.backend.script = [Started("play"), TextDelta('{"city": "Ulm"}'), Finished("stop"), Usage(1, 1)]
    answer = stage.client.chat.completions.parse(model="stage.play", messages=ASK, response_format=City)
    assert answer.choices[0].message.parsed == City(city="Ulm")
    asked = stage.backend.last.response_format
    assert asked is not None and asked["type"] == "json_schema" and asked["json_schema"]["name"] == "City"


def test_thinking_is_shown_with_its_seal_and_can_be_given_back(stage: Stage) -> None:
    message = stage.ask().choices[0].message
    assert message.reasoning_content == "Let me look."
    assert message.reasoning_details == [
        {"type": "reasoning.text", "text": "Let me look.", "signature": "sealed", "index": 0},
        {"type": "reasoning.encrypted", "data": "opaque", "index": 1},
    ]
    pieces: list[str] = []
    details: list[Any] = []
    for chunk in stage.ask(stream=True):
        given = chunk.choices[0].delta.model_extra if chunk.choices else {}
        pieces.append(given.get("reasoning_content", ""))
        details += given.get("reasoning_details", [])
    assert "".join(pieces) == "Let me look." and details == message.reasoning_details
    stage.ask(messages=[*ASK, message.model_dump(exclude_none=True), {"role": "user", "content": "go on"}], n=1)
    assert stage.backend.last.turns[1].reasoning == (
        Reasoning("Let me look.", "sealed"),
        Reasoning(redacted="opaque"),
    )


def test_a_tool_loop_reaches_the_backend(stage: Stage) -> None:
    called = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{ }"}}
    messages = [
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [called], "reasoning_content": "hm"},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "sunny"}]},
    ]
    stage.ask(messages=messages, tools=[WEATHER], parallel_tool_calls=False, reasoning_effort="low")
    asked = stage.backend.last
    assert asked.turns[1].tool_calls == (ToolCall("c1", "weather", "{ }"),)
    assert asked.turns[1].reasoning == (Reasoning("hm"),)
    assert (asked.turns[2].role, asked.turns[2].tool_call_id, asked.turns[2].text) == ("tool", "c1", "sunny")
    tool = asked.tools[0]
    assert (tool.name, tool.description, tool.parameters, tool.strict) == ("weather", "tells", {"type": "object"}, True)
    assert (asked.parallel_tool_calls, asked.reasoning_effort, asked.dialect) == (False, "low", "openai_chat")


def test_choices_are_carried_and_allowed_tools_are_all_that_is_offered(stage: Stage) -> None:
    forced = {"type": "function", "function": {"name": "other"}}
    for choice in ("none", "auto", "required", forced):
        stage.ask(tools=[WEATHER, OTHER], tool_choice=choice)
        assert stage.backend.last.tool_choice == choice
    named = {"mode": "required", "tools": [{"type": "function", "function": {"name": "other"}}]}
    stage.ask(tools=[WEATHER, OTHER], tool_choice={"type": "allowed_tools", "allowed_tools": named})
    assert [tool.name for tool in stage.backend.last.tools] == ["other"]
    assert stage.backend.last.tool_choice == "required"


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"tool_choice": {"type": "function", "function": {"name": "g"}}, "tools": [WEATHER]},
         "tool_choice.function.name", "invalid_value"),
        ({"tool_choice": {"type": "custom"}, "tools": [WEATHER]}, "tool_choice", "invalid_value"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "missing_required_parameter"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.name",
         "missing_required_parameter"),
        ({"reasoning_effort": "huge"}, "reasoning_effort", "invalid_value"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_wrong_field_is_named(stage: Stage, changes: dict[str, Any], param: str, code: str) -> None:
    answer = stage.post(**changes)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, code)


def test_what_cannot_be_carried_is_named(stage: Stage) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]}]
    answer = stage.post(
        messages=messages, tools=[{"type": "custom", "custom": {"name": "c"}}], service_tier="flex", user=None,
        prediction={"type": "content", "content": "x"}, metadata={"deep": {"er": 1}}, verbosity=None,
    )  # fmt: skip
    assert answer.headers["x-freehold-dropped"].split(",") == [
        "messages[].content[].cache_control", "tools[].custom", "service_tier", "prediction", "metadata",
        "tools.custom",
    ]  # fmt: skip
    assert "x-freehold-dropped" not in stage.post(temperature=0.5, stop=["x"]).headers


def test_asynchronous_clients_get_calls_too(stage: Stage) -> None:
    stage.backend.script = CALLS

    async def run() -> list[str]:
        async with openai.AsyncOpenAI(base_url=stage.live.url + "/v1", api_key="none", max_retries=0) as client:
            answer = await client.chat.completions.create(model="stage.play", messages=ASK, tools=[WEATHER])  # type: ignore[list-item]
            return [call.function.name for call in answer.choices[0].message.tool_calls or ()]  # type: ignore[union-attr]

    assert asyncio.run(run()) == ["weather", "weather"]


def test_texts_are_embedded_as_numbers_or_base64(stage: Stage) -> None:
    raw = stage.client.embeddings.create(model="stage.play", input=["abc", "de"], dimensions=3, encoding_format="float")
    assert [item.embedding for item in raw.data] == [[3.0, 0.5, 0.5], [2.0, 0.5, 0.5]]
    assert raw.usage.prompt_tokens == 5 and raw.model == "play"
    packed = stage.client.embeddings.create(model="stage.play", input="abc")  # the SDK asks for base64 and unpacks it
    assert packed.data[0].embedding == [3.0, 0.5]


def test_a_model_that_does_not_embed_says_so(stage: Stage) -> None:
    with pytest.raises(openai.NotFoundError):
        stage.client.embeddings.create(model="nothing", input="x")
    with pytest.raises(openai.BadRequestError) as caught:
        stage.client.embeddings.create(model="stage.play", input=[])
    assert caught.value.param == "input"
    with pytest.raises(openai.BadRequestError) as caught:
        stage.client.embeddings.create(model="stage.play", input=["x"] * 2049)
    assert caught.value.code == "array_above_max_length"


@pytest.mark.parametrize(
    ("given", "effort", "budget"),
    [
        ({"max_tokens": 700}, None, 700),
        ({"effort": "low"}, "low", None),
        ({"enabled": False, "effort": "high"}, "none", None),
        ({"enabled": True}, "medium", None),
    ],
)
def test_openrouters_reasoning_says_effort_and_budget(
    given: dict[str, Any], effort: str | None, budget: int | None
) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "reasoning": given}
    request, _ = openai_chat.decode(json.dumps(body).encode(), "r")
    assert (request.reasoning_effort, request.reasoning_budget, request.dropped) == (effort, budget, ())


def test_vllms_name_for_a_budget_is_known_too() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "thinking_token_budget": 64}
    request, _ = openai_chat.decode(json.dumps(body).encode(), "r")
    assert (request.reasoning_budget, request.dropped) == (64, ())
