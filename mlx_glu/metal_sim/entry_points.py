"""What a launcher must know of a text: kernels, host names, function constants."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from .attributes import Attributes
from .scopes import Declaration
from .tokens import MslError, Tokens

_OPENS = frozenset({"(", "[", "{", "<"})
_CLOSES = frozenset({")", "]", "}", ">"})
_WITH_INDEX = re.compile(r"(\w+)\s*\(\s*(\w+)\s*\)")
_FUNCTION_CONSTANT = re.compile(r"function_constant\s*\(\s*(\w+)\s*\)")


@dataclass
class Param:
    """A parameter of a kernel.

    ``attr`` is the attribute's name, "buffer" where there is none; ``index`` its
    argument, for buffers also the one that Metal gives in its place.
    """

    type: str
    name: str
    attr: str | None
    index: int | None = None


@dataclass
class Kernel:
    """A kernel; ``template`` is its template parameter list, None if it has none."""

    name: str
    params: list[Param]
    template: str | None


def read_kernel(tokens: Tokens, found: Declaration, attributes: Attributes) -> Kernel:
    """Read the signature of a kernel's definition.

    Raises:
        MslError: a parameter without a name.
    """
    index, template = found.start, None
    while tokens.text(index) == "template":
        end = tokens.after_template(index)
        template = tokens.join(tokens.next(index) + 1, end - 1)
        index = tokens.at(end)
    # The last parentheses: those before may be of __attribute__.
    opening = index
    while index < found.head:
        if tokens.text(index) == "(":
            opening = index
        index = tokens.after_group(index)
    name = tokens.text(tokens.previous(opening))
    params = [
        _read_param(tokens, part, attributes)
        for part in split(tokens, opening + 1, tokens.closing(opening))
    ]
    _number_buffers(params)
    return Kernel(name, params, template)


def split(tokens: Tokens, begin: int, end: int) -> Iterator[list[int]]:
    """Yield the tokens of each part of [begin, end) between top-level commas."""
    part: list[int] = []
    depth = 0
    for index in tokens.code(begin, end):
        text = tokens.text(index)
        if text == "," and depth == 0:
            yield part
            part = []
            continue
        depth += (text in _OPENS) - (text in _CLOSES)
        part.append(index)
    if part:
        yield part


def _read_param(tokens: Tokens, part: list[int], attributes: Attributes) -> Param:
    texts = [tokens.text(index) for index in part]
    end = next((n for n, text in enumerate(texts) if text in ("=", "[")), len(part))
    names = [n for n in range(end) if tokens.is_name(part[n])]
    if len(names) < 2 or names[-1] != end - 1:
        where = tokens[part[0]].where if part else "the parameters"
        raise MslError(
            f"{where}: expected 'type name' for a kernel's parameter, "
            f"got {' '.join(texts)!r}"
        )
    attribute = next((attributes.after[i] for i in part if i in attributes.after), "")
    attr, index = _read_attribute(attribute)
    type_text = " ".join(texts[: names[-1]])
    return Param(type_text, texts[names[-1]], attr, index)


def _read_attribute(text: str) -> tuple[str, int | None]:
    """Return name and index of "buffer(3), function_constant(f)" and the like."""
    first = text.split(",")[0].strip()
    match = _WITH_INDEX.fullmatch(first)
    if not match:
        return first or "buffer", None
    return match[1], int(match[2]) if match[2].isdecimal() else None


def _number_buffers(params: list[Param]) -> None:
    following = 0
    for param in params:
        if param.attr == "buffer":
            param.index = following if param.index is None else param.index
            following = param.index + 1


def instantiation(tokens: Tokens, found: Declaration) -> str:
    """Return the expression a ``template [[host_name(..)]] [[kernel]] ..;`` names."""
    text = tokens.join(found.start, found.end)
    after_type = re.search(r"\bdecltype\s*\(.*?\)\s*(.+)$", text)
    if after_type:
        return after_type[1].strip()
    # template void name<T>(parameters)
    before_parameters = re.match(r"[^(]*?([\w:]+\s*(?:<[^(]*>)?)\s*\(", text)
    return before_parameters[1].strip() if before_parameters else ""


def set_function_constant(
    tokens: Tokens,
    found: Declaration,
    attributes: Attributes,
    values: Mapping[int, object],
) -> tuple[int, str, str] | None:
    """Give a function constant its value, as Metal does when it makes the pipeline.

    Returns:
        Its index, type and name; None if the declaration is of something else.

    Raises:
        MslError: the index is not a number.
    """
    for index in tokens.code(found.start, found.end):
        match = _FUNCTION_CONSTANT.match(attributes.after.get(index, ""))
        if not match:
            continue
        name, where = tokens.text(index), tokens[index].where
        if not match[1].isdecimal():
            raise MslError(
                f"{where}: expected a number in [[function_constant(..)]] of "
                f"'{name}', got '{match[1]}'"
            )
        words = (tokens.text(i) for i in tokens.code(found.start, index))
        type_text = " ".join(word for word in words if word != "constant")
        value = _literal(values.get(int(match[1]), 0))
        definition = f"static const {type_text} {name} = {value};"
        tokens.replace(found.start, found.end, definition)
        return int(match[1]), type_text, name
    return None


def _literal(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
