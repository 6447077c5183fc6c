"""GatedMLP, intermediate sizes and packed layouts."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from conftest import assert_no_worse, f64, oracle_mul
from mlx.utils import tree_flatten

from mlx_glu import reference
from mlx_glu.layers import GatedMLP, glu_hidden_size
from mlx_glu.ops import QuantizedWeight, glu_linear
from mlx_glu.packing import pack, split_packed
from mlx_glu.variants import VARIANTS, get

K, N = 64, 128


def block(variant="swiglu", bias=False, seed=0):
    mx.random.seed(seed)
    return GatedMLP(K, N, variant=variant, bias=bias)


def tokens(M=3, dtype=mx.float32):
    rng = np.random.default_rng(1)
    return mx.array(rng.normal(size=(2, M, K)).astype(np.float32)).astype(dtype)


def dense64(layer):
    if isinstance(layer, nn.QuantizedLinear):
        parts = [a.astype(mx.float32) for a in (layer.scales, layer.biases)]
        weight = mx.dequantize(layer.weight, *parts, layer.group_size, layer.bits)
        return f64(weight)
    return f64(layer.weight)


def mlp64(mlp, x):
    def project(layer, a):
        y = a @ dense64(layer).T
        return y + f64(layer.bias) if "bias" in layer else y

    h = oracle_mul(project(mlp.gate_proj, x), project(mlp.up_proj, x), mlp.variant)
    return project(mlp.down_proj, h)


def check(mlp, x):
    y, oracle = mlp(x), mlp64(mlp, f64(x))
    assert y.dtype == x.dtype
    # The floor of the rule alone: a layer of three contractions has no stock op.
    assert_no_worse(y, oracle, oracle, terms=K + N)


@pytest.mark.parametrize("bias", [False, True], ids=["no_bias", "bias"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_dense_block_matches_float64(variant, bias):
    check(block(variant, bias), tokens())


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_block_matches_float64(bits):
    mlp = block(bias=True)
    small = mlp.to_quantized(group_size=32, bits=bits)
    check(small, tokens())
    assert type(mlp.gate_proj) is nn.Linear
    assert small.gate_proj.bits == bits
    assert small.variant is mlp.variant


def packed(layer):
    if type(layer) is nn.Linear:
        return layer.weight
    arrays = layer.weight, layer.scales, layer.get("biases")
    return QuantizedWeight(*arrays, layer.group_size, layer.bits, layer.mode)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
def test_half_block_projects_with_reference_linear(dtype):
    # A quantized child called in half is wrong by percents on the CPU.
    mlp, x = block(bias=True), tokens(dtype=dtype)
    mlp.set_dtype(dtype)
    for each in (mlp, mlp.to_quantized()):
        project = lambda p, x: reference.linear(x, packed(p), p.bias)
        gate, up = project(each.gate_proj, x), project(each.up_proj, x)
        h = reference.glu_mul(gate, up, each.variant)
        assert mx.array_equal(each(x), project(each.down_proj, h))


def test_parameters_have_hugging_face_names():
    names = {name for name, _ in tree_flatten(block(bias=True).parameters())}
    projections = ("gate_proj", "up_proj", "down_proj")
    assert names == {f"{p}.{a}" for p in projections for a in ("weight", "bias")}
    assert "variant=swiglu" in repr(block())
    assert GatedMLP(8, 16, variant=get("swiglu", beta=2)).variant.params[0][1] == 2
    with pytest.raises(ValueError, match="but got 'swish'"):
        GatedMLP(8, 16, variant="swish")


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = [block(seed=i) for i in range(2)]
        self.head = nn.Linear(K, 7, bias=False)


def test_nn_quantize_walks_through_the_block():
    model = Model()
    nn.quantize(model, group_size=32, bits=4)
    alone = Model().layers[1].to_quantized(group_size=32, bits=4)
    assert type(model.layers[1]) is GatedMLP
    assert type(model.head) is nn.QuantizedLinear
    x = tokens()
    assert mx.array_equal(model.layers[1](x), alone(x))
    ours, theirs = (tree_flatten(m.parameters()) for m in (alone, model.layers[1]))
    assert [name for name, _ in ours] == [name for name, _ in theirs]
    mixed = Model()
    choose = lambda path, _: {"bits": 8} if path.endswith("up_proj") else True
    nn.quantize(mixed, group_size=64, bits=4, class_predicate=choose)
    check(mixed.layers[0], x)
    assert mixed.layers[0].up_proj.bits == 8
    assert mixed.layers[0].gate_proj.bits == 4


@pytest.mark.parametrize("mode", ["mxfp4", "mxfp8", "nvfp4"])
def test_float_modes_run(mode):
    mlp = block()
    small = mlp.to_quantized(mode=mode)
    assert small.down_proj.mode == mode
    x = tokens()
    arrays = [getattr(small, n) for n in ("gate_proj", "up_proj")]
    weights = [
        QuantizedWeight(p.weight, p.scales, None, p.group_size, p.bits, mode)
        for p in arrays
    ]
    wide = [mx.dequantize(*w[:3], *w[3:], dtype=mx.float32) for w in weights]
    oracle = oracle_mul(*(f64(x) @ f64(w).T for w in wide), mlp.variant)
    assert_no_worse(glu_linear(x, *weights), oracle, oracle, terms=K)
    assert small(x).shape == x.shape


class Adapter(nn.Module):
    """A low-rank update beside a frozen layer, as LoRA does."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear
        self.a = mx.random.normal((4, K)) * 0.1
        self.b = mx.random.normal((N, 4)) * 0.1

    def __call__(self, x):
        return self.linear(x) + (x @ self.a.T) @ self.b.T


@pytest.mark.parametrize("name", ["gate_proj", "up_proj"])
def test_adapters_stay_alive(name):
    mlp, x = block(), tokens()
    before = mlp(x)
    setattr(mlp, name, Adapter(mlp[name]))
    assert not mx.array_equal(mlp(x), before)
    merged = block()
    adapter = mlp[name]
    merged[name].weight = merged[name].weight + adapter.b @ adapter.a
    oracle = mlp64(merged, f64(x))
    assert_no_worse(mlp(x), oracle, oracle, terms=K + N)
    grads = nn.value_and_grad(mlp, lambda x: mlp(x).sum())(x)[1]
    assert f64(grads[name]["a"]).any()
    small = mlp.to_quantized()
    assert small[name] is adapter
    assert type(small.down_proj) is nn.QuantizedLinear


def test_training_lowers_the_loss():
    mlp, x = block(), tokens()
    step = nn.value_and_grad(mlp, lambda x: ((mlp(x) - x) ** 2).mean())
    losses = []
    for _ in range(10):
        loss, grads = step(x)
        flat = [
            (name, p - 0.1 * dict(tree_flatten(grads))[name])
            for name, p in tree_flatten(mlp.trainable_parameters())
        ]
        mlp.load_weights(flat)
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize(
    ("name", "dims", "kwargs", "hidden"),
    [
        ("LLaMA-7B", 4096, {}, 11008),
        ("LLaMA-13B", 5120, {}, 13824),
        ("LLaMA-30B", 6656, {}, 17920),
        ("LLaMA-65B", 8192, {}, 22016),
        (
            "Llama-2-70B",
            8192,
            {"ffn_dim_multiplier": 1.3, "multiple_of": 4096},
            28672,
        ),
        ("Llama-3-8B", 4096, {"ffn_dim_multiplier": 1.3, "multiple_of": 1024}, 14336),
        ("PaLM, all of 4 d", 4096, {"ratio": 1}, 16384),
    ],
)
def test_hidden_sizes_of_published_models(name, dims, kwargs, hidden):
    assert glu_hidden_size(dims, **kwargs) == hidden, name


def test_hidden_size_is_metas_code():
    def meta(dim, multiple_of):
        hidden = int(2 * (4 * dim) / 3)
        return multiple_of * ((hidden + multiple_of - 1) // multiple_of)

    for dims in range(1, 3000):
        for multiple_of in (1, 8, 256):
            ours = glu_hidden_size(dims, multiple_of=multiple_of)
            assert ours == meta(dims, multiple_of), (dims, multiple_of)
    with pytest.raises(ValueError, match=r"\[glu_hidden_size\].*dims = 0"):
        glu_hidden_size(0)


GATE = mx.arange(6).reshape(3, 2)
UP = GATE + 100
# Rows of [gate, up] as each convention stores them.
STORED = {
    ("concat", "gate_first"): [0, 2, 4, 100, 102, 104],
    ("concat", "value_first"): [100, 102, 104, 0, 2, 4],
    ("interleave", "gate_first"): [0, 100, 2, 102, 4, 104],
    ("interleave", "value_first"): [100, 0, 102, 2, 104, 4],
}


@pytest.mark.parametrize(("layout", "order"), STORED)
def test_packed_layouts(layout, order):
    packed = pack(GATE, UP, order=order, layout=layout, axis=0)
    assert packed[:, 0].tolist() == STORED[layout, order]
    gate, up = split_packed(packed, order=order, layout=layout, axis=0)
    assert mx.array_equal(gate, GATE)
    assert mx.array_equal(up, UP)
    # Experts [E, K, 2N] of gpt-oss: the outputs are the last axis.
    turned = mx.stack([packed.T, packed.T])
    for part, want in zip(
        split_packed(turned, order=order, layout=layout, axis=-1),
        (GATE, UP),
        strict=True,
    ):
        assert mx.array_equal(part, mx.stack([want.T, want.T]))


def test_mlx_glu_is_value_first():
    x = tokens()
    gate, value = split_packed(x, order="value_first", layout="concat", axis=-1)
    assert mx.array_equal(value * mx.sigmoid(gate), nn.glu(x))


@pytest.mark.parametrize("layout", ["concat", "interleave"])
def test_rows_of_a_quantized_weight_split_like_rows(layout):
    rng = np.random.default_rng(2)
    gate, up = (mx.array(rng.normal(size=(5, 64)).astype(np.float32)) for _ in range(2))
    how = {"order": "value_first", "layout": layout, "axis": 0}
    triple = mx.quantize(pack(gate, up, **how), 32, 4)
    parts = [split_packed(a, **how) for a in triple]
    for w, split in ((gate, 0), (up, 1)):
        for part, alone in zip(parts, mx.quantize(w, 32, 4), strict=True):
            assert mx.array_equal(part[split], alone)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"order": "up_first"}, r"order is one of \['gate_first'.*'up_first'"),
        ({"layout": "chunk"}, "'chunk'"),
        ({"layout": "separate"}, "separate weights need no packing"),
        ({"axis": 2}, r"axis 2 is not in \[3, 2\]"),
        ({"axis": 0}, r"even size, but got \[3, 2\]"),
    ],
)
def test_wrong_packing_is_refused(change, message):
    how = {"order": "gate_first", "layout": "concat", "axis": 1} | change
    with pytest.raises(ValueError, match=message):
        split_packed(GATE, **how)
