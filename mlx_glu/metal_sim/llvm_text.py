"""Reads LLVM's textual IR as far as counting instructions needs it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_INSTRUCTION = re.compile(
    r"""
    [ ]{2}
    (?: (?P<result> %(?:"[^"]*"|[\w.$-]+) ) [ ]=[ ] )?
    (?: (?:tail|musttail|notail)[ ] )?
    (?P<opcode> [a-z]\w* ) \b
    (?P<rest> .* )
    """,
    re.VERBOSE,
)
_LABEL = re.compile(r'(?:"[^"]*"|[\w.$-]+):')
_FUNCTION = re.compile(r'@("[^"]*"|[\w.$-]+)\(')
_NAME = re.compile(r'%(?:"[^"]*"|[\w.$-]+)')
_LANES = re.compile(r"<(\d+) x ")
_BOOLEAN = re.compile(r"(?: [a-z]+)*? (?:<\d+ x )?i1\b")


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        line: its index in the text.
        result: the value it defines, or "".
        opcode: its name; ``call`` also for tail calls.
        rest: the text after the opcode.
    """

    line: int
    result: str
    opcode: str
    rest: str

    @property
    def operands(self) -> list[str]:
        """Names of values, labels and types in the text; constants are left out."""
        return _NAME.findall(self.rest)

    @property
    def callee(self) -> str:
        """The function that a ``call`` names, or ""."""
        found = _FUNCTION.search(self.rest)
        return found[1].strip('"') if found else ""

    @property
    def lanes(self) -> int:
        """Elements of the vector it works on, or that a ``call`` returns; else 1."""
        return _lanes(self.rest.partition("@")[0])

    @property
    def argument_lanes(self) -> int:
        """Elements of the first vector among the arguments of a ``call``, or 1."""
        return _lanes(self.rest.partition("@")[2])

    @property
    def is_boolean(self) -> bool:
        """Whether it works on i1 or a vector of it."""
        return bool(_BOOLEAN.match(self.rest))


def _lanes(text: str) -> int:
    found = _LANES.search(text)
    return int(found[1]) if found else 1


@dataclass
class Function:
    """A function with a body.

    Attributes:
        head: its ``define`` line.
        blocks: the instructions of its basic blocks.
    """

    head: str
    blocks: list[list[Instruction]] = field(default_factory=lambda: [[]])

    @property
    def name(self) -> str:
        """Its name, without ``@``."""
        found = _FUNCTION.search(self.head)
        assert found, self.head
        return found[1].strip('"')


def functions(lines: list[str]) -> Iterator[Function]:
    """Yield the functions that a text of LLVM IR defines."""
    function: Function | None = None
    for number, line in enumerate(lines):
        if line.startswith("define "):
            function = Function(line)
        elif line == "}" and function:
            yield function
            function = None
        elif function and _LABEL.match(line):
            # The first block may go without a label.
            if function.blocks[-1]:
                function.blocks.append([])
        elif function and (found := _INSTRUCTION.match(line)):
            instruction = Instruction(number, found[1] or "", found[2], found[3])
            function.blocks[-1].append(instruction)
