import json
import re
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


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__ }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ ''['__class__'] }}",
        "{{ '' | attr('__class__') }}",
        "{{ dict.__globals__ }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{% set x = messages.append({}) %}",
        "{% set x = messages[0].update(role='x') %}",
        "{% set messages[0].role = 'x' %}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_the_sandbox_holds(template):
    chat = [{"role": "user", "content": "hi"}]
    with pytest.raises(ValueError, match=r"^\[chat_template\] .*$"):
        render(template, chat)
    assert chat == CHAT


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(9**5) %}{% for j in range(9**5) %}{% endfor %}{% endfor %}",
        "{% for i in range(10**8) %}{% endfor %}",
        "{% for i in range(90000) %}{{ 'x' * 1000 }}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_hostile_loops_end(template):
    with pytest.raises(ValueError, match=r"^\[chat_template\] .*$"):
        render(template, CHAT)


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
