"""Rules of Metal that only show in a kernel's instances: read off clang's LLVM IR.

The IR holds exactly the functions that the kernel reaches, before any optimisation.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from .diagnostics import place

# Above this bound the registers of a thread are likely to spill to memory.
PRIVATE_BYTES = 1024

_DEFINE = re.compile(r'^define .*?@("[^"]+"|[\w.$]+)\(.*?(?:!dbg !(\d+))? *\{$')
_CALL = re.compile(r'\bcall .*?(@"[^"]+"|[@%][\w.$]+)\(.*?(?:!dbg !(\d+))?$')
_CAST = re.compile(r"\baddrspacecast .*!dbg !(\d+)")
_METADATA = re.compile(r"^!(\d+) = (?:distinct )?!(DI\w+)\((.*)\)$", re.M)
_FIELD = re.compile(r'(\w+): (?:"([^"]*)"|!?([^,")]+))')
_THROUGH = ("DW_TAG_typedef", "DW_TAG_volatile_type")
_AGGREGATES = ("DW_TAG_array_type", "DW_TAG_structure_type", "DW_TAG_class_type")


@dataclass
class _Function:
    subprogram: str
    calls: list[tuple[str, str]] = field(default_factory=list)
    casts: list[str] = field(default_factory=list)


class CompiledKernel:
    """The functions and the debug information of one kernel's IR.

    Args:
        ir: from ``clang -g -S -emit-llvm`` without passes.
        own: folder of the simulator's headers, which obey no rule.
    """

    def __init__(self, ir: str, own: str) -> None:
        self._own = own
        self._nodes: dict[str, dict[str, str]] = {
            number: {"node": kind, **_fields(body)}
            for number, kind, body in _METADATA.findall(ir)
        }
        self._functions = _read_functions(ir)

    def problems(self) -> Iterator[str]:
        """Yield every breach of a rule."""
        yield from self._recursion()
        for function in self._functions.values():
            for callee, location in function.calls:
                if callee.startswith("%") and not self._is_own(location):
                    where = self._where(location)
                    yield f"{where}: Metal has no function pointers to call through"
            for location in function.casts:
                if not self._is_own(location):
                    where = self._where(location)
                    yield f"{where}: a cast drops or changes the address space"
        yield from self._private_memory()

    def _recursion(self) -> Iterator[str]:
        # Calls of functions without calls of their own cannot be on a cycle.
        calls = {
            name: {c for c, _ in f.calls if c in self._functions}
            for name, f in self._functions.items()
        }
        while leaves := {name for name, callees in calls.items() if not callees}:
            calls = {n: c - leaves for n, c in calls.items() if n not in leaves}
        for name in calls:
            if name in _reachable(calls, name):
                node = self._nodes.get(self._functions[name].subprogram, {})
                where = place(self._file(node), node.get("line", "?"))
                title = node.get("name", name)
                yield f"{where}: '{title}' calls itself; Metal has no recursion"

    def _private_memory(self) -> Iterator[str]:
        largest: dict[tuple[str, str, str], int] = {}
        for node in self._nodes.values():
            file = self._file(node)
            if node["node"] != "DILocalVariable" or "arg" in node:
                continue
            if file.startswith(self._own):
                continue
            key = (node.get("name", "?"), file, node.get("line", "?"))
            nbytes = self._nbytes(node.get("type", ""))
            largest[key] = max(nbytes, largest.get(key, 0))
        total = sum(largest.values())
        if total > PRIVATE_BYTES:
            biggest = sorted(largest, key=lambda key: -largest[key])[:3]
            names = ", ".join(
                f"'{name}' {largest[name, file, line]} at {place(file, line)}"
                for name, file, line in biggest
            )
            yield (
                f"arrays and structs take {total} private bytes per thread, more than "
                f"{PRIVATE_BYTES}: registers will spill; the largest: {names}"
            )

    def _nbytes(self, number: str) -> int:
        """Bytes of an array or struct; 0 for anything else, and for constants."""
        node = self._nodes.get(number, {})
        while node.get("tag") in _THROUGH:
            node = self._nodes.get(node.get("baseType", ""), {})
        is_vector = "DIFlagVector" in node.get("flags", "")
        if node.get("tag") not in _AGGREGATES or is_vector:
            return 0
        base = self._nodes.get(node.get("baseType", ""), {})
        constant = base.get("tag") == "DW_TAG_const_type"
        return 0 if constant else int(node.get("size", 0)) // 8

    def _file(self, node: dict[str, str]) -> str:
        file = self._nodes.get(node.get("file", ""), {})
        return file.get("filename", "")

    def _is_own(self, location: str) -> bool:
        return self._position(location)[0].startswith(self._own)

    def _where(self, location: str) -> str:
        return place(*self._position(location))

    def _position(self, location: str) -> tuple[str, str]:
        node = self._nodes.get(location, {})
        scope = self._nodes.get(node.get("scope", ""), {})
        return self._file(scope), node.get("line", "?")


def _fields(body: str) -> dict[str, str]:
    return {key: quoted or plain for key, quoted, plain in _FIELD.findall(body)}


def _read_functions(ir: str) -> dict[str, _Function]:
    functions: dict[str, _Function] = {}
    current = _Function("")
    for line in ir.splitlines():
        if line.startswith("define "):
            match = _DEFINE.match(line)
            if match:
                current = functions.setdefault(match[1], _Function(match[2] or ""))
        elif " addrspacecast " in line:
            if cast := _CAST.search(line):
                current.casts.append(cast[1])
        elif "call " in line and (call := _CALL.search(line)):
            current.calls.append((call[1].removeprefix("@"), call[2] or ""))
    return functions


def _reachable(calls: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        for callee in calls.get(waiting.pop(), ()):
            if callee not in found:
                found.add(callee)
                waiting.append(callee)
    return found
