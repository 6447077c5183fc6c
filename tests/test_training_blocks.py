"""Attention to train with, PaLM's parallel block and the gated residual network."""

import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from conftest import assert_no_worse, f64, oracle_mul
from mlx.utils import tree_flatten, tree_map
from random_arrays import normal
from test_layers import dense64
from test_ungated import check_training, mlp64
from tiny_checkpoint import config_of, token_ids

from mlx_glu.config import ModelConfig
from mlx_glu.models import cohere
from mlx_glu.training.attention import CausalSelfAttention
from mlx_glu.training.blocks import GatedResidualNetwork, ParallelBlock
from mlx_glu.training.ungated import ACTIVATIONS
from mlx_glu.variants import VARIANTS

B, L, K, H = 2, 9, 64, 4


def linear64(layer, x):
    y = x @ dense64(layer).T
    return y + f64(layer.bias) if "bias" in layer else y


def layer_norm64(x, layer):
    x = x - x.mean(-1, keepdims=True)
    # The layer's eps is a float.
    y = x / np.sqrt((x**2).mean(-1, keepdims=True) + float(np.float32(layer.eps)))
    y = y * f64(layer.weight)
    return y + f64(layer.bias) if "bias" in layer else y


def rotate64(x, theta, traditional):
    """RoPE of x [B, L, H, D]: pairs (2i, 2i + 1), or (i, i + D / 2)."""
    length, D = x.shape[1], x.shape[3]
    angle = np.outer(np.arange(length), theta ** (-np.arange(0, D, 2) / D))[:, None]
    cos, sin = np.cos(angle), np.sin(angle)
    halves = (x[..., ::2], x[..., 1::2]) if traditional else np.split(x, 2, axis=-1)
    a, b = halves[0] * cos - halves[1] * sin, halves[1] * cos + halves[0] * sin
    if traditional:
        return np.stack([a, b], axis=-1).reshape(x.shape)
    return np.concatenate([a, b], axis=-1)


def attention64(layer, x, theta, traditional):
    D = layer.head_dim
    q, k, v = (
        linear64(part, x).reshape(*x.shape[:2], -1, D)
        for part in (layer.q_proj, layer.k_proj, layer.v_proj)
    )
    q, k = rotate64(q, theta, traditional), rotate64(k, theta, traditional)
    k, v = (np.repeat(a, q.shape[2] // k.shape[2], axis=2) for a in (k, v))
    scores = np.einsum("blhd,bmhd->bhlm", q, k) / math.sqrt(D)
    scores = np.where(np.tri(x.shape[1], dtype=bool), scores, -np.inf)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    y = np.einsum("bhlm,bmhd->blhd", shares, v)
    return linear64(layer.o_proj, y.reshape(*x.shape[:2], -1))


def tokens(seed=0, dtype=mx.float32, length=L):
    return normal(np.random.default_rng(seed), B, length, K, dtype=dtype)


def randomise(module, seed=0, scale=0.2):
    """Norms and biases too, so that each of them is seen."""
    rng = np.random.default_rng(seed)
    draw = lambda p: normal(rng, *p.shape, scale=scale)
    module.update(tree_map(draw, module.parameters()))
    return module


@pytest.mark.parametrize("traditional", [False, True], ids=["halves", "neighbours"])
@pytest.mark.parametrize(
    ("num_kv_heads", "head_dim", "bias"),
    [(None, None, False), (2, None, True), (1, 24, False)],
    ids=["full", "grouped_bias", "multi_query_head_dim"],
)
def test_attention_matches_float64(num_kv_heads, head_dim, bias, traditional):
    layer = CausalSelfAttention(
        K,
        H,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        rope_theta=500.0,
        traditional=traditional,
        bias=bias,
    )
    randomise(layer)
    x = tokens()
    oracle = attention64(layer, f64(x), 500.0, traditional)
    # The floor of the rule alone. Scores of a few units are exponents: their own
    # error, that of two sums of K and one of D, is added to that of the output.
    assert_no_worse(layer(x), oracle, oracle, terms=4 * K)


def test_attention_is_causal_and_takes_any_length():
    layer, x = CausalSelfAttention(K, H, num_kv_heads=2), tokens(1)
    other = mx.array(x)
    other[:, 5] = 1.0
    changed = mx.any(layer(x) != layer(other), axis=(0, 2)).tolist()
    assert changed == [i >= 5 for i in range(L)]
    assert layer(x[:, :1]).shape == (B, 1, K)


def test_attention_trains():
    mx.random.seed(0)
    check_training(CausalSelfAttention(K, H, num_kv_heads=2), tokens(2))


def test_palm_s_defaults():
    block = ParallelBlock(K, H)
    shapes = {name: p.shape for name, p in tree_flatten(block.parameters())}
    assert shapes == {
        "input_layernorm.weight": (K,),
        "self_attn.q_proj.weight": (K, K),
        "self_attn.k_proj.weight": (K // H, K),
        "self_attn.v_proj.weight": (K // H, K),
        "self_attn.o_proj.weight": (K, K),
        "mlp.gate_proj.weight": (4 * K, K),
        "mlp.up_proj.weight": (4 * K, K),
        "mlp.down_proj.weight": (K, 4 * K),
    }
    assert block.mlp.variant is VARIANTS["swiglu"]


@pytest.mark.parametrize("unit", [*VARIANTS, *ACTIVATIONS])
def test_parallel_block_matches_float64(unit):
    block = ParallelBlock(K, H, hidden_dims=96, unit=unit, rope_theta=500.0)
    x = tokens(3)
    block.input_layernorm.weight = normal(np.random.default_rng(4), K)
    y = layer_norm64(f64(x), block.input_layernorm)
    if unit in ACTIVATIONS:
        h = mlp64(block.mlp, y)
    else:
        gate, up = (linear64(block.mlp[p], y) for p in ("gate_proj", "up_proj"))
        h = linear64(block.mlp.down_proj, oracle_mul(gate, up, block.mlp.variant))
    oracle = f64(x) + h + attention64(block.self_attn, y, 500.0, False)
    assert_no_worse(block(x), oracle, oracle, terms=4 * K + 96)


def test_parallel_blocks_are_coheres_decoder():
    """Same weights, same numbers as the package's Command R, to the bit."""
    changes = {"use_qk_norm": False, "head_dim": 16, "layer_norm_eps": 1e-5}
    config = ModelConfig.from_dict(config_of("cohere", **changes))
    mx.random.seed(0)
    model = cohere.Model(config)
    decoder = model.model
    ids = mx.array(token_ids())
    x = decoder.embed(ids)
    for layer, kind in zip(decoder.layers, config.layer_types, strict=True):
        block = ParallelBlock(
            config.hidden_size,
            config.num_attention_heads,
            hidden_dims=config.intermediate_size,
            num_kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            rope_theta=config.rope[kind].theta,
            traditional=True,
            eps=config.rms_norm_eps,
        )
        randomise(layer, seed=5, scale=0.1)
        block.load_weights(tree_flatten(layer.parameters()))
        x = block(x)
    assert len(decoder.layers) > 1
    expected = decoder(ids, model.make_cache())
    assert mx.array_equal(decoder.norm(x), expected)


@pytest.mark.parametrize("unit", ["swiglu", "gelu_topk", "relu2", "xielu"])
def test_parallel_block_trains(unit):
    mx.random.seed(0)
    check_training(ParallelBlock(K, H, unit=unit), tokens(6))


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
def test_dtype_of_x_stays_and_projections_can_be_packed(dtype):
    x = tokens(7, dtype)
    for module in (ParallelBlock(K, H), GatedResidualNetwork(K, 64, 128)):
        module.set_dtype(dtype)
        shape = module(x).shape
        assert module(x).dtype == dtype
        # As in mixed precision, where the norms stay in float32.
        for name, child in module.children().items():
            if "norm" in name:
                child.set_dtype(mx.float32)
        assert module(x).dtype == dtype
        nn.quantize(module)
        kinds = {type(m) for m in module.modules()}
        assert nn.QuantizedLinear in kinds
        assert nn.Linear not in kinds
        assert module(x).dtype == dtype
        assert module(x).shape == shape


def grn64(grn, x, context=None):
    """Equations 2 to 5 of Lim et al."""
    h = linear64(grn.in_proj, x)
    if context is not None:
        h = h + linear64(grn.context_proj, context)
    h = linear64(grn.hidden_proj, np.where(h > 0, h, np.expm1(np.minimum(h, 0))))
    gate, up = linear64(grn.gate_proj, h), linear64(grn.up_proj, h)
    skip = linear64(grn.skip_proj, x) if "skip_proj" in grn else x
    return layer_norm64(skip + oracle_mul(gate, up, grn.variant), grn.norm)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("output", [None, 40], ids=["same_size", "other_size"])
def test_grn_matches_float64(output, variant):
    grn = GatedResidualNetwork(K, 32, output, context_dims=5, variant=variant)
    randomise(grn)
    assert ("skip_proj" in grn) == (output is not None)
    x = tokens(8)
    context = normal(np.random.default_rng(9), B, 1, 5)
    for c in (None, context):
        oracle = grn64(grn, f64(x), None if c is None else f64(c))
        assert_no_worse(grn(x, c), oracle, oracle, terms=K + 3 * 32)


def test_grn_trains_and_drops_in_training_alone():
    mx.random.seed(0)
    x, context = tokens(10), normal(np.random.default_rng(11), B, 1, 5)
    check_training(GatedResidualNetwork(K, 32, 40, context_dims=5), x, context)
    grn = GatedResidualNetwork(K, 32, dropout=0.5)
    assert not mx.array_equal(grn(x), grn(x))
    grn.eval()
    assert mx.array_equal(grn(x), grn(x))


def test_a_closed_gate_leaves_the_input():
    grn = GatedResidualNetwork(K, 32)
    grn.gate_proj.weight = mx.zeros_like(grn.gate_proj.weight)
    grn.gate_proj.bias = mx.full(K, -200.0)
    x = tokens(12)
    assert mx.array_equal(grn(x), grn.norm(x))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CausalSelfAttention(64, 4, num_kv_heads=3), "num_kv_heads = 3"),
        (lambda: CausalSelfAttention(64, 5), "dims = 64, num_heads = 5"),
        (lambda: CausalSelfAttention(64, 0), "num_heads = 0"),
        (lambda: CausalSelfAttention(12, 4), "D = 3; choose an even head_dim"),
        (lambda: ParallelBlock(64, 4, unit="no"), "but got 'no'"),
        (lambda: GatedResidualNetwork(4, 4, variant="no"), "but got 'no'"),
        (
            lambda: GatedResidualNetwork(4, 4)(mx.ones((2, 4)), mx.ones((2, 3))),
            r"takes no context, but got \[2, 3\]",
        ),
    ],
    ids=["kv_heads", "heads", "none", "odd", "unit", "variant", "context"],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
