"""Gated convolutions: causal, against float64 and torch, and blocks of them."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from conftest import assert_no_worse, f64, oracle_mul
from mlx.utils import tree_flatten, tree_map
from random_arrays import normal
from test_ungated import check_training

from mlx_glu import glu_mul
from mlx_glu.training.convolution import GatedConv1d, GCNNBlock
from mlx_glu.variants import VARIANTS

B, L, C = 2, 12, 16


def conv64(layer, x, dilation=1):
    """The definition: position t sums taps i of position t - (k - 1 - i) d."""
    weight = f64(layer.weight)
    k, length = weight.shape[1], x.shape[1]
    padded = np.pad(x, [(0, 0), ((k - 1) * dilation, 0), (0, 0)])
    y = sum(
        padded[:, i * dilation : i * dilation + length] @ weight[:, i].T
        for i in range(k)
    )
    return y + f64(layer.bias) if "bias" in layer else y


def gated64(layer, x, dilation=1):
    pair = (conv64(part, x, dilation) for part in (layer.gate_proj, layer.up_proj))
    return oracle_mul(*pair, layer.variant)


def randomise(module, seed=0):
    """Biases too, so that each of them is seen."""
    rng = np.random.default_rng(seed)
    module.update(
        tree_map(lambda p: normal(rng, *p.shape, scale=0.2), module.parameters())
    )
    return module


@pytest.mark.parametrize("dilation", [1, 3])
@pytest.mark.parametrize("kernel_size", [1, 2, 5])
@pytest.mark.parametrize("variant", VARIANTS)
def test_convolution_matches_float64(variant, kernel_size, dilation):
    layer = GatedConv1d(C, 24, kernel_size, dilation=dilation, variant=variant)
    randomise(layer)
    x = normal(np.random.default_rng(1), B, L, C)
    oracle = gated64(layer, f64(x), dilation)
    # The floor of the rule alone; both halves are sums, and gelu_topk's cutoff is.
    terms = C * kernel_size + (0 if layer.variant.pointwise else 24)
    assert_no_worse(layer(x), oracle, oracle, terms=terms)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
def test_equals_two_convolutions_of_mlx(dtype):
    layer = randomise(GatedConv1d(C, 24, 4, variant="swiglu"))
    layer.set_dtype(dtype)
    x = normal(np.random.default_rng(2), B, L, C, dtype=dtype)
    y = layer(x)
    assert y.dtype == dtype
    gate, up = (
        mx.conv1d(x, part.weight, padding=3)[:, :L] + part.bias
        for part in (layer.gate_proj, layer.up_proj)
    )
    assert mx.array_equal(y, glu_mul(gate, up, "swiglu"))


def test_equals_glu_of_torch():
    """torch 2.13, float64: F.glu(F.conv1d(F.pad(x, (1, 0)), weight, bias), dim=1)."""
    weight = (mx.arange(16).reshape(4, 2, 2) - 7) / 8
    bias = mx.array([0.5, -0.5, 0.25, 0.0])
    x = mx.array([[[1.0, -1.0, 2.0, 0.5], [0.0, 1.0, -2.0, 1.0]]])
    expected = [
        [-0.15561483280046365, -0.5093840243815447],
        [-0.08141935808325677, -0.44111564239813206],
        [0.125, -0.3283676243356515],
        [-0.5185832749598109, -0.7940081563166377],
    ]
    layer = GatedConv1d.from_torch(weight, bias)
    assert layer.gate_proj.weight.shape == (2, 2, 2)
    y = layer(x.swapaxes(1, 2))
    np.testing.assert_allclose(f64(y), [expected], rtol=1e-6)
    unbiased = GatedConv1d.from_torch(weight, dilation=2, variant="geglu")
    assert "bias" not in unbiased.gate_proj
    assert unbiased.left_padding == 2


def affected(layer, t):
    """Positions whose result changes, to the bit, with input t."""
    rng = np.random.default_rng(3)
    x = normal(rng, 1, 32, C)
    other = mx.array(x)
    other[:, t] = normal(rng, 1, C)
    changed = mx.any(layer(x) != layer(other), axis=(0, 2))
    return [i for i, is_changed in enumerate(changed.tolist()) if is_changed]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("t", [0, 13, 31])
def test_only_later_outputs_change_and_within_the_receptive_field(variant, t):
    layer = randomise(GatedConv1d(C, 64, 4, dilation=2, variant=variant))
    seen = [i for i in (t, t + 2, t + 4, t + 6) if i < 32]
    assert affected(layer, t) == seen
    block = randomise(GCNNBlock.bottleneck(C, 32, 3, width=24, variant=variant))
    stack = nn.Sequential(block, randomise(GCNNBlock(32, [(2, 32)], variant=variant)))
    assert affected(stack, t) == [i for i in range(t, t + 4) if i < 32]


def block64(block, x):
    y = x
    for layer in block.convolutions:
        y = gated64(layer, y)
    if "skip_proj" in block:
        x = x @ f64(block.skip_proj.weight).T + f64(block.skip_proj.bias)
    return x + y


@pytest.mark.parametrize(
    ("channels", "layers"),
    [
        (C, [(4, C)]),
        (C, [(1, 8), (5, 8), (1, C)]),
        (C, [(1, 8), (5, 8), (1, 40)]),
        (C, [(3, C)] * 5),
    ],
    ids=["one", "bottleneck", "wider", "five"],
)
def test_block_matches_float64(channels, layers):
    block = randomise(GCNNBlock(channels, layers))
    assert ("skip_proj" in block) == (layers[-1][1] != channels)
    x = normal(np.random.default_rng(4), B, L, channels)
    oracle = block64(block, f64(x))
    terms = sum(k * n for k, n in layers) + channels
    assert_no_worse(block(x), oracle, oracle, terms=terms)


def test_parameters_of_the_paper_s_bottleneck():
    """[1,128; 5,128; 1,512] of GCNN-14B, on 512 channels: each layer has two halves."""
    block = GCNNBlock.bottleneck(512, 512, 5)
    count = sum(p.size for _, p in tree_flatten(block.parameters()))
    weights = 512 * 128 + 5 * 128 * 128 + 128 * 512
    assert count == 2 * (weights + 128 + 128 + 512)
    names = [name for name, _ in tree_flatten(block.parameters())]
    assert "convolutions.1.gate_proj.weight" in names
    # The next block of that network widens to 1024 and projects what it skips.
    wider = GCNNBlock.bottleneck(512, 1024, 5, width=512)
    assert wider.skip_proj.weight.shape == (1024, 512)


@pytest.mark.parametrize("variant", VARIANTS)
def test_block_trains(variant):
    mx.random.seed(0)
    x = normal(np.random.default_rng(5), B, L, C)
    check_training(GCNNBlock(C, [(3, 24), (1, 20)], variant=variant), x)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
def test_block_keeps_the_dtype_of_x(dtype):
    block = randomise(GCNNBlock(C, [(1, 8), (3, 24)]))
    x = normal(np.random.default_rng(6), B, L, C, dtype=dtype)
    # Weights of float32 do not widen the result.
    assert block(x).dtype == dtype
    block.set_dtype(dtype)
    assert block(x).dtype == dtype


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: GatedConv1d(4, 4, 0), r"at least 1 but got 4, 4, 0, 1"),
        (lambda: GatedConv1d(4, 4, 1, dilation=0), r"at least 1 but got 4, 4, 1, 0"),
        (lambda: GatedConv1d(4, 4, 1, variant="no"), r"but got 'no'"),
        (
            lambda: GatedConv1d(4, 4, 1)(mx.ones((1, 2, 5))),
            r"x is \[B, L, 4\] but got float32 \[1, 2, 5\]",
        ),
        (lambda: GatedConv1d(4, 4, 1)(mx.ones((2, 4))), r"x is \[B, L, 4\] but got"),
        (lambda: GatedConv1d.from_torch(mx.ones((4, 2))), r"weight is \[2 \* out_ch"),
        (
            lambda: GatedConv1d.from_torch(mx.ones((4, 2, 2)), mx.ones(2)),
            r"and bias \[2 \* out_channels\], but got .* and float32 \[2\]",
        ),
        (lambda: GatedConv1d.from_torch(mx.ones((3, 2, 2))), r"an even size"),
        (lambda: GCNNBlock(4, []), r"got none"),
        (lambda: GCNNBlock(4, [(0, 4)]), r"at least 1 but got 4, 4, 0, 1"),
    ],
    ids=[
        *("kernel_size", "dilation", "variant", "channels", "no_batch"),
        *("torch_weight", "torch_bias", "torch_odd", "no_layers", "layer_size"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
