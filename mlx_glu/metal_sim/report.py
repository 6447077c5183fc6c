"""What a run of a kernel tells: findings, traffic, counts."""

from dataclasses import dataclass, field

import numpy as np

# One element of Report.trace: one access of one lane to a buffer, whose number is its
# position in Report.buffers.
TRACE = np.dtype(
    [
        ("address", "u8"),
        ("pc", "u8"),
        ("occurrence", "u4"),
        ("group", "u4"),
        ("lane", "u2"),
        ("simdgroup", "u2"),
        ("size", "u2"),
        ("write", "u1"),
        ("buffer", "u1"),
    ]
)


@dataclass(frozen=True)
class Finding:
    """One fault of a kernel.

    Attributes:
        kind: a short name, as "out-of-bounds" or "race".
        message: what happened, with the name of the buffer.
        where: "file:line", or "" if unknown.
        count: how often it happened there.
    """

    kind: str
    message: str
    where: str = ""
    count: int = 1

    def __str__(self) -> str:
        where = f"  at {self.where}" if self.where else ""
        times = f"  (x{self.count})" if self.count > 1 else ""
        return f"[{self.kind}] {self.message}{where}{times}"


@dataclass(frozen=True)
class Buffer:
    """Traffic between a kernel and one buffer; zeros unless the run was checked.

    Attributes:
        name: the parameter of the kernel.
        size: bytes.
        read: bytes that lanes asked for.
        written: as ``read``.
        read_merged: as ``read``, but a byte that several lanes ask for in one
            simdgroup instruction counts once: what a broadcast costs.
        written_merged: as ``read_merged``.
        touched: distinct bytes read or written.
        loads: simdgroup instructions: for each load in the code, the largest
            number of executions over the lanes of a simdgroup.
        stores: as ``loads``.
        lane_loads: loads of all lanes.
        lane_stores: as ``lane_loads``.
        unwritten: elements of an output that nothing wrote.
    """

    name: str
    size: int
    read: int = 0
    written: int = 0
    read_merged: int = 0
    written_merged: int = 0
    touched: int = 0
    loads: int = 0
    stores: int = 0
    lane_loads: int = 0
    lane_stores: int = 0
    unwritten: int = 0


@dataclass(frozen=True)
class Report:
    """One run of a kernel.

    Attributes:
        seconds: time of the run alone.
        threadgroups: how many ran.
        simd_operations: sums, shuffles, votes ... per simdgroup; a vector
            argument counts its elements.
        matrix_operations: 8x8 multiplications per simdgroup.
        barriers: threadgroup barriers passed, per threadgroup.
        simdgroup_barriers: simdgroup barriers passed, per simdgroup.
        partial_operations: simdgroup operations by part of a simdgroup.
        switches: changes from one simulated thread to another.
        threadgroup_bytes: threadgroup memory of one threadgroup.
        buffers: by name.
        findings: faults, in the order found.
        trace: [accesses] of dtype ``TRACE``: those to buffers by the first
            threadgroups, as many as ``trace_groups`` says.
        block_counts: [blocks] executions of each basic block, arithmetic mode.
    """

    seconds: float
    threadgroups: int
    simd_operations: int
    matrix_operations: int
    barriers: int
    simdgroup_barriers: int
    partial_operations: int
    switches: int
    threadgroup_bytes: int
    buffers: dict[str, Buffer]
    findings: tuple[Finding, ...]
    trace: np.ndarray = field(repr=False)
    block_counts: np.ndarray = field(repr=False)


class KernelError(RuntimeError):
    """A kernel did something that Metal does not allow.

    Attributes:
        report: the report of the run, with its findings.
    """

    def __init__(self, report: Report) -> None:
        super().__init__("\n".join(str(finding) for finding in report.findings))
        self.report = report
