import json
import re
import subprocess
import sys
from datetime import datetime

import pytest
from tiny_tokenizers import CHATML

from mlx_glu.tokenizer.chat_template import choose_template, named_templates, render

CHAT = [{"role": "user", "content": "hi"}]


def test_renders_a_chat():
    text = render(CHATML, CHAT, add_generation_prompt=True)
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_context_reaches_the_template():
    template = "{{ bos_token }}{{ enable_thinking }}{{ tools[0].name }}"
    context = {"bos_token": "<s>", "enable_thinking": False, "tools": [{"name": "f"}]}
    assert render(template, CHAT, **context) == "<s>Falsef"


def test_none_values_of_a_message_count_as_absent():
    chat = [{"role": "assistant", "content": "x", "tool_calls": None}]
    assert render("{{ messages[0].tool_calls is defined }}", chat) == "False"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ {'b': '<é>', 'a': [1]} | tojson }}", '{"b": "<é>", "a": [1]}'),
        ("{{ [1] | tojson(indent=2) }}", json.dumps([1], indent=2)),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}"
         "{% endfor %}", "01"),
        ("a{% generation %}b{% set x = 1 %}{% endgeneration %}{{ x }}c", "abc"),
        ("  {% if true %}\n  x\n  {% endif %}\n", "  x\n"),
        ("{% set n = namespace(a=1) %}{% set n.a = 2 %}{{ n.a }}", "2"),
        ("{{ dict(a=1)['a'] }}{{ 'x'.upper() }}", "1X"),
    ],
)  # fmt: skip
def test_what_templates_of_the_hub_use(template, text):
    assert render(template, CHAT) == text


def test_strftime_now():
    years = {str(datetime.now().year) for _ in range(2)}
    assert render("{{ strftime_now('%Y') }}", CHAT) in years


ESCAPES = [
    "{{ ''.__class__ }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ ''['__class__'] }}",
    "{{ '' | attr('__class__') }}",
    "{{ [''] | map(attribute='__class__') | list }}",
    "{{ [''] | groupby('__class__') }}",
    "{{ [''] | sort(attribute='__class__.__mro__') }}",
    "{{ dict.__globals__ }}",
    "{{ range.__globals__ }}",
    "{{ namespace.__init__ }}",
    "{{ raise_exception.__globals__['json'] }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ joiner.__init__.__globals__.os }}",
    "{{ lipsum.__globals__ }}",
    "{{ self.__init__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ nothing.__class__ }}",
    "{% for x in 'a' %}{{ loop._iterator }}{% endfor %}",
    "{% macro f() %}{% endmacro %}{{ f._func.__globals__ }}",
    "{{ '{0.__class__}'.format(1) }}",
    "{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "{{ ('{0.__class__}' | attr('format'))(1) }}",
    "{{ ''['format_map']({}) }}",
    "{{ ('' | safe).unescape }}",
    "{{ (1).to_bytes }}",
    "{{ ''.encode() }}",
    "{% set x = messages.append({}) %}",
    "{% set x = messages[0].update(role='x') %}",
    "{% set messages[0].role = 'x' %}",
    "{% include '/etc/passwd' %}",
    "{% extends '/etc/passwd' %}",
    "{% import 'os' as os %}",
]


@pytest.mark.parametrize("template", ESCAPES)
def test_the_sandbox_holds(template):
    chat = [{"role": "user", "content": "hi"}]
    with pytest.raises(ValueError, match=r"^\[chat_template\] .*$"):
        render(template, chat)
    assert chat == CHAT


def looped(body, times=100_000, start=""):
    """A template that does something again and again, with ``n.x`` to keep."""
    head = "{% set n = namespace(x='x', y=[1], z=[1]) %}" + start
    return head + "{% for i in range(" + str(times) + ") %}" + body + "{% endfor %}"


HOSTILE = {
    # loops
    "loops": looped(looped(looped(""))),
    "loops over text": "{% for a in 'x' * 1000 %}" * 4 + "{% endfor %}" * 4,
    "one long range": "{% for i in range(10**8) %}{% endfor %}",
    "range as a list": "{{ range(10**12) | list }}",
    "sum of a range": "{{ range(10**18) | sum }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "recursion in two": (
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}"
        "{{ f(60) }}"
    ),
    "recursive loop": (
        "{% for m in 'abcdefgh' recursive %}{% if loop.depth < 30 %}"
        "{{ loop('abcdefgh') }}{% endif %}{% endfor %}"
    ),
    "calls in calls": (
        "{% macro m() %}{{ caller() }}{{ caller() }}{% endmacro %}"
        + "{% call m() %}" * 18 + "{% call m() %}" + "x" + "{% endcall %}" * 19
    ),
    "a quadratic filter": (
        "{{ range(100000) | select('in', range(100000) | list) | list }}"
    ),
    "sorting": looped("{% set n.y = range(100000) | list | sort %}"),
    "searching": looped("{% if ('b' * 500000) in n.x %}{% endif %}",
                        start="{% set n.x = 'ab' * 1000000 %}"),
    "a chain of generators": looped("{% set n.x = n.x | map('upper') %}")
    + "{{ n.x | list }}",
    # sizes
    "times": "{{ 'x' * 10**9 }}",
    "times, unused": "{% set x = 10**9 * ['x'] %}",
    "a power": "{{ 7 ** (10**9) }}",
    "squares": looped("{% set n.x = n.x * n.x %}", start="{% set n.x = 3 %}"),
    "doubling": looped("{% set n.x = n.x + n.x %}"),
    "doubling with ~": looped("{% set n.x = n.x ~ n.x %}"),
    "many with ~": "{% set x = 'x' * 10**6 %}{{ " + "~".join("x" * 5000) + " }}",
    "many lists": looped("{% set n.y = n.y + [n.x * 10000 ~ i] %}"),
    "many slices": looped("{% set n.y = n.y + [n.x[i:]] %}",
                          start="{% set n.x = 'x' * 4000000 %}"),
    "text in a macro": (
        "{% macro f() %}" + looped("y" * 10000) + "{% endmacro %}{{ f() }}"
    ),
    "text in a variable": "{% set x %}" + looped("y" * 10000) + "{% endset %}",
    "output": looped("{{ 'x' * 1000 }}"),
    "lists in lists": looped("{% set n.y = [n.y, n.y] %}", 100) + "{{ n.y }}",
    "lists in lists, as JSON": looped("{% set n.y = [n.y, n.y] %}", 100)
    + "{{ n.y | tojson }}",
    "dicts in dicts": looped("{% set n.y = dict(a=n.y, b=n.y) %}", 100)
    + "{{ n.y | string }}",
    "comparing": looped("{% set n.y = [n.y, n.y] %}{% set n.z = [n.z, n.z] %}", 100)
    + "{{ n.y == n.z }}",
    "arguments in arguments": (
        "{% macro f(d) %}{% if d > 60 %}{{ varargs }}{% else %}"
        "{{ f(d+1, varargs, varargs) }}{% endif %}{% endmacro %}{{ f(0, 'x') }}"
    ),
    "center": "{{ 'x' | center(10**9) }}",
    "str.center": "{{ 'x'.center(10**9) }}",
    "str.ljust": "{{ 'x'.ljust(10**9) }}",
    "str.zfill": "{{ 'x'.zfill(10**9) }}",
    "str.expandtabs": "{{ '\t'.expandtabs(10**9) }}",
    "indent": "{{ ('\n' * 10**6) | indent(10**6) }}",
    "indent by text": "{{ ('\n' * 10**6) | indent('x' * 1000) }}",
    "replace": "{{ ('x' * 10**6) | replace('x', 'y' * 10**6) }}",
    "str.replace": "{{ ('x' * 10**6).replace('', 'y' * 10**6) }}",
    "join": "{{ ('x' * 10**6) | join('y' * 10**6) }}",
    "join a generator": "{{ range(99999) | map('string') | join('y' * 10**6) }}",
    "str.join": "{{ ('y' * 10**6).join('x' * 10**6) }}",
    "str.join a generator": "{{ ('y' * 10**5).join(range(9999) | map('string')) }}",
    "%": "{{ '%1000000000d' % 1 }}",
    "% with a width": "{{ '%*d' % (10**9, 1) }}",
    "% by name": "{{ ('%(a)s' * 10**5) % {'a': 'x' * 10**6} }}",
    "format": "{{ '%.1000000000f' | format(1.0) }}",
    "str.format": "{{ '{:1000000000}'.format(1) }}",
    "str.format, nested": "{{ '{:{}}'.format(1, 10**9) }}",
    "str.format, hidden": "{{ '{0:{1[w]}}'.format(1, {'w': 10**9}) }}",
    "str.format, often": "{{ ('{0}' * 10**6).format('x' * 10**6) }}",
    "batch": "{{ [1] | batch(10**9, 'x') | list }}",
    "slice": "{{ [1] | slice(10**9) | list }}",
    "round": "{{ 1 | round(10**8, 'ceil') }}",
    "sum of lists": "{{ [[1], [2]] | sum(start=[]) }}",
    "tojson": "{{ [1, 2] | tojson(indent=10**9) }}",
    "tojson by text": "{{ [[1]] | tojson(separators=('x' * 10**6, ':')) }}",
    "strftime": looped("{% set n.y = n.y + [strftime_now('%c' * 100)] %}"),
    # compiling
    "long": "x" * 10**7,
    "many parts": "{{x}}" * 12_000,
    "brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "lists": "{{ " + "[" * 5000 + "]" * 5000 + " }}",
    "a long sum": "{{ " + "+".join("1" * 30_000) + " }}",
    "elif": "{% if 0 %}" + "{% elif 0 %}" * 5000 + "{% endif %}",
    "nested loops": "{% for a in b %}" * 50 + "{% endfor %}" * 50,
    "not not": "{{ " + "not " * 15_000 + "1 }}",
    "filters": "{{ x" + " | upper" * 6000 + " }}",
    "braces": "{" * 60_000,
}  # fmt: skip

CHILD = """
import json, resource, sys, time

if sys.platform == "linux":  # macOS has no such limit
    resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))

def megabytes():
    if sys.platform != "linux":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    with open("/proc/self/status") as status:  # Linux's ru_maxrss is the parent's
        return int(status.read().split("VmHWM:")[1].split()[0]) / (1 << 10)

from mlx_glu.tokenizer.chat_template import render

chat = [{"role": "user", "content": "hello world " * 10}]
render("{{ messages }}", chat)
for template in json.load(sys.stdin):
    start = time.process_time()
    before = megabytes()
    try:
        message = [render(template, chat)[:100]]
    except ValueError as error:
        message = str(error)
    used = time.process_time() - start
    print(json.dumps([message, used, megabytes() - before]), flush=True)
"""


def test_hostile_templates_end():
    """Each in a line, in a second of processor time and a little memory."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=json.dumps(list(HOSTILE.values())),
        capture_output=True,
        text=True,
        timeout=300,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, (list(HOSTILE)[len(rows)], done.stderr[-2000:])
    for name, (message, seconds, megabytes) in zip(HOSTILE, rows, strict=True):
        assert isinstance(message, str), (name, message)
        assert message.startswith("[chat_template] "), name
        assert "\n" not in message, name
        assert seconds < 1.5, (name, seconds)
        assert megabytes < 250, (name, megabytes)


def test_a_long_chat_is_rendered():
    """What a template may do grows with the chat."""
    chat = [{"role": "user", "content": "word " * 200}] * 1000
    template = (
        "{% set n = namespace(a=[], t='') %}{% for m in messages %}"
        "{% set n.a = n.a + [m.content | trim] %}"
        "{% if messages[loop.index0:] | length and loop.last %}{{ n.a | join }}"
        "{% endif %}{% endfor %}"
    )
    assert len(render(template, chat)) == 1000 * 999


def test_generators_are_as_in_jinja():
    """True even if empty, and used up by the first loop."""
    template = (
        "{% set g = [1, 2] | map('string') %}{{ 1 if [] | select else 0 }}"
        "{% for x in g %}{{ x }}{{ loop.length }}{% endfor %}"
        "{% for x in g %}{{ x }}{% else %}none{% endfor %}"
    )
    assert render(template, CHAT) == "11222none"


@pytest.mark.parametrize(
    ("template", "error"),
    [
        ("a\n{% if %}", "line 2: "),
        (
            "a\n\n{{ raise_exception('roles must\n alternate') }}",
            "line 3: roles must alter",
        ),
        ("a\n{{ messages[0].content.x.y }}", "line 2: .*no attribute 'x'"),
        ("\n\n\n{{ 1 // 0 }}", "line 4: .*zero"),
    ],
)
def test_errors_are_one_line_and_name_the_template_line(template, error):
    with pytest.raises(ValueError, match=rf"^\[chat_template\] {error}") as caught:
        render(template, CHAT)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("messages", [[], "hi", [1], {"role": "user"}])
def test_messages_must_be_a_list_of_objects(messages):
    with pytest.raises(ValueError, match="messages is a non-empty list"):
        render(CHATML, messages)


def test_templates_see_only_plain_types():
    with pytest.raises(ValueError, match="not function; convert it first"):
        render("{{ tools }}", CHAT, tools=[lambda x: x])


def test_named_templates():
    listed = [
        {"name": "default", "template": "d"},
        {"name": "tool_use", "template": "t"},
    ]
    templates = named_templates(listed, "file")
    assert templates == {"default": "d", "tool_use": "t"}
    assert named_templates("x", "file") == {"default": "x"}
    assert named_templates(None, "file") == {}
    assert choose_template(templates, None, tools=False) == "d"
    assert choose_template(templates, None, tools=True) == "t"
    assert choose_template(templates, "tool_use", tools=False) == "t"
    assert choose_template(templates, "{{ x }}", tools=False) == "{{ x }}"
    with pytest.raises(ValueError, match=r"no default chat template.*'rag'"):
        choose_template({"rag": "r"}, None, tools=False)
    with pytest.raises(ValueError, match=re.escape("file: chat_template is a string")):
        named_templates([{"name": "default"}], "file")
