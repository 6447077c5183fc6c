"""Ungated blocks: activations, their gradients, and the interface of GatedMLP."""

import copy
import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from conftest import PHI64, PSI64, assert_no_worse, derivative64, f64
from mlx.optimizers import AdamW
from mlx.utils import tree_flatten, tree_map
from random_arrays import normal
from test_layers import dense64
from test_ops import slope_of_peak_memory

from mlx_glu.layers import GatedMLP, RMSNorm
from mlx_glu.proof.oracle import rms_norm64
from mlx_glu.training.ungated import ACTIVATIONS, MLP, feed_forward, matched_width
from mlx_glu.training.xielu import XIELU
from mlx_glu.variants import VARIANTS

DTYPES = [mx.float32, mx.float16, mx.bfloat16]
K, N = 64, 128


def xielu64(x, alpha_p=0.8, alpha_n=0.8, beta=0.5, eps=-1e-6):
    below = alpha_n * (np.expm1(np.minimum(x, eps)) - x)
    return np.where(x > 0, alpha_p * x**2, below) + beta * x


def eager_gelu_tanh(x):
    return 0.5 * x * (1 + mx.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def eager_xielu(x):
    """As transformers writes it, with its initial scalars."""
    alpha_p = nn.softplus(mx.array(math.log(math.expm1(0.8)), x.dtype))
    alpha_n = 0.5 + nn.softplus(mx.array(math.log(math.expm1(0.3)), x.dtype))
    below = (mx.expm1(mx.minimum(x, -1e-6)) - x) * alpha_n + 0.5 * x
    return mx.where(x > 0, alpha_p * x * x + 0.5 * x, below)


#: Each in float64, and as MLX code has it: every operation in the dtype of x.
ORACLES = {
    **{name: PHI64[name] for name in ("relu", "relu2", "gelu", "gelu_tanh", "sigmoid")},
    "silu": lambda x: PHI64["silu"](x, 1.0),
    "tanh": PSI64["tanh"],
    "xielu": xielu64,
}
STOCK = {
    "relu": nn.relu,
    "relu2": nn.relu2,
    "gelu": nn.gelu,
    "gelu_tanh": eager_gelu_tanh,
    "silu": nn.silu,
    "sigmoid": mx.sigmoid,
    "tanh": mx.tanh,
    "xielu": eager_xielu,
}


def away_from_corners(x):
    x = f64(x)
    return mx.array(np.where(np.abs(x) < 2.0**-6, 0.5, x).astype(np.float32))


def test_every_activation_has_an_oracle():
    assert set(ORACLES) == set(ACTIVATIONS)
    names = [act for row in ACTIVATIONS.values() for act in row.hf_acts]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_value(name, dtype):
    x = normal(np.random.default_rng(0), 33, 64, scale=3.0, dtype=dtype)
    y, oracle = ACTIVATIONS[name].layer()(x), ORACLES[name](f64(x))
    assert y.dtype == dtype
    assert_no_worse(y, STOCK[name](x), oracle)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gradient(name):
    rng = np.random.default_rng(1)
    x = away_from_corners(normal(rng, 33, 64, scale=3.0))
    d = normal(rng, 33, 64)
    ours = ACTIVATIONS[name].layer()
    oracle = f64(d) * derivative64(ORACLES[name], f64(x))
    grad = mx.vjp(ours, [x], [d])[1][0]
    stock = mx.vjp(STOCK[name], [x], [d])[1][0]
    # The derivative of a product is a sum of two terms.
    assert_no_worse(grad, stock, oracle, terms=2)
    half = x.astype(mx.float16)
    assert mx.grad(lambda x: ours(x).sum())(half).dtype == mx.float16


@pytest.mark.parametrize("name", ["gelu", "relu2", "xielu"])
def test_only_the_pre_activation_is_held_for_the_gradient(name):
    act = ACTIVATIONS[name].layer()
    plain = lambda x: STOCK[name](x.astype(mx.float32)).astype(x.dtype)
    with mx.stream(mx.cpu):
        assert slope_of_peak_memory(lambda a, _: act(a), mx.bfloat16) < 1.5
        assert slope_of_peak_memory(lambda a, _: plain(a), mx.bfloat16) > 3


def test_xielu_is_that_of_transformers():
    """XIELUActivation(1.7, 0.6, dtype=torch.float64) of transformers 5.23, on x."""
    x = mx.array([-4.0, -1.0, -0.25, -1 / 64, 1 / 64, 0.5, 3.0])
    values = [-0.18901062, -0.27927234, -0.10771953, -0.00773964]
    values += [0.00822754, 0.675, 16.8]
    slopes = [-0.08901061666675944, 0.12072766470286542, 0.3672804698428429]
    slopes += [0.49069786220324507, 0.5531250000000001, 2.2, 10.7]
    act = XIELU()
    act.load_weights(
        [
            ("alpha_p", mx.array([1.4982711043325547])),
            ("alpha_n", mx.array([-2.252168461044091])),
            ("beta", mx.array(0.5)),
            ("eps", mx.array(-1e-6)),
        ]
    )
    # Values that were printed to 8 decimals, against a float32 or two.
    np.testing.assert_allclose(f64(act(x)), values, rtol=5e-7, atol=1e-8)
    grad = mx.grad(lambda x: act(x).sum())(x)
    np.testing.assert_allclose(f64(grad), slopes, rtol=1e-6)
    _, scalars = nn.value_and_grad(act, lambda x: act(x).sum())(x)
    assert set(scalars) == {"alpha_p", "alpha_n"}
    np.testing.assert_allclose(f64(scalars["alpha_p"]), 7.560376942667465, rtol=1e-6)
    np.testing.assert_allclose(f64(scalars["alpha_n"]), 0.32499128482856426, rtol=3e-6)


def test_xielu_starts_as_the_paper_says_and_trains_two_scalars():
    act = XIELU()
    one = act(mx.array([1.0, -1.0]))
    np.testing.assert_allclose(f64(one), [1.3, 0.8 / math.e - 0.5], rtol=1e-6)
    slope = mx.grad(lambda x: act(x).sum())(mx.array([0.0])).item()
    assert abs(slope - 0.5) < 1e-6  # eps
    trained = {"alpha_p", "alpha_n"}
    assert set(act.trainable_parameters()) == trained
    assert set(act.parameters()) == {"alpha_p", "alpha_n", "beta", "eps"}
    # What is fixed has no gradient, not even by alpha_n, which holds beta.
    grads = mx.grad(lambda p: act.update(p)(mx.array([-1.0, 2.0])).sum())
    assert {k for k, g in grads(act.parameters()).items() if g.any()} == trained


@pytest.mark.parametrize("copied", [False, True], ids=["made", "copied"])
def test_what_xielu_has_fixed_stays_whatever_is_unfrozen(copied):
    mlp = MLP(K, N, activation="xielu")
    mlp = copy.deepcopy(mlp) if copied else mlp
    act, fixed = mlp.act_fn, {"beta": 0.5, "eps": -1e-6}
    x = normal(np.random.default_rng(5), 4, K)
    optimizer = AdamW(0.1, weight_decay=0.5)
    for module in (act, mlp):
        for keys in (None, ["alpha_p", "beta"]):
            module.freeze()
            module.unfreeze(keys=keys)
            wanted = {"alpha_p"} if keys else {"alpha_p", "alpha_n"}
            assert set(act.trainable_parameters()) == wanted
    mlp.unfreeze()
    optimizer.update(mlp, nn.value_and_grad(mlp, lambda x: mlp(x).sum())(x)[1])
    assert {k: act[k].item() for k in fixed} == pytest.approx(fixed, rel=1e-6)
    assert act.alpha_p.item() != pytest.approx(XIELU().alpha_p.item())


def mlp64(mlp, x):
    up = x @ dense64(mlp.up_proj).T + f64(mlp.up_proj.get("bias", mx.zeros(1)))
    h = ORACLES[mlp.activation.name](up)
    bias = f64(mlp.down_proj.get("bias", mx.zeros(1)))
    return h @ dense64(mlp.down_proj).T + bias


@pytest.mark.parametrize("bias", [False, True], ids=["no_bias", "bias"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_block_matches_float64(name, bias):
    mx.random.seed(0)
    rng = np.random.default_rng(2)
    mlp, norm = MLP(K, N, activation=name, bias=bias), RMSNorm(K)
    if bias:
        mlp.up_proj.bias, mlp.down_proj.bias = normal(rng, N), normal(rng, K)
    norm.weight = normal(rng, K)
    x, residual = normal(rng, 2, 3, K), normal(rng, 2, 3, K)
    # The floor of the rule alone: two contractions in a row have no stock operation.
    oracle = mlp64(mlp, f64(x))
    assert_no_worse(mlp(x), oracle, oracle, terms=K + N)
    oracle = mlp64(mlp, rms_norm64(f64(x), norm.parts())) + f64(residual)
    assert_no_worse(mlp(x, norm=norm, residual=residual), oracle, oracle, terms=K + N)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_quantized_block_and_shapeless_compilation(name):
    mx.random.seed(0)
    rng = np.random.default_rng(3)
    mlp = MLP(K, N, activation=name)
    nn.quantize(mlp, bits=8)
    assert isinstance(mlp.up_proj, nn.QuantizedLinear)
    run = mx.compile(lambda x: mlp(x), shapeless=True)
    for M in (3, 5):
        x = normal(rng, M, K)
        oracle = mlp64(mlp, f64(x))
        assert_no_worse(mlp(x), oracle, oracle, terms=K + N)
        assert_no_worse(run(x), oracle, oracle, terms=K + N)


def check_training(module, *inputs):
    """A small step along the gradient lowers the loss as the gradient says."""
    target = normal(np.random.default_rng(9), *module(*inputs).shape)

    def loss(*inputs):
        return mx.mean(mx.square(module(*inputs) - target))

    before, grads = nn.value_and_grad(module, loss)(*inputs)
    flat = [g for _, g in tree_flatten(grads)]
    trained = module.trainable_parameters()
    assert len(flat) == len(tree_flatten(trained))
    assert all((g != 0).any() for g in flat)
    slope = sum(mx.square(g).sum().item() for g in flat)
    step = 1e-2 * before.item() / slope
    module.update(tree_map(lambda p, g: p - step * g, trained, grads))
    fall = before.item() - loss(*inputs).item()
    # Finite differences: the curvature over a hundredth of the loss is the rest.
    assert 0.9 < fall / (step * slope) < 1.1


@pytest.mark.parametrize("name", [*VARIANTS, *ACTIVATIONS])
def test_feed_forward_trains(name):
    mx.random.seed(1)
    ffn = feed_forward(name, K, N, bias=True)
    assert type(ffn) is (GatedMLP if name in VARIANTS else MLP)
    check_training(ffn, normal(np.random.default_rng(4), 8, K))


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_dtype_of_x_stays(name, dtype):
    mlp = MLP(K, N, activation=name)
    mlp.set_dtype(dtype)
    assert mlp(mx.ones((2, K), dtype)).dtype == dtype


def test_errors():
    with pytest.raises(ValueError, match=r"\[MLP\] expected one of relu.*'swiglu'"):
        MLP(K, N, activation="swiglu")
    with pytest.raises(ValueError, match=r"\[feed_forward\] expected one of glu.*'no'"):
        feed_forward("no", K, N)
    mlp = MLP(K, N)
    half = mx.ones((2, K), mx.float16)
    with pytest.raises(ValueError, match=r"residual is float16 .* got float32 \[2, "):
        mlp(half, residual=mx.ones((2, K)))
    with pytest.raises(ValueError, match=r"residual is float16 .* got float16 \[3, 2,"):
        mlp(half, residual=mx.ones((3, 2, K), mx.float16))
    with pytest.raises(ValueError, match=r"\[MLP\] x is .* int32"):
        mlp(half.astype(mx.int32))
    mlp.down_proj = lambda h: h.astype(mx.float32) @ mx.ones((N, K))
    with pytest.raises(ValueError, match=r"give the dtype of x, float16, but"):
        mlp(half)


def test_matched_width_is_of_equal_parameters():
    """Three matrices at two thirds; what is no whole number is refused."""
    assert matched_width("relu", 192) == 192
    assert matched_width("swiglu", 192) == 128
    with pytest.raises(ValueError, match="two thirds are whole"):
        matched_width("swiglu", 100)
