"""The simulator's <metal_stdlib>: values, and what must not compile."""

import mlx.core as mx
import numpy as np
import pytest
from conftest import assert_no_worse
from sim_programs import needs_simulator

from mlx_glu.metal_sim import (
    KernelError,
    Options,
    Program,
    lint,
    metal_kernel,
    options,
    record,
    run,
)

pytestmark = needs_simulator

RNG = np.random.default_rng(0)


def evaluate(source, inputs, outputs, *, threads, threadgroup=None, header="", **call):
    """Run one kernel; ``outputs`` maps names to (shape, dtype)."""
    kernel = metal_kernel("stdlib", list(inputs), list(outputs), source, header=header)
    results = kernel(
        inputs=[mx.array(value) for value in inputs.values()],
        output_shapes=[shape for shape, _ in outputs.values()],
        output_dtypes=[dtype for _, dtype in outputs.values()],
        grid=(threads, 1, 1),
        threadgroup=(threadgroup or threads, 1, 1),
        **call,
    )
    return [np.array(result) for result in results]


def half_up(x):
    return np.copysign(np.floor(np.abs(x) + 0.5), x)


def smoothstep(low, high, x):
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


# Name: float64 oracle and the range of each argument
MATH = {
    "exp": (np.exp, (-9, 9)),
    "exp2": (np.exp2, (-9, 9)),
    "exp10": (lambda x: 10.0**x, (-4, 4)),
    "log": (np.log, (0.01, 99)),
    "log2": (np.log2, (0.01, 99)),
    "log10": (np.log10, (0.01, 99)),
    "pow": (np.power, (0.1, 4), (-4, 4)),
    "powr": (np.power, (0.1, 4), (-4, 4)),
    "sqrt": (np.sqrt, (0, 99)),
    "rsqrt": (lambda x: x**-0.5, (0.01, 99)),
    "sin": (np.sin, (-9, 9)),
    "cos": (np.cos, (-9, 9)),
    "tan": (np.tan, (-1.5, 1.5)),
    "asin": (np.arcsin, (-1, 1)),
    "acos": (np.arccos, (-1, 1)),
    "atan": (np.arctan, (-9, 9)),
    "atan2": (np.arctan2, (-9, 9), (-9, 9)),
    "sinh": (np.sinh, (-5, 5)),
    "cosh": (np.cosh, (-5, 5)),
    "tanh": (np.tanh, (-5, 5)),
    "asinh": (np.arcsinh, (-9, 9)),
    "acosh": (np.arccosh, (1, 9)),
    "atanh": (np.arctanh, (-0.9, 0.9)),
    "sinpi": (lambda x: np.sin(np.pi * x), (-1000, 1000)),
    "cospi": (lambda x: np.cos(np.pi * x), (-1000, 1000)),
    "tanpi": (lambda x: np.tan(np.pi * x), (-0.4, 0.4)),
    "floor": (np.floor, (-9, 9)),
    "ceil": (np.ceil, (-9, 9)),
    "trunc": (np.trunc, (-9, 9)),
    "rint": (np.rint, (-9, 9)),
    "round": (half_up, (-9, 9)),
    "fract": (lambda x: x - np.floor(x), (-9, 9)),
    "fabs": (np.abs, (-9, 9)),
    "abs": (np.abs, (-9, 9)),
    "sign": (np.sign, (-2, 2)),
    "saturate": (lambda x: np.clip(x, 0, 1), (-2, 2)),
    "fmod": (np.fmod, (-9, 9), (0.5, 3)),
    "divide": (np.divide, (-9, 9), (0.5, 3)),
    "copysign": (np.copysign, (-9, 9), (-1, 1)),
    "fdim": (lambda x, y: np.maximum(x - y, 0), (-9, 9), (-9, 9)),
    "step": (lambda edge, x: np.where(x < edge, 0.0, 1.0), (-1, 1), (-1, 1)),
    "fmin": (np.minimum, (-9, 9), (-9, 9)),
    "fmax": (np.maximum, (-9, 9), (-9, 9)),
    "min": (np.minimum, (-9, 9), (-9, 9)),
    "max": (np.maximum, (-9, 9), (-9, 9)),
    "fma": (lambda x, y, z: x * y + z, (-9, 9), (-9, 9), (-9, 9)),
    "mix": (lambda x, y, a: x + (y - x) * a, (1, 9), (1, 9), (0, 1)),
    "clamp": (np.clip, (-9, 9), (-5, 0), (0, 5)),
    "smoothstep": (smoothstep, (-2, -1), (1, 2), (-3, 3)),
    "fmin3": (lambda *x: np.min(x, 0), (-9, 9), (-9, 9), (-9, 9)),
    "max3": (lambda *x: np.max(x, 0), (-9, 9), (-9, 9), (-9, 9)),
    "median3": (lambda *x: np.median(x, 0), (-9, 9), (-9, 9), (-9, 9)),
}
POINTS = 64


def math_arguments(dtype):
    """Arguments [functions, points] for x, y and z, exact in ``dtype``."""
    x = RNG.uniform(0, 1, (3, len(MATH), POINTS))
    for row, (_, *ranges) in enumerate(MATH.values()):
        for argument, (low, high) in enumerate(ranges):
            x[argument, row] = low + (high - low) * x[argument, row]
    return x.astype(dtype)


def math_source():
    lines = []
    for row, (name, (_, *ranges)) in enumerate(MATH.items()):
        at = f"{row * POINTS} + i"
        scalars = ", ".join(f"{v}[{at}]" for v in "xyz"[: len(ranges)])
        at = f"{row * POINTS // 4} + i"
        vectors = ", ".join(f"load({v}, {at})" for v in "xyz"[: len(ranges)])
        lines += [
            f"plain[{row * POINTS} + i] = metal::{name}({scalars});",
            f"exact[{row * POINTS} + i] = metal::precise::{name}({scalars});",
            f"quick[{row * POINTS} + i] = fast::{name}({scalars});",
            f"if (i < {POINTS // 4})",
            f"  ((device vec<T, 4>*)fours)[{at}] = metal::{name}({vectors});",
        ]
    return "uint i = thread_position_in_grid.x;\n" + "\n".join(lines)


LOAD = """
template <typename T> vec<T, 4> load(const device T* p, uint i) {
  return ((const device vec<T, 4>*)p)[i];
}
"""


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16], ids=str)
def test_math_functions_agree_with_float64(dtype):
    kind = np.float32 if dtype == mx.float32 else np.float16
    x, y, z = math_arguments(kind)
    shape = (x.shape, dtype)
    with options(mode="fast"):
        plain, exact, quick, fours = evaluate(
            math_source(),
            {"x": x, "y": y, "z": z},
            {"plain": shape, "exact": shape, "quick": shape, "fours": shape},
            threads=POINTS,
            header=LOAD,
            template=[("T", dtype)],
        )
    for other in (exact, quick, fours):
        np.testing.assert_array_equal(other, plain)
    wide = np.stack([x, y, z]).astype(np.float64)
    for row, (name, (oracle, *ranges)) in enumerate(MATH.items()):
        expected = oracle(*wide[: len(ranges), row])
        terms = 2 if name in ("fma", "mix", "smoothstep") else 0
        try:
            assert_no_worse(plain[row], expected.astype(kind), expected, terms=terms)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None


INTEGERS = {"char": 8, "uchar": 8, "short": 16, "ushort": 16}
INTEGERS |= {"int": 32, "uint": 32, "long": 64, "ulong": 64}


def saturated(x, low, high):
    return min(max(x, low), high)


# Each from the Python integers a, b, c, their width w and range low .. high; bits(x)
# is x modulo 2**w.
INTEGER_FUNCTIONS = {
    "popcount(a)": lambda a, b, c, t: t.bits(a).bit_count(),
    "clz(a)": lambda a, b, c, t: t.width - t.bits(a).bit_length(),
    "ctz(a)": lambda a, b, c, t: (a & -a).bit_length() - 1 if t.bits(a) else t.width,
    "reverse_bits(a)": lambda a, b, c, t: int(f"{t.bits(a):0{t.width}b}"[::-1], 2),
    "rotate(a, b)": lambda a, b, c, t: (
        t.bits(a) << b % t.width | t.bits(a) >> t.width - b % t.width
    ),
    "extract_bits(a, 2u, 5u)": lambda a, b, c, t: (
        (a >> 2) % 32 - (32 if t.low and (a >> 2) % 32 > 15 else 0)
    ),
    "insert_bits(a, b, 1u, 3u)": lambda a, b, c, t: a & ~14 | (b << 1 & 14),
    "absdiff(a, b)": lambda a, b, c, t: abs(a - b),
    "addsat(a, b)": lambda a, b, c, t: saturated(a + b, t.low, t.high),
    "subsat(a, b)": lambda a, b, c, t: saturated(a - b, t.low, t.high),
    "hadd(a, b)": lambda a, b, c, t: (a + b) >> 1,
    "rhadd(a, b)": lambda a, b, c, t: (a + b + 1) >> 1,
    "mulhi(a, b)": lambda a, b, c, t: a * b >> t.width,
    "madhi(a, b, c)": lambda a, b, c, t: (a * b >> t.width) + c,
    "madsat(a, b, c)": lambda a, b, c, t: saturated(a * b + c, t.low, t.high),
    "min(a, b)": lambda a, b, c, t: min(a, b),
    "max3(a, b, c)": lambda a, b, c, t: max(a, b, c),
    "median3(a, b, c)": lambda a, b, c, t: sorted((a, b, c))[1],
    "clamp(a, T(3), T(9))": lambda a, b, c, t: saturated(a, 3, 9),
    "abs(a)": lambda a, b, c, t: abs(a),
}


class Width:
    def __init__(self, name, width):
        self.width = width
        self.low = 0 if name.startswith("u") else -(1 << width - 1)
        self.high = self.low + (1 << width) - 1
        self.dtype = np.dtype(f"{'i' if self.low else 'u'}{width // 8}")

    def bits(self, x):
        return x % (1 << self.width)

    def values(self):
        """Triples with the extremes of the type among them."""
        ends = [self.low, self.high, 0, 1, self.high // 2, 5]
        more = RNG.integers(self.low, self.high, 18, self.dtype, endpoint=True)
        return np.array([*ends, *more], self.dtype).reshape(8, 3)


def test_integer_functions_agree_with_python():
    rows = "\n".join(
        f"out[{row}] = metal::{call};" for row, call in enumerate(INTEGER_FUNCTIONS)
    )
    header = f"""
template <typename T> void all_of(const device T* x, device T* out) {{
  T a = x[0], b = x[1], c = x[2];
  {rows}
}}
"""
    n = len(INTEGER_FUNCTIONS)
    types = {name: Width(name, width) for name, width in INTEGERS.items()}
    inputs = {f"x_{name}": t.values() for name, t in types.items()}
    outputs = {
        f"y_{name}": ((8, n), getattr(mx, t.dtype.name)) for name, t in types.items()
    }
    source = "uint i = thread_position_in_grid.x;" + "".join(
        f"all_of(x_{name} + 3 * i, y_{name} + {n} * i);" for name in types
    )
    with options(mode="fast"):
        results = evaluate(source, inputs, outputs, threads=8, header=header)
    for got, x, (name, t) in zip(results, inputs.values(), types.items(), strict=True):
        for row, (call, function) in enumerate(INTEGER_FUNCTIONS.items()):
            for line, (a, b, c) in zip(got, x.tolist(), strict=True):
                expected = t.bits(function(a, b, c, t))
                assert t.bits(int(line[row])) == expected, (name, call, a, b, c)


# Expressions of one thread, and their values as float
VALUES = {
    # constructors and swizzles
    "float4(1, 2, 3, 4).w": 4,
    "float4(float2(1, 2), 3, 4).zyx.y": 2,
    "float4(1, float3(2, 3, 4)).wzyx.x": 4,
    "float3(5).z": 5,
    "float4(half4(1, 2, 3, 4)).z": 3,
    "int4(float4(1.7, -1.7, 0, 0)).y": -1,
    "vec<float, 2>(1, 2).y": 2,
    "float2(uint2(7, 8)).y": 8,
    "(float4(1, 2, 3, 4) * 2 + 1).w": 9,
    "ulong2(1, 2).y": 2,
    "bfloat4(1, 2, 3, 4).w": 4,
    # comparisons: booleans in MSL, masks for clang
    "float(all(float4(1, 2, 3, 4) > float4(0)))": 1,
    "float(any(float4(1, 2, 3, 4) > 4))": 0,
    "float4(bool4(float4(1, 2, 3, 4) > 2)).w": 1,
    "float(bool4(true, false, bool2(true, true)).z)": 1,
    "float(all(!(bool2(true, false) && bool2(false, true))))": 1,
    "select(float2(1, 2), float2(3, 4), float2(1, 9) > 2).y": 4,
    "select(float2(1, 2), float2(3, 4), float2(1, 9) > 2).x": 1,
    "select(1.0f, 2.0f, true)": 2,
    "float(isnan(NAN)) + float(isinf(INFINITY)) + float(isfinite(1.0f))": 3,
    "float(any(isnan(float3(1, NAN, 2))))": 1,
    "float(signbit(-1.0h)) + float(isnormal(1.0h)) + float(isordered(1.0f, NAN))": 2,
    # bits
    "float(as_type<uint>(1.0f) >> 23)": 127,
    "float(as_type<uchar4>(0x04030201u).w)": 4,
    "float(as_type<half2>(0x3c000000u).y)": 1,
    "float(as_type<ushort>(bfloat(1.0f)) >> 7)": 127,
    "unpack_unorm4x8_to_float(0xff000000u).w": 1,
    "float(pack_float_to_unorm4x8(float4(0, 0, 0, 1)) >> 24)": 255,
    "float(pack_float_to_snorm2x16(float2(-1, 0)) & 0xffff)": 32769,
    # packed vectors
    "float(sizeof(packed_float3)) + float(sizeof(float3))": 28,
    "float3(packed_float3(1, 2, 3)).z": 3,
    "(packed_half4(1, 2, 3, 4) * 2.0h).w": 8,
    "dot(packed_float3(1, 2, 3), float3(1))": 6,
    "packed_float3(1, 2, 3).y + packed_float3(1, 2, 3)[2]": 5,
    # scalars among vectors
    "max(float4(1, 2, 3, 4), 3).x": 3,
    "max(0.5f, float2(0, 1)).x": 0.5,
    "clamp(int2(-5, 5), 0, 3).y": 3,
    "mix(float2(0, 2), float2(2, 4), 0.5f).y": 3,
    "float(popcount(uint2(7, 1)).x)": 3,
    "float(abs(short2(-3, 3)).x)": 3,
    # geometry
    "dot(float3(1, 2, 3), float3(4, 5, 6))": 32,
    "length(float2(3, 4)) + distance(float2(0), float2(3, 4))": 10,
    "normalize(float2(3, 4)).y": 0.8,
    "cross(float3(1, 0, 0), float3(0, 1, 0)).z": 1,
    "length_squared(float3(1, 2, 3))": 14,
    # limits
    "numeric_limits<float>::max() == FLT_MAX ? 1.0f : 0.0f": 1,
    "float(numeric_limits<half>::max())": 65504,
    "float(numeric_limits<char>::min()) + float(numeric_limits<uchar>::max())": 127,
    "float(numeric_limits<int>::digits)": 31,
    "float(numeric_limits<half>::epsilon()) * 1024": 1,
    "float(numeric_limits<bfloat>::epsilon()) * 128": 1,
    "float(isinf(numeric_limits<bfloat>::infinity()))": 1,
    "float(numeric_limits<ulong>::max() >> 63)": 1,
    # math that a table of functions does not fit
    "ldexp(1.5f, 3)": 12,
    "float(ilogb(10.0f))": 3,
    "float(nextafter(1.0h, 2.0h)) * 1024": 1025,
    "float(nextafter(-1.0h, 2.0h)) * 2048": -2047,
    "float(fract(-6e-8h)) < 1 ? 1.0f : 0.0f": 1,
    "sinpi(1e6f) + cospi(1e6f)": 1,
    "M_PI_F - 3.14159265f": 0,
    "1.0h == half(1) ? 1.0f : 0.0f": 1,
    # traits
    "float(is_same_v<vec<float, 4>, float4>)": 1,
    "float(is_same_v<int8_t, char>) + float(sizeof(long))": 9,
    "float(is_integral_v<int>) + float(is_floating_point_v<bfloat>)": 2,
    "float(is_unsigned_v<uint>) + float(is_signed_v<char>)": 2,
    "float(sizeof(make_unsigned_t<short>))": 2,
    "float(sizeof(conditional_t<true, int, char>))": 4,
    "array<float, 3>{1, 2, 3}[2]": 3,
    # bfloat through the functions of MLX's headers
    "float(metal::exp(bfloat(0.0f))) + float(metal::max(bfloat(1), bfloat(2)))": 3,
    "float(bfloat(1.0f) + bfloat(0.00390625f))": 1,
    "float(static_cast<bfloat>(1.5h))": 1.5,
}


def test_expressions_have_the_values_of_msl():
    lines = [f"out[{i}] = {text};" for i, text in enumerate(VALUES)]
    (got,) = evaluate(
        "\n".join(lines),
        {"unused": np.zeros(1, np.float32)},
        {"out": ((len(VALUES),), mx.float32)},
        threads=1,
    )
    for (text, expected), value in zip(VALUES.items(), got.tolist(), strict=True):
        assert value == pytest.approx(expected, rel=1e-6, abs=1e-6), text


def test_out_parameters():
    source = """
        int e; float whole, c; half hwhole;
        out[0] = metal::frexp(12.0f, e); out[1] = e;
        out[2] = metal::modf(-2.5f, whole); out[3] = whole;
        out[4] = metal::sincos(0.0f, c); out[5] = c;
        out[6] = metal::modf(1.5h, hwhole); out[7] = hwhole;
        device packed_float3* p = (device packed_float3*)(out + 8);
        p[0] = packed_float3(x[0], 2, 3);
        p[0] += float3(1);
        float3 v = p[0];
        out[11] = v.y;
    """
    x, outputs = np.ones(1, np.float32), {"out": ((12,), mx.float32)}
    (got,) = evaluate(source, {"x": x}, outputs, threads=1)
    expected = [0.75, 4, -0.5, -2, 0, 1, 0.5, 1, 2, 3, 4, 3]
    np.testing.assert_array_equal(got, expected)


def tail(x, distance):
    """Move lanes up; those that nothing reaches keep their values."""
    y = x.copy()
    y[:, distance:] = x[:, :-distance]
    return y


def every(reduce):
    return lambda x: np.repeat(reduce(x, axis=1)[:, None], x.shape[1], 1)


# Of x [groups, width] and f = x + 100, for groups of 32 or 4 lanes
COLLECTIVES = {
    "_sum(x)": every(np.sum),
    "_product(x < 3 ? x + 1 : 1)": every(
        lambda x, axis: np.where(x < 3, x + 1, 1).prod(axis)
    ),
    "_min(x)": every(np.min),
    "_max(x)": every(np.max),
    "_and(x | 8)": every(lambda x, axis: np.bitwise_and.reduce(x | 8, axis)),
    "_or(x)": every(np.bitwise_or.reduce),
    "_xor(x)": every(np.bitwise_xor.reduce),
    "_prefix_inclusive_sum(x)": lambda x: x.cumsum(1),
    "_prefix_exclusive_sum(x)": lambda x: x.cumsum(1) - x,
    "_prefix_inclusive_product(x % 2 + 1)": lambda x: (x % 2 + 1).cumprod(1),
    "_prefix_exclusive_product(x % 2 + 1)": lambda x: (
        (x % 2 + 1).cumprod(1) // (x % 2 + 1)
    ),
    "_broadcast(x, 2)": lambda x: np.repeat(x[:, 2:3], x.shape[1], 1),
    "_broadcast_first(x)": lambda x: np.repeat(x[:, :1], x.shape[1], 1),
    "_shuffle(x, (lane * 3 + 1) % 4)": lambda x: x[
        :, (np.arange(x.shape[1]) * 3 + 1) % 4
    ],
    "_shuffle_up(x, 1)": lambda x: tail(x, 1),
    "_shuffle_down(x, 1)": lambda x: tail(x[:, ::-1], 1)[:, ::-1],
    "_shuffle_xor(x, 2)": lambda x: x[:, np.arange(x.shape[1]) ^ 2],
    "_shuffle_rotate_up(x, 3)": lambda x: np.roll(x, 3, 1),
    "_shuffle_rotate_down(x, 3)": lambda x: np.roll(x, -3, 1),
    "_shuffle_and_fill_up(x, x + 100, 1)": lambda x: np.concatenate(
        [x[:, -1:] + 100, x[:, :-1]], 1
    ),
    "_shuffle_and_fill_down(x, x + 100, 1, 2)": lambda x: (
        x[:, np.arange(x.shape[1]) ^ 1] + np.where(np.arange(x.shape[1]) % 2, 100, 0)
    ),
    "_any(x > 30)": lambda x: every(np.any)(x > 30).astype(int),
    "_all(x < 30)": lambda x: every(np.all)(x < 30).astype(int),
    "_is_first()": lambda x: (np.arange(x.shape[1])[None] == 0 * x).astype(int),
    "_ballot(x & 1)": lambda x: every(np.sum)(
        (x & 1).astype(np.int64) << np.arange(x.shape[1])
    ),
    "_active_threads_mask()": lambda x: np.full_like(x, 2 ** x.shape[1] - 1),
}


@pytest.mark.parametrize(("group", "width"), [("simd", 32), ("quad", 4)])
def test_functions_of_a_simdgroup_and_of_a_quadgroup(group, width):
    vote = f"long({group}_vote::vote_t({{}}))"
    lines = []
    for row, call in enumerate(COLLECTIVES):
        text = group + call
        if "ballot" in call or "mask" in call:
            text = vote.format(text)
        lines.append(f"out[{row * 64} + i] = {text};")
    source = "uint i = thread_position_in_grid.x, lane = i % 32; int x = v[i];\n"
    values = RNG.integers(0, 40, 64, np.int32)
    n = len(COLLECTIVES)
    (got,) = evaluate(
        source + "\n".join(lines),
        {"v": values},
        {"out": ((n, 64), mx.int64)},
        threads=64,
    )
    x = values.astype(np.int64).reshape(-1, width)
    for row, (call, function) in enumerate(COLLECTIVES.items()):
        assert got[row].tolist() == function(x).reshape(-1).tolist(), group + call


@pytest.mark.parametrize(
    "dtype", [mx.float32, mx.float16, mx.int8, mx.uint16, mx.bfloat16], ids=str
)
def test_types_of_simd_functions(dtype):
    """MLX's headers add bfloat16."""
    source = """
        uint i = thread_position_in_grid.x;
        y[i] = simd_sum(x[i]);
        y[i + 32] = simd_shuffle_xor(x[i], 1);
        y[i + 64] = simd_max(x[i]);
    """
    values = np.arange(32) % 3
    x = mx.array(values).astype(dtype)
    kernel = metal_kernel("types", ["x"], ["y"], source)
    (y,) = kernel(
        inputs=[x],
        output_shapes=[(3, 32)],
        output_dtypes=[dtype],
        grid=(32, 1, 1),
        threadgroup=(32, 1, 1),
    )
    got = np.array(y.astype(mx.float32))
    assert got[0].tolist() == [31] * 32
    assert got[1].tolist() == values[np.arange(32) ^ 1].tolist()
    assert got[2].tolist() == [2] * 32


def test_a_vector_counts_its_elements():
    source = """
        uint i = thread_position_in_grid.x;
        float4 s = simd_sum(float4(x[i], 1, 2, 3));
        half2 m = simd_max(half2(x[i], -x[i]));
        y[i] = s.x + s.w + m.y;
    """
    x = np.arange(32, dtype=np.float32)
    with record() as runs:
        (y,) = evaluate(source, {"x": x}, {"y": ((32,), mx.float32)}, threads=32)
    assert y.tolist() == [x.sum() + 96] * 32
    assert runs[0].report.simd_operations == 4 + 2


def test_the_last_simdgroup_may_be_smaller():
    source = "uint i = thread_position_in_grid.x; y[i] = simd_sum(x[i]);"
    x = np.arange(40, dtype=np.float32)
    for order in ("tree", "sequential", "reversed"):
        with options(reduce_order=order):
            (y,) = evaluate(source, {"x": x}, {"y": ((40,), mx.float32)}, threads=40)
        assert y.tolist() == [x[:32].sum()] * 32 + [x[32:].sum()] * 8


def test_the_order_of_a_sum_shows_in_its_rounding():
    source = "uint i = thread_position_in_grid.x; y[i] = simd_sum(x[i]);"
    x = RNG.normal(size=32).astype(np.float32)
    sums = {}
    for order in ("tree", "sequential", "reversed"):
        with options(reduce_order=order):
            (y,) = evaluate(source, {"x": x}, {"y": ((32,), mx.float32)}, threads=32)
        sums[order] = y[0]
    assert sums["sequential"] == np.cumsum(x)[-1]
    assert sums["reversed"] == np.cumsum(x[::-1])[-1]
    assert sums["tree"] == pytest.approx(sums["sequential"], rel=1e-5)


# What the GPU leaves open is poisoned, not guessed.
UNDEFINED = {
    "a lane that is not there": "simd_shuffle(x[i], 40)",
    "a broadcast of several lanes": "simd_broadcast(x[i], ushort(i))",
    "shifts that differ": "simd_shuffle_up(x[i], ushort(i % 2))",
}


@pytest.mark.parametrize("call", UNDEFINED.values(), ids=UNDEFINED)
def test_undefined_shuffles_give_nan(call):
    source = f"uint i = thread_position_in_grid.x; y[i] = {call};"
    x = np.ones(32, np.float32)
    (y,) = evaluate(source, {"x": x}, {"y": ((32,), mx.float32)}, threads=32)
    assert np.isnan(y).any()


MATRIX = """
  simdgroup_matrix<T, 8, 8> a, b;
  simdgroup_float8x8 c = make_filled_simdgroup_matrix<float, 8, 8>(1.0f), d;
  threadgroup T tile[64];
  uint i = thread_position_in_grid.x;
  for (uint k = i; k < 64; k += 32) tile[k] = y[k];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  simdgroup_load(a, x, 16, ulong2(4, 2));
  simdgroup_load(b, tile);
  simdgroup_multiply_accumulate(d, a, b, c);
  simdgroup_store(d, out, 8);
  simdgroup_load(b, tile, 8, 0, true);
  simdgroup_multiply(d, a, b);
  simdgroup_store(d, out + 64, 8, ulong2(0, 0), true);
  simdgroup_float8x8 e(2.0f);
  d = e * c + c - e;
  simdgroup_store(d, out + 128, 16, ulong2(8, 0));
  d.thread_elements()[0] = i;
  d.thread_elements()[1] = i + 0.5;
  simdgroup_store(d, out + 256);
"""


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
def test_simdgroup_matrix(dtype):
    x = RNG.integers(-8, 8, (16, 16)).astype(np.float32)
    y = RNG.integers(-8, 8, (8, 8)).astype(np.float32)
    kernel = metal_kernel("matrix", ["x", "y"], ["out"], MATRIX)
    with record() as runs:
        (result,) = kernel(
            inputs=[mx.array(x).astype(dtype), mx.array(y).astype(dtype)],
            output_shapes=[(320,)],
            output_dtypes=[mx.float32],
            grid=(32, 1, 1),
            threadgroup=(32, 1, 1),
            template=[("T", dtype)],
            init_value=0,
        )
    out = np.array(result)
    a = x[2:10, 4:12]
    np.testing.assert_array_equal(out[:64].reshape(8, 8), a @ y + 1)
    np.testing.assert_array_equal(out[64:128].reshape(8, 8).T, a @ y.T)
    expected = 3 - 2 * np.eye(8)
    np.testing.assert_array_equal(out[128:256].reshape(8, 16)[:, 8:], expected)
    # As MLX lays the lanes out: rows of four pairs, quarter by quarter
    rows = out[256:].reshape(8, 8)
    assert rows[0].tolist() == [0, 0.5, 1, 1.5, 8, 8.5, 9, 9.5]
    assert rows[4, 0] == 16
    assert runs[0].report.matrix_operations == 3


@pytest.mark.parametrize("last", ["simdgroup_store(m, out, 8);", "out[i + 60] = 0;"])
def test_a_fault_inside_a_function_points_at_its_caller(last):
    source = "uint i = thread_position_in_grid.x;\nsimdgroup_float8x8 m(1.0f);\n"
    x = np.ones(1, np.float32)
    with pytest.raises(KernelError) as error:
        evaluate(
            f"{source}out[i] = 0;\n{last}",
            {"x": x},
            {"out": ((60,), mx.float32)},
            threads=32,
        )
    places = {f.where for f in error.value.report.findings if "bounds" in f.kind}
    # Four lines of signature precede the four of the source.
    assert places == {"stdlib.metal:8"}


ATOMICS = """
  threadgroup atomic_uint shared;
  uint i = thread_position_in_grid.x;
  constexpr auto relaxed = memory_order_relaxed;
  if (i == 0) atomic_store_explicit(&shared, 0, relaxed);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  atomic_fetch_add_explicit(&shared, 1, relaxed);
  atomic_fetch_add_explicit(&out[0], 1, relaxed);
  atomic_fetch_sub_explicit(&out[1], 2, relaxed);
  atomic_fetch_max_explicit(&out[2], int(x[i]), relaxed);
  atomic_fetch_min_explicit(&out[3], -int(x[i]), relaxed);
  atomic_fetch_or_explicit(&out[4], 1 << (i % 8), relaxed);
  atomic_fetch_xor_explicit(&out[5], int(i), relaxed);
  int old = atomic_load_explicit(&out[6], relaxed);
  while (!atomic_compare_exchange_weak_explicit(&out[6], &old, old + 3, relaxed,
                                                relaxed)) {}
  if (i == 0) atomic_exchange_explicit(&out[7], 5, relaxed);
  atomic_fetch_and_explicit(&out[7], 7, relaxed);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (i == 0) atomic_store_explicit(&out[8], atomic_load_explicit(&shared, relaxed),
                                    relaxed);
  atomic_fetch_add_explicit((device atomic_float*)&out[9], 0.5, relaxed);
"""


def test_atomics():
    x = RNG.permutation(64).astype(np.int32)
    kernel = metal_kernel("atomics", ["x"], ["out"], ATOMICS, atomic_outputs=True)
    (result,) = kernel(
        inputs=[mx.array(x)],
        output_shapes=[(10,)],
        output_dtypes=[mx.int32],
        grid=(64, 1, 1),
        threadgroup=(64, 1, 1),
        init_value=0,
    )
    out = np.array(result)
    exclusive = int(np.bitwise_xor.reduce(np.arange(64)))
    assert out[:6].tolist() == [64, -128, 63, -63, 255, exclusive]
    assert out[6:9].tolist() == [192, 5, 64]
    assert out[9:].view(np.float32) == 32


NOTHING = """
#include <metal_stdlib>
using namespace metal;
{header}
[[kernel]] void snippet(const device float* x [[buffer(0)]],
                        device float* out [[buffer(1)]],
                        device atomic_float* cell [[buffer(2)]],
                        uint i [[thread_position_in_grid]]) {{
  {body}
}}
"""
# What MSL has not, each beside its nearest legal form
REFUSED = {
    "erf": ("out[i] = erf(x[i]);", "out[i] = tanh(x[i]);"),
    "expm1": ("out[i] = expm1(x[i]);", "out[i] = exp(x[i]) - 1;"),
    "libc math": ("out[i] = expf(x[i]);", "out[i] = exp(x[i]);"),
    "std": ("out[i] = std::exp(x[i]);", "out[i] = metal::exp(x[i]);"),
    "printf": ('printf("%f", x[i]);', "out[i] = x[i];"),
    "malloc": ("float* p = (float*)malloc(4);", "float p[4] = {}; out[i] = p[0];"),
    "memcpy": ("memcpy(out, x, 4);", "out[i] = x[i];"),
    "double": ("double d = x[i]; out[i] = d;", "float d = x[i]; out[i] = d;"),
    "max of int and float": (
        "out[i] = max(int(i), x[i]);",
        "out[i] = max(float(i), x[i]);",
    ),
    "min of int and uint": (
        "out[i] = min(int(i), i);",
        "out[i] = min(uint(3), i);",
    ),
    "exp of int": ("out[i] = exp(int(i));", "out[i] = exp(float(i));"),
    "simd_sum of long": (
        "out[i] = simd_sum(long(i));",
        "out[i] = simd_sum(int(i));",
    ),
    "simd_max of ulong2": (
        "out[i] = simd_max(ulong2(i)).x;",
        "out[i] = simd_max(uint2(i)).x;",
    ),
    "simd_shuffle of bool": (
        "out[i] = simd_shuffle(i > 3, 0);",
        "out[i] = simd_shuffle(ushort(i > 3), 0);",
    ),
    "simd_xor of float": (
        "out[i] = simd_xor(x[i]);",
        "out[i] = simd_xor(as_type<uint>(x[i]));",
    ),
    "as_type of another size": (
        "out[i] = as_type<half>(x[i]);",
        "out[i] = as_type<half2>(x[i]).x;",
    ),
    "too few components": (
        "float4 v = float4(1, 2, 3); out[i] = v.x;",
        "float4 v = float4(1, 2, 3, 4); out[i] = v.x;",
    ),
    "a matrix of another size": (
        "simdgroup_matrix<float, 4, 4> m(1.0f); simdgroup_store(m, out, 4);",
        "simdgroup_matrix<float, 8, 8> m(1.0f); simdgroup_store(m, out, 8);",
    ),
    "a minimum of atomic_float": (
        "atomic_fetch_min_explicit(cell, 1.0f, memory_order_relaxed);",
        "atomic_fetch_add_explicit(cell, 1.0f, memory_order_relaxed);",
    ),
    "another memory order": (
        "atomic_store_explicit(cell, 1.0f, memory_order_seq_cst);",
        "atomic_store_explicit(cell, 1.0f, memory_order_relaxed);",
    ),
    "atomic<short>": (
        "device atomic<short>* p = (device atomic<short>*)cell; (void)p->value;",
        "device atomic<int>* p = (device atomic<int>*)cell; (void)p;",
    ),
}


@pytest.mark.parametrize("body", [a for a, _ in REFUSED.values()], ids=REFUSED)
def test_what_msl_lacks_does_not_compile(body):
    with pytest.raises(ValueError, match=r"error:|double"):
        Program(NOTHING.format(header="", body=body), mode="fast")


def test_its_legal_twin_does():
    body = "\n".join(f"{{ {legal} }}" for _, legal in REFUSED.values())
    Program(NOTHING.format(header="", body=body), mode="fast")
    assert lint(NOTHING.format(header="", body=body)) == []


def test_lint_accepts_the_library_in_each_address_space():
    body = """
        threadgroup float tile[64];
        threadgroup atomic_uint count;
        simdgroup_float8x8 m(1.0f);
        simdgroup_load(m, x, 8);
        simdgroup_store(m, tile, 8);
        atomic_fetch_add_explicit(&count, 1, memory_order_relaxed);
        atomic_fetch_add_explicit(cell, 1.0f, memory_order_relaxed);
        float3 v = ((const device packed_float3*)x)[i];
        out[i] = simd_sum(tile[i]) + dot(v, v) + fast::exp(x[i]);
    """
    assert lint(NOTHING.format(header="", body=body)) == []


EVERYTHING = r"""
#include <metal_stdlib>
#include <metal_simdgroup>
using namespace metal;
#define TILE 4
constant float kTable[16] = {0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1};
constant constexpr int kCount = 8;
struct Params { uint n; float scale; int4 pad; };
struct Pair { half a; half b; };
enum class Mode : uint { A = 0, B = 1 };
template <typename T> METAL_FUNC T twice(T x) { return x + x; }
template <int N> struct Unroll {
  template <typename F> static METAL_FUNC void run(F f) {
    Unroll<N - 1>::run(f);
    f(N - 1);
  }
};
template <> struct Unroll<0> {
  template <typename F> static METAL_FUNC void run(F) {}
};
struct Count {
  thread float* r;
  void operator()(int k) const { r[k] = k; }
};
inline float dot8(thread const float* a, threadgroup const float* b) {
  float s = 0;
  _Pragma("clang loop unroll(full)") for (int i = 0; i < kCount; ++i) s += a[i] * b[i];
  return s;
}
kernel void everything(device const uint* w [[buffer(0)]],
                       device const half* x [[buffer(1)]],
                       device float* out [[buffer(2)]],
                       constant Params& p [[buffer(3)]],
                       device const Pair* pairs [[buffer(4)]],
                       uint3 tpg [[thread_position_in_grid]],
                       ushort lid [[thread_index_in_threadgroup]],
                       ushort lane [[thread_index_in_simdgroup]]) {
  threadgroup float tile[TILE][8], extra;
  threadgroup half4 hv[8];
  uint gid = tpg.x;
  if (lid < 32) tile[lid / 8][lid % 8] = float(lid);
  if (lid < 8) hv[lid] = half4(half(lid), 1.0h, 2, 3);
  if (lid == 0) extra = 0.5;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  uint q = w[gid];
  float acc = 0;
  #pragma unroll
  for (uint i = 0; i < 8; i++) acc += kTable[(q >> (4 * i)) & 0xF] * float(x[i]);
  out[gid] = acc;
  half4 h = *((device const half4*)(x) + (lid & 1));
  float4 f = float4(h) * p.scale;
  acc = f.x + f.wzyx.x + dot(f.xy, f.zw);
  float r[kCount] = {0};
  Unroll<4>::run(Count{r});
  acc += dot8(r, tile[1]) + extra + float(hv[lid & 7].x) + twice(1.0f);
  out[gid + 64] = acc;
  simd_vote v = simd_ballot(lane & 1);
  acc = (simd_vote::vote_t(v) == 0xAAAAAAAAul) ? 1 : 0;
  acc += simd_shuffle_xor(float(lane), 1) + float(simd_prefix_exclusive_sum(lane));
  uchar4 uc = as_type<uchar4>(q);
  acc += float(uc.y) / 255;
  int2 ij(3, 4);
  acc += ij.x * ij.y;
  ushort2 us = ushort2(lid, lane);
  acc += us.x + us.y;
  Pair pair = pairs[lid];
  acc += float(pair.a) - float(pair.b) + (Mode::A == Mode::B ? 1 : 0);
  out[gid + 128] = acc + float(p.n) + p.pad.y;
}
"""


def everything_expected(w, x, pairs):
    i = np.arange(64)
    lane = i % 32
    table = np.where(np.arange(16) < 8, np.arange(16), np.arange(16) - 16)
    nibbles = table[w[:, None] >> 4 * np.arange(8, dtype=np.uint32) & 15]
    f = x.astype(np.float64).reshape(2, 4)[i & 1] * 0.25
    second = f[:, 0] + f[:, 3] + f[:, 0] * f[:, 2] + f[:, 1] * f[:, 3]
    second += 9 + 2 * 10 + 3 * 11 + 0.5 + (i & 7) + 2
    third = 1 + (lane ^ 1) + lane * (lane - 1) // 2 + (w >> 8 & 255) / 255 + 12
    third = third + i + lane + pairs["a"] - pairs["b"] + 7 + 2
    return np.stack([nibbles @ x, second, third])


@pytest.mark.parametrize("mode", ["fast", "checked"])
def test_a_kernel_with_a_bit_of_everything(mode):
    w = RNG.integers(0, 2**32, 64, np.uint32)
    x = RNG.normal(size=8).astype(np.float16)
    pairs = np.zeros(64, [("a", "f2"), ("b", "f2")])
    pairs["a"], pairs["b"] = RNG.integers(0, 9, (2, 64))
    fields = [("n", "u4"), ("scale", "f4"), ("gap", "u4", 2), ("pad", "i4", 4)]
    params = np.array([(7, 0.25, (0, 0), (1, 2, 3, 4))], fields)
    out = np.full((3, 64), np.nan, np.float32)
    buffers = [w, x, out, params.view(np.uint32), pairs.view(np.uint32)]
    run(
        Program(EVERYTHING, mode=mode),
        dict(enumerate(buffers)),
        (64, 1, 1),
        (64, 1, 1),
        outputs=[2],
        options=Options(mode=mode),
    )
    expected = everything_expected(w, x, pairs)
    assert_no_worse(out, expected.astype(np.float32), expected, terms=16)
    assert lint(EVERYTHING) == []
