"""Gains of the units, and the initialisation that keeps the variance."""

import math
from itertools import pairwise
from statistics import NormalDist

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from conftest import PHI64, PSI64, f64
from test_ungated import ORACLES

from mlx_glu.layers import GatedMLP
from mlx_glu.training.gains import gain, scale_preserving
from mlx_glu.training.ungated import ACTIVATIONS, feed_forward
from mlx_glu.variants import VARIANTS, get

UNITS = [*VARIANTS, *ACTIVATIONS]
KNOWN = {
    "bilinear": 1.0,
    "relu": math.sqrt(2),
    "reglu": math.sqrt(2),
    "relu2": math.sqrt(2 / 3),
    "relu2_glu": math.sqrt(2 / 3),
    "drelu": 2.0,
}


def mean_square64(f):
    """Under a unit normal, by Gauss-Legendre between the corners of ``f``."""
    cut = NormalDist().inv_cdf(0.95)
    total, edges = 0.0, [-12.0, -7.0, 0.0, cut, 7.0, 12.0]
    nodes, weights = np.polynomial.legendre.leggauss(80)
    for low, high in pairwise(edges):
        x = (low + high) / 2 + (high - low) / 2 * nodes
        density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
        total += (high - low) / 2 * (weights * density * f(x) ** 2).sum()
    return total


def gain64(name):
    if name in ACTIVATIONS:
        return 1 / math.sqrt(mean_square64(ORACLES[name]))
    row = VARIANTS[name]
    params = dict(row.params)
    phi = lambda x: PHI64[row.phi](x, **params)
    if not row.pointwise:
        cut = NormalDist().inv_cdf(params["sparsity"])
        phi = lambda x: PHI64["gelu_tanh"](np.maximum(x - cut, 0))
    psi = lambda x: PSI64[row.psi](x, **params)
    return 1 / math.sqrt(mean_square64(phi) * mean_square64(psi))


@pytest.mark.parametrize("name", UNITS)
def test_gain_is_the_integral(name):
    # Two quadratures, one of them of float32 values.
    assert gain(name) == pytest.approx(gain64(name), rel=2e-6)


@pytest.mark.parametrize("name", KNOWN)
def test_known_gains(name):
    assert gain(name) == pytest.approx(KNOWN[name], rel=1e-9)


def test_gain_of_other_parameters():
    assert gain(get("swiglu", beta=1.702)) == gain("quick_geglu")
    # A steep swish is a ReLU.
    assert gain(get("swiglu", beta=1e4)) == pytest.approx(math.sqrt(2), rel=1e-3)
    with pytest.raises(
        ValueError, match=r"\[gain\] expected one of glu, .* but got 'x'"
    ):
        gain("x")


@pytest.mark.parametrize("name", UNITS)
def test_wide_random_layer_keeps_the_variance(name):
    M, K, N = 64, 128, 1024
    x = np.random.default_rng(0).normal(size=(M, K))
    # Rows of mean square 1, so that pre-activations are unit normals exactly.
    x = mx.array(x / np.sqrt((x**2).mean(-1, keepdims=True))).astype(mx.float32)
    ffn = feed_forward(name, K, N)
    squares = []
    for key in mx.random.split(mx.random.key(7), 12):
        y = scale_preserving(ffn, key=key)(x)
        squares.append(mx.mean(mx.square(y)).item())
    error = np.std(squares, ddof=1) / math.sqrt(len(squares))
    # 4 standard errors of 12 independent layers, and each of them is informative.
    assert error < 0.05
    assert abs(np.mean(squares) - 1) < 4 * error


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
def test_initialisation_is_reproducible_and_complete(dtype):
    for ffn in (
        GatedMLP(64, 4096, variant="geglu", bias=True),
        GatedMLP(64, 4096, variant="geglu", packed=True),
        feed_forward("gelu", 64, 4096, bias=True),
    ):
        ffn.set_dtype(dtype)
        for layer in ffn.leaf_modules().values():
            if "bias" in layer:
                layer.bias = mx.ones_like(layer.bias)
        assert scale_preserving(ffn, key=mx.random.key(3)) is ffn
        first = {name: layer.weight for name, layer in ffn.leaf_modules().items()}
        scale_preserving(ffn, key=mx.random.key(3))
        for name, layer in ffn.leaf_modules().items():
            assert layer.weight.dtype == dtype
            assert mx.array_equal(layer.weight, first[name])
            assert "bias" not in layer or not layer.bias.any()
            wanted = gain("geglu") / 64 if name == "down_proj" else 1 / 8
            # 262144 numbers and more: 0.14% standard error.
            assert f64(layer.weight).std() == pytest.approx(wanted, rel=0.006)
        scale_preserving(ffn, key=mx.random.key(4))
        assert not mx.array_equal(ffn.down_proj.weight, first["down_proj"])
        mx.random.seed(5)
        global_state = scale_preserving(ffn).down_proj.weight
        mx.random.seed(5)
        assert mx.array_equal(scale_preserving(ffn).down_proj.weight, global_state)


def test_quantized_projections_are_refused():
    ffn = feed_forward("swiglu", 64, 64)
    nn.quantize(ffn)
    with pytest.raises(
        ValueError, match=r"\[scale_preserving\] projections are nn\.Lin"
    ):
        scale_preserving(ffn)
