"""Exact counts of bytes, instructions, operations and cache lines of small kernels."""

import numpy as np
import pytest
from sim_programs import needs_simulator
from sim_runner import simulate

from mlx_glu.metal_sim.coalescing import lines
from mlx_glu.metal_sim.launch import run
from mlx_glu.metal_sim.options import Options
from mlx_glu.metal_sim.program import Program

pytestmark = needs_simulator

LANES = 32
TRANSPOSE = """#include <metal_stdlib>
[[kernel]] void transpose(
    const device float* x [[buffer(0)]],
    device float* y [[buffer(1)]],
    constant int& n [[buffer(2)]],
    uint2 at [[thread_position_in_grid]]) {
  float v = x[at.x * n + at.y];
  y[at.y * n + at.x] = v;
}
"""


def counted(body, name="x", **changes):
    report, _ = simulate(body, **changes)
    return report.buffers[name]


def test_broadcast_costs_its_bytes_once():
    x = counted("out[i] = x[3];", grid=32, threadgroup=32, size=32)
    assert (x.read, x.read_merged, x.touched) == (128, 4, 4)
    assert (x.loads, x.lane_loads) == (1, 32)


def test_overlapping_reads_merge():
    # Lane n reads elements n .. n + 3: 35 distinct ones.
    body = "packed_float4 v = ((const device packed_float4*)(x + i))[0];"
    x = counted(body + "out[i] = v[0] + v[3];", grid=32, threadgroup=32, size=32)
    assert x.touched == 35 * 4
    assert x.read_merged <= x.read


def test_every_simdgroup_loads_for_itself():
    x = counted("out[i] = x[3];")
    assert (x.read, x.read_merged, x.loads) == (512 * 4, 16 * 4, 16)


def test_two_instructions_do_not_merge():
    body = "float a = 0; for (int k = 0; k < 3; k++) a += x[k / 2]; out[i] = a;"
    x = counted(body, grid=32, threadgroup=32, size=32)
    assert (x.read_merged, x.touched, x.loads, x.lane_loads) == (12, 8, 3, 96)


def test_loads_of_a_divergent_loop():
    # The longest lane decides.
    body = "float a = 0; for (uint k = 0; k <= lane; k++) a += x[k]; out[i] = a;"
    x = counted(body, grid=32, threadgroup=32, size=32)
    assert (x.loads, x.lane_loads) == (32, 32 * 33 // 2)
    assert (x.read_merged, x.touched) == (32 * 4, 32 * 4)


def test_merging_holds_over_long_loops():
    # Longer than the log of one lane.
    body = "float a = 0; for (int k = 0; k < 2000; k++) a += x[k % 512]; out[i] = a;"
    x = counted(body, grid=32, threadgroup=32, size=32)
    assert (x.read_merged, x.read, x.loads) == (8000, 256000, 2000)


def test_stores_and_their_bytes():
    body = "out[i] = 1; if (lane < 8) out[i + 64] = 2;"
    out = counted(body, "out", grid=64, threadgroup=64, size=128, initialised=True)
    assert (out.stores, out.lane_stores) == (4, 64 + 16)
    assert (out.written, out.written_merged, out.touched) == (320, 320, 320)
    assert out.unwritten == 48


def test_half_and_wide_elements():
    body = "((device half*)out)[i] = ((const device half*)x)[i];"
    out = counted(body, "out", size=512, dtype=np.float16)
    assert (out.written, out.touched, out.unwritten) == (1024, 1024, 0)
    body = "((device long*)out)[i] = i;"
    out = counted(body, "out", size=512, dtype=np.int64)
    assert (out.written, out.touched, out.unwritten) == (4096, 4096, 0)


def test_atomics_read_and_write():
    body = (
        "atomic_fetch_add_explicit((device atomic_uint*)out, 1u, memory_order_relaxed);"
    )
    report, out = simulate(body, size=1, initialised=True, dtype=np.uint32)
    assert out[0] == 512
    counts = report.buffers["out"]
    assert (counts.read, counts.written, counts.touched) == (2048, 2048, 4)


def test_operations_and_barriers():
    body = """
    float4 v = simd_sum(float4(x[i]));
    float m = simd_max(v.x) + simd_shuffle_xor(v.y, 1);
    threadgroup_barrier(mem_flags::mem_none);
    simdgroup_barrier(mem_flags::mem_none);
    out[i] = m;
    """
    report, _ = simulate(body)
    simdgroups, threadgroups = 512 // 32, 512 // 128
    assert report.simd_operations == simdgroups * (4 + 1 + 1)
    assert report.simdgroup_barriers == simdgroups
    assert report.barriers == report.threadgroups == threadgroups
    assert report.matrix_operations == report.partial_operations == 0


def test_matrix_operations_are_counted_apart():
    body = """
    simdgroup_float8x8 a, b, c;
    simdgroup_load(a, x, 8);
    simdgroup_load(b, x, 8);
    simdgroup_multiply(c, a, b);
    simdgroup_multiply_accumulate(c, a, b, c);
    simdgroup_store(c, out, 8);
    """
    report, out = simulate(body, grid=32, threadgroup=32, size=64)
    assert (report.matrix_operations, report.simd_operations) == (2, 0)
    a = np.arange(64, dtype=np.float32).reshape(8, 8)
    np.testing.assert_allclose(out.reshape(8, 8), 2 * (a @ a))


def test_threadgroup_memory_is_reported():
    body = "threadgroup float s[100]; s[l % 100] = 1; out[i] = 0;"
    report, _ = simulate(body, grid=96, threadgroup=96, size=96)
    assert report.threadgroup_bytes == 400


def test_lines_of_a_transpose():
    program = Program(TRANSPOSE)
    x = np.arange(64 * 64, dtype=np.float32).reshape(64, 64)
    y = np.zeros_like(x)
    report = run(
        program,
        {0: x, 1: y, 2: np.int32([64])},
        (64, 64, 1),
        (32, 4, 1),
        outputs=[1],
        options=Options(trace_groups=2),
    )
    np.testing.assert_array_equal(y, x.T)
    rows = lines(report, program)
    load, store = (next(row for row in rows if row.buffer == name) for name in "xy")
    assert load.where.endswith(":7")
    assert store.where.endswith(":8")
    assert (load.write, load.instructions, load.lanes) == (False, 8, 32)
    assert (load.lines, load.efficiency) == (32, 1 / 32)
    assert (store.write, store.lines, store.efficiency) == (True, 1, 1)
    assert rows[0] == load


def test_lines_need_a_trace():
    program = Program(TRANSPOSE)
    x = np.zeros((4, 4), np.float32)
    arrays = {0: x, 1: x.copy(), 2: np.int32([4])}
    report = run(
        program, arrays, (4, 4, 1), (4, 4, 1), outputs=[1], options=Options(strict=1)
    )
    with pytest.raises(ValueError, match="trace_groups=1"):
        lines(report, program)


# Orders and roundings that hardware is free to choose.


def test_lane_order_decides_who_comes_first():
    body = (
        "out[i] = atomic_fetch_add_explicit((device atomic_uint*)out + 32, 1u, "
        "memory_order_relaxed);"
    )
    came = {}
    for order in ("forward", "reverse", "permuted"):
        run_of = {"grid": 32, "threadgroup": 32, "size": 33, "initialised": True}
        _, out = simulate(body, lane_order=order, dtype=np.float32, **run_of)
        came[order] = out[:32].astype(int)
    np.testing.assert_array_equal(came["forward"], np.arange(32))
    np.testing.assert_array_equal(came["reverse"], 31 - np.arange(32))
    assert sorted(came["permuted"]) == list(range(32))
    assert list(came["permuted"]) not in (list(range(32)), list(range(31, -1, -1)))


def test_reduce_order_changes_rounding():
    x = np.ones(32, np.float32)
    x[0], x[31] = 2.0**24, -(2.0**24)
    sums = {}
    for order in ("tree", "sequential", "reversed"):
        run_of = {"grid": 32, "threadgroup": 32, "size": 32, "x": x}
        _, out = simulate("out[i] = simd_sum(x[i]);", reduce_order=order, **run_of)
        assert len(set(out)) == 1
        sums[order] = out[0]
    assert sums["sequential"] == 0
    assert sums["reversed"] != sums["sequential"]
    assert sums["tree"] != sums["sequential"]


@pytest.mark.parametrize("mode", ["fast", "checked"])
def test_denormals_can_be_flushed(mode):
    x = np.full(512, 1e-39, np.float32)
    _, kept = simulate("out[i] = x[i] * 0.5f;", x=x, mode=mode)
    body = "out[i] = x[i] * 0.5f;"
    _, flushed = simulate(body, x=x, mode=mode, flush_denormals=True)
    assert kept[0] > 0
    assert flushed[0] == 0


def test_contraction_can_be_varied():
    # 1 - (1 + e)(1 - e) is e * e if the product is not rounded.
    body = "float a = x[i]; out[i] = 1.0f - a * (2.0f - a);"
    x = np.full(512, 1 + 2.0**-13, np.float32)
    results = {}
    for contract in ("on", "off"):
        _, out = simulate(body, x=x, mode="fast", contract=contract)
        results[contract] = out[0]
    assert results["off"] == 0
    assert results["on"] == np.float32(2.0**-26)
