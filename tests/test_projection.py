"""Stock projections against float64, however the CPU runs them."""

import os
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest
from conftest import EPS, f64

from mlx_glu import blas, projection
from mlx_glu.projection import linear
from mlx_glu.quantization import MODES, Quantization, QuantizedWeight, dequantize

on_cpu = pytest.mark.skipif(
    mx.default_device().type != mx.DeviceType.cpu, reason="the CPU's paths"
)
pytestmark = on_cpu
K, N = 128, 67
FORMATS = [
    pytest.param(Quantization(group_size, bits, mode), id=f"{mode}-{bits}-{group_size}")
    for mode, known in MODES.items()
    for bits in known.bits
    for group_size in known.group_sizes[:1]
]
DTYPES = [mx.float32, mx.float16, mx.bfloat16]


@pytest.fixture(params=["fast", "slow"])
def speed(request, monkeypatch):
    """Both answers of the measurement: packed weights go different ways."""
    monkeypatch.setattr(blas, "is_fast", lambda: request.param == "fast")


@pytest.fixture(params=[0, 1 << 60], ids=["split", "whole"])
def split(request, monkeypatch):
    monkeypatch.setattr(projection, "SPLIT_FROM", request.param)


def random(*shape, dtype=mx.float32, seed=0):
    values = np.random.default_rng([seed, *shape]).normal(size=shape)
    return mx.array(values.astype(np.float32)).astype(dtype)


def packed(form, dtype):
    dense = random(N, K, seed=1).astype(dtype)
    weight, scales, *biases = mx.quantize(dense, **form.as_config())
    return QuantizedWeight(
        weight, scales, *(biases or [None]), *form.as_config().values()
    )


def assert_close(y, x, weight, bias=None):
    """Two roundings to y's dtype, and the error of float32 sums of K terms."""
    if isinstance(weight, QuantizedWeight):
        weight = dequantize(*weight[:3], Quantization(*weight[3:]))
    product, b = f64(x) @ f64(weight).T, 0.0 if bias is None else f64(bias)
    assert y.shape == product.shape
    eps = EPS[str(y.dtype).split(".")[-1]]
    bound = eps * (np.abs(product) + np.abs(b))
    bound += 4 * EPS["float32"] * (np.abs(f64(x)) @ np.abs(f64(weight)).T)
    assert (np.abs(f64(y) - (product + b)) <= bound).all()


@pytest.mark.parametrize("bias", [False, True], ids=["no_bias", "bias"])
@pytest.mark.parametrize("M", [1, 3, 4, 15, 16, 40])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dense(dtype, M, bias, split, speed):
    x, weight = random(M, K, dtype=dtype), random(N, K, dtype=dtype, seed=1)
    b = random(N, dtype=dtype, seed=2) if bias else None
    y = linear(x, weight, b)
    assert y.dtype == dtype
    assert_close(y, x, weight, b)


def test_rows_of_the_tests_lie_on_both_sides_of_every_start():
    starts = (projection.UNPACK_FROM, projection.TRANSPOSE_FROM)
    assert {rows for table in starts for rows in table.values()} == {
        1,
        4,
        8,
        16,
        48,
        256,
    }


@pytest.mark.parametrize("M", [1, 3, 4, 7, 8, 15, 16, 47, 48, 255, 256])
@pytest.mark.parametrize("form", FORMATS)
def test_quantized(form, M, split, speed):
    for dtype in DTYPES:
        x, weight = random(M, K, dtype=dtype), packed(form, dtype)
        y = linear(x, weight, b := random(N, dtype=dtype, seed=2))
        assert y.dtype == dtype
        assert_close(y, x, weight, b)


def test_more_axes(split, speed):
    for weight in (random(N, K, seed=1), packed(Quantization(64, 4), mx.float32)):
        for lead in ((), (1, 1), (2, 3), (2, 1, 4)):
            x = random(*lead, K)
            y = linear(x, weight)
            assert y.shape == (*lead, N)
            assert_close(y, x, weight)


@pytest.mark.parametrize("N", [1, 2, 3])
def test_fewer_rows_than_cores(N, split, speed):
    x, weight = random(5, K), random(N, K, seed=1)
    assert_close(linear(x, weight), x, weight)
    half = weight.astype(mx.float16)
    assert_close(linear(x.astype(mx.float16), half), x.astype(mx.float16), half)


@pytest.mark.parametrize("M", [1, 5, 40])
@pytest.mark.parametrize("mode", ["dense", *MODES])
def test_gradients(mode, M, split, speed):
    """d/dx of sum(y c) is c W, through each path."""
    x, c = random(M, K), random(M, N, seed=3)
    weight = random(N, K, seed=1)
    if mode != "dense":
        group_size, bits = MODES[mode].default
        weight = packed(Quantization(group_size, bits, mode), mx.float32)
    grad = mx.grad(lambda x: (linear(x, weight) * c).sum())(x)
    dense = weight
    if mode != "dense":
        dense = dequantize(*weight[:3], Quantization(*weight[3:]))
    np.testing.assert_allclose(f64(grad), f64(c) @ f64(dense), rtol=1e-4, atol=1e-4)


def test_gradient_of_weight_and_bias(split, speed):
    x, c = random(5, K), random(5, N, seed=3)

    def loss(weight, bias):
        return (linear(x, weight, bias) * c).sum()

    weight, bias = random(N, K, seed=1), random(N, seed=2)
    grads = mx.grad(loss, argnums=(0, 1))(weight, bias)
    np.testing.assert_allclose(f64(grads[0]), f64(c).T @ f64(x), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(f64(grads[1]), f64(c).sum(0), rtol=1e-5, atol=1e-5)


def run(code, **env):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
    )


linux = pytest.mark.skipif(sys.platform != "linux", reason="a matter of Linux")
LOADED = "import mlx_glu; print('openblas' in open('/proc/self/maps').read())"


@linux
def test_mlxs_own_blas():
    done = run(LOADED, MLX_GLU_BLAS="none")
    assert (done.stdout, done.stderr) == ("False\n", "")


@linux
def test_nothing_is_loaded_after_mlx():
    done = run(f"import mlx.core; {LOADED}", MLX_GLU_BLAS="libnowhere.so")
    assert (done.stdout, done.stderr) == ("False\n", "")


@linux
def test_a_library_that_is_not_there():
    """The import goes on; the first product on the CPU says what is wrong."""
    code = "import mlx_glu; print('in'); from mlx_glu import blas; blas.is_fast()"
    done = run(code, MLX_GLU_BLAS="libnowhere.so")
    assert done.stdout == "in\n"
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ValueError: [blas] MLX_GLU_BLAS: libnowhere.so: cannot")


def test_the_measurement_is_plausible():
    assert 0.1 < blas.gflops() < 1e5
    assert blas.gflops() == blas.gflops()
