"""Counts the operations that a kernel executes, for its roofline.

The kernel's LLVM IR is counted block by block; a call at the head of each block then
counts how often it runs. Compiled without vectorisation and without unrolling, an
operation of the source is one of the IR, but for what the optimiser removes.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from .llvm_text import Function, Instruction, functions
from .options import STACK_FLAGS

if TYPE_CHECKING:
    import numpy as np

# The sum of two elements stays that, and does not become one of whole vectors.
ARITHMETIC_FLAGS = (
    "-O2",
    "-fno-vectorize",
    "-fno-slp-vectorize",
    *("-mllvm", "-disable-vector-combine"),
    # All calls inlined and constant loops unrolled, as a compiler for GPUs does, which
    # has no stack to index: else a constant index would count as operations.
    *("-mllvm", "-inline-threshold=100000"),
    *("-mllvm", "-unroll-threshold=5000"),
    *("-mllvm", "-unroll-runtime=0"),
    *("-mllvm", "-unroll-allow-partial=0"),
    "-fmax-type-align=8",
    *STACK_FLAGS,
)

# As include/msl/address_spaces.h marks what runs once for all lanes.
_COMBINE = 'section ".text.msl_combine"'


def _by_name(table: dict[str, str]) -> dict[str, str]:
    return {name: field for field, names in table.items() for name in names.split()}


_FIELD_OF_OPCODE = _by_name(
    {
        "float_ops": "fadd fsub fmul fdiv frem fneg",
        "integer_ops": "add sub mul udiv sdiv urem srem shl lshr ashr and or xor",
        "conversions": "uitofp sitofp fptoui fptosi fptrunc fpext",
        "other": "icmp fcmp select",
    }
)
_FIELD_OF_INTRINSIC = _by_name(
    {
        "float_ops": "fma fmuladd",
        "integer_ops": "ctpop ctlz cttz bitreverse bswap fshl fshr "
        "uadd.sat sadd.sat usub.sat ssub.sat "
        "uadd.with.overflow sadd.with.overflow usub.with.overflow "
        "ssub.with.overflow umul.with.overflow smul.with.overflow",
        "conversions": "fptoui.sat fptosi.sat",
        "other": "smin smax umin umax abs scmp ucmp minnum maxnum minimum maximum "
        "minimumnum maximumnum fabs copysign is.fpclass",
    }
)
# The rest of LLVM's intrinsics that start so move data or advise the compiler.
_NO_ARITHMETIC = (
    "lifetime", "assume", "mem", "dbg", "experimental", "invariant", "trap",
    "ubsantrap", "prefetch", "stack", "expect", "ptrmask", "load", "vector.insert",
    "vector.extract",
)  # fmt: skip
# What an index is made with, apart from arithmetic
_CASTS = {"zext", "sext", "trunc", "phi", "freeze"}


@dataclass(frozen=True)
class Tally:
    """Operations of lanes; a vector counts its elements.

    Attributes:
        float_ops: additions, multiplications, divisions, negations; an fma is two.
        integer_ops: arithmetic, shifts and bit operations, loop counters included.
        address_ops: integer operations whose result serves as an index alone, or to
            compare that index, and one for each computed address.
        conversions: between integers and floats, and between floats.
        calls: of mathematical functions, square roots and roundings included.
        other: comparisons, selections, min, max, abs, and logic of booleans.
    """

    float_ops: int = 0
    integer_ops: int = 0
    address_ops: int = 0
    conversions: int = 0
    calls: int = 0
    other: int = 0


class Counted(Protocol):
    """A program compiled in arithmetic mode."""

    @property
    def block_tallies(self) -> Iterable[Tally]:
        """The tally of each basic block."""


class Counts(Protocol):
    """The report of its run."""

    @property
    def block_counts(self) -> np.ndarray:
        """[blocks] executions of each block, over all lanes."""


def tally(program: Counted, report: Counts) -> Tally:
    """Return the operations of a run, summed over all lanes.

    What ``simd_sum``, shuffles and matrix products do inside is not among them; the
    report counts those as ``simd_operations`` and ``matrix_operations``.

    Args:
        program: the kernel, compiled with ``mode="arithmetic"``.
        report: of its run.

    Raises:
        ValueError: the program was compiled in another mode.
    """
    blocks = list(program.block_tallies)
    counts = report.block_counts.tolist()
    if not blocks or len(blocks) != len(counts):
        raise ValueError(
            f"[tally] the program has {len(blocks)} counted blocks and the report "
            f"{len(counts)}; compile and run it in mode 'arithmetic'"
        )
    total = dict.fromkeys(_FIELDS, 0)
    for block, count in zip(blocks, counts, strict=True):
        for name in _FIELDS:
            total[name] += count * getattr(block, name)
    return Tally(**total)


_FIELDS = [field.name for field in dataclasses.fields(Tally)]


def instrument(ir: str) -> tuple[str, list[Tally]]:
    """Make a kernel count its basic blocks.

    Args:
        ir: LLVM IR, as ``clang -S -emit-llvm`` prints it.

    Returns:
        The IR with ``__msl_block(n)`` called in block n, and the tally of each block.
        Functions that combine the lanes of a simdgroup are left alone.
    """
    lines = ir.splitlines()
    found = list(functions(lines))
    defined = {function.name for function in found}
    tallies: list[Tally] = []
    for function in found:
        if _COMBINE in function.head:
            continue
        indices = _indices(function)
        for block in function.blocks:
            # Phis come first, and a stack variable is best left in its place.
            first = next(i for i in block if i.opcode not in ("phi", "alloca"))
            call = f"  call void @__msl_block(i32 {len(tallies)})"
            lines[first.line] = f"{call}\n{lines[first.line]}"
            tallies.append(_tally(block, indices, defined))
    lines.append("declare void @__msl_block(i32)")
    return "\n".join(lines) + "\n", tallies


def _indices(function: Function) -> set[str]:
    """Return the values that are used to address memory, and for nothing else."""
    users: defaultdict[str, list[Instruction]] = defaultdict(list)
    only: set[str] = set()
    for instruction in (i for block in function.blocks for i in block):
        for name in instruction.operands:
            users[name].append(instruction)
        kind = _FIELD_OF_OPCODE.get(instruction.opcode)
        if kind == "integer_ops" or instruction.opcode in _CASTS:
            only.add(instruction.result)
    harmless = ("getelementptr", "icmp")
    while others := {
        value
        for value in only
        if any(u.opcode not in harmless and u.result not in only for u in users[value])
    }:
        only -= others
    # A loop counter that nothing is addressed with is none.
    indices: set[str] = set()
    while more := {
        value
        for value in only - indices
        if any(u.opcode == "getelementptr" or u.result in indices for u in users[value])
    }:
        indices |= more
    return indices


def _tally(block: list[Instruction], indices: set[str], defined: set[str]) -> Tally:
    counts = dict.fromkeys(_FIELDS, 0)
    for instruction in block:
        name, amount = _weigh(instruction, indices, defined)
        if name:
            counts[name] += amount
    return Tally(**counts)


def _weigh(
    instruction: Instruction, indices: set[str], defined: set[str]
) -> tuple[str, int]:
    """Return the field an instruction belongs to, or "", and what it adds there."""
    if instruction.opcode == "call":
        return _weigh_call(instruction, defined)
    if instruction.opcode == "getelementptr":
        # The first name is the base; constant offsets are free.
        values = [name for name in instruction.operands if '"' not in name]
        return ("address_ops", 1) if len(values) > 1 else ("", 0)
    name = _FIELD_OF_OPCODE.get(instruction.opcode, "")
    if name == "integer_ops" and instruction.result in indices:
        name = "address_ops"
    elif name == "integer_ops" and instruction.is_boolean:
        name = "other"
    return name, instruction.lanes


def _weigh_call(instruction: Instruction, defined: set[str]) -> tuple[str, int]:
    callee = instruction.callee
    if callee.startswith("llvm."):
        # llvm.fmuladd.v4f32: the types end the name.
        parts = callee.split(".")[1:]
        name = ".".join(part for part in parts if not any(c.isdigit() for c in part))
        if name.startswith(_NO_ARITHMETIC):
            return "", 0
        if name.startswith("vector.reduce."):
            kind = "float_ops" if ".f" in name else "integer_ops"
            return kind, instruction.argument_lanes - 1
        amount = instruction.lanes * (2 if name in ("fma", "fmuladd") else 1)
        return _FIELD_OF_INTRINSIC.get(name, "calls"), amount
    if callee in ("fmaf", "fma"):
        return "float_ops", 2
    if not callee or callee in defined or callee.startswith("__msl_"):
        return "", 0
    return "calls", 1
