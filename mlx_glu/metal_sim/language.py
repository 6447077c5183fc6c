"""Rules of the Metal language that C++ does not have, read off the tokens."""

import re
from collections.abc import Iterator

from .desugar import Kernel
from .scopes import Declaration, declarations
from .tokens import Tokens

MAX_BUFFERS = 31

_NOT_IN_METAL = {
    "asm": "inline assembly",
    "catch": "exceptions",
    "delete": "dynamic memory",
    "dynamic_cast": "run-time type information",
    "goto": "goto",
    "new": "dynamic memory",
    "thread_local": "thread_local",
    "throw": "exceptions",
    "try": "exceptions",
    "typeid": "run-time type information",
    "virtual": "virtual functions",
    "wchar_t": "wide characters",
}
_NOT_VARIABLES = frozenset(
    {"class", "enum", "friend", "namespace", "static_assert", "struct", "typedef"}
    | {"union", "using"}
)
_END_OF_WORDS = frozenset({"=", ";", "{", "(", "["})

# Functions of C and C++ that people reach for, and what Metal offers.
_INSTEAD = {
    "std": "the standard library's place is taken by namespace metal",
    "erf": "write it out, as MLX does in erf.h",
    "erfc": "write it out from erf",
    "expm1": "write it out, as MLX does in expm1f.h",
    "log1p": "write it out, as MLX does in utils.h",
    "cbrt": "use pow(x, 1.0f / 3)",
    "hypot": "use length(float2(x, y))",
    "tgamma": "write it out",
    "lgamma": "write it out",
    "remainder": "use fmod",
    "lround": "use int(round(x))",
    "lrint": "use int(rint(x))",
    "expf": "use exp",
    "logf": "use log",
    "sqrtf": "use sqrt",
    "tanhf": "use tanh",
    "powf": "use pow",
    "fabsf": "use fabs",
    "fmaxf": "use fmax",
    "fminf": "use fmin",
    "printf": "there is no output before Metal 3.2; write to a buffer",
    "assert": "there is none; use static_assert, or write to a buffer",
    "malloc": "there is no dynamic memory",
    "free": "there is no dynamic memory",
    "memcpy": "assign the elements",
    "memset": "assign the elements",
    "abort": "return early",
    "exit": "return early",
    "rand": "compute it from a counter",
    "__shfl_sync": "use simd_shuffle",
    "__shfl_down_sync": "use simd_shuffle_down",
    "__shfl_xor_sync": "use simd_shuffle_xor",
    "__syncthreads": "use threadgroup_barrier(mem_flags::mem_threadgroup)",
    "__syncwarp": "use simdgroup_barrier(mem_flags::mem_threadgroup)",
    "atomicAdd": "use atomic_fetch_add_explicit",
}
_UNKNOWN = re.compile(
    r"(?:undeclared (?:identifier|function)|call to function"
    r"|no (?:member|type|template) named|unknown type name) '(?:\w+::)*(\w+)'"
)


def check_text(source: str) -> Iterator[str]:
    """Yield what is wrong with the text before preprocessing: anything but ASCII."""
    for number, line in enumerate(source.splitlines(), 1):
        other = next((c for c in line if not c.isascii()), "")
        if other:
            yield (
                f"line {number}: {other!r} is not ASCII; Apple's compiler may refuse "
                "it even in a comment"
            )


def check_tokens(source: str) -> Iterator[str]:
    """Yield what breaks the rules of Metal in preprocessed text.

    Raises:
        MslError: the text does not split into declarations.
    """
    tokens = Tokens(source)
    yield from _check_keywords(tokens)
    yield from _check_function_pointers(tokens)
    for found in declarations(tokens):
        if found.kind == "other":
            yield from _check_variable(tokens, found)
        elif found.kind == "function":
            yield from _check_static_locals(tokens, found)


def check_buffers(kernel: Kernel) -> Iterator[str]:
    """Yield buffers beyond those an encoder can bind."""
    for param in kernel.params:
        if param.attr == "buffer" and (param.index or 0) >= MAX_BUFFERS:
            yield (
                f"kernel '{kernel.name}': '{param.name}' is buffer {param.index}, but "
                f"Metal binds {MAX_BUFFERS} (0 to {MAX_BUFFERS - 1})"
            )


def explain(message: str) -> str:
    """Add what to use in place of a name that clang does not know."""
    match = _UNKNOWN.search(message)
    advice = _INSTEAD.get(match[1]) if match else None
    if match is None or advice is None:
        return message
    return f"{message}; Metal has no '{match[1]}': {advice}"


def _check_keywords(tokens: Tokens) -> Iterator[str]:
    for index, token in enumerate(tokens.all):
        if token.kind != "name" or token.text not in _NOT_IN_METAL:
            continue
        deleted = token.text == "delete" and tokens.text(tokens.previous(index)) == "="
        if not deleted:
            what = _NOT_IN_METAL[token.text]
            yield f"{token.where}: '{token.text}': Metal has no {what}"


def _check_function_pointers(tokens: Tokens) -> Iterator[str]:
    """Find ``float (*f)(float)``; MLX shows that the type alone is allowed."""
    for index in range(len(tokens)):
        if tokens.text(index) != "(" or not _ends_type(tokens, index):
            continue
        star = tokens.next(index)
        name = tokens.next(star)
        after = tokens.next(name)
        if (
            tokens.text(star) in ("*", "&")
            and tokens.is_name(name)
            and after == tokens.closing(index)
            and tokens.text(tokens.next(after)) == "("
        ):
            yield f"{tokens[index].where}: Metal has no function pointers"


def _ends_type(tokens: Tokens, opening: int) -> bool:
    before = tokens.previous(opening)
    if tokens.is_name(before):
        return tokens.text(before) not in ("return", "sizeof", "if", "while", "case")
    return tokens.text(before) in (">", "*", "&")


def _check_variable(tokens: Tokens, found: Declaration) -> Iterator[str]:
    first, second = found.start, tokens.next(found.start)
    if tokens.text(first) == "template" and tokens.text(second) != "<":
        return  # an explicit instantiation
    words = list(_words(tokens, found.start, found.head))
    if len(words) < 2 or "constant" in words or not _NOT_VARIABLES.isdisjoint(words):
        return
    where = tokens[found.start].where
    if not found.in_class:
        yield (
            f"{where}: '{words[-1]}' stands at program scope, so it must be in the "
            "constant address space; write 'constant' before it"
        )
    elif "static" in words:
        yield (
            f"{where}: a static member such as '{words[-1]}' must be in the constant "
            "address space; write 'static constexpr constant'"
        )


def _words(tokens: Tokens, index: int, end: int) -> Iterator[str]:
    """Yield the names of a declaration up to what is declared."""
    index = tokens.at(index)
    while index < end and tokens.text(index) not in _END_OF_WORDS - {"[", "("}:
        if tokens.text(index) == "<":
            closing = tokens.closing_angle(index)
            index = closing if closing >= 0 else index
        elif tokens.is_name(index):
            yield tokens.text(index)
        index = tokens.at(tokens.after_group(index))


def _check_static_locals(tokens: Tokens, found: Declaration) -> Iterator[str]:
    for index in range(found.body, found.end):
        if not tokens.is_name(index) or tokens.text(index) != "static":
            continue
        end = index
        while tokens.text(end) not in _END_OF_WORDS:
            end = tokens.next(end)
        words = [tokens.text(i) for i in tokens.code(index, end)]
        if tokens.text(end) != "(" and "constant" not in words:
            yield (
                f"{tokens[index].where}: the static variable '{words[-1]}' must be in "
                "the constant address space; leave out 'static' or write 'constant'"
            )
