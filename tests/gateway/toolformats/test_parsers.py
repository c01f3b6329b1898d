"""Tool calls and thinking out of a model's text, however it is cut into pieces."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from freehold.gateway.toolformats import marks
from freehold.gateway.toolformats.marks import Family, choose
from freehold.gateway.toolformats.parsers import CallParser
from freehold.gateway.toolformats.source import CHANCE, Arguments, Call, Piece, Text, begun
from freehold.gateway.toolformats.thinking import Thinking

HERMES = Family("hermes", True, "")
LLAMA = Family("llama", True, "", parallel=False)
DEEPSEEK = Family("deepseek", True, "", "fenced")
MISTRAL = Family("mistral", True, "")

M = marks
PARIS, ROME = '{"city": "Paris"}', '{"city": "R\\"}</tool_call>[TOOL_CALLS]"}'
NESTED = '{"a": [{"b": "}]"}, 1.5e3, null], "c": {"d": "\\\\"}}'

# family, what the model wrote, the text it said, the calls it made
CASES: list[tuple[Family, str, str, list[tuple[str, str]]]] = [
    (HERMES, "Just text, 1 < 2 and <tool.", "Just text, 1 < 2 and <tool.", []),
    (HERMES, f'<tool_call>\n{{"name": "w", "arguments": {PARIS}}}\n</tool_call>', "", [("w", PARIS)]),
    (HERMES, f'Let me see. \n<tool_call>{{"arguments": {PARIS}, "name": "w"}}</tool_call>', "Let me see.", [("w", PARIS)]),
    (HERMES, f'<tool_call>\n{{"name": "w", "arguments": {ROME}}}\n</tool_call>\n'
             f'<tool_call>\n{{"name": "v", "arguments": {NESTED}}}\n</tool_call>', "", [("w", ROME), ("v", NESTED)]),
    (HERMES, '<tool_call>{"name": "w"}</tool_call>', "", [("w", "{}")]),
    (HERMES, '<tool_call>{"name": "w", "arguments": "{\\"a\\": 1}"}</tool_call> Done.', "Done.", [("w", '{"a": 1}')]),
    (HERMES, "<tool_call>no call at all</tool_call>", "<tool_call>no call at all</tool_call>", []),
    (HERMES, '<tool_call>{"nam', "", []),
    (HERMES, '<tool_call>\n{"name": "w", "arguments": {"ci', "", [("w", '{"ci')]),
    (HERMES, f'<tool_call>\n{{"name": "w", "arguments": {PARIS}}}\n</tool_c', "", [("w", PARIS)]),
    (HERMES, f'<tool_call>\n{{"name": "w", "arguments": {PARIS}}}\n</tool_call>\n<to', "", [("w", PARIS)]),
    (HERMES, "Let me see.\n<tool_call", "Let me see.", []),
    (HERMES, "Is 1 <", "Is 1 <", []),
    (LLAMA, f'{{"name": "w", "parameters": {PARIS}}}', "", [("w", PARIS)]),
    (LLAMA, f'{M.PYTHON_TAG}{{"name": "w", "parameters": {ROME}}}', "", [("w", ROME)]),
    (LLAMA, f'{{"name": "w", "parameters": {PARIS}}}; {{"name": "v", "parameters": {NESTED}}}', "",
     [("w", PARIS), ("v", NESTED)]),
    (LLAMA, '{"answer": 42}', '{"answer": 42}', []),
    (LLAMA, "No { call } here.", "No { call } here.", []),
    (DEEPSEEK, f"Wait.{M.CALLS_BEGIN}{M.CALL_BEGIN}function{M.CALL_SEP}w\n```json\n{PARIS}\n```{M.CALL_END}\n"
               f"{M.CALL_BEGIN}function{M.CALL_SEP}v\n```json\n{NESTED}\n```{M.CALL_END}{M.CALLS_END}", "Wait.",
     [("w", PARIS), ("v", NESTED)]),
    (DEEPSEEK, f"{M.CALLS_BEGIN}{M.CALL_BEGIN}w{M.CALL_SEP}{ROME}{M.CALL_END}{M.CALLS_END}", "", [("w", ROME)]),
    (MISTRAL, f'[TOOL_CALLS][{{"name": "w", "arguments": {PARIS}}}, {{"name": "v", "arguments": {ROME}}}]', "",
     [("w", PARIS), ("v", ROME)]),
    (MISTRAL, f"Hm.[TOOL_CALLS]w[ARGS]{PARIS}[TOOL_CALLS]v[CALL_ID]123456789[ARGS]{NESTED}", "Hm.",
     [("w", PARIS), ("v", NESTED)]),
]  # fmt: skip


def joined(pieces: list[Piece]) -> tuple[str, list[tuple[str, str]]]:
    text, calls = "", []
    for piece in pieces:
        if isinstance(piece, Text):
            text += piece.text
        elif isinstance(piece, Call):
            calls.append((piece.name, ""))
        elif isinstance(piece, Arguments):
            calls[-1] = (calls[-1][0], calls[-1][1] + piece.text)
    return text, calls


def parsed(family: Family, pieces: list[str]) -> tuple[str, list[tuple[str, str]]]:
    parser = CallParser(family)
    found = [piece for text in pieces for piece in parser.push(text)]
    return joined(found + parser.close())


@pytest.mark.parametrize(("family", "written", "text", "calls"), CASES)
def test_calls_are_found_whole_and_character_by_character(
    family: Family, written: str, text: str, calls: list[Any]
) -> None:
    assert parsed(family, [written]) == (text, calls)
    assert parsed(family, list(written)) == (text, calls)


@pytest.mark.parametrize(("family", "written", "text", "calls"), CASES)
@given(cuts=st.lists(st.integers(0, 200), max_size=5))
def test_calls_are_the_same_however_the_text_is_cut(
    family: Family, written: str, text: str, calls: list[Any], cuts: list[int]
) -> None:
    places = sorted({0, len(written), *[min(cut, len(written)) for cut in cuts]})
    pieces = [written[a:b] for a, b in itertools.pairwise(places)]
    assert parsed(family, pieces) == (text, calls)


def test_a_name_comes_before_its_arguments_and_these_as_they_are_written() -> None:
    parser = CallParser(HERMES)
    assert parser.push('Hi <tool_call>\n{"name": "w", ') == [Text("Hi"), Call("w")]
    assert parser.push('"arguments": {"ci') == [Arguments('{"ci')]
    assert parser.push('ty": "P') == [Arguments('ty": "P')]
    assert parser.push('"}}') == [Arguments('"}')]
    assert parser.push("\n</tool_call>") == [] and parser.close() == []


@given(st.text('<tool_cal>{}":,x \n', max_size=60))
@example("<tool")
@example("<too")
def test_any_text_is_taken_without_failing_and_text_without_marks_is_kept(text: str) -> None:
    shown, calls = parsed(HERMES, list(text))
    if marks.TOOL_OPEN not in text:
        cut = begun(text, marks.TOOL_OPEN)
        kept = text[: len(text) - cut].rstrip() if cut > CHANCE else text
        assert (shown, calls) == (kept, [])


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=8,
))  # fmt: skip
def test_any_json_arguments_come_out_as_they_went_in(value: Any) -> None:
    arguments = json.dumps({"value": value}, ensure_ascii=False)
    written = f'<tool_call>\n{{"name": "w", "arguments": {arguments}}}\n</tool_call>'
    assert parsed(HERMES, list(written)) == ("", [("w", arguments)])


def test_a_call_whose_head_never_ends_is_given_up_as_text() -> None:
    shown, calls = parsed(MISTRAL, ["[TOOL_CALLS]" + "x" * 10_000])
    assert calls == [] and shown.startswith("[TOOL_CALLS]")


THOUGHTS = [
    ("<think>\nHm, 1 < 2.\n</think>\n\nYes.", False, "Hm, 1 < 2.", "Yes."),
    ("Hm.\n</think>\n\nYes </think> no.", True, "Hm.", "Yes </think> no."),
    ("No thinking <think>here</think>.", False, "", "No thinking <think>here</think>."),
    ("<think>\n\n</think>\n\nYes.", False, "", "Yes."),
    ("<think>never done </thi", False, "never done </thi", ""),
    ("<thi", False, "", "<thi"),
    ("  Yes.", False, "", "  Yes."),
]


@pytest.mark.parametrize(("written", "inside", "thought", "answer"), THOUGHTS)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_thinking_is_told_from_the_answer(written: str, inside: bool, thought: str, answer: str, size: int) -> None:
    thinking = Thinking(("<think>", "</think>"), inside=inside)
    pairs = [thinking.push(written[i : i + size]) for i in range(0, len(written), size)]
    pairs.append(thinking.push("", ended=True))
    assert ("".join(t for t, _ in pairs), "".join(a for _, a in pairs)) == (thought, answer)


@pytest.mark.parametrize(
    ("source", "kind", "native", "variant", "thinks"),
    [
        ("{{ messages }}", "hermes", False, "", False),
        ("{{ tools }} <tool_call> <think>", "hermes", True, "", True),
        ("{{ tools }} <|python_tag|>", "llama", True, "", False),
        ('{{ tools }} {"name": x, "parameters": y}', "llama", True, "", False),
        (f"{{{{ tools }}}} {M.CALLS_BEGIN} ```json </think>", "deepseek", True, "fenced", True),
        (f"{{{{ tools }}}} {M.CALLS_BEGIN}", "deepseek", True, "", False),
        ("{{ tools }} [TOOL_CALLS]", "mistral", True, "", False),
        ("{{ tools }} [TOOL_CALLS] [ARGS] [THINK]", "mistral", True, "named", True),
        ("{{ tools }} in some other way", "hermes", False, "", False),
    ],
)  # fmt: skip
def test_the_family_follows_from_the_template(source: str, kind: str, native: bool, variant: str, thinks: bool) -> None:
    family = choose({"default": source})
    assert (family.kind, family.native, family.variant, family.thinking is not None) == (kind, native, variant, thinks)
    assert "chat template" in family.reason
