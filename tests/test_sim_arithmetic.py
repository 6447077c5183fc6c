"""Operation counts of kernels whose counts are known."""

import mlx.core as mx
import numpy as np
import pytest
from sim_programs import MLX_INCLUDE, needs_simulator

from mlx_glu.metal_sim import Options, Program, metal_kernel, options, record, run
from mlx_glu.metal_sim.arithmetic import Tally, instrument, tally

pytestmark = needs_simulator

THREADS = 64


def count(source, x, *, header="", contract="on"):
    """Run a kernel of 64 threads, in two simdgroups; return its run and output."""
    kernel = metal_kernel("counted", ["x"], ["y"], source, header=header)
    with options(mode="arithmetic", contract=contract), record() as runs:
        (y,) = kernel(
            inputs=[mx.array(x)],
            output_shapes=[(THREADS,)],
            output_dtypes=[mx.float32],
            grid=(THREADS, 1, 1),
            threadgroup=(THREADS, 1, 1),
        )
    return runs[0], np.array(y)


def total(source, x, **how):
    done, _ = count(source, x, **how)
    return tally(done.program, done.report)


HALVES = np.arange(64, dtype=np.float16)
FLOATS = np.arange(64, dtype=np.float32)
WORDS = np.arange(64, dtype=np.uint32) * 0x01234567

DOT = """
  uint i = thread_position_in_grid.x;
  float sum = 0;
  for (int k = 0; k < 10; k++) sum += x[(i + k) % 64] * x[k];
  y[i] = sum;
"""
# Without the products clang adds some nibbles as integers.
NIBBLES = """
  constexpr float scale[8] = {3, 5, 7, 9, 11, 13, 15, 17};
  uint i = thread_position_in_grid.x, w = x[i];
  float sum = 0;
  #pragma unroll
  for (int k = 0; k < 8; k++) sum += float(w & (15u << (4 * k))) * scale[k];
  y[i] = sum;
"""
# Source, input and what each of the 64 threads does
KNOWN = {
    "nothing": (
        "y[thread_position_in_grid.x] = 1;",
        FLOATS,
        {"integer_ops": 0, "other": 0},
    ),
    "a product and a sum a term": (DOT, FLOATS, {"float_ops": 20}),
    "as many conversions": (DOT, HALVES, {"float_ops": 20, "conversions": 10}),
    "a mask, a conversion and a sum a nibble": (
        NIBBLES,
        WORDS,
        {"float_ops": 16, "integer_ops": 8, "conversions": 8},
    ),
    "a vector counts its elements": (
        """uint i = thread_position_in_grid.x;
        float4 v = float4(((const device half4*)x)[i % 16]);
        v = -(v * v) / 3;
        y[i] = v.x + v.y + v.z + v.w;""",
        HALVES,
        {"float_ops": 15, "conversions": 4},
    ),
    "functions": (
        """uint i = thread_position_in_grid.x;
        y[i] = exp(x[i]) + tanh(sqrt(x[i])) + floor(fma(x[i], x[i], 1.0f));""",
        FLOATS,
        {"float_ops": 4, "calls": 4},
    ),
    "comparisons": (
        """uint i = thread_position_in_grid.x;
        y[i] = max(x[i], 3.0f);""",
        FLOATS,
        {"other": 1},
    ),
    "bits": (
        """uint i = thread_position_in_grid.x;
        uint w = x[i];
        y[i] = as_type<float>(((w ^ (w >> 3)) * 5) | popcount(w));""",
        WORDS,
        {"integer_ops": 5},
    ),
    "two simdgroups": (
        """uint i = thread_position_in_grid.x;
        threadgroup float tile[64];
        tile[i] = x[i] * 2;
        threadgroup_barrier(mem_flags::mem_threadgroup);
        y[i] = simd_sum(tile[i ^ 1]) + 1;""",
        FLOATS,
        {"float_ops": 2},
    ),
}


@pytest.mark.parametrize(("source", "x", "expected"), KNOWN.values(), ids=KNOWN)
def test_known_counts(source, x, expected):
    counted = total(source, x)
    for name in {"float_ops", "conversions", "calls", *expected}:
        assert getattr(counted, name) == THREADS * expected.get(name, 0), name


def test_contraction_does_not_change_a_count():
    counts = {total(DOT, FLOATS, contract=how) for how in ("on", "off", "fast")}
    assert len(counts) == 1


def test_branches_count_where_they_are_taken():
    source = """
      uint i = thread_position_in_grid.x;
      float v = x[i];
      if (i % 4 == 0) v = exp(v) * v + v;
      y[i] = v;
    """
    counted = total(source, FLOATS / 64)
    assert counted.float_ops == THREADS // 4 * 2
    assert counted.calls == THREADS // 4


def test_loops_count_each_turn_of_each_thread():
    source = """
      uint i = thread_position_in_grid.x;
      float v = 1;
      for (uint k = 0; k < i; k++) v = v * x[k] + 1;
      y[i] = v;
    """
    assert total(source, FLOATS).float_ops == 2 * sum(range(THREADS))


def test_a_function_that_stays_a_function():
    header = """
    __attribute__((noinline)) float cube(float v) { return v * v * v; }
    """
    source = "uint i = thread_position_in_grid.x; y[i] = cube(x[i]) + cube(y[i]);"
    source = source.replace("y[i])", "x[63 - i])")
    counted = total(source, FLOATS, header=header)
    assert (counted.float_ops, counted.calls) == (5 * THREADS, 0)


def test_addresses_are_kept_apart():
    source = """
      uint i = thread_position_in_grid.x;
      y[(i * 5 + 3) % 64] = x[(i * 7) & 63];
    """
    counted = total(source, FLOATS)
    assert counted.integer_ops == 0
    # The two computed addresses, and the arithmetic of their indices
    assert counted.address_ops >= THREADS * (2 + 4)


def test_an_index_that_is_also_a_value_is_an_integer():
    source = """
      uint i = thread_position_in_grid.x, k = i * 5 % 64;
      y[i] = x[k] + float(k);
    """
    assert total(source, FLOATS).integer_ops == THREADS * 2


def test_collectives_are_in_the_report_instead():
    source = """
      uint i = thread_position_in_grid.x;
      y[i] = simd_sum(x[i]) + simd_shuffle_xor(x[i], 1);
    """
    done, y = count(source, FLOATS)
    assert tally(done.program, done.report).float_ops == THREADS
    assert done.report.simd_operations == 4
    expected = FLOATS.reshape(2, 32).sum(1).repeat(32) + FLOATS[np.arange(64) ^ 1]
    np.testing.assert_array_equal(y, expected)


def test_counting_does_not_change_results():
    _, counted = count(DOT, FLOATS)
    kernel = metal_kernel("counted", ["x"], ["y"], DOT)
    with options(mode="fast"):
        (y,) = kernel(
            inputs=[mx.array(FLOATS)],
            output_shapes=[(THREADS,)],
            output_dtypes=[mx.float32],
            grid=(THREADS, 1, 1),
            threadgroup=(THREADS, 1, 1),
        )
    np.testing.assert_array_equal(np.array(y), counted)


def test_another_mode_has_no_tally():
    kernel = metal_kernel("counted", ["x"], ["y"], DOT)
    with record() as runs:
        kernel(
            inputs=[mx.array(FLOATS)],
            output_shapes=[(THREADS,)],
            output_dtypes=[mx.float32],
            grid=(THREADS, 1, 1),
            threadgroup=(THREADS, 1, 1),
        )
    with pytest.raises(ValueError, match="mode 'arithmetic'"):
        tally(runs[0].program, runs[0].report)


IR = """
define void @kernel(ptr %0, i64 %1) {
  %3 = alloca float, align 4
  switch i64 %1, label %4 [
    i64 1, label %8
    i64 2, label %8
  ], !dbg !1

4:                                                ; preds = %2, %4
  %5 = phi <4 x half> [ zeroinitializer, %2 ], [ %6, %4 ]
  %6 = fadd contract <4 x half> %5, splat (half 0xH3C00)
  %7 = tail call <4 x half> @llvm.fma.v4f16(<4 x half> %6, <4 x half> %6, <4 x half> %6)
  br i1 true, label %4, label %8

8:                                                ; preds = %4
  %9 = tail call range(i32 0, 33) i32 @llvm.ctpop.i32(i32 7)
  %10 = xor i1 true, true
  %11 = call float @expf(float 1.000000e+00)
  %12 = tail call float @llvm.vector.reduce.fadd.v4f32(float 0.0, <4 x float> %5)
  ret void
}

define linkonce_odr void @combine(ptr %0) #1 section ".text.msl_combine" comdat {
  %2 = fadd float 1.0, 1.0
  ret void
}
"""


def test_the_ir_is_instrumented_after_phis():
    text, tallies = instrument(IR)
    assert tallies == [
        Tally(),
        Tally(float_ops=4 + 8),
        Tally(float_ops=3, integer_ops=1, calls=1, other=1),
    ]
    lines = [line.strip() for line in text.splitlines()]
    calls = [i for i, line in enumerate(lines) if line.startswith("call void @__msl")]
    assert [lines[i + 1].split()[0] for i in calls] == ["switch", "%6", "%9"]
    assert [lines[i - 1].split()[0] for i in calls] == ["%3", "%5", "8:"]
    assert lines[-1] == "declare void @__msl_block(i32)"


def test_operations_of_mlx_per_weight():
    """affine_qmv_fast: per 4-bit weight a mask, a conversion, a product and a sum."""
    n, k, group = 16, 512, 64
    folder = "mlx/backend/metal/kernels/"
    headers = ("utils.h", "steel/gemm/gemm.h", "quantized_utils.h", "quantized.h")
    program = Program(
        "".join(f'#include "{folder}{header}"\n' for header in headers),
        "affine_qmv_fast",
        f"float, {group}, 4, false",
        includes=(MLX_INCLUDE,),
        defines=("MLX_METAL_JIT",),
        mode="arithmetic",
    )
    w = mx.random.normal((n, k), key=mx.random.key(0))
    packed, scales, biases = mx.quantize(w, group, 4)
    x = mx.random.normal((1, k), key=mx.random.key(1))
    y = np.zeros((1, n), np.float32)
    one, none = np.ones(1, np.int32), np.zeros(1, np.int64)
    sizes = [np.array([k], np.int32), np.array([n], np.int32)]
    batches = [one, one, none, one, one, none, none, none]
    values = [*map(np.array, (packed, scales, biases, x)), y, *sizes, *batches]
    report = run(
        program,
        dict(enumerate(values)),
        (32, 2 * n // 8, 1),
        (32, 2, 1),
        outputs=[4],
        options=Options(mode="arithmetic"),
    )
    counted = tally(program, report)
    print(
        "\naffine_qmv_fast, operations per 4-bit weight (simulated):",
        *(f"{name} {value / (n * k):.2f}" for name, value in vars(counted).items()),
    )
    expected = mx.quantized_matmul(x, packed, scales, biases, True, group, 4)
    np.testing.assert_allclose(y, np.array(expected), rtol=1e-4, atol=1e-4)
    weights = n * k
    # Beside each weight's own: the scaling of x, shared by four rows, and the sums
    # with scale and bias, shared by sixteen weights.
    assert 2 <= counted.float_ops / weights < 3.5
    assert 1 <= counted.conversions / weights < 1.2
    assert 1 <= counted.integer_ops / weights < 2.5
    assert counted.calls == 0
