"""The local backend: tools, structured output, thinking, continuation and embeddings, on a real engine with a random
model (whatever it gets right is the grammar's doing) and on a scripted one where the words matter."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tests.gateway import byte_model, fakes
from tokenizers import decoders, models, pre_tokenizers, trainers

from freehold.engine.process import EngineProcess
from freehold.engine.request import GenerateRequest
from freehold.errors import EngineDownError
from freehold.formats.template import ChatTemplate
from freehold.gateway.backends.embedding import pooling_of
from freehold.gateway.backends.local import LocalBackend, load_text_side
from freehold.gateway.backends.prompting import Prompter
from freehold.gateway.conversation import (
    EmbeddingRequest,
    Event,
    Finished,
    ReasoningDelta,
    Request,
    Sampling,
    TextDelta,
    TextPart,
    Tool,
    ToolCallDelta,
    Turn,
    Usage,
)
from freehold.gateway.failures import CapabilityError, RequestError
from freehold.gateway.toolformats.grammars import Opening
from freehold.gateway.toolformats.marks import Family
from freehold.settings import EngineSettings

ASK = (Turn("user", (TextPart("hi"),)),)
CITY = {"type": "object", "properties": {"city": {"enum": ["Paris", "</tool_call>"]}}, "required": ["city"]}
TOOLS = (Tool("weather", "tells it", CITY), Tool("time", None, {"type": "object", "properties": {}}))


@pytest.fixture(scope="module")
def running(directory: Path) -> Iterator[tuple[fakes.Loop, LocalBackend]]:
    """The byte model in a process of its own."""
    tokenizer, template = load_text_side(directory)
    backend = LocalBackend(
        EngineProcess(directory, EngineSettings(threads=1, kv_memory_mb=16)), tokenizer, template, "t"
    )
    with fakes.Loop() as loop:
        loop.run(backend.start())
        try:
            yield loop, backend
        finally:
            loop.run(backend.close())


def test_where_a_client_says_nothing_the_models_recommendation_holds(directory: Path) -> None:
    tokenizer, template = load_text_side(directory)
    recommended = {"temperature": 0.25, "top_p": 0.5, "top_k": 9}
    backend = LocalBackend(fakes.FakeEngine(tokenizer, "x"), tokenizer, template, "t", sampling=recommended)
    silent = backend._sampling(ask(sampling=Sampling()), 0, None)
    assert (silent.temperature, silent.top_p, silent.top_k) == (0.25, 0.5, 9)
    said = backend._sampling(ask(sampling=Sampling(temperature=1.0, top_p=1.0)), 0, None)
    assert (said.temperature, said.top_p, said.top_k) == (1.0, 1.0, 9)


async def gathered(backend: LocalBackend, request: Request) -> list[Event]:
    return [event async for event in backend.stream(request)]


def ask(**fields: Any) -> Request:
    base: dict[str, Any] = {
        "id": "r",
        "model": "t",
        "turns": ASK,
        "sampling": Sampling(temperature=0),
        "max_tokens": 200,
    }
    return Request(**(base | fields))


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def calls_of(events: list[Event]) -> list[tuple[str, str]]:
    calls: list[tuple[str, str]] = []
    for event in events:
        if isinstance(event, ToolCallDelta):
            if event.name is not None:
                assert event.id is not None and event.call == len(calls)
                calls.append((event.name, ""))
            calls[-1] = (calls[-1][0], calls[-1][1] + event.arguments)
    return calls


def finish_of(events: list[Event]) -> Finished:
    (found,) = [event for event in events if isinstance(event, Finished)]
    return found


def made_up(dice: random.Random, depth: int = 0) -> dict[str, Any]:
    """A random strict schema whose answers are short."""
    kind = dice.choice(["enum", "integer", "boolean", "string", "null", "array", "object"][: 5 if depth > 2 else 7])
    if depth == 0 or kind == "object":
        properties = {f"k{i}": made_up(dice, depth + 1) for i in range(dice.randint(1, 3))}
        return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    if kind == "array":
        return {"type": "array", "items": made_up(dice, depth + 1), "minItems": 1, "maxItems": dice.randint(1, 2)}
    simple: dict[str, dict[str, Any]] = {
        "enum": {"enum": ["a", 'b"c', 3, None]},
        "integer": {"type": "integer", "minimum": dice.randint(-9, 0), "maximum": dice.randint(1, 99)},
        "string": {"type": "string", "maxLength": dice.randint(0, 5)},
    }
    return simple.get(kind, {"type": kind})


def valid(value: Any, schema: dict[str, Any]) -> bool:
    if "enum" in schema:
        return value in schema["enum"]
    match schema["type"]:
        case "object":
            named = schema["properties"]
            return list(value) == list(named) and all(valid(value[key], named[key]) for key in named)
        case "array":
            return 1 <= len(value) <= schema["maxItems"] and all(valid(item, schema["items"]) for item in value)
        case "integer":
            return type(value) is int and schema["minimum"] <= value <= schema["maximum"]
        case "string":
            return isinstance(value, str) and len(value) <= schema["maxLength"]
        case "boolean":
            return isinstance(value, bool)
    return value is None


@pytest.mark.parametrize("seed", range(20))
def test_every_answer_follows_its_strict_schema(running: tuple[fakes.Loop, LocalBackend], seed: int) -> None:
    loop, backend = running
    schema = made_up(random.Random(seed))
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}
    sampling = Sampling(temperature=1.0, seed=seed)
    events = loop.run(gathered(backend, ask(response_format=wanted, sampling=sampling, max_tokens=600)))
    assert finish_of(events).reason == "stop" and valid(json.loads(text_of(events)), schema)
    short = loop.run(gathered(backend, ask(response_format=wanted, sampling=sampling, max_tokens=4)))
    assert finish_of(short).reason == "length" and text_of(events).startswith(text_of(short))


def test_json_mode_gives_an_object_or_says_length(running: tuple[fakes.Loop, LocalBackend]) -> None:
    loop, backend = running
    wanted = {"type": "json_object"}
    for seed in range(4):
        sampling = Sampling(temperature=1.0, seed=seed)
        events = loop.run(gathered(backend, ask(response_format=wanted, sampling=sampling, max_tokens=300)))
        if finish_of(events).reason == "stop":
            assert isinstance(json.loads(text_of(events)), dict)
        else:
            assert text_of(events).startswith("{")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "blah"}}}}, "response_format"),
        ({"tools": (Tool("f", None, {"type": "blah"}),)}, "tools"),
    ],
)
def test_a_bad_schema_is_refused_by_its_field(
    running: tuple[fakes.Loop, LocalBackend], fields: dict[str, Any], param: str
) -> None:
    loop, backend = running
    with pytest.raises(CapabilityError, match="Invalid type: blah") as caught:
        loop.run(gathered(backend, ask(**fields)))
    assert caught.value.param == param and "start:" not in caught.value.message


FAMILIES = [
    Family("hermes", False, ""), Family("llama", False, "", parallel=False), Family("deepseek", False, "", "fenced"),
    Family("deepseek", False, ""), Family("mistral", False, ""), Family("mistral", False, "", "named"),
    Family("hermes", False, "", thinking=("<think>", "</think>")),
]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f"{f.kind}-{f.variant}{'-thinks' if f.thinking else ''}")
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "time"}}])
def test_a_random_model_that_must_call_calls(
    running: tuple[fakes.Loop, LocalBackend], monkeypatch: pytest.MonkeyPatch, family: Family, choice: Any
) -> None:
    loop, backend = running
    monkeypatch.setattr(backend.prompter, "family", family)
    if family.thinking:  # a random model would think for ever
        monkeypatch.setattr(backend.prompter, "_opening", lambda text: Opening())
    asked = ask(tools=TOOLS, tool_choice=choice, parallel_tool_calls=False, max_tokens=400)
    events = loop.run(gathered(backend, asked))
    ((name, arguments),) = calls_of(events)
    assert text_of(events) == "" and finish_of(events).reason == "tool_calls"
    assert name == "time" if isinstance(choice, dict) else name in ("weather", "time")
    found = json.loads(arguments)
    assert name == "time" or found["city"] in ("Paris", "</tool_call>")


def test_calls_stop_where_one_is_allowed_and_may_follow_each_other_otherwise(
    running: tuple[fakes.Loop, LocalBackend],
) -> None:
    loop, backend = running
    bias = {byte_model.BYTES.index("Ċ"): 100.0}  # a new line after a call: another one follows, where it may
    for parallel, expected in ((True, 2), (False, 1)):
        sampling = Sampling(temperature=0, logit_bias=bias)
        asked = ask(tools=TOOLS[1:], tool_choice="required", parallel_tool_calls=parallel, sampling=sampling)
        assert len(calls_of(loop.run(gathered(backend, asked)))) >= expected
        if not parallel:
            assert len(calls_of(loop.run(gathered(backend, asked)))) == 1
    named = {"type": "function", "function": {"name": TOOLS[1].name}}
    asked = ask(tools=TOOLS, tool_choice=named, sampling=Sampling(temperature=0, logit_bias=bias))
    assert len(calls_of(loop.run(gathered(backend, asked)))) == 1  # as at OpenAI


def scripted(directory: Path, reply: fakes.Reply | str, template: str | None = None) -> tuple[fakes.Loop, LocalBackend]:
    backend = fakes.core(directory, reply)
    if template is not None:
        backend = LocalBackend(backend.engine, backend.tokenizer, ChatTemplate({"default": template}), "tiny")
    backend.engine.state = "ready"  # type: ignore[misc]
    return fakes.Loop(), backend


def said(directory: Path, reply: str, template: str | None = None, **fields: Any) -> list[Event]:
    loop, backend = scripted(directory, reply, template)
    with loop:
        found: list[Event] = loop.run(gathered(backend, ask(**fields)))
    return found


CALL = 'One moment. <tool_call>\n{"name": "weather", "arguments": {"city": "</tool_call>"}}\n</tool_call>'


def test_a_call_is_streamed_name_first_without_its_markup(directory: Path) -> None:
    events = said(directory, CALL, tools=TOOLS)
    assert (text_of(events), calls_of(events)) == ("One moment.", [("weather", '{"city": "</tool_call>"}')])
    deltas = [event for event in events if isinstance(event, ToolCallDelta)]
    assert deltas[0].name == "weather" and deltas[0].arguments == "" and len(deltas) > 10
    assert all(delta.id is None for delta in deltas[1:]) and finish_of(events).reason == "tool_calls"


def test_without_tools_the_same_text_is_text(directory: Path) -> None:
    for fields in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        events = said(directory, CALL, **fields)
        assert text_of(events) == CALL and finish_of(events).reason == "stop"


def test_stop_strings_are_looked_for_in_the_answer_only(directory: Path) -> None:
    events = said(directory, CALL, tools=TOOLS, stop=("city", "moment"))
    assert (text_of(events), calls_of(events)) == ("One ", [])
    assert (finish_of(events).reason, finish_of(events).stop_sequence) == ("stop", "moment")
    assert calls_of(said(directory, CALL, tools=TOOLS, stop=("city",)))


THINKS = "{% for m in messages %}<|user|>{{ m.content }}{% endfor %}<|assistant|>{# <think> </think> #}"


@pytest.mark.parametrize("opened", [False, True])
def test_thinking_is_streamed_apart_and_counted(directory: Path, opened: bool) -> None:
    template = THINKS + ("<think>\n" if opened else "")
    reply = ("" if opened else "<think>\n") + "Hm.\n</think>\n\nYes."
    events = said(directory, reply, template)
    thought = "".join(event.text for event in events if isinstance(event, ReasoningDelta))
    assert (thought, text_of(events)) == ("Hm.", "Yes.")
    usage = events[-1]
    assert isinstance(usage, Usage) and 3 <= usage.reasoning_tokens < usage.completion_tokens


def thought_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, ReasoningDelta))


def endless(prompt: str, request: GenerateRequest) -> str:
    """Thinks for ever, unless somebody closes it."""
    return "Yes." if prompt.endswith("</think>\n\n") else "hm " * 1000


@pytest.mark.parametrize("opened", [False, True])
def test_thinking_is_closed_when_its_budget_is_spent_and_the_answer_follows(directory: Path, opened: bool) -> None:
    template = THINKS + ("<think>\n" if opened else "")

    def reply(prompt: str, request: GenerateRequest) -> str:
        return ("" if opened or "<think>" in prompt else "<think>") + endless(prompt, request)

    loop, backend = scripted(directory, reply, template)
    with loop:
        events = loop.run(gathered(backend, ask(reasoning_budget=9, max_tokens=100)))
    assert (thought_of(events), text_of(events)) == ("hm hm hm", "Yes.")
    assert finish_of(events).reason == "stop"
    first, second = backend.engine.requests  # type: ignore[attr-defined]
    behind = backend.tokenizer.decode(second.prompt[len(first.prompt) :])
    assert behind.replace(" \n", "\n").endswith("hm hm hm\n</think>\n\n")
    written = len(second.prompt) - len(first.prompt)
    assert second.sampling.max_tokens == 100 - written  # what is spent is spent
    assert backend.engine.left == ["r-0"]  # type: ignore[attr-defined]  # the engine does not think on
    usage = events[-1]
    assert isinstance(usage, Usage) and usage.completion_tokens == written + len("Yes.") + 1


def test_thinking_within_its_budget_is_left_alone(directory: Path) -> None:
    loop, backend = scripted(directory, "Hm.\n</think>\n\nYes.", THINKS + "<think>\n")
    with loop:
        events = loop.run(gathered(backend, ask(reasoning_budget=50)))
    assert (thought_of(events), text_of(events)) == ("Hm.", "Yes.")
    assert len(backend.engine.requests) == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(("effort", "most"), [("none", 0), ("minimal", 256), ("low", 1024)])
def test_an_effort_is_a_budget_and_none_closes_what_the_template_has_opened(
    directory: Path, effort: str, most: int
) -> None:
    loop, backend = scripted(directory, endless, THINKS + "<think>\n")
    with loop:
        events = loop.run(gathered(backend, ask(reasoning_effort=effort, max_tokens=3000)))
    assert text_of(events) == "Yes." and max(0, most - 1) <= len(thought_of(events)) <= most


def test_a_high_effort_may_think_up_to_the_limit(directory: Path) -> None:
    loop, backend = scripted(directory, endless, THINKS + "<think>\n")
    with loop:
        events = loop.run(gathered(backend, ask(reasoning_effort="high", max_tokens=1500)))
    assert text_of(events) == "" and finish_of(events).reason == "length"


def test_a_budget_asks_templates_that_can_switch_to_think(directory: Path) -> None:
    template = THINKS + "{{ 'on' if enable_thinking else 'off' }}"
    loop, backend = scripted(directory, "Yes.", template)
    with loop:
        for fields in ({"reasoning_budget": 5}, {"reasoning_budget": 0}, {"reasoning_effort": "none"}):
            loop.run(gathered(backend, ask(**fields)))
    prompts = [backend.tokenizer.decode(sent.prompt) for sent in backend.engine.requests]  # type: ignore[attr-defined]
    assert [prompt.endswith("on") for prompt in prompts] == [True, False, False]


def test_a_random_model_that_thinks_for_ever_calls_its_tool_once_the_budget_is_spent(
    running: tuple[fakes.Loop, LocalBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, backend = running
    monkeypatch.setattr(backend.prompter, "family", Family("hermes", False, "", thinking=("<think>", "</think>")))
    monkeypatch.setattr(backend.prompter, "_opening", lambda text: Opening("open"))
    asked = ask(tools=TOOLS, tool_choice="required", parallel_tool_calls=False, max_tokens=400, reasoning_budget=20)
    events = loop.run(gathered(backend, asked))
    assert len(calls_of(events)) == 1 and finish_of(events).reason == "tool_calls" and thought_of(events)
    usage = events[-1]
    assert isinstance(usage, Usage) and 20 <= usage.reasoning_tokens <= 23 + len(backend.prompter.closing)


@pytest.mark.parametrize("seen", [3, 40])
def test_a_crash_while_thinking_or_after_leaves_the_budget_and_the_text_as_they_were(
    running: tuple[fakes.Loop, LocalBackend], monkeypatch: pytest.MonkeyPatch, seen: int
) -> None:
    loop, backend = running
    monkeypatch.setattr(backend.prompter, "family", Family("hermes", False, "", thinking=("<think>", "</think>")))
    monkeypatch.setattr(backend.prompter, "_opening", lambda text: Opening("open"))
    asked = {"max_tokens": 120, "reasoning_budget": 20}
    whole = loop.run(gathered(backend, ask(id="whole", **asked)))

    async def cut() -> list[Event]:
        events: list[Event] = []
        with pytest.raises(EngineDownError):
            async for event in backend.stream(ask(id="cut", **asked)):
                events.append(event)
                if len(events) == seen:
                    facts = backend.engine.facts
                    assert facts is not None
                    os.kill(facts.pid, signal.SIGKILL)
                    await down(backend)
        return events

    begun = loop.run(cut())
    loop.run(up(backend))
    text = text_of(begun)
    rest = loop.run(gathered(backend, ask(id="cut", continue_from=text, **asked)))
    assert text + text_of(rest) == text_of(whole)
    if text:
        assert not thought_of(rest)


def test_a_continuation_of_a_thinker_goes_on_with_the_answer(directory: Path) -> None:
    loop, backend = scripted(directory, " and no.", THINKS + "<think>\n")
    with loop:
        events = loop.run(gathered(backend, ask(continue_from="Yes")))
    assert text_of(events) == " and no." and not [e for e in events if isinstance(e, ReasoningDelta)]
    sent = backend.engine.requests[0]  # type: ignore[attr-defined]
    assert backend.tokenizer.decode(sent.prompt).endswith("<think>\n\n</think>\n\nYe") and sent.begin == "s"


def test_log_probabilities_are_those_of_the_answer_and_their_mean_is_given(directory: Path) -> None:
    events = said(directory, CALL, tools=TOOLS, logprobs=0)
    shown = b"".join(t.bytes for e in events if isinstance(e, TextDelta) for t in e.logprobs)
    assert shown.decode().rstrip() == "One moment." and finish_of(events).mean_logprob == -0.5


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory whose tokens are longer than a byte and cut words and characters anyhow."""
    directory = byte_model.write(tmp_path_factory.mktemp("merged"))
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=byte_model.SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator([STORY] * 4, trainer)
    core.save(str(directory / "tokenizer.json"))
    return directory


STORY = "Zoë bought 日本 tea — 🙂 twice, and  the the thé."


def test_text_goes_on_behind_any_character_without_losing_or_repeating_one(merged: Path) -> None:
    healed = 0
    for cut in range(1, len(STORY)):
        rest = STORY[cut:]
        events = said(merged, rest, continue_from=STORY[:cut], id=f"r{cut}")
        assert text_of(events) == rest
        tokenizer, template = load_text_side(merged)
        (prepared,) = Prompter(tokenizer, template).prepare(ask(continue_from=STORY[:cut]))
        written = tokenizer.decode(prepared.ids) + prepared.opening.begin
        assert written.endswith("<|assistant|>" + STORY[:cut]) or written.endswith("hi" + STORY[:cut])
        healed += len(prepared.opening.begin) > 1
    assert healed > 5  # tokens of several characters were taken back


def test_text_to_go_on_from_never_becomes_control_tokens(merged: Path) -> None:
    tokenizer, template = load_text_side(merged)
    (prepared,) = Prompter(tokenizer, template).prepare(ask(continue_from="a<|end|>b"))
    ends = [id for id in prepared.ids if id in tokenizer.eos]
    (plain,) = Prompter(tokenizer, template).prepare(ask())
    assert len(ends) == len([id for id in plain.ids if id in tokenizer.eos])


def test_a_stop_string_may_begin_before_the_cut(directory: Path) -> None:
    events = said(directory, "OP and on", continue_from="one ST", stop=("STOP",))
    assert text_of(events) == "" and finish_of(events).stop_sequence == "STOP"
    events = said(directory, "AY and on", continue_from="one ST", stop=("STOP",))
    assert text_of(events) == "AY and on"


def test_structured_output_goes_on_where_it_was_cut(running: tuple[fakes.Loop, LocalBackend]) -> None:
    loop, backend = running
    schema = {"type": "object", "properties": {"a": {"enum": ["one", "two"]}, "b": {"type": "boolean"}}}
    schema |= {"required": ["a", "b"], "additionalProperties": False}
    wanted = {"type": "json_schema", "json_schema": {"schema": schema, "strict": True}}
    whole = text_of(loop.run(gathered(backend, ask(response_format=wanted))))
    for cut in range(1, len(whole)):
        rest = loop.run(gathered(backend, ask(id=f"c{cut}", response_format=wanted, continue_from=whole[:cut])))
        assert whole[:cut] + text_of(rest) == whole
    with pytest.raises(CapabilityError, match="does not follow the grammar"):
        loop.run(gathered(backend, ask(response_format=wanted, continue_from="not json")))


@pytest.mark.parametrize("sampling", [Sampling(temperature=0), Sampling(temperature=1, seed=5, frequency_penalty=1.0)])
@pytest.mark.parametrize("seen", [1, 12])
def test_after_a_crash_the_rest_is_byte_for_byte_what_it_would_have_been(
    running: tuple[fakes.Loop, LocalBackend], sampling: Sampling, seen: int
) -> None:
    loop, backend = running
    whole = text_of(loop.run(gathered(backend, ask(id="whole", sampling=sampling, max_tokens=120))))

    async def cut() -> str:
        text, pieces = "", 0
        stream = backend.stream(ask(id="cut", sampling=sampling, max_tokens=120))
        with pytest.raises(EngineDownError):
            async for event in stream:
                if isinstance(event, TextDelta):
                    text, pieces = text + event.text, pieces + 1
                    if pieces == seen:
                        facts = backend.engine.facts
                        assert facts is not None
                        os.kill(facts.pid, signal.SIGKILL)
                        await down(backend)
        return text

    text = loop.run(cut())
    loop.run(up(backend))
    rest = loop.run(gathered(backend, ask(id="cut", sampling=sampling, max_tokens=120, continue_from=text)))
    assert text + text_of(rest) == whole and len(text) < len(whole)


async def down(backend: LocalBackend) -> None:
    while backend.engine.state == "ready":  # noqa: ASYNC110  (a state has no event)
        await asyncio.sleep(0.002)


async def up(backend: LocalBackend) -> None:
    while backend.engine.state != "ready":  # noqa: ASYNC110
        await asyncio.sleep(0.002)


def test_texts_become_vectors_of_length_one(running: tuple[fakes.Loop, LocalBackend]) -> None:
    loop, backend = running
    asked = EmbeddingRequest(id="e", model="t", inputs=("a cat", (1, 2, 3), "a cat"))
    found = loop.run(backend.embed(asked))
    assert found.prompt_tokens == 5 + 3 + 5 and found.vectors[0] == found.vectors[2] != found.vectors[1]
    assert np.linalg.norm(found.vectors[0]) == pytest.approx(1, abs=1e-6)
    short = loop.run(backend.embed(EmbeddingRequest(id="e", model="t", inputs=("a cat",), dimensions=8)))
    head = np.array(found.vectors[0][:8])
    np.testing.assert_allclose(short.vectors[0], head / np.linalg.norm(head), atol=1e-6)


@pytest.mark.parametrize(
    ("inputs", "dimensions", "param"),
    [(("a", ""), None, "input[1]"), (((9999,),), None, "input[0]"), (("a",), 65, "dimensions")],
)
def test_what_can_not_be_embedded_is_named(
    running: tuple[fakes.Loop, LocalBackend], inputs: Any, dimensions: int | None, param: str
) -> None:
    loop, backend = running
    with pytest.raises(RequestError) as caught:
        loop.run(backend.embed(EmbeddingRequest(id="e", model="t", inputs=inputs, dimensions=dimensions)))
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("text", "pooling"),
    [(None, "mean"), ('{"pooling_mode_lasttoken": true}', "last"),
     ('{"pooling_mode_mean_tokens": true}', "mean"), ("{", "mean")],
)  # fmt: skip
def test_pooling_is_what_the_model_says(tmp_path: Path, text: str | None, pooling: str) -> None:
    if text is not None:
        (tmp_path / "1_Pooling").mkdir()
        (tmp_path / "1_Pooling" / "config.json").write_text(text)
    found, reason = pooling_of(tmp_path)
    assert found == pooling and reason


REAL = Path.home() / ".cache/freehold/models/builtin/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_file(), reason="the built-in model has not been fetched")
def test_a_real_model_calls_and_follows_schemas() -> None:
    tokenizer, template = load_text_side(REAL)
    backend = LocalBackend(EngineProcess(REAL, EngineSettings(max_context=1024)), tokenizer, template, "smollm2")
    with fakes.Loop() as loop:
        loop.run(backend.start())
        try:
            for seed in range(3):
                schema = made_up(random.Random(100 + seed))
                wanted = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}
                events = loop.run(gathered(backend, ask(response_format=wanted, max_tokens=300)))
                assert finish_of(events).reason == "stop" and valid(json.loads(text_of(events)), schema)
            turns = (Turn("user", (TextPart("What is the weather in Paris?"),)),)
            asked = ask(turns=turns, tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
            ((name, arguments),) = calls_of(loop.run(gathered(backend, asked)))
            assert name == "weather" and json.loads(arguments) == {"city": "Paris"}
        finally:
            loop.run(backend.close())
