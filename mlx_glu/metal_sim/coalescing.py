"""How many cache lines each simdgroup instruction of a kernel touches."""

from dataclasses import dataclass

import numpy as np

from .launch import Compiled
from .locate import code_range, locate
from .report import Report


@dataclass(frozen=True)
class Lines:
    """The loads, or the stores, of one buffer in one source line.

    Attributes:
        where: "file:line".
        buffer: the parameter of the kernel.
        write: stores, rather than loads.
        instructions: simdgroup instructions.
        lanes: lanes that took part, per instruction.
        lines: distinct cache lines touched, per instruction; 1 is best.
        efficiency: bytes the lanes asked for / bytes of those lines; above 1 where
            lanes ask for the same bytes.
    """

    where: str
    buffer: str
    write: bool
    instructions: int
    lanes: float
    lines: float
    efficiency: float


def lines(report: Report, program: Compiled, line: int = 128) -> list[Lines]:
    """Count cache lines per source line, most first.

    Lines that one instruction touches and a later one touches again count twice: no
    cache is modelled.

    Args:
        report: of a checked run with ``trace_groups``.
        program: the kernel that ran.
        line: bytes of a cache line.

    Raises:
        ValueError: the report has no trace.
    """
    trace = report.trace
    if not len(trace):
        raise ValueError(
            "[lines] the report lists no accesses; run in mode 'checked' with "
            "trace_groups=1 or more"
        )
    low, _ = code_range(program.entry)
    addresses, place = np.unique(trace["pc"], return_inverse=True)
    offsets = [int(pc) - 1 - low for pc in addresses]
    where = np.array(locate(program.library, offsets))[place]
    names = list(report.buffers)
    sources, source = np.unique(where, return_inverse=True)
    keys = np.stack([source, trace["buffer"], trace["write"]], axis=1)
    found = []
    for key in np.unique(keys, axis=0):
        rows = trace[(keys == key).all(axis=1)]
        found.append(_count(rows, str(sources[key[0]]), names[key[1]], line))
    return sorted(found, key=lambda row: -row.lines * row.instructions)


def _count(rows: np.ndarray, where: str, buffer: str, line: int) -> Lines:
    columns = ["group", "simdgroup", "pc", "occurrence"]
    instruction = np.stack([rows[name].astype(np.uint64) for name in columns], axis=1)
    first = rows["address"] // line
    last = (rows["address"] + np.maximum(rows["size"], 1) - 1) // line
    touched = np.concatenate(
        [np.c_[instruction, first], np.c_[instruction, last]], axis=0
    )
    instructions = len(np.unique(instruction, axis=0))
    count = len(np.unique(touched, axis=0))
    return Lines(
        where=where,
        buffer=buffer,
        write=bool(rows["write"][0]),
        instructions=instructions,
        lanes=len(rows) / instructions,
        lines=count / instructions,
        efficiency=float(rows["size"].sum()) / (count * line),
    )
