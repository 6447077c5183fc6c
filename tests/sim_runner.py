"""Runs a short kernel body in the simulator, for the tests of the simulator."""

import numpy as np

from mlx_glu.metal_sim.launch import run
from mlx_glu.metal_sim.options import Options
from mlx_glu.metal_sim.program import Program
from mlx_glu.metal_sim.report import KernelError

HEAD = """#include <metal_stdlib>
using namespace metal;
"""
# One line; the body starts on the next.
SIGNATURE = (
    "[[kernel]] void planted(const device float* x [[buffer(0)]], "
    "device float* out [[buffer(1)]], uint i [[thread_position_in_grid]], "
    "uint l [[thread_position_in_threadgroup]], "
    "uint lane [[thread_index_in_simdgroup]], "
    "uint simdgroup [[simdgroup_index_in_threadgroup]], "
    "uint group [[threadgroup_position_in_grid]]) {\n"
)
GRID, THREADGROUP = 512, 128


def simulate(
    body,
    *,
    head="",
    mode="checked",
    contract="on",
    x=None,
    size=GRID,
    grid=GRID,
    threadgroup=THREADGROUP,
    initialised=False,
    dtype=np.float32,
    **options,
):
    """The report of a run, and ``out`` [size]; ``x`` is [512] unless given."""
    text = HEAD + head + SIGNATURE + body + "\n}\n"
    program = Program(text, mode=mode, contract=contract)
    x = np.arange(GRID, dtype=np.float32) if x is None else x
    out = np.full(size, 0 if initialised else -1, dtype)
    report = run(
        program,
        {0: x, 1: out},
        (grid, 1, 1),
        (threadgroup, 1, 1),
        outputs=[1],
        initialised=initialised,
        options=Options(mode=mode, contract=contract, **options),
    )
    return report, out


def findings(body, **changes):
    """The findings of a run; none if it is clean."""
    try:
        report, _ = simulate(body, **changes)
    except KernelError as error:
        report = error.report
    return report.findings


def marked_line(body, mark="// here", *, head=""):
    """Line of the marked statement in the whole source."""
    lines = (HEAD + head + SIGNATURE + body).splitlines()
    return next(n for n, line in enumerate(lines, 1) if mark in line)
