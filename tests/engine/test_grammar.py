"""Output under a grammar: a random model has no idea of JSON, so whatever it gets right is the grammar's doing."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from tests.engine import tiny

from freehold.engine import grammar
from freehold.engine.grammar import Grammars, Vocabulary
from freehold.engine.request import GenerateRequest, Sampling, TokenOutput
from freehold.engine.runner import Engine
from freehold.errors import OverloadedError, UnsupportedError, UsageError
from freehold.kernels import make_executor
from freehold.settings import EngineSettings

END = 95
TOKENS = [bytes([32 + id]) for id in range(95)] + [b"<end>", b"<x>"]
VOCABULARY = Vocabulary(TOKENS, frozenset({95, 96}), (END,), lambda text: [ord(c) - 32 for c in text])
PLAIN = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def engine(vocabulary: Vocabulary | None = VOCABULARY, **settings: Any) -> Engine:
    program = tiny.program_for(tiny.config())
    executor = make_executor(program, tiny.weights(program), pages=64, tier="reference")
    return Engine(program, executor, EngineSettings(**settings), pages=64, vocabulary=lambda: vocabulary or VOCABULARY)


def schema(value: Any) -> str:
    return json.dumps({"grammars": [{"json_schema": value | {"x-guidance": PLAIN}}]})


def request(
    name: str, source: str | None, *, prompt: list[int] | None = None, replayed: int = 0, **sampling: Any
) -> Any:
    chosen = Sampling(**({"temperature": 0.0, "max_tokens": 60, "stop_ids": frozenset({END})} | sampling))
    return GenerateRequest(name, prompt or [1, 2, 3], chosen, grammar=source, replayed=replayed)


def text(outputs: list[TokenOutput]) -> str:
    return b"".join(TOKENS[o.token] for o in outputs if o.token is not None and o.token != END).decode()


def ask(running: Engine, *requests: GenerateRequest) -> dict[str, list[TokenOutput]]:
    for one in requests:
        running.add(one)
    return tiny.drain(running)


PERSON = schema(
    {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 5}, "kind": {"enum": ["a", "b"]}},
        "required": ["name", "kind"],
        "additionalProperties": False,
    }
)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 2.0, "seed": 3}, {"temperature": 1.5, "seed": 1, "top_k": 4}])
def test_a_random_model_writes_what_the_schema_asks(sampling: dict[str, Any]) -> None:
    given = ask(engine(), request("a", PERSON, **sampling))["a"]
    found = json.loads(text(given))
    assert list(found) == ["name", "kind"] and len(found["name"]) <= 5 and found["kind"] in ("a", "b")
    assert given[-1].finish == "stop" and given[-1].token == END


def test_an_output_that_is_cut_says_length() -> None:
    given = ask(engine(), request("a", PERSON, max_tokens=6))["a"]
    assert given[-1].finish == "length" and '{"name": "x", "kind": "a"}'.startswith(text(given)[:6])


def test_penalties_and_bias_act_within_the_grammar_only() -> None:
    bias = {ord("b") - 32: 100.0, ord("Z") - 32: 100.0}
    given = ask(engine(), request("a", schema({"enum": ["aa", "bb", "cc"]}), logit_bias=bias, presence_penalty=2.0))
    assert text(given["a"]) == '"bb"'


def test_a_constrained_output_is_the_same_alone_and_in_company() -> None:
    mine = request("a", PERSON, temperature=1.0, seed=5)
    alone = text(ask(engine(), mine)["a"])
    others = [request(f"o{i}", PERSON if i % 2 else None, temperature=1.0, seed=i, max_tokens=9) for i in range(6)]
    together = ask(engine(max_step_tokens=7), *others[:3], mine, *others[3:])
    assert text(together["a"]) == alone


def test_requests_without_a_grammar_are_not_touched_by_those_with_one() -> None:
    free = request("free", None, max_tokens=20)
    assert text(ask(engine(), free, request("a", PERSON))["free"]) == text(ask(engine(), free)["free"])


def test_control_tokens_are_chosen_by_id_alone() -> None:
    given = ask(engine(), request("a", 'start: <[96]> "<x>"'))["a"]
    assert [output.token for output in given] == [96, *VOCABULARY.encode("<x>"), END]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (schema({"type": "blah"}), "Invalid type: blah"),
        (schema({"not": {"type": "string"}}), 'Unimplemented keys: ["not"]'),
        (schema({"type": "string", "pattern": "(a"}), "unclosed group"),
        (schema({"$ref": "http://10.0.0.1/x"}), "not present in a registry"),
        ("start: nowhere", "nowhere"),
        ("start: " + '"a" ' * 100_000, "at most 262,144 characters"),
    ],
)
def test_a_wrong_grammar_is_refused_with_its_reason_and_nobody_else_suffers(source: str, words: str) -> None:
    running = engine()
    running.add(request("good", PERSON))
    try:
        running.add(request("bad", source))
    except UsageError as error:  # too long: before it is even compiled
        refusal = error.message
        outputs = tiny.drain(running)
    else:
        outputs = tiny.drain(running)
        (ending,) = outputs["bad"]
        assert (ending.finish, ending.refused, ending.token) == ("error", True, None)
        refusal = ending.error or ""
    import re

    assert re.search(words.replace("[", r"\[").replace("(", r"\("), refusal), refusal
    assert json.loads(text(outputs["good"]))


def test_output_that_goes_on_takes_the_grammar_up_where_it_was() -> None:
    whole = ask(engine(), request("a", PERSON, temperature=1.0, seed=9))["a"]
    ids = [output.token for output in whole if output.token is not None]
    for cut in range(1, len(ids)):
        again = request("a", PERSON, prompt=[1, 2, 3, *ids[:cut]], replayed=cut, temperature=1.0, seed=9)
        assert [output.token for output in ask(engine(), again)["a"]] == ids[cut:]


def test_output_that_does_not_follow_the_grammar_is_refused() -> None:
    prompt = [1, 2, *VOCABULARY.encode('{"nope')]
    (ending,) = ask(engine(), request("a", PERSON, prompt=prompt, replayed=6))["a"]
    assert ending.refused and "does not follow the grammar" in (ending.error or "")


def test_replayed_output_counts_for_penalties_as_output() -> None:
    options: dict[str, Any] = {
        "temperature": 0.7,
        "seed": 4,
        "frequency_penalty": 1.5,
        "repetition_penalty": 1.3,
        "max_tokens": 30,
    }
    options["stop_ids"] = frozenset()
    whole = [output.token for output in ask(engine(), request("a", None, **options))["a"]]
    for cut in (1, 7, 20):
        prompt = [1, 2, 3, *(token for token in whole[:cut] if token is not None)]
        again = request("a", None, prompt=prompt, replayed=cut, **(options | {"max_tokens": 30 - cut}))
        assert [output.token for output in ask(engine(), again)["a"]] == whole[cut:]


def test_a_grammar_that_takes_too_long_is_refused_while_steps_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    held = threading.Event()
    monkeypatch.setattr(grammar, "COMPILE_SECONDS", 0.0)

    def slow() -> Vocabulary:
        held.wait(30)
        return VOCABULARY

    program = tiny.program_for(tiny.config())
    executor = make_executor(program, tiny.weights(program), pages=64, tier="reference")
    running = Engine(program, executor, EngineSettings(), pages=64, vocabulary=slow)
    try:
        outputs = ask(running, request("slow", PERSON), request("free", None, max_tokens=5))
    finally:
        held.set()
    assert "took more than" in (outputs["slow"][0].error or "") and outputs["slow"][0].refused
    assert len(outputs["free"]) == 5


def test_only_so_many_grammars_are_compiled_at_once() -> None:
    held = threading.Event()

    def slow() -> Vocabulary:
        held.wait(30)
        return VOCABULARY

    grammars = Grammars(slow)
    begun = [grammars.compile(PERSON) for _ in range(grammar.MAX_COMPILING)]
    with pytest.raises(OverloadedError, match="being compiled"):
        grammars.compile(PERSON)
    held.set()
    for one in begun:
        one.wait(30)
    grammars.compile(PERSON).wait(30)


def test_a_request_can_be_cancelled_while_its_grammar_is_compiled() -> None:
    held = threading.Event()

    def slow() -> Vocabulary:
        held.wait(30)
        return VOCABULARY

    program = tiny.program_for(tiny.config())
    executor = make_executor(program, tiny.weights(program), pages=64, tier="reference")
    running = Engine(program, executor, EngineSettings(), pages=64, vocabulary=slow)
    running.add(request("a", PERSON))
    assert running.has_work and running.stats.waiting == 1
    with pytest.raises(UsageError, match="already running"):
        running.add(request("a", PERSON))
    cancelled = running.cancel("a")
    held.set()
    assert cancelled is not None and cancelled.finish == "cancelled" and not running.has_work


def test_a_vocabulary_without_an_end_can_not_be_constrained() -> None:
    nameless = Vocabulary(TOKENS, frozenset(), (), VOCABULARY.encode)
    compilation = Grammars(lambda: nameless).compile(PERSON)
    compilation.wait(30)
    with pytest.raises(UnsupportedError, match="names the end"):
        compilation.result()
