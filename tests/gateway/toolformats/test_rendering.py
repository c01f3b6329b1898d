"""Tools and earlier calls as templates get them, natively where they can and as text where they can't."""

from __future__ import annotations

import json
from typing import Any

import pytest

from freehold.errors import TemplateError
from freehold.formats.template import ChatTemplate
from freehold.gateway.conversation import Request, TextPart, Tool, ToolCall, Turn
from freehold.gateway.toolformats.marks import choose
from freehold.gateway.toolformats.rendering import render

TOOL = Tool("weather", "tells it", {"type": "object", "properties": {"city": {"type": "string"}}})
USER = Turn("user", (TextPart("hi"),))
CALLED = Turn("assistant", (TextPart("Wait."),), tool_calls=(ToolCall("call_1", "weather", '{"city": "Paris"}'),))
TWICE = Turn("assistant", tool_calls=(*CALLED.tool_calls, ToolCall("call_2", "weather", '{"city": "Rome"}')))
TOLD = Turn("tool", (TextPart("18 C"),), tool_call_id="call_1")
ALSO = Turn("tool", (TextPart("22 C"),), tool_call_id="call_2")

QWEN = (
    "{% if tools %}{% for t in tools %}{{ t | tojson }}{% endfor %}{% endif %}{% for m in messages %}<|{{ m.role }}|>"
    "{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }} {{ c.function.arguments | tojson }}"
    "</tool_call>{% endfor %}{% endfor %}"
)
DEEPSEEK = (
    "{# tools <｜tool▁calls▁begin｜> #}{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}"
    "{{ '```json' + c.function.arguments }}{% endfor %}{% endfor %}"
)
MISTRAL = (
    "{# tools [TOOL_CALLS] #}{% for m in messages %}{% for c in m.tool_calls or [] %}"
    "{% if c.id | length != 9 %}{{ raise_exception('nine!') }}{% endif %}{{ c.id }}{% endfor %}"
    "{% if m.tool_call_id is defined %}{{ m.tool_call_id }}{% endif %}{% endfor %}"
)
PLAIN = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no') }}{% endif %}"
    "<|{{ m.role }}|>{{ m.content }}{% endfor %}"
)
LLAMA = (
    "{# tools <|python_tag|> #}{% for m in messages %}{% if (m.tool_calls or []) | length > 1 %}"
    "{{ raise_exception('one only') }}{% endif %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
)


def prompt(source: str, *turns: Turn, **fields: Any) -> str:
    template = ChatTemplate({"default": source})
    request = Request(id="r", model="m", turns=turns, **fields)
    return render(choose(template.sources), request, lambda m, t: template.render(m, tools=t))


def test_a_template_that_knows_tools_gets_them_and_arguments_as_objects() -> None:
    text = prompt(QWEN, USER, CALLED, TOLD, tools=(TOOL,))
    assert text.startswith('{"type": "function", "function": {"name": "weather"')
    assert '<|assistant|>Wait.<tool_call>weather {"city": "Paris"}</tool_call><|tool|>18 C' in text


def test_a_template_that_wants_arguments_as_text_gets_text() -> None:
    assert '```json{"city": "Paris"}18 C' in prompt(DEEPSEEK, USER, CALLED, TOLD, tools=(TOOL,))


def test_mistrals_ids_are_nine_characters_and_still_match() -> None:
    text = prompt(MISTRAL, USER, CALLED, TOLD, tools=(TOOL,))
    assert len(text) == 18 and text[:9] == text[9:] and text.isalnum()


def test_other_templates_are_told_in_words() -> None:
    text = prompt(PLAIN, USER, TWICE, TOLD, ALSO, USER, tools=(TOOL,))
    assert text.startswith("<|system|>You may call functions") and json.dumps("weather") in text
    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>' in text
    assert "<|user|><tool_response>\n18 C\n</tool_response>\n<tool_response>\n22 C\n</tool_response><|user|>hi" in text


def test_a_system_message_of_the_client_stays_first_and_tools_follow_it() -> None:
    text = prompt(PLAIN, Turn("system", (TextPart("Be kind."),)), USER, tools=(TOOL,))
    assert text.startswith("<|system|>Be kind.\n\nYou may call") and text.count("<|system|>") == 1


def test_a_template_without_a_system_role_is_told_by_the_user() -> None:
    refuses = "{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    source = "{% for m in messages %}" + refuses + "{{ m.content }}{% endfor %}"
    assert prompt(source, USER, tools=(TOOL,)).endswith("</tool_call>\n\nhi")


def test_calls_that_a_template_can_not_take_together_become_text() -> None:
    text = prompt(LLAMA, USER, TWICE, TOLD, ALSO, tools=(TOOL,))
    assert text.count("<tool_call>\n{") == 3  # the example, and two calls


def test_tools_that_may_not_be_called_are_not_offered() -> None:
    assert prompt(PLAIN, USER, tools=(TOOL,), tool_choice="none") == "<|user|>hi"
    assert "function" not in prompt(QWEN, USER, tools=(TOOL,), tool_choice="none")


def test_a_conversation_refused_in_every_form_is_refused_with_the_first_reason() -> None:
    with pytest.raises(TemplateError, match="never"):
        prompt("{# tools <tool_call> #}{{ raise_exception('never') }}", USER, CALLED, tools=(TOOL,))
