"""The runtime on aarch64, under qemu: the context switch, faults, signals, rounding.

Covered: runtime and kernels compiled for aarch64, run by a driver without Python.
Not covered: Python, its loader of libraries and libm on that processor.
"""

import shutil
import subprocess
from pathlib import Path

import pytest
from sim_programs import needs_simulator

from mlx_glu.metal_sim import toolchain
from mlx_glu.metal_sim.desugar import desugar
from mlx_glu.metal_sim.options import CHECKED_FLAGS, STACK_FLAGS

pytestmark = needs_simulator

DRIVER = Path(__file__).parent / "data" / "sim_driver.cpp"
RUNTIME = toolchain.PACKAGE / "runtime"
QEMU = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")

KERNEL = """#include <metal_stdlib>
using namespace metal;
__attribute__((noinline)) float deep(const device float* x, uint i) {
  float big[60000];
  for (int k = 0; k < 60000; k++) big[k] = x[(i + k) % 256];
  return big[uint(x[i])];
}
[[kernel]] void cases(
    const device float* x [[buffer(0)]],
    device float* out [[buffer(1)]],
    constant int& which [[buffer(2)]],
    uint i [[thread_position_in_grid]],
    uint l [[thread_position_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float s[70];
  if (which == 0) {  // many values live across switches
    float a = x[i], b = a * 1.5f, c = a * a, d = b - c, e = d + a, f = e * b;
    uint p = i * 3, q = i ^ 5, r = p * q, t = r + 7, u = t ^ p;
    float sum = simd_sum(a);
    s[l] = sum;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float other = s[69 - l] + simd_shuffle_xor(e, 1);
    out[i] = a + b + c + d + e + f + other + float(p + q + r + t + u);
  } else if (which == 1) {  // half and bfloat
    half h = half(x[i]) * half(0.1h) + half(1);
    bfloat b = bfloat(x[i]) * bfloat(0.3f);
    out[i] = float(h) + float(b);
  } else if (which == 2) {  // past the end
    out[i] = x[i + 200];
  } else if (which == 3) {  // race
    s[l] = x[i];
    out[i] = s[69 - l];
  } else if (which == 4) {  // a barrier that not all reach
    out[i] = 1;
    if (l < 40) threadgroup_barrier(mem_flags::mem_threadgroup);
  } else if (which == 5) {  // private memory runs out
    out[i] = deep(x, i);
  } else if (which == 6) {  // denormals
    out[i] = x[0] * 0.5f;
  } else {  // no end
    volatile int zero = 0;
    while (!zero) {}
  }
}
"""
LAUNCHER = """
#include "msl/launch.h"
extern "C" MSL_NOSAN void msl_launch(const MslThread* t, void* const* b) {
  cases((const float*)b[0], (float*)b[1], *(const int*)b[2],
        t->thread_position_in_grid[0], t->thread_position_in_threadgroup[0],
        t->thread_index_in_simdgroup);
}
"""
# Code of abi.h.
BARRIER_EXITED, OUT_OF_BUFFER, UNINITIALISED, STACK_OVERFLOW, TIMEOUT = 4, 6, 11, 21, 23


def flags_of(machine, mode):
    target = list(toolchain.TARGETS[machine])
    if mode == "fast":
        return [*target, "-O2", "-fmax-type-align=8", *STACK_FLAGS]
    if machine == "aarch64":
        of_this_machine = ("-march", "-mf16c")
        return target + [f for f in CHECKED_FLAGS if not f.startswith(of_this_machine)]
    return [*target, *CHECKED_FLAGS]


def build(machine, mode, folder):
    """Link driver, runtime and kernel into a program that needs no library."""
    text = desugar(toolchain.preprocess(KERNEL, [], [])).text
    text = '#include "msl/shim.h"\n' + text + LAUNCHER
    kernel, driver = folder / "kernel.o", folder / "driver.o"
    program = folder / f"{machine}-{mode}"
    # aarch64 can fuse half products and sums, x86-64 cannot.
    no_fusing = ("-ffp-contract=off", "-fno-pic")
    flags = [*toolchain.KERNEL_FLAGS, *flags_of(machine, mode), *no_fusing]
    args = ["-x", "c++", *flags, "-c", "-", "-o", str(kernel)]
    done = toolchain.clang(args, text)
    assert done.returncode == 0, done.stderr
    args = [
        *("-x", "c++", "-O2", *toolchain.FREESTANDING_FLAGS, "-fno-pic"),
        *(*toolchain.TARGETS[machine], f"-I{RUNTIME}"),
        *(f"-DCHECKED={int(mode == 'checked')}", "-Wall"),
        *("-c", str(DRIVER), "-o", str(driver)),
    ]
    done = toolchain.clang(args)
    assert done.returncode == 0, done.stderr
    args = ["-static", str(driver), str(kernel), "-o", str(program)]
    done = subprocess.run([toolchain.zig(), "ld.lld", *args], capture_output=True)
    assert done.returncode == 0, done.stderr
    return program


def lines_of(command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = [row.split() for row in done.stdout.splitlines()]
    return [dict(word.split("=", 1) for word in row if "=" in word) for row in rows]


@pytest.fixture(scope="module", params=["checked", "fast"])
def both(request, tmp_path_factory):
    """What the driver prints here, and on aarch64; the mode."""
    if QEMU is None:
        pytest.skip("no qemu-aarch64: apt-get install qemu-user-static")
    if toolchain.machine() != "x86_64":
        pytest.skip("this is an aarch64 machine: the other tests say more")
    folder, mode = tmp_path_factory.mktemp("aarch64"), request.param
    here = lines_of([str(build("x86_64", mode, folder))])
    there = lines_of([QEMU, str(build("aarch64", mode, folder))])
    return here, there, mode


def test_same_results(both):
    here, there, mode = both
    assert len(there) == 9
    # Which thread overflows first, and how loads are split, is the compiler's choice.
    left_out = {"loads", "merged"} if mode == "checked" else {"thread"}
    for ours, theirs in zip(here, there, strict=True):
        keys = set(ours) - left_out
        assert {k: ours[k] for k in keys} == {k: theirs.get(k) for k in keys}


def test_faults_are_found(both):
    _, there, mode = both
    codes = [int(row.get("code", 0)) for row in there]
    assert (codes[0], codes[1]) == (0, 0)
    assert codes[4] == BARRIER_EXITED
    assert codes[5] == STACK_OVERFLOW
    assert codes[7] == TIMEOUT
    if mode == "checked":
        assert codes[2] == OUT_OF_BUFFER
        assert there[2]["name"] == "x"
        assert codes[3] == UNINITIALISED


def test_denormals_are_flushed_on_demand(both):
    _, there, _ = both
    assert there[6]["sum"] != "0"
    assert there[8]["sum"] == "0"
