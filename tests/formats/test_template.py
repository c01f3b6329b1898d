from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest

from freehold.errors import TemplateError
from freehold.formats.template import ChatTemplate
from tests.formats.vocabularies import tiny_metadata, tiny_tokenizer, write_gguf

HI = [{"role": "user", "content": "Hi"}]
# As in the GGUF file of SmolLM2-135M-Instruct (Apache-2.0).
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def render(source: str, messages: list | None = None, **names: object) -> str:
    return ChatTemplate({"default": source}).render(HI if messages is None else messages, **names)


def test_the_default_model_is_prompted_as_it_was_trained():
    system = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    assert render(SMOLLM2) == system + "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert render(SMOLLM2, add_generation_prompt=False) == system + "<|im_start|>user\nHi<|im_end|>\n"


def test_blocks_leave_no_whitespace_behind():
    assert (
        render("{% for m in messages %}\n    {% if true %}\n{{ m.content }}\n    {% endif %}\n{% endfor %}\n") == "Hi\n"
    )


def test_json_keeps_unicode_and_escapes_no_html():
    assert render("{{ messages|tojson }}", [{"a": "é<&'>"}]) == '[{"a": "é<&\'>"}]'
    assert render("{{ {'a': [1]}|tojson(indent=2) }}") == json.dumps({"a": [1]}, indent=2)
    assert render("{{ {'b': 1, 'a': 2}|tojson(sort_keys=true, separators=(',', ':')) }}") == '{"a":2,"b":1}'


def test_a_template_may_refuse_a_conversation_in_its_own_words():
    with pytest.raises(TemplateError, match="refuses this conversation: roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


def test_the_date_comes_from_the_clock_given():
    template = ChatTemplate({"default": "{{ strftime_now('%d %b %Y') }}"}, now=lambda: datetime.datetime(2024, 7, 26))
    assert template.render(HI) == "26 Jul 2024"


def test_loops_can_be_left_early():
    source = (
        "{% for m in messages %}{% if loop.index == 2 %}{% continue %}{% elif loop.index == 4 %}{% break %}{% endif %}"
    )
    assert render(source + "{{ m }}{% endfor %}", [1, 2, 3, 4, 5]) == "13"


def test_loops_know_their_length_and_neighbours():
    source = (
        "{% for m in messages %}{{ loop.length }}{{ loop.last }}{{ loop.previtem }}{{ loop.revindex }};{% endfor %}"
    )
    assert render(source, [1, 2]) == "2False2;2True11;"


def test_marks_for_training_leave_their_content():
    assert render("a{% generation %}{{ messages[0].content }}{% endgeneration %}b") == "aHib"


def test_reversed_slices_and_namespaces_work_as_qwen_needs_them():
    source = (
        "{%- set ns = namespace(last=-1) %}{%- for m in messages[::-1] %}{%- set index = messages|length - 1 - loop.index0 %}"
        "{%- if ns.last < 0 and m.role == 'user' and not m.content.startswith('<tool') %}{%- set ns.last = index %}{% endif %}"
        "{% endfor %}{{ ns.last }} {{ messages[1].content.split('</think>')[-1].lstrip('\\n') }}"
    )
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>x</think>\n\nyes"}]
    assert render(source, messages) == "0 yes"


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("{{ ['a', 'b']|join(', ') }}", "a, b"),
        ("{{ messages|map(attribute='content')|list }}", "['Hi']"),
        ("{{ messages|selectattr('role', 'equalto', 'user')|list|length }}", "1"),
        ("{{ ' x '|trim }}{{ 'abc'|upper|replace('B', '-') }}", "xA-C"),
        ("{{ 'a\nb'|indent(2) }}", "a\n  b"),
        ("{{ 'a' ~ 1 ~ none }}", "a1None"),
        ("{{ '%s-%02d' % ('a', 3) }}{{ '{}:{:>3}'.format('b', 4) }}", "a-03b:  4"),
        ("{{ undefined_name is defined }}{{ undefined_name }}", "False"),
        ("{{ missing.content if missing else 'none' }}", "none"),
        ("{% macro m(x, y='d') %}[{{ x }}{{ y }}]{% endmacro %}{{ m(1) }}{{ m(2, y=3) }}", "[1d][23]"),
        ("{% set x %}a{{ 1 }}{% endset %}{{ x|length }}", "2"),
        ("{{ {'a': 1, 'b': 2}.items()|list }}{{ {'a': 1}.get('z', 5) }}", "[('a', 1), ('b', 2)]5"),
        ("{% for k, v in {'a': 1}.items() %}{{ k }}={{ v }}{% endfor %}", "a=1"),
        ("{% for i in range(3) if i != 1 %}{{ i }}{% else %}none{% endfor %}", "02"),
        ("{% for i in [[1, [2]]] recursive %}{{ i if i is number else loop(i) }}{% endfor %}", "12"),
        ("{{ 7 // 2 }}{{ 2 ** 10 }}{{ 5 % 3 }}{{ 'ab' * 2 }}{{ [1] + [2] }}", "310242abab[1, 2]"),
        ("{{ messages[0] is mapping }}{{ messages is iterable }}{{ 'x' is string }}", "TrueTrueTrue"),
        ("{{ 1.23456|round(2) }}{{ [1, 2]|sum }}{{ [3, 1]|sort|first }}", "1.2331"),
        ("{{ '<a>'|e }}{{ '<a>'|safe }}", "&lt;a&gt;<a>"),
        ("{{ 3|string + 'x' }}{{ '12'|int + 1 }}", "3x13"),
    ],
)
def test_what_templates_use_works(source, wanted):
    assert render(source) == wanted


def test_special_tokens_and_extra_names_are_offered():
    template = ChatTemplate({"default": "{{ bos_token }}{{ enable_thinking }}"}, tokens={"bos_token": "<s>"})
    assert template.render(HI, enable_thinking=False) == "<s>False"


def test_a_conversation_with_tools_takes_the_template_for_them():
    template = ChatTemplate({"default": "plain {{ tools }}", "tool_use": "tools {{ tools|length }}"})
    assert template.render(HI) == "plain None"
    assert template.render(HI, tools=[]) == "plain None"
    assert template.render(HI, tools=[{"type": "function"}]) == "tools 1"


def test_the_caller_s_messages_are_not_changed():
    messages = [{"role": "user", "content": "Hi"}]
    render("{% set ns = namespace(m=messages) %}{{ ns.m + [1] }}", messages)
    assert messages == HI


def test_a_template_is_found_in_each_of_its_places(tmp_path: Path):
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": "one {{ eos_token }}", "eos_token": {"content": "</s>"}}))
    assert ChatTemplate.of(tmp_path).render(HI) == "one </s>"
    named = [{"name": "default", "template": "two"}, {"name": "tool_use", "template": "tools"}]
    config.write_text(json.dumps({"chat_template": named}))
    assert ChatTemplate.of(tmp_path).render(HI) == "two"
    assert ChatTemplate.of(tmp_path).render(HI, tools=[{}]) == "tools"
    (tmp_path / "chat_template.jinja").write_text("three é")
    assert ChatTemplate.of(tmp_path).render(HI) == "three é"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("four")
    assert ChatTemplate.of(tmp_path).render(HI, tools=[{}]) == "four"


def test_a_gguf_file_s_template_knows_its_special_tokens(tmp_path: Path):
    metadata = tiny_metadata() | {
        "tokenizer.chat_template": "{{ bos_token }}{{ eos_token }}",
        "tokenizer.chat_template.tool_use": "tools",
    }
    template = ChatTemplate.of(write_gguf(tmp_path / "tiny.gguf", metadata))
    assert template.render(HI) == "<|begin|><|im_end|>"
    assert template.render(HI, tools=[{}]) == "tools"


def test_a_saved_tokenizer_takes_its_template_along(tmp_path: Path):
    tiny_tokenizer().save(tmp_path)
    assert ChatTemplate.of(tmp_path).render(HI) == "Hi"


def test_a_model_without_a_template_is_one_clear_error(tmp_path: Path):
    with pytest.raises(TemplateError, match="no chat template") as caught:
        ChatTemplate.of(tmp_path)
    assert "completions" in caught.value.hint
    metadata = {key: value for key, value in tiny_metadata().items() if key != "tokenizer.chat_template"}
    with pytest.raises(TemplateError, match="no chat template"):
        ChatTemplate.of(write_gguf(tmp_path / "bare.gguf", metadata))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("README.md", b""),
        ("chat_template.jinja", b"{% if %}"),
        ("chat_template.jinja", b"\xff"),
        ("chat_template.jinja", b"x" * (5 << 20)),
        ("tokenizer_config.json", b"{"),
        ("tokenizer_config.json", b"\xff"),
        ("special_tokens_map.json", b"[]"),
    ],
)
def test_errors_name_files_but_not_the_directories_of_this_machine(tmp_path: Path, name: str, content: bytes):
    directory = tmp_path / "my-model"
    directory.mkdir()
    (directory / name).write_bytes(content)
    if name == "special_tokens_map.json":
        (directory / "chat_template.jinja").write_text("Hi")
    with pytest.raises(TemplateError) as caught:
        ChatTemplate.of(directory)
    assert str(tmp_path) not in caught.value.message
    assert "my-model" in caught.value.message or name in caught.value.message


def test_a_template_that_fails_names_its_model_but_not_the_directories(tmp_path: Path):
    directory = tmp_path / "my-model"
    directory.mkdir()
    (directory / "chat_template.jinja").write_text("{{ 1 // 0 }}{{ messages[0].x.y.z }}")
    with pytest.raises(TemplateError, match=r"^my-model: chat template"):
        ChatTemplate.of(directory).render(HI)


def test_a_syntax_error_names_its_line():
    with pytest.raises(TemplateError, match="line 2"):
        render("fine\n{% if %}")


def test_a_long_conversation_is_within_bounds():
    messages = [{"role": ("user", "assistant")[i % 2], "content": "word " * 100} for i in range(2000)]
    assert len(render(SMOLLM2, messages)) > 1_000_000
    collected = (
        "{% set ns = namespace(l=[], s='') %}{% for m in messages %}{% set ns.l = ns.l + [m.role] %}{% endfor %}"
    )
    assert render(collected + "{{ ns.l|length }}", messages) == "2000"
