"""A template nobody has read can neither reach the machine nor run away; an honest one is not in its way."""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path
from typing import Any

import jinja2
import pytest
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

import qwench
from qwench.errors import TemplateError
from qwench.text.chat import ChatTemplate

USER = [{"role": "user", "content": "x"}]
NANO = Path(qwench.__file__).parent / "train" / "chat_template.jinja"
GROW = "{%% set n = namespace(x=%s, y=%s) %%}{%% for i in range(60) %%}{%% set n.x = %s %%}{%% endfor %%}{{ n.x }}"
COMPARE = (
    "{% set n = namespace(x=[1], y=[1]) %}{% for i in range(60) %}"
    "{% set n.x = [n.x, n.x] %}{% set n.y = [n.y, n.y] %}{% endfor %}{{ n.x == n.y }}"
)
LONG = "{% set a = 'a' * 900000 %}{% set b = 'b' * 900000 %}"
FIXED = "x" * 100_000

RUNAWAYS = {
    "nested loops": "{% for a in range(60000) %}{% for b in range(60000) %}{% endfor %}{% endfor %}",
    "filtered loop": "{% for a in range(60000) %}{% for b in range(60000) if false %}{% endfor %}{% endfor %}",
    "recursive loop": "{% for x in range(60000) recursive %}{{ loop(range(60000)) if loop.depth0 < 3 }}{% endfor %}",
    "branching macro": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "endless macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "string times": "{{ 'a' * 999999999 }}",
    "times string": "{{ 999999999 * 'a' }}",
    "list times": "{{ [0] * 999999999 }}",
    "power": "{{ 10 ** 999999999 }}",
    "tower": GROW % ("9", "0", "n.x * n.x"),
    "doubling with ~": GROW % ("'ab'", "0", "n.x ~ n.x"),
    "doubling with +": GROW % ("'ab'", "0", "n.x + n.x"),
    "doubling a list": GROW % ("[1]", "0", "n.x + n.x"),
    "doubling a dict": GROW % ("1", "0", "dict(a=n.x, b=n.x)"),
    "doubling with join": GROW % ("'ab'", "0", "[n.x, n.x] | join"),
    "doubling with %": GROW % ("'ab'", "0", "'%s%s' % (n.x, n.x)"),
    "shared lists compared": COMPARE,
    "namespace in itself": "{% set n = namespace() %}{% set n.a = n %}{{ n }}",
    "fixed text in a loop": "{% for i in range(60000) %}" + FIXED + "{% endfor %}",
    "fixed text in a capture": "{% set c %}{% for i in range(60000) %}" + FIXED + "{% endfor %}{% endset %}",
    "slices": "{% set a = 'a' * 900000 %}" + "".join(f"{{% set a{i} = a[1:] %}}" for i in range(500)),
    "replace": LONG + "{{ a | replace('', b) }}",
    "replace method": LONG + "{{ a.replace('', b) }}",
    "join": LONG + "{{ b | join(a) }}",
    "join method": LONG + "{{ a.join(b) }}",
    "fields of a mapping": LONG + "{{ ('%(a)s' * 90000) % {'a': a} }}",
    "json separators": LONG + "{{ ([1] * 9000) | tojson(separators=(a, b)) }}",
    "strip": LONG + "{{ a.strip(b ~ 'a') }}",
    "trim": LONG + "{{ a | trim(b ~ 'a') }}",
    "search from the right": LONG + "{{ a.rfind('ab' ~ a[:400000]) }}",
    "selecting nothing": "{% set r = range(50000) | list %}{{ r | select('in', r[::-1]) | select('none') | list }}",
    "split": LONG + "{{ a.split('a') }}",
    "indent": "{{ 'a' | indent(999999999) }}",
    "json indent": "{{ [1] | tojson(indent=999999999) }}",
    "field": "{{ '%999999999d' % 1 }}",
    "field from arguments": "{{ '%*d' % (999999999, 1) }}",
    "format": "{{ '{:999999999}'.format(1) }}",
    "padding": "{{ 'a'.ljust(999999999) }}",
    "date": "{{ strftime_now('%Y' * 1000) }}",
    "brackets": "{{ " + "[" * 3000 + "]" * 3000 + " }}",
    "blocks": "{% for x in [1] %}" * 60 + "{% endfor %}" * 60,
}
REACHES = {
    "class": "{{ ''.__class__.__mro__ }}",
    "globals": "{{ raise_exception.__globals__['os'] }}",
    "attribute filter": "{{ ''|attr('__class__') }}",
    "format string": "{{ '{0.__class__}'.format(1) }}",
    "file": "{% include '/etc/passwd' %}",
    "import": "{% import '/etc/passwd' as x %}",
    "mutation": "{{ messages.append(1) }}",
    "block of itself": "{% block a %}{% endblock %}{{ self.a() }}",
}


@pytest.mark.parametrize("name", RUNAWAYS)
def test_a_runaway_template_is_stopped_soon_and_small(name: str) -> None:
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(TemplateError, match=r"fails on these messages|cannot be compiled|refuses these messages"):
        ChatTemplate(RUNAWAYS[name], seconds=2.0).render(USER)
    assert time.monotonic() - start < 20  # at most two seconds and a bit on an idle machine
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # KiB


@pytest.mark.parametrize("name", REACHES)
def test_a_template_cannot_reach_out(name: str) -> None:
    with pytest.raises(TemplateError):
        ChatTemplate(REACHES[name]).render(USER)


def test_the_clock_ends_what_the_steps_would_allow() -> None:
    slow = "{% for a in range(60000) %}{{ '' }}{% endfor %}"
    ChatTemplate(slow).render(USER)
    with pytest.raises(TemplateError, match="it takes too long"):
        ChatTemplate(slow, seconds=0.0).render(USER)


def test_the_budget_grows_with_the_messages() -> None:
    turn = "{{ m.role ~ m.content | trim }}{% if '<' in m.content.split('\n')[-1] %}!{% endif %}"
    source = "{% for m in messages %}" + turn + "{% endfor %}"
    long = [{"role": "user", "content": "word " * 40_000}] * 40  # 8 million characters
    assert len(ChatTemplate(source).render(long)) == 40 * (200_000 + 3)


def test_asking_for_the_length_in_every_turn_stays_cheap() -> None:
    turn = "{% if loop.index0 == messages|length - 1 or loop.last %}{{ m.content }}{% endif %}"
    source = "{% for m in messages %}" + turn + "{% endfor %}"
    call = {"function": {"name": "f", "arguments": {str(key): key for key in range(30)}}}
    many = [{"role": "assistant", "content": "", "tool_calls": [call]}] * 2000 + [{"role": "user", "content": "end"}]
    assert ChatTemplate(source).render(many) == "end"


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("{{ '%02d|%s|%5.2f' % (7, 'a', 1.5) }}", "07|a| 1.50"),
        ("{{ [3, 1] | sort | join(', ') }}", "1, 3"),
        ("{{ messages | map(attribute='role') | map('upper') | list }}", "['USER']"),
        ("{{ messages | selectattr('role', 'equalto', 'user') | list | length }}", "1"),
        ("{% for k, v in {'a': 1, 'b': [2]} | items %}{{ k }}={{ v }};{% endfor %}", "a=1;b=[2];"),
        (
            "{% for x in [1, 2, 3] %}{{ loop.index }}/{{ loop.length }}{{ '' if loop.last else ' ' }}{% endfor %}",
            "1/3 2/3 3/3",
        ),
        ("{% for x in [1, 2, 3] %}{% if x == 2 %}{% continue %}{% endif %}{{ x }}{% endfor %}", "13"),
        ("{% for x in [[1, []], [2, []]] recursive %}{{ x[0] }}{{ loop(x[1]) }}{% endfor %}", "12"),
        ("{{ messages[::-1][0].content }}{{ 'abc'[1:] }}{{ 'abc'[-1] }}", "xbcc"),
        ("{% macro m(a, b='-') %}{{ a }}{{ b }}{{ caller() }}{% endmacro %}{% call m(1) %}in{% endcall %}", "1-in"),
        ("{% set c %}a{{ 1 }}b{% endset %}{{ c | length }}{% filter upper %}x{{ c }}{% endfilter %}", "3XA1B"),
        ("{{ missing }}{{ missing is defined }}{{ none }}{{ true }}{{ 1.5 }}", "FalseNoneTrue1.5"),
        ("{{ 'a' ~ 1 ~ none ~ [1] }}", "a1None[1]"),
        ("{{ 'a,b'.split(',')[1].upper() ~ ' x '.strip() ~ 'xx'.replace('x', 'y', 1) }}", "Bxyx"),
        ("{% set n = namespace(i=0) %}{% for x in range(5) %}{% set n.i = n.i + x %}{% endfor %}{{ n.i }}", "10"),
        ("a\n    {%- if true %}\n  b\n    {%- endif %}\nc\n", "a  bc"),
        ("{{ 'a\nb' | indent(2) }}{{ 7 // 2 }}{{ 2 ** 10 }}{{ 'ab' * 2 }}{{ 7 % 4 }}", "a\n  b31024abab3"),
    ],
)
def test_honest_templates_render_as_in_jinja(source: str, wanted: str) -> None:
    assert ChatTemplate(source).render(USER) == wanted
    assert plain(source, {"messages": USER}) == wanted


def plain(source: str, given: dict[str, Any]) -> str:
    """The same template in jinja2's own sandbox, set up as chat templates expect it."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])

    def tojson(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    def refuse(message: str) -> None:
        raise jinja2.TemplateRuntimeError(message)

    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = refuse
    return environment.from_string(source).render(given)


def conversations() -> list[list[dict[str, Any]]]:
    """Every kind of turn a chat template knows."""
    call = {"function": {"name": "f", "arguments": {"city": "X\nY", "n": 2, "on": True, "none": None, "o": {"ü": [1]}}}}
    question = {"role": "user", "content": "\n  w?  \n"}
    asked: list[dict[str, Any]] = [
        question,
        {"role": "assistant", "content": "Let me look.", "tool_calls": [call, call]},
    ]
    told = [{"role": "tool", "content": "sunny"}, {"role": "tool", "content": "12"}]
    picture = [{"type": "image"}, {"type": "text", "text": "what?"}, {"type": "video", "video": "v"}]
    return [
        [question],
        [{"role": "system", "content": " Be brief. "}, *asked, *told],
        [*asked, *told, {"role": "assistant", "content": "Nice", "reasoning_content": "done"}, question],
        [question, {"role": "assistant", "content": "<think>\nsecret\n</think>\n\nb"}, question],
        [
            {"role": "user", "content": picture},
            {"role": "assistant", "content": "k"},
            {"role": "user", "content": picture},
        ],
        [{"role": "assistant", "content": "no question"}],
        [question, {"role": "critic", "content": "x"}],
    ]


@pytest.mark.parametrize("messages", conversations())
@pytest.mark.parametrize("options", [{}, {"enable_thinking": True}, {"tools": [{"a": "é<"}], "add_vision_id": True}])
def test_nanos_template_renders_as_in_plain_jinja(messages: list[dict[str, Any]], options: dict[str, Any]) -> None:
    source = NANO.read_text(encoding="utf-8")
    given = {"messages": messages, "tools": None, "add_generation_prompt": True, **options}
    try:
        wanted = plain(source, given)
    except jinja2.TemplateRuntimeError as error:
        with pytest.raises(TemplateError, match=str(error)):
            ChatTemplate(source).render(messages, variables=options)
        return
    assert ChatTemplate(source).render(messages, variables=options) == wanted


def test_json_keeps_order_letters_and_brackets() -> None:
    value: dict[str, object] = {"z": "<b>é☂&'</b>", "a": [1, 2.5, None, True, {"k": {}}]}
    expected = '{"z": "<b>é☂&\'</b>", "a": [1, 2.5, null, true, {"k": {}}]}'
    assert ChatTemplate("{{ v | tojson }}").render(USER, variables={"v": value}) == expected
    assert ChatTemplate("{{ [1, {}] | tojson(indent=2) }}").render(USER) == "[\n  1,\n  {}\n]"
