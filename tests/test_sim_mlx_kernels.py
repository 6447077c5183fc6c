"""MLX's own Metal kernels, unchanged, in the simulator: right, checked and lint clean.

The kernels are in headers that the wheel of MLX carries. Those that exist as .metal
files alone need ``--mlx-source=FOLDER``, a checkout of MLX.

Weights are exact in every dtype (scales are powers of two), so the float64 oracle
needs no account of how a kernel rounds them, and one tolerance serves all.
"""

from functools import lru_cache
from typing import NamedTuple

import mlx.core as mx
import numpy as np
import pytest
from conftest import assert_no_worse, f64
from sim_programs import MLX_INCLUDE, needs_simulator

from mlx_glu.metal_sim import KernelError, Program, lint, options, run
from mlx_glu.metal_sim.options import current

pytestmark = needs_simulator

DEFINES = ("MLX_METAL_JIT",)
FOLDER = "mlx/backend/metal/kernels/"
METAL = {mx.float32: "float", mx.float16: "half", mx.bfloat16: "bfloat16_t"}
DTYPES = pytest.mark.parametrize("dtype", METAL, ids=METAL.values())
# Weights in 3 formats, each with one group size, and its name in the template.
FP_MODES = {"mxfp4": (32, 4), "mxfp8": (32, 8), "nvfp4": (16, 4)}
# Columns of the output that one threadgroup computes.
COLUMNS = {"affine_qmv_fast": 8, "affine_qmv": 8, "affine_qvm": 64, "fp_qmv_fast": 8}
COLUMNS |= {"fp_qmv": 8}


class Source(NamedTuple):
    """What to include before a kernel, and where from."""

    headers: tuple[str, ...]
    folder: str = MLX_INCLUDE

    @property
    def text(self):
        return "".join(f'#include "{FOLDER}{header}"\n' for header in self.headers)


AFFINE = Source(("utils.h", "steel/gemm/gemm.h", "quantized_utils.h", "quantized.h"))
FP = Source(("utils.h", "steel/gemm/gemm.h", "quantized_utils.h", "fp_quantized.h"))
SOFTMAX = Source(("defines.h", "utils.h", "softmax.h"))
LOGSUMEXP = Source(("defines.h", "utils.h", "logsumexp.h"))


def memory(value):
    """An array of a kernel: integers as int32, bfloat16 by its bits."""
    if isinstance(value, int):
        return np.array([value], np.int32)
    if isinstance(value, float):
        return np.array([value], np.float32)
    if isinstance(value, mx.array):
        return np.array(value.view(mx.uint16) if value.dtype == mx.bfloat16 else value)
    return value


@lru_cache
def problems(source, kernel, template, constants):
    return lint(
        source.text,
        kernel,
        template,
        includes=(source.folder,),
        defines=DEFINES,
        constants=dict(constants),
    )


def execute(
    source, kernel, template, values, shape, dtype, *, groups, threadgroup, constants=()
):
    """Lint and run a kernel as the options say: checked, at the strictest level.

    ``values`` go to the buffers in order; None stands for the output.
    Returns the output and the report.
    """
    at = next(i for i, value in enumerate(values) if value is None)
    buffers = {
        i: memory(mx.zeros(shape, dtype) if value is None else value)
        for i, value in enumerate(values)
    }
    output = buffers[at]
    output.view(np.uint8)[...] = 0xFF
    names = {"includes": (source.folder,), "defines": DEFINES}
    names["constants"] = dict(constants)
    assert problems(source, kernel, template, tuple(constants)) == []
    now = current()
    names |= {"mode": now.mode, "contract": now.contract}
    program = Program(source.text, kernel, template, **names)
    grid = tuple(g * t for g, t in zip(groups, threadgroup, strict=True))
    report = run(program, buffers, grid, threadgroup, outputs=[at], options=now)
    y = mx.array(output)
    return (y.view(dtype) if dtype == mx.bfloat16 else y), report


def check(y, oracle, terms):
    stock = mx.array(oracle.astype(np.float32)).astype(y.dtype)
    assert_no_worse(y, stock, oracle, terms=terms)


def affine(n, k, group_size, bits, dtype, seed=0):
    """A weight [n, k] in MLX's affine format, and its values in float64."""
    rng = np.random.default_rng(seed)
    packed = rng.integers(0, 2**32, (n, k * bits // 32), np.uint32)
    scales = 2.0 ** rng.integers(-6, -2, (n, k // group_size))
    biases = -scales * rng.integers(0, 2**bits, scales.shape)
    w = [mx.array(packed), mx.array(scales, mx.float32), mx.array(biases, mx.float32)]
    values = mx.dequantize(*w, group_size=group_size, bits=bits)
    return [w[0], w[1].astype(dtype), w[2].astype(dtype)], f64(values)


def fp(n, k, mode, seed=0):
    """A weight [n, k] in one of MLX's floating formats, and its values in float64."""
    group_size, bits = FP_MODES[mode]
    w = mx.random.normal((n, k), key=mx.random.key(seed))
    packed = mx.quantize(w, group_size=group_size, bits=bits, mode=mode)
    values = mx.dequantize(
        *packed, group_size=group_size, bits=bits, mode=mode, dtype=mx.float32
    )
    return list(packed), f64(values)


def activations(m, k, dtype):
    return mx.random.normal((m, k), key=mx.random.key(1)).astype(dtype)


def product(kernel, dtype, *, m=1, n, k, bits=4, group_size=64, mode="affine", flags):
    """One matrix product with a quantized weight; checked; returns the report."""
    if mode == "affine":
        source, transposed = AFFINE, kernel != "affine_qvm"
        size = (n, k) if transposed else (k, n)
        weight, w = affine(*size, group_size, bits, dtype)
        batch_strides = 3
    else:
        source, transposed = FP, True
        group_size, bits = FP_MODES[mode]
        weight, w = fp(n, k, mode)
        weight.append(1.0)
        batch_strides = 2
    x = activations(m, k, dtype)
    many = kernel.endswith("qmm_t")
    none = np.zeros(1, np.int64)
    batch = [1, m, none, 1, n, *[none] * batch_strides]
    y, report = execute(
        source,
        kernel,
        f"{METAL[dtype]}, {group_size}, {bits}, {flags}",
        [*weight, x, None, k, n, *([m] if many else []), *batch],
        (m, n),
        dtype,
        groups=(-(-n // 32), -(-m // 32), 1)
        if many
        else (m, -(-n // COLUMNS[kernel]), 1),
        threadgroup=(32, 2, 2) if many else (32, 2, 1),
    )
    check(y, f64(x) @ (w.T if transposed else w), terms=k)
    return report


@DTYPES
def test_affine_qmv_fast(dtype):
    report = product("affine_qmv_fast", dtype, m=2, n=16, k=1024, flags="false")
    weight = report.buffers["w"]
    assert weight.read == 2 * weight.size
    assert weight.touched == weight.size


@DTYPES
def test_affine_qmv(dtype):
    """N % 8 and K % 512 are not 0: the last tile computes rows of its neighbour."""
    case = {"n": 21, "k": 576, "flags": "false"}
    with options(strict=1):
        report = product("affine_qmv", dtype, **case)
    with pytest.raises(KernelError) as caught:
        product("affine_qmv", dtype, **case)
    for findings in (report.findings, caught.value.report.findings):
        assert {finding.kind for finding in findings} == {"same-value-race"}
        assert all("'y'" in finding.message for finding in findings)


@pytest.mark.parametrize("bits", [2, 3, 5, 6, 8])
def test_affine_qmv_fast_bits(bits):
    product(
        "affine_qmv_fast",
        mx.float16,
        n=8,
        k=1024,
        bits=bits,
        group_size=32 if bits in (3, 6) else 128,
        flags="false",
    )


# Every tile is whole; rows, columns and the contraction end inside a tile.
@pytest.mark.parametrize("size", [(32, 32, 128), (17, 40, 576)], ids=["whole", "edges"])
@DTYPES
def test_affine_qmm_t(dtype, size):
    m, n, k = size
    aligned = "true" if n % 32 == 0 else "false"
    report = product("affine_qmm_t", dtype, m=m, n=n, k=k, flags=f"{aligned}, false")
    assert report.matrix_operations > 0
    assert report.threadgroup_bytes <= 32768


@DTYPES
def test_affine_qvm(dtype):
    product("affine_qvm", dtype, n=128, k=96, flags="false")


@pytest.mark.parametrize("mode", FP_MODES)
@pytest.mark.parametrize("kernel", ["fp_qmv_fast", "fp_qmv"])
def test_fp_qmv(kernel, mode):
    dtype = {"mxfp4": mx.float32, "mxfp8": mx.float16, "nvfp4": mx.bfloat16}[mode]
    k = 512 if kernel == "fp_qmv_fast" else 576
    product(kernel, dtype, n=16, k=k, mode=mode, flags="false")


def rows(m, k, dtype):
    x = mx.random.normal((m, k), key=mx.random.key(2)).astype(dtype)
    return x, f64(x)


# Row length and threads: a threadgroup holds a row, or walks over it. MLX walks
# with 1024 threads, and softmax_looped reads what only so many simdgroups write.
ROW = {"single_row": (250, 64), "looped": (4500, 1024)}


@pytest.mark.parametrize("kernel", ["single_row", "looped"])
@DTYPES
def test_softmax(dtype, kernel):
    k, threads = ROW[kernel]
    x, values = rows(3, k, dtype)
    y, _ = execute(
        SOFTMAX,
        f"softmax_{kernel}",
        f"{METAL[dtype]}, float",
        [x, None, k],
        (3, k),
        dtype,
        groups=(3, 1, 1),
        threadgroup=(threads, 1, 1),
    )
    e = np.exp(values - values.max(-1, keepdims=True))
    check(y, e / e.sum(-1, keepdims=True), terms=k)


@DTYPES
def test_logsumexp(dtype):
    x, values = rows(3, 250, dtype)
    y, _ = execute(
        LOGSUMEXP,
        "logsumexp",
        METAL[dtype],
        [x, None, 250],
        (3,),
        dtype,
        groups=(3, 1, 1),
        threadgroup=(64, 1, 1),
    )
    check(y, np.log(np.exp(values).sum(-1)), terms=250)


@pytest.mark.parametrize("kernel", ["single_row", "looped"])
@DTYPES
def test_rms_norm(dtype, kernel, request):
    folder = request.config.getoption("--mlx-source", None)
    if folder is None:
        pytest.skip("rms_norm has no header; give --mlx-source=FOLDER, MLX's checkout")
    k, threads = ROW[kernel]
    x, values = rows(3, k, dtype)
    w = mx.array(2.0 ** (np.arange(k) % 5 - 2)).astype(dtype)
    y, _ = execute(
        Source(("rms_norm.metal",), folder),
        f"rms_{kernel}",
        METAL[dtype],
        [x, w, None, 1e-5, np.array([k], np.uint32), np.array([1], np.uint32)],
        (3, k),
        dtype,
        groups=(3, 1, 1),
        threadgroup=(threads, 1, 1),
        constants=[(20, True)],
    )
    mean = (values**2).mean(-1, keepdims=True)
    check(y, f64(w) * values / np.sqrt(mean + 1e-5), terms=k)


@pytest.mark.slow
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("kernel", ["affine_qmv_fast", "affine_qmm_t"])
@DTYPES
def test_every_affine_format(kernel, dtype, bits, group_size):
    flags = "true, false" if kernel == "affine_qmm_t" else "false"
    formats = {"bits": bits, "group_size": group_size, "flags": flags}
    product(kernel, dtype, m=2, n=32, k=1024, **formats)


@pytest.mark.slow
@pytest.mark.parametrize("mode", FP_MODES)
@DTYPES
def test_every_fp_format(dtype, mode):
    product("fp_qmv_fast", dtype, n=16, k=1024, mode=mode, flags="false")


CHANGES = [
    {"mode": "fast"},
    {"lane_order": "reverse"},
    {"lane_order": "permuted", "reduce_order": "sequential"},
    {"reduce_order": "reversed"},
    {"flush_denormals": True},
    {"contract": "off"},
    {"contract": "fast"},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_whatever_the_gpu_does(change):
    """Orders, denormals and contraction are the GPU's choice: all must be right."""
    with options(**change):
        product("affine_qmv_fast", mx.float16, n=8, k=1024, flags="false")
        product("affine_qmm_t", mx.float16, m=9, n=32, k=64, flags="true, false")
