from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from freehold.errors import TemplateError
from freehold.formats import sandbox_meter
from freehold.formats.template import ChatTemplate

HI = [{"role": "user", "content": "Hi"}]
ESCAPES = [
    "{{ ''.__class__ }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__'] }}",
    "{{ ()|attr('__class__') }}",
    "{{ messages|map(attribute='__class__')|list }}",
    "{{ messages|map('attr', '__class__')|list }}",
    "{{ messages.__init__.__globals__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__closure__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ cycler(1).next.__globals__ }}",
    "{{ '{0.__class__}'.format('') }}",
    "{{ '{x.__class__}'.format_map({'x': 1}) }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'role': 'x'}) }}",
    "{{ messages[0].pop('role') }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{% extends 'x' %}",
    "{{ lipsum.__globals__ }}",
    "{{ get_flashed_messages() }}",
    "{{ namespace }}",
    "{{ namespace() }}",
    "{{ [raise_exception] }}",
    "{{ raise_exception ~ 'x' }}",
    "{% macro m() %}{% endmacro %}{{ m }}",
]
BOMBS = [
    "{% for i in range(10**9) %}x{% endfor %}",
    "{{ 'x' * 10**9 }}",
    "{{ 10**9 * 'x' }}",
    "{{ [1] * 10**9 }}",
    "{{ 9**9999999 }}",
    "{{ (2**4000) * (2**4000) }}",
    "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}",
    "{% for a in range(9999) %}{% for b in range(9999) if false %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) recursive %}{{ loop(range(99999)) }}{% endfor %}",
    "{% set ns = namespace(a='x'*1000) %}{% for i in range(40) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}{{ ns.a }}",
    "{% set ns = namespace(a='x'*1000) %}{% for i in range(40) %}{% set ns.a = ns.a + ns.a %}{% endfor %}{{ ns.a }}",
    "{% set ns = namespace(a=[1]) %}{% for i in range(40) %}{% set ns.a = ns.a + ns.a %}{% endfor %}",
    "{% set ns = namespace(a=1) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}{{ ns.a }}",
    "{% set ns = namespace(a=1) %}{% for i in range(60) %}{% set ns.a = {'a': ns.a, 'b': ns.a} %}{% endfor %}{{ ns.a|tojson }}",
    "{% set ns = namespace(a=1) %}{% for i in range(60) %}{% set ns.a = dict(a=ns.a, b=ns.a) %}{% endfor %}{{ ns.a|string }}",
    "{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(60) %}{% set ns.a = (ns.a, ns.a) %}{% set ns.b = (ns.b, ns.b) %}"
    "{% endfor %}{{ ns.a == ns.b }}",
    "{% set ns = namespace(a=1) %}{% for i in range(60) %}{% set ns.a = namespace(a=ns.a, b=ns.a) %}{% endfor %}{{ ns.a }}",
    "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    "{% macro m(n) %}{% if n < 60 %}{{ m(n + 1) }}{{ m(n + 1) }}{% endif %}{% endmacro %}{{ m(0) }}",
    "{% macro m(n, a) %}{% if n < 99 %}{{ m(n + 1, varargs, varargs, varargs) }}{% else %}{{ a }}{% endif %}{% endmacro %}"
    "{{ m(0, 1, 2, 3) }}{% macro d(n, a) %}{% if n < 60 %}{{ d(n + 1, (a, a)) }}{% else %}{{ a }}{% endif %}{% endmacro %}"
    "{{ d(0, 1) }}",
    "{% set x %}{% for i in range(99999) %}{{ 'y' * 1000000 }}{% endfor %}{% endset %}{{ x|length }}",
    "{% macro m() %}{% for i in range(99999) %}{{ 'y' * 1000000 }}{% endfor %}{% endmacro %}{{ m()|length }}",
    "{% for i in range(99999) %}{{ 'y' * 1000000 }}{% endfor %}",
    "{% set ns = namespace(l=[]) %}{% set s = 'x' * 9000000 %}"
    "{% for i in range(999) %}{% set ns.l = ns.l + [s[1:]] %}{% endfor %}",
    "{% set s = 'x' * 9000000 %}{% set ns = namespace(l=[]) %}"
    "{% for i in range(9) %}{% set ns.l = ns.l + [s|list] %}{% endfor %}",
    "{{ 'x'.center(10**9) }}",
    "{{ 'x'.ljust(10**9) }}",
    "{{ 'x'.zfill(10**9) }}",
    "{{ '\t'.expandtabs(10**9) }}",
    "{{ 'x'|center(10**9) }}",
    "{{ 'x'|indent(10**9, true) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ ('%(a)s' * 1000000) % {'a': 'x' * 1000000} }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{:{}}'.format(1, 1000000000) }}",
    "{{ ('{0}' * 1000000).format('x' * 1000000) }}",
    "{{ ('x' * 1000000).replace('x', 'y' * 1000000) }}",
    "{{ ('x' * 1000000).replace('', 'y' * 1000000) }}",
    "{{ ('x' * 1000000)|replace('x', 'y' * 1000000) }}",
    "{{ range(99999)|join('x' * 1000000) }}",
    "{{ ('x' * 1000000).join(range(99999)|map('string')|list) }}",
    "{{ messages|tojson(indent=10**9) }}",
    "{{ ('a ' * 8000000).split() }}",
    "{{ (range(9999)|list * 100)|map('tojson')|map('tojson')|map('tojson')|map('tojson')|map('tojson')|list|length }}",
    "{{ 1.5|round(10**9, 'ceil') }}",
    "{{ [[1]]|sum(start=[]) }}",
    "{{ range(99999)|batch(10**9)|list }}",
    "{{ lipsum(n=99999) }}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{{ " + "-" * 5000 + "1 }}",
    "{{ " + " ~ ".join(["'x'"] * 5000) + " + 1 }}",
    "{% if a %}" * 3000 + "{% endif %}" * 3000,
]


@pytest.mark.parametrize("source", ESCAPES)
def test_nothing_of_python_is_reached_or_shown(source):
    with pytest.raises(TemplateError) as caught:
        ChatTemplate({"default": source}).render(HI)
    assert "root:" not in caught.value.message and "object at" not in caught.value.message


def test_an_escape_is_called_one():
    with pytest.raises(TemplateError, match="outside its sandbox"):
        ChatTemplate({"default": "{{ ''.__class__ }}"}).render(HI)


def test_every_bomb_ends_in_an_error_quickly_and_without_much_memory():
    """In a process of its own, whose address space is limited: what slips through fails there and not here."""
    code = """if True:
        import json, resource, sys, time
        from freehold.errors import TemplateError
        from freehold.formats.template import ChatTemplate
        from freehold.process_memory import peak_resident_bytes
        bombs = json.load(sys.stdin)
        ChatTemplate({"default": "{{ messages|tojson }}"}).render([1])
        before = peak_resident_bytes()
        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
        for source in bombs:
            started = time.process_time()
            try:
                out = ChatTemplate({"default": source}).render([{"role": "user", "content": "Hi"}])
                end = f"rendered {len(out)} characters"
            except TemplateError as error:
                end = "error" if "MemoryError" not in error.message and "grows" not in error.message else error.message
                if "maximum recursion" in error.message or "RecursionError" in error.message:
                    end = "error"
            grown = (peak_resident_bytes() - before) >> 20
            print(json.dumps([source[:90], end, time.process_time() - started, grown]))
    """
    run = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(BOMBS), capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    results = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(results) == len(BOMBS)
    assert [result for result in results if result[1] != "error"] == []
    assert [result for result in results if result[2] > sandbox_meter.MAX_SECONDS + 2] == []
    assert results[-1][3] < 600, f"{results[-1][3]} MiB"


def test_the_limits_are_what_stops_the_bombs(monkeypatch):
    template = ChatTemplate({"default": "{% for i in range(1000) %}{{ 'x' * 10 }}{% endfor %}"})
    assert len(template.render(HI)) == 10_000
    for name, value in (("MAX_STEPS", 500), ("MAX_VALUE", 5), ("MAX_TOTAL", 500), ("MAX_SECONDS", -1.0)):
        with monkeypatch.context() as patch:
            patch.setattr(sandbox_meter, name, value)
            with pytest.raises(TemplateError, match=r"needs (more than|a value)"):
                template.render(HI)


def test_each_rendering_has_a_budget_of_its_own(monkeypatch):
    monkeypatch.setattr(sandbox_meter, "MAX_STEPS", 5000)
    template = ChatTemplate({"default": "{% for i in range(1000) %}x{% endfor %}"})
    for _ in range(20):
        template.render(HI)
    ends: list[str] = []
    threads = [threading.Thread(target=lambda: ends.append(template.render(HI))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ends == ["x" * 1000] * 8


def test_a_conversation_nested_without_end_is_an_error():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(TemplateError):
        ChatTemplate({"default": "{{ messages|tojson }}"}).render(deep)
    while deep:  # taken apart here: Python's own destructor would recurse
        deep = deep[0]


def test_a_template_too_long_or_not_text_is_refused(tmp_path: Path):
    with pytest.raises(TemplateError, match="expected at most"):
        ChatTemplate({"default": "x" * 2_000_000})
    file = tmp_path / "chat_template.jinja"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TemplateError, match="not UTF-8"):
        ChatTemplate.of(tmp_path)
    file.write_bytes(b"x" * 5_000_000)
    with pytest.raises(TemplateError, match="too many"):
        ChatTemplate.of(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"chat_template": 5}', '{"chat_template": [1, {"name": "default"}]}'])
def test_a_broken_config_is_one_clear_error(tmp_path: Path, content):
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(TemplateError):
        ChatTemplate.of(tmp_path)


def test_names_given_by_the_caller_do_not_replace_the_conversation():
    out = ChatTemplate({"default": "{{ messages|length }}{{ raise_exception is defined }}"}).render(HI, counted=1)
    assert out == "1True"


def test_a_template_cannot_take_the_meter_s_place():
    source = "{% set counted = 1 %}{% set environment = 1 %}{% for i in range(10**5) %}{% for j in range(10**5) %}{% endfor %}"
    with pytest.raises(TemplateError, match="steps"):
        ChatTemplate({"default": source + "{% endfor %}"}).render(HI)
