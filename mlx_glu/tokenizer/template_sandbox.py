"""Jinja2's immutable sandbox, with a budget for what one rendering makes.

A template is code from a stranger. The sandbox keeps it from leaving: no underscore
attribute, no change of a list or dict, no file, no import. The budget keeps it from
wasting: every string, list and dict that it makes is weighed, every step of a loop
counted, and what would multiply its input (``'x' * n``, ``|center``, ``|indent``,
``join``, ``%``) is refused before it is done. So no operation is longer than sorting
4 million characters, and between two of them the clock is looked at.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import wraps
from typing import Any, cast

import jinja2
from jinja2 import ext, nodes, pass_context, sandbox
from jinja2.runtime import Context, LoopContext
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from .template_budget import GROWTH, MAX_VALUE, Budget, formatted, size_of

#: Characters and nodes of a template, which bound the time to compile it. Of 150 real
#: ones the longest has 17,000 characters, and 830 nodes.
MAX_TEMPLATE, MAX_NODES = 1 << 16, 10_000

#: As jinja2's own sandbox has it.
MAX_RANGE = 100_000

_BUDGET = " budget"  # a name that no template can spell


def environment() -> jinja2.Environment:
    """Hugging Face's environment for chat templates, in this sandbox.

    Source: transformers 5, utils/chat_template_utils.py.
    """
    made = _Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, ext.loopcontrols],
        finalize=_written,
    )
    for name in _UNBOUNDED:
        del made.filters[name]
    made.filters["tojson"] = _tojson
    tables: tuple[dict[str, Any], ...] = (made.filters, made.tests)
    for table in tables:
        table |= {name: _paid(name, table[name]) for name in table}
    made.filters |= {_EACH: _each, _JOINED: _joined, _MADE: _made}
    made.globals.pop("lipsum")
    # Plain functions, since a class has attributes to climb on.
    made.globals.update(
        dict=lambda *args, **kwargs: dict(*args, **kwargs),
        namespace=lambda *args, **kwargs: _Namespace(*args, **kwargs),
        range=_range,
        raise_exception=_raise_exception,
        strftime_now=_strftime_now,
    )
    return made


def variables(context: dict[str, Any]) -> dict[str, Any]:
    """The variables of a rendering, with a budget of its own."""
    return {**context, _BUDGET: Budget(context)}


class _Sandbox(sandbox.ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(sandbox.SandboxedEnvironment.default_binop_table)

    def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
        # Raise at once; jinja2 waits until the value is used.
        raise sandbox.SecurityError(
            f"access to attribute {attribute!r} of a {type(obj).__name__} is unsafe"
        )

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if not super().is_safe_attribute(obj, attr, value):
            return False
        if isinstance(obj, str):
            return f" {attr} " in _STRING_METHODS
        return not isinstance(obj, bytes | int | float)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        budget = _budget(__context)
        budget.spend(0)
        budget.weigh(args)
        budget.weigh(kwargs)
        method = getattr(__obj, "__wrapped__", __obj)  # what str.format was
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str) and method.__name__ == "format_map":
            raise sandbox.SecurityError("format_map is unsafe; use format")
        if isinstance(owner, str) and method.__name__ in GROWTH:
            grown = (args[0], owner) if method.__name__ == "join" else (owner, *args)
            budget.check(GROWTH[method.__name__](budget, *grown, **kwargs))
        if isinstance(__obj, LoopContext) and args:  # a recursive loop
            args = (_each(__context, *args),)
        return budget.keep(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = _budget(context)
        budget.spend(0)
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            budget.check(left.bit_length() * right << 12)
        elif operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(value, str | list | tuple) and isinstance(times, int):
                    budget.check(budget.weigh(value) * times)
        elif operator == "%" and isinstance(left, str):
            values = right if isinstance(right, tuple) else (right,)
            budget.check(formatted(budget, left, *values))
        return budget.keep(super().call_binop(context, operator, left, right))

    def _parse(self, source: str, name: Any, filename: Any) -> nodes.Template:
        if len(source) > MAX_TEMPLATE:
            raise ValueError(f"it has over {MAX_TEMPLATE:,} characters")
        tree: nodes.Template = super()._parse(source, name, filename)
        if sum(1 for _ in tree.find_all(nodes.Node)) > MAX_NODES:
            raise ValueError(f"it has over {MAX_NODES:,} parts")
        _Payments().visit(tree)
        return tree


class _Payments(NodeTransformer):
    """Puts filters where jinja2 has no hook: they are never folded into constants."""

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        super().generic_visit(node, *args, **kwargs)
        if isinstance(node, nodes.For):
            node.iter = _filter(cast(nodes.Expr, node.iter), _EACH)
        elif isinstance(node, nodes.TemplateData):  # would not pass through _written
            return nodes.MarkSafeIfAutoescape(nodes.Const(node.data))
        elif isinstance(node, nodes.Concat):
            return _filter(nodes.List(node.nodes, lineno=node.lineno), _JOINED)
        elif (
            isinstance(node, nodes.List | nodes.Dict)
            or (isinstance(node, nodes.Tuple) and node.ctx == "load")
            or (isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice))
        ):
            return _filter(cast(nodes.Expr, node), _MADE)
        return node


def _filter(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class _Generation(ext.Extension):
    """``{% generation %}`` marks the assistant's text; it renders its body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=lineno)


class _Namespace(Namespace):
    """Not shown with its values: they may hold it, and are not weighed together."""

    def __repr__(self) -> str:
        return "<Namespace>"


def _budget(context: Context) -> Budget:
    budget: Budget = context.parent[_BUDGET]
    return budget


@pass_context
def _written(context: Context, value: Any) -> Any:
    """Every value that becomes text, wherever that text goes."""
    budget = _budget(context)
    budget.spend(budget.weigh(value))
    return value


@pass_context
def _each(context: Context, items: Iterable[Any]) -> Iterator[Any]:
    """The items of a loop."""
    budget = _budget(context)
    for item in items:
        budget.spend(0)
        yield item


@pass_context
def _joined(context: Context, items: list[Any]) -> Any:
    budget = _budget(context)
    budget.weigh(items)
    return budget.keep("".join(map(str, items)))


@pass_context
def _made(context: Context, value: Any) -> Any:
    return _budget(context).keep(value)


def _paid(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter or test that is weighed; as it takes the context, it is never folded."""
    takes = getattr(function, "jinja_pass_arg", None)

    @wraps(function)
    def paid(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        budget = _budget(context)
        budget.spend(0)
        for given in (value, args, kwargs):
            budget.weigh(given)
        if name in GROWTH:
            budget.check(GROWTH[name](budget, value, *args, **kwargs))
        own = {"context": context, "eval_context": context.eval_ctx}
        first = [own.get(takes.name, context.environment)] if takes else []
        return budget.keep(function(*first, value, *args, **kwargs))

    return pass_context(paid)


#: No template needs them, and they search text in quadratic time.
_UNBOUNDED = ("pprint", "striptags", "urlize", "wordwrap", "xmlattr")

#: Not expandtabs, encode and translate.
_STRING_METHODS = (
    " capitalize casefold center count endswith find format index isalnum isalpha "
    "isascii isdecimal isdigit isidentifier islower isnumeric isprintable isspace "
    "istitle isupper join ljust lower lstrip partition removeprefix removesuffix "
    "replace rfind rindex rjust rpartition rsplit rstrip split splitlines startswith "
    "strip swapcase title upper zfill "
)

_EACH, _JOINED, _MADE = " each", " joined", " made"


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own filter escapes HTML."""
    if len(str(separators)) > 100 or (indent is not None and size_of(indent) > 100):
        raise ValueError("tojson has an indent or separators of over 100 characters")
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
    parts, left = [], MAX_VALUE
    for part in encoder.iterencode(value):
        parts.append(part)
        left -= len(part)
        if left < 0:
            raise ValueError(f"tojson gives over {MAX_VALUE:,} characters")
    return "".join(parts)


def _range(*args: int) -> range:
    items = range(*args)
    if max(map(abs, args)) >= 2**62 or len(items) > MAX_RANGE:
        raise ValueError(f"range() gives over {MAX_RANGE:,} items")
    return items


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    # A format can give 256 times its length.
    return datetime.now().strftime(form[:1000])
