"""A pickle read as plain data: nothing is imported, looked up or called.

``pickle.load`` runs whatever the file asks for. This is an interpreter of our own for
the few opcodes that ``torch.save`` writes; a name such as ``torch.FloatStorage`` stays
a name, and a call of it stays a note that it was called. Every other name and opcode
is refused. Opcodes: CPython, Lib/pickletools.py.
"""

import struct
from collections.abc import Callable, Sequence, Set
from typing import Any, NamedTuple

#: Bytes and opcodes, enough for 12,000 tensors. They bound time and memory, to one
#: second and 0.1 GB; no file of one model has a tenth of them.
MAX_PICKLE, MAX_OPCODES = 4 << 20, 500_000

_ORDERED_DICT = "collections.OrderedDict"


class Name(str):
    """``module.name``, as the pickle spells it."""

    __slots__ = ()


class Call(NamedTuple):
    """What ``name(*args)`` would have made."""

    name: Name
    args: tuple[Any, ...]


class Persistent(NamedTuple):
    """What the pickle says is stored outside of it."""

    key: Any


def read_pickle(data: bytes, at: int, allowed: Set[str]) -> tuple[Any, int]:
    """Read the pickle that starts at ``at``.

    Args:
        data: what holds it; more may follow.
        at: its first byte.
        allowed: the names that may occur besides ``collections.OrderedDict``.

    Returns:
        Its value, made of dict, list, tuple, str, int, float, bool, None, `Name`,
        `Call` and `Persistent`; and where it ends.

    Raises:
        ValueError: it asks for anything else, or is damaged.
    """
    machine = _Machine(data, at, allowed)
    try:
        for _ in range(MAX_OPCODES):
            code = data[machine.at]
            machine.at += 1
            if code == ord("."):
                (value,) = machine.stack
                return value, machine.at
            if code not in _OPERATIONS:
                raise _Refused(f"the opcode {bytes([code])!r}")
            _OPERATIONS[code](machine)
    except _Refused as error:
        raise ValueError(
            f"its pickle asks for {error}, which no file of weights needs; nothing of "
            "it was run. If you trust its author, save it as safetensors with torch"
        ) from None
    except (LookupError, TypeError, ValueError, AttributeError, struct.error) as error:
        raise ValueError(f"its pickle is damaged at byte {machine.at}") from error
    raise ValueError(f"its pickle has more than {MAX_OPCODES:,} opcodes")


class _Refused(Exception):
    """What a pickle asks for and does not get."""


class _Machine:
    """The stack, the stacks below each MARK, and the memo."""

    def __init__(self, data: bytes, at: int, allowed: Set[str]) -> None:
        self.data, self.at, self.allowed = data, at, allowed
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def take(self, size: int) -> bytes:
        """The next bytes."""
        piece = self.data[self.at : self.at + size]
        if len(piece) != size:
            raise IndexError
        self.at += size
        return piece

    def number(self, layout: str) -> Any:
        """The next number."""
        (value,) = struct.unpack(layout, self.take(struct.calcsize(layout)))
        return value

    def line(self) -> str:
        """The text before the next line break."""
        end = self.data.index(b"\n", self.at, self.at + 500)
        self.at, start = end + 1, self.at
        return self.data[start:end].decode()

    def last(self, count: int) -> tuple[Any, ...]:
        """The last values, taken off the stack."""
        if count > len(self.stack):
            raise IndexError
        values = tuple(self.stack[-count:])
        del self.stack[-count:]
        return values

    def marked(self) -> list[Any]:
        """All values since the last MARK."""
        values, self.stack = self.stack, self.below.pop()
        return values

    def push(self, value: Any) -> None:
        """Put a value onto the stack."""
        self.stack.append(value)

    def mark(self) -> None:
        """MARK: start a stack above this one."""
        self.below.append(self.stack)
        self.stack = []

    def store(self, index: int) -> None:
        """PUT: remember the last value."""
        self.memo[index] = self.stack[-1]

    def extend(self, values: Sequence[Any]) -> None:
        """APPENDS: add to the list below."""
        _exactly(list, self.stack[-1]).extend(values)

    def update(self, values: Sequence[Any]) -> None:
        """SETITEMS: add keys and values to the dict below."""
        target = _exactly(dict, self.stack[-1])
        for key, value in zip(values[::2], values[1::2], strict=True):
            if type(key) not in (str, int):
                raise TypeError
            target[key] = value

    def name(self, module: Any, name: Any) -> None:
        """GLOBAL: a name, if it is a known one."""
        full = f"{_exactly(str, module)}.{_exactly(str, name)}"
        if full not in self.allowed and full != _ORDERED_DICT:
            raise _Refused(repr(full[:200]))
        self.push(Name(full))

    def reduce(self, function: Any, args: Any) -> None:
        """REDUCE: note a call."""
        _exactly(tuple, args)
        if _exactly(Name, function) != _ORDERED_DICT:
            self.push(Call(function, args))
        elif args:
            raise _Refused(f"{_ORDERED_DICT!r} with arguments")
        else:
            self.push({})

    def build(self, state: Any) -> None:
        """BUILD: drop an OrderedDict's attributes, a state_dict's ``_metadata``."""
        _exactly(dict, state)
        _exactly(dict, self.stack[-1])


def _exactly(kind: type, value: Any) -> Any:
    """The value, if it has this type: a Name is a string, but no text."""
    if type(value) is not kind:
        raise TypeError
    return value


def _integer(data: bytes) -> int:
    return int.from_bytes(data, "little", signed=True)


_OPERATIONS: dict[int, Callable[[_Machine], object]] = {
    0x80: lambda m: m.take(1),  # PROTO
    0x95: lambda m: m.take(8),  # FRAME
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("J"): lambda m: m.push(m.number("<i")),
    ord("K"): lambda m: m.push(m.number("<B")),
    ord("M"): lambda m: m.push(m.number("<H")),
    0x8A: lambda m: m.push(_integer(m.take(m.number("<B")))),  # LONG1
    ord("G"): lambda m: m.push(m.number(">d")),
    ord("X"): lambda m: m.push(m.take(m.number("<I")).decode()),
    0x8C: lambda m: m.push(m.take(m.number("<B")).decode()),  # SHORT_BINUNICODE
    ord("("): _Machine.mark,
    ord(")"): lambda m: m.push(()),
    ord("t"): lambda m: m.push(tuple(m.marked())),
    0x85: lambda m: m.push(m.last(1)),
    0x86: lambda m: m.push(m.last(2)),
    0x87: lambda m: m.push(m.last(3)),
    ord("]"): lambda m: m.push([]),
    ord("a"): lambda m: m.extend(m.last(1)),
    ord("e"): lambda m: m.extend(m.marked()),
    ord("}"): lambda m: m.push({}),
    ord("s"): lambda m: m.update(m.last(2)),
    ord("u"): lambda m: m.update(m.marked()),
    ord("q"): lambda m: m.store(m.number("<B")),
    ord("r"): lambda m: m.store(m.number("<I")),
    0x94: lambda m: m.store(len(m.memo)),  # MEMOIZE
    ord("h"): lambda m: m.push(m.memo[m.number("<B")]),
    ord("j"): lambda m: m.push(m.memo[m.number("<I")]),
    ord("c"): lambda m: m.name(m.line(), m.line()),
    0x93: lambda m: m.name(*m.last(2)),  # STACK_GLOBAL
    ord("Q"): lambda m: m.push(Persistent(*m.last(1))),
    ord("R"): lambda m: m.reduce(*m.last(2)),
    ord("b"): lambda m: m.build(*m.last(1)),
}
