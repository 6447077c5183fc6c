"""Runs a compiled kernel over a grid, in a child process."""

import ctypes
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .bindings import REGIONS, Region
from .findings import explain
from .locate import code_range
from .memory import Layout
from .options import Options
from .program import runtime
from .report import Buffer, KernelError, Report

MAX_THREADS = 1024
THREADGROUP_MEMORY = 32768
STACK = 128 << 10
_TRACE_CAPACITY = 1 << 21
_COUNTS = (
    "seconds",
    "threadgroups",
    "simd_operations",
    "matrix_operations",
    "barriers",
    "simdgroup_barriers",
    "partial_operations",
    "switches",
    "threadgroup_bytes",
)


class Compiled(Protocol):
    """What :func:`run` needs of a program."""

    library: Path
    entry: int
    buffer_names: dict[int, str]
    mode: str
    block_tallies: tuple[Any, ...]


def run(
    program: Compiled,
    buffers: Mapping[int, np.ndarray],
    grid: tuple[int, int, int],
    threadgroup: tuple[int, int, int],
    *,
    outputs: Collection[int],
    initialised: bool = False,
    options: Options,
) -> Report:
    """Run a kernel.

    A kernel that crashes, or that does not end, ends its child process only.

    Args:
        program: the compiled kernel.
        buffers: contiguous arrays by ``[[buffer(n)]]`` index.
        grid: threads along x, y, z.
        threadgroup: threads of a threadgroup; cut to the grid.
        outputs: indices of the arrays that the kernel writes, in place.
        initialised: outputs hold values that the kernel may read and keep.
        options: how to run; the mode is the program's.

    Returns:
        Counts, traffic and findings.

    Raises:
        KernelError: the kernel did what Metal does not allow.
        ValueError: an array or a size cannot be used.
    """
    threadgroup = _check_sizes(grid, threadgroup)
    _check_arrays(buffers, outputs)
    checked = program.mode == "checked"
    layout = Layout(
        dict(buffers),
        blocks=len(program.block_tallies),
        trace=_TRACE_CAPACITY if options.trace_groups and checked else 0,
        flush=not checked,
    )
    for region, index in zip(layout.regions, buffers, strict=False):
        region.is_output = index in outputs
        region.initialised = initialised
        region.name = program.buffer_names.get(index, f"buffer{index}").encode()[:63]
    _describe(layout, program, grid, threadgroup, options)
    runtime().msl_run(ctypes.byref(layout.launch))
    for index in outputs:
        buffers[index].reshape(-1).view(np.uint8)[:] = layout.places[index]
    report = _report(layout, program.library)
    fatal = [f for f in report.findings if f.kind != "same-value-race"]
    if fatal or (report.findings and options.strict >= 2):
        raise KernelError(report)
    return report


def _check_sizes(
    grid: tuple[int, int, int], threadgroup: tuple[int, int, int]
) -> tuple[int, int, int]:
    for name, size in (("grid", grid), ("threadgroup", threadgroup)):
        if len(size) != 3 or not all(0 < n < 1 << 32 for n in size):
            raise ValueError(f"[run] {name}={size}; expected three positive sizes")
    x, y, z = (min(t, g) for t, g in zip(threadgroup, grid, strict=True))
    if x * y * z > MAX_THREADS:
        raise ValueError(
            f"[run] a threadgroup of {x} x {y} x {z} has {x * y * z} threads; Metal "
            f"allows {MAX_THREADS}"
        )
    groups = math.prod(-(-g // t) for g, t in zip(grid, (x, y, z), strict=True))
    if groups >= 1 << 32:
        raise ValueError(f"[run] {groups} threadgroups; expected fewer than 2**32")
    return x, y, z


def _check_arrays(buffers: Mapping[int, np.ndarray], outputs: Collection[int]) -> None:
    for index, array in buffers.items():
        if not 0 <= index < REGIONS:
            raise ValueError(
                f"[run] buffer index {index}; Metal has 0 to {REGIONS - 2}"
            )
        if not array.flags.c_contiguous:
            raise ValueError(
                f"[run] buffer {index} is not contiguous; pass np.ascontiguousarray"
            )
    for index in outputs:
        if index not in buffers:
            raise ValueError(f"[run] output {index} is not among the buffers")
        if not buffers[index].flags.writeable:
            raise ValueError(f"[run] output {index} cannot be written")


def _describe(
    layout: Layout,
    program: Compiled,
    grid: tuple[int, int, int],
    threadgroup: tuple[int, int, int],
    options: Options,
) -> None:
    """Fill in what the runtime has to know."""
    launch = layout.launch
    launch.function = program.entry
    launch.buffers = layout.pointers.ctypes.data
    launch.regions = ctypes.addressof(layout.regions)
    launch.notes = ctypes.addressof(layout.notes)
    launch.trace = layout.trace.ctypes.data
    launch.blocks = layout.blocks.ctypes.data
    launch.code_low, launch.code_high = code_range(program.entry)
    launch.stack_size = STACK
    launch.gap = layout.gap
    launch.seconds_allowed = options.time_limit
    launch.trace_capacity = len(layout.trace)
    launch.grid[:], launch.threadgroup[:] = grid, threadgroup
    launch.region_count = len(layout.places)
    launch.note_capacity = len(layout.notes)
    launch.block_count = len(layout.blocks)
    launch.trace_groups = options.trace_groups
    launch.checked = program.mode == "checked"
    launch.strict = options.strict
    launch.lane_order = options.order("lane_order")
    launch.reduce_order = options.order("reduce_order")
    launch.flush_denormals = options.flush_denormals
    launch.threadgroup_limit = THREADGROUP_MEMORY


def _report(layout: Layout, library: Path) -> Report:
    launch = layout.launch
    regions = layout.regions[: launch.region_count]
    notes = layout.notes[: launch.note_count]
    buffers = [_buffer(region) for region in regions]
    counts = {name: getattr(launch, name) for name in _COUNTS}
    return Report(
        **counts,
        buffers={buffer.name: buffer for buffer in buffers},
        findings=explain(launch, regions, notes, library),
        trace=layout.trace[: launch.trace_count].copy(),
        block_counts=layout.blocks.copy(),
    )


def _buffer(region: Region) -> Buffer:
    return Buffer(
        name=region.name.decode(errors="replace"),
        size=region.size,
        read=region.read,
        written=region.written,
        read_merged=region.read_merged,
        written_merged=region.written_merged,
        touched=min(region.touched, region.size),
        loads=region.loads,
        stores=region.stores,
        lane_loads=region.lane_loads,
        lane_stores=region.lane_stores,
        unwritten=region.unwritten,
    )
