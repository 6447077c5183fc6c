"""Render the chat template of a checkpoint, which is code from a stranger.

It runs in the sandbox of ``template_sandbox.py`` and sees copies of the messages, made
of plain JSON types. Time, memory and output of a rendering are bounded there.
"""

import traceback
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2


def named_templates(value: object, source: str) -> dict[str, str]:
    """Read the ``chat_template`` of a config file.

    Args:
        value: a template, a list of ``{"name": ..., "template": ...}``, or a dict.
        source: the file, for the error.

    Returns:
        Templates by name; a single one is named ``default``.

    Raises:
        ValueError: ``value`` has another form.
    """
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        value = {item.get("name"): item.get("template") for item in value}
    if isinstance(value, dict) and all(
        isinstance(text, str) for item in value.items() for text in item
    ):
        return value
    raise ValueError(
        f"[chat_template] {source}: chat_template is a string or a list of objects "
        f"with name and template, not {str(value)[:80]!r}"
    )


def choose_template(templates: Mapping[str, str], name: str | None, tools: bool) -> str:
    """Pick a template as Hugging Face does.

    Args:
        templates: templates by name.
        name: a name, or the text of a template, or None.
        tools: whether there are tools; ``tool_use`` is for them.

    Returns:
        The template's text.

    Raises:
        ValueError: there is none to pick.
    """
    if name is not None:
        return templates.get(name, name)
    for candidate in ("tool_use", "default") if tools else ("default",):
        if candidate in templates:
            return templates[candidate]
    raise ValueError(
        "[chat_template] this tokenizer has no default chat template; "
        + (
            f"choose chat_template from {sorted(templates)}"
            if templates
            else "encode the text as it is, or pass chat_template"
        )
    )


def render(template: str, messages: Sequence[Mapping[str, Any]], **context: Any) -> str:
    """Render messages by a template.

    Args:
        template: jinja2 text.
        messages: ``{"role": ..., "content": ...}`` and what else the template reads;
            keys that are None are left out.
        **context: what the template sees besides, such as ``bos_token``,
            ``add_generation_prompt``, ``tools``, ``enable_thinking``.

    Returns:
        The rendered text.

    Raises:
        ValueError: the template is broken, raises, leaves the sandbox or grows too
            large, or a value is no JSON type; with the template's line if known.
    """
    from .template_budget import MAX_VALUE
    from .template_sandbox import variables

    compiled = _compile(template)
    chat = [
        {key: value for key, value in message.items() if value is not None}
        for message in _plain(_checked(messages))
    ]
    context = _plain(context) | {"messages": chat}
    parts, size = [], 0
    try:
        for part in compiled.generate(variables(context)):
            parts.append(part)
            size += len(part)
            if size > MAX_VALUE:
                raise ValueError(f"the text grows beyond {MAX_VALUE:,} characters")
    except Exception as error:  # a template can raise anything
        raise _one_line(error) from None
    return "".join(parts)


def _checked(messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    is_list = isinstance(messages, Sequence) and not isinstance(messages, str)
    if is_list and messages and all(isinstance(m, Mapping) for m in messages):
        return messages
    raise ValueError(
        "[chat_template] messages is a non-empty list of objects with role and "
        f"content, not {str(messages)[:80]!r}"
    )


def _plain(value: Any) -> Any:
    """Copy of plain types: a richer object could have methods that do harm."""
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind.__str__(value) if kind is str else kind(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    raise ValueError(
        f"[chat_template] a template takes strings, numbers, lists and dicts, not "
        f"{type(value).__name__}; convert it first (tools to JSON schemas)"
    )


def _one_line(error: Exception) -> ValueError:
    """The error with the deepest template line of its traceback."""
    line = getattr(error, "lineno", None)
    for frame, lineno in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_filename == "<template>":
            line = lineno
    where = f"line {line}: " if line else ""
    text = " ".join(str(error).split()) or type(error).__name__
    return ValueError(f"[chat_template] {where}{text[:500]}")


@lru_cache(maxsize=16)
def _compile(template: str) -> "jinja2.Template":
    try:
        return _environment().from_string(template)
    except Exception as error:  # TemplateSyntaxError, RecursionError
        raise _one_line(error) from None


@lru_cache(maxsize=1)
def _environment() -> "jinja2.Environment":
    from .template_sandbox import environment

    return environment()
