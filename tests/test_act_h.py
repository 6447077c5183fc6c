"""metal/act.h compiled as C++ on this machine, against the float64 oracle."""

import ctypes
import re
import shutil
import subprocess

import mlx.core as mx
import numpy as np
import pytest
from conftest import assert_no_worse, derivative64, f64, oracle_mul

from mlx_glu import metal_source, reference
from mlx_glu.variants import VARIANTS, get

POINTWISE = [v for v in VARIANTS.values() if v.pointwise]
CASES = [
    *POINTWISE,
    get("swiglu", beta=0.25),
    get("swiglu_clamped", alpha=1, limit=10, offset=0),
    get("swiglu_clamp_post", limit=2.5),
]

SHIM = """
#include <cmath>
#include <cstdint>
#include <cstring>
#define thread
typedef uint32_t uint;
template <typename T> static T as_type(uint bits) {
  T value; std::memcpy(&value, &bits, sizeof value); return value;
}
namespace metal {
static float fma(float a, float b, float c) { return std::fmaf(a, b, c); }
static float abs(float x) { return std::fabs(x); }
static float min(float a, float b) { return std::fmin(a, b); }
static float clamp(float x, float lo, float hi) {
  return std::fmin(std::fmax(x, lo), hi);
}
namespace precise {
static float exp(float x) { return std::exp(x); }
static float tanh(float x) { return std::tanh(x); }
}
}
"""

CALL = """
extern "C" void {name}_{part}(const float* g, const float* u, float* y, int n) {{
  for (int i = 0; i < n; i++) y[i] = {functor}::{part}(g[i], u[i]);
}}
"""


def label(variant):
    pairs = "_".join(f"{k}{v:g}" for k, v in variant.params)
    return re.sub(r"\W", "p", f"{variant.name}_{pairs}".rstrip("_"))


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        pytest.skip("no C++ compiler on PATH: act.h cannot be compiled")
    calls = [
        CALL.format(name=label(v), part=part, functor=v.msl)
        for v in CASES
        for part in ("fwd", "d_gate", "d_up")
    ]
    folder = tmp_path_factory.mktemp("act")
    (folder / "act.cpp").write_text(SHIM + metal_source.read("act.h") + "".join(calls))
    # C++14 is what MSL 3 is based on; contraction would hide the fma we rely on.
    flags = "-std=c++14 -O1 -ffp-contract=off -Wall -Werror -shared -fPIC"
    command = [compiler, *flags.split(), "-Wno-unused-function", "act.cpp"]
    done = subprocess.run(
        [*command, "-o", "act.so"], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(folder / "act.so"))


def call(library, variant, part, gate, up):
    # Poison: an element that is never written stays NaN.
    y = np.full(gate.shape, np.nan, np.float32)
    arrays = (a.ctypes.data_as(ctypes.c_void_p) for a in (gate, up, y))
    getattr(library, f"{label(variant)}_{part}")(*arrays, ctypes.c_int(gate.size))
    return y


def grid():
    """Gates and values: dense around 0, random, and large, as float32 pairs."""
    rng = np.random.default_rng(0)
    gate = np.concatenate([np.linspace(-9, 9, 4001), rng.normal(size=4000) * 3])
    up = rng.normal(size=gate.size) * 3
    # Odd multiples of 1/128 stay clear of 0 and of every limit.
    odd = lambda a: (np.floor(a * 64) + 0.5) / 64
    return odd(gate).astype(np.float32), odd(up).astype(np.float32)


@pytest.mark.parametrize("variant", CASES, ids=label)
def test_value_is_no_worse_than_mlx(library, variant):
    gate, up = grid()
    stock = reference.glu_mul(mx.array(gate), mx.array(up), variant)
    oracle = oracle_mul(gate.astype(np.float64), up.astype(np.float64), variant)
    assert_no_worse(call(library, variant, "fwd", gate, up), stock, oracle)


@pytest.mark.parametrize("variant", CASES, ids=label)
def test_gradients_are_no_worse_than_mlx(library, variant):
    gate, up = grid()
    g, u = gate.astype(np.float64), up.astype(np.float64)
    one = mx.ones(gate.shape)
    stock = reference.glu_mul_vjp(mx.array(gate), mx.array(up), one, variant)
    by_gate = derivative64(lambda a: oracle_mul(a, u, variant), g)
    by_up = derivative64(lambda a: oracle_mul(g, a, variant), u)
    for part, base, oracle in zip(
        ("d_gate", "d_up"), stock, (by_gate, by_up), strict=True
    ):
        y = call(library, variant, part, gate, up)
        assert_no_worse(y, base, oracle, terms=2)


@pytest.mark.parametrize("variant", CASES, ids=label)
def test_ties_and_large_gates_agree_with_the_reference(library, variant):
    limit = dict(variant.params).get("limit", 7.0)
    up = np.array([0, limit, -limit, 30], np.float32)
    for point in (0, limit, 30, 100, 1e4, 65504, 1e18):
        # One magnitude at a time: the tolerance follows the largest element.
        gate = np.array([point, point, -point, -point], np.float32)
        g, u = gate.astype(np.float64), up.astype(np.float64)
        pair = mx.array(gate), mx.array(up)
        stock = reference.glu_mul(*pair, variant)
        y = call(library, variant, "fwd", gate, up)
        assert_no_worse(y, stock, oracle_mul(g, u, variant))
        wanted = reference.glu_mul_vjp(*pair, mx.ones(4), variant)
        for part, want in zip(("d_gate", "d_up"), map(f64, wanted), strict=True):
            y = call(library, variant, part, gate, up)
            assert_no_worse(y, want, want, terms=2)


@pytest.mark.parametrize("variant", CASES, ids=label)
def test_nan_passes_through(library, variant):
    nan, one = np.full(1, np.nan, np.float32), np.ones(1, np.float32)
    assert np.isnan(call(library, variant, "fwd", nan, one))
    assert np.isnan(call(library, variant, "fwd", one, nan))


def test_table_and_header_name_the_same_functors():
    aliases = re.findall(r"^using (\w+) =", metal_source.read("act.h"), re.MULTILINE)
    assert len(aliases) == len(set(aliases))
    assert set(aliases) == {v.functor for v in POINTWISE}


def test_parameters_travel_bit_for_bit():
    assert get("swiglu").msl == "mlx_glu::Swiglu<0x3f800000u>"
    bits = re.findall(r"0x(\w{8})u", get("swiglu_clamped").msl)
    values = [float(np.uint32(int(b, 16)).view(np.float32)) for b in bits]
    assert values == [float(np.float32(1.702)), 7.0, 1.0]
