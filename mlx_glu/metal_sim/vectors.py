"""``float4(a, b, c, d)`` and ``vec<T, 4>(x)``: constructors clang's vectors lack.

They become calls of ``metal::__msl_make<float4>(...)``.
"""

import re

from .tokens import Tokens

_SCALARS = (
    *("bool", "char", "uchar", "short", "ushort", "int", "uint", "long", "ulong"),
    *("half", "float", "bfloat"),
)
_BUILTIN = frozenset(
    f"{packed}{scalar}{n}"
    for packed in ("", "packed_")
    for scalar in _SCALARS
    for n in (2, 3, 4)
)
_ALIAS = re.compile(
    r"\busing\s+(?P<using>\w+)\s*=\s*(?:typename\s+)?(?:metal::)?"
    r"(?P<to>vec\s*<[^;]*>|\w+)\s*;"
    r"|\btypedef\s+(?:typename\s+)?(?:metal::)?"
    r"(?P<of>vec\s*<[^;]*>|\w+)\s+(?P<typedef>\w+)\s*;"
)


def rewrite_vectors(tokens: Tokens, bodies: bytearray) -> None:
    """Rewrite every construction of a vector.

    Args:
        tokens: the text.
        bodies: 1 for each token that stands in a function's body.
    """
    names = _BUILTIN | _aliases(str(tokens)) | {"vec"}
    index = 0
    while index < len(tokens):
        end = index + 1
        if tokens.is_name(index) and tokens.text(index) in names:
            end = _rewrite(tokens, index, bool(bodies[index]))
        index = end


def _aliases(text: str) -> set[str]:
    found = set()
    for match in _ALIAS.finditer(text):
        target = match["to"] or match["of"]
        if target.startswith("vec") or target in _BUILTIN:
            found.add(match["using"] or match["typedef"])
    return found


def _rewrite(tokens: Tokens, first: int, in_body: bool) -> int:
    """Rewrite the construction that starts here, if any; return where to go on."""
    is_template = tokens.text(first) == "vec"
    last = first
    if is_template:
        opening = tokens.next(first)
        last = tokens.closing_angle(opening) if tokens.text(opening) == "<" else -1
        if last < 0:
            return first + 1
    after = tokens.next(last)
    if tokens.is_name(after):
        if in_body:
            _rewrite_variable(tokens, first, last, after)
    elif tokens.text(after) == "(" and not _is_declarator(tokens, after):
        _rewrite_call(tokens, first, last)
    return last + 1 if not is_template else first + 1


def _rewrite_variable(tokens: Tokens, first: int, last: int, name: int) -> None:
    """Write ``float2 v = make(a, b);`` for ``float2 v(a, b);``."""
    opening = tokens.next(name)
    if tokens.text(opening) != "(":
        return
    closing = tokens.closing(opening)
    is_empty = tokens.next(opening) == closing
    if is_empty or tokens.text(tokens.next(closing)) not in (";", ","):
        return
    made = _maker("::metal::", tokens.join(first, last + 1))
    tokens.replace(name, name, f"{tokens.text(name)} = {made}")


def _rewrite_call(tokens: Tokens, first: int, last: int) -> None:
    before = tokens.previous(first)
    qualified = tokens.text(before) == "::"
    if qualified:
        before = tokens.previous(tokens.previous(before))
    if tokens.text(before) in ("operator", "new"):
        return
    known = tokens.text(first) == "vec" or tokens.text(first) in _BUILTIN
    if qualified and not known:
        return
    made = _maker("" if qualified else "::metal::", tokens.join(first, last + 1))
    tokens.replace(first, last, made)


def _maker(prefix: str, vector: str) -> str:
    if vector.startswith("vec"):
        vector = f"::metal::{vector}"
    elif vector in _BUILTIN:
        vector = f"::{vector}"
    return f"{prefix}__msl_make<{vector}>"


def _is_declarator(tokens: Tokens, opening: int) -> bool:
    """Whether it is ``float4 (&x)[2]``: a declaration, no construction."""
    index = tokens.next(opening)
    after = tokens.next(tokens.closing(opening))
    return tokens.text(index) in ("&", "*", "&&") and tokens.text(after) in ("[", "(")
