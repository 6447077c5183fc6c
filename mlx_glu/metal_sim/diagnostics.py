"""Clang's messages on a kernel, kept where they say that it is not Metal."""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from .address_spaces import SPACES
from .language import explain

_HEAD = re.compile(
    r"^(?P<file>\S[^\n:]*):(?P<line>\d+):\d+: "
    r"(?P<kind>error|fatal error|warning): (?P<text>.*)$",
    re.M,
)
_OPTION = re.compile(r" \[(-W[^\],]*)[^\]]*\]$")
# Metal 3.1 is C++14, but MLX's headers use these and compile as Metal 3.1.
_ALLOWED = re.compile(r"constexpr if |inline variables |with no message ")
# MSL copies plain structs between address spaces; clang's own copy operations do not.
_STRUCT_COPY = re.compile(
    r"no matching constructor for initialization of|no viable overloaded '='"
)
_COPY_NOTE = re.compile(r"the implicit copy .*not viable: .*address space")
# In MSL a string stands in the constant address space.
_STRING_NOTE = re.compile(r"from 'const char\[\d+\]' to .*\(2\)\)\) char \*'")
# A member for objects in an address space; clang sees only the first overload.
_MEMBER_NOTE = re.compile(
    r"^(\S[^\n:]*):(\d+):\d+: note: .*'this' object is in address space '(\d)'", re.M
)
_THIS = re.compile(
    r"(?:'this' argument to member|object parameter of type '(?:const )?(?:\w+::)*"
    r"(?P<owner>\w+)).* type '(?:.*address_space\((?P<number>\d)\)|(?P<name>\w+) )"
)
_DECLARED_NOTE = re.compile(r"^(\S[^\n:]*):(\d+):\d+: note: .* declared here", re.M)

WARNINGS = (
    "-Wimplicit-float-conversion",
    "-Wpre-c++17-compat",
    "-Wc++98-compat",
    "-Wuninitialized",
    "-Wvla",
    "-ferror-limit=0",
    "-fno-color-diagnostics",
)


@dataclass(frozen=True)
class Diagnosis:
    """What clang said of a text.

    Attributes:
        problems: errors, and warnings that are errors in Metal.
        compiles: whether clang found no error.
        forgiven: whether it only found errors that Metal does not share.
    """

    problems: list[str]
    compiles: bool
    forgiven: bool


def read_diagnostics(
    output: str,
    members: Collection[tuple[str, int]] = (),
    *,
    metal4: bool = False,
) -> Diagnosis:
    """Sort clang's messages.

    Args:
        output: what it printed with :data:`WARNINGS`.
        members: as :class:`~mlx_glu.metal_sim.desugar.Desugared` has them.
        metal4: allow all of C++17.
    """
    problems = []
    errors = forgiven = 0
    for head, notes in _messages(output):
        text = head["text"]
        is_error = head["kind"] != "warning"
        errors += is_error
        if is_error and _metal_allows(text, notes, members):
            forgiven += 1
        elif is_error:
            problems.append(f"{place(head['file'], head['line'])}: {explain(text)}")
        elif refused := _refuse(text, metal4):
            problems.append(f"{place(head['file'], head['line'])}: {refused}")
    return Diagnosis(problems, not errors, errors > 0 and errors == forgiven)


def place(file: str, line: str | int) -> str:
    """Name a line as :class:`~mlx_glu.metal_sim.tokens.Token` does."""
    return f"line {line}" if file in ("<stdin>", "-") else f"{file}:{line}"


def _metal_allows(text: str, notes: str, members: Collection[tuple[str, int]]) -> bool:
    if _STRUCT_COPY.search(text) and _COPY_NOTE.search(notes):
        return True
    called = [
        (place(file, line), int(space))
        for file, line, space in _MEMBER_NOTE.findall(notes)
    ]
    if this := _THIS.search(text):
        space = int(this["number"] or SPACES.get(this["name"], 0))
        declared = _DECLARED_NOTE.findall(notes)
        called += [(place(file, line), space) for file, line in declared]
        called.append((this["owner"] or "", space))
    return bool(_STRING_NOTE.search(notes)) or any(c in members for c in called)


def _messages(output: str) -> Iterator[tuple[re.Match[str], str]]:
    heads = list(_HEAD.finditer(output))
    ends = [head.start() for head in heads[1:]] + [len(output)]
    for head, end in zip(heads, ends, strict=True):
        yield head, output[head.end() : end]


def _refuse(warning: str, metal4: bool) -> str:
    """Return what Metal's compiler would say; "" if nothing."""
    match = _OPTION.search(warning)
    option = match[1] if match else ""
    text = _OPTION.sub("", warning)
    if option in ("-Wimplicit-float-conversion", "-Wimplicit-int-float-conversion"):
        return text if "bf" in text.split(" to ")[-1] else ""
    is_lambda = text.startswith("lambda expressions")
    if option == "-Wpre-c++17-compat" or is_lambda:
        allowed = metal4 or _ALLOWED.search(text)
        what = re.split(r" (?:is|are) incompatible", text)[0]
        return "" if allowed else f"{what}: C++17, so not before Metal 4"
    return "" if option.startswith(("-Wc++98", "-Wpre-c++")) else text
