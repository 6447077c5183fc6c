"""Mixtures of experts: routing, stacked projections, and the layouts on disk."""

import json

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from conftest import assert_no_worse, f64
from mlx.utils import tree_flatten
from random_arrays import normal
from tiny_checkpoint import (
    CASES,
    HF,
    config_of,
    hf_weights,
    token_ids,
    write_checkpoint,
)
from tiny_experts import ALL, FAMILIES, LAYOUTS, PACKED, in_blocks

from mlx_glu import convert, explain, fuse, load_model, ops, simulate, unfuse, variants
from mlx_glu.checkpoints.arrangement import Arranged
from mlx_glu.checkpoints.checkpoint import open_checkpoint
from mlx_glu.config import ModelConfig
from mlx_glu.dispatch import record
from mlx_glu.experts import SORT_FROM, SwitchGLU, mix, route
from mlx_glu.models import MODEL_TYPES
from mlx_glu.proof.oracle import down_linear64, glu_linear64
from mlx_glu.quantization import MODES, Quantization, QuantizedWeight, dequantize

IDS = mx.array(token_ids())
SIZES = K, N, E = 64, 32, 5
LENGTH = K * N  # of the sums behind an element


def filled(variant="swiglu", bias=False, sizes=SIZES, dtype=mx.float32, seed=0):
    """Experts with random weights and biases."""
    rng = np.random.default_rng(seed)
    experts = SwitchGLU(*sizes, variant=variant, bias=bias)
    arrays = tree_flatten(experts.parameters())
    scaled = [(k, normal(rng, *a.shape, scale=0.3, dtype=dtype)) for k, a in arrays]
    return experts.load_weights(scaled).eval()  # few pairs are not sorted


def chosen(rng, tokens, top_k, experts=E):
    """[tokens, top_k] experts, each at most once for a token."""
    return mx.array(np.argsort(rng.random((tokens, experts)), axis=1)[:, :top_k])


def of_expert(layer, e):
    """Weight and bias of one expert."""
    bias = layer.get("bias")
    bias = None if bias is None else bias[e]
    if "scales" not in layer:
        return layer.weight[e], bias
    form = layer.group_size, layer.bits, layer.mode
    biases = layer.biases[e] if "biases" in layer else None
    return QuantizedWeight(layer.weight[e], layer.scales[e], biases, *form), bias


def one_by_one(experts, x, indices):
    """[T, k, K] of each pair alone: by stock dense operations, and in float64."""
    stock, oracle = [], []
    for row, own in zip(x, indices.tolist(), strict=True):
        for e in own:
            gate, up, down = (
                of_expert(layer, e)
                for layer in (experts.gate_proj, experts.up_proj, experts.down_proj)
            )
            pair = gate[0], up[0], experts.variant
            biases = {"gate_bias": gate[1], "up_bias": up[1]}
            y = ops.glu_linear(row[None], *pair, **biases)
            stock.append(ops.down_linear(y, down[0], bias=down[1])[0])
            y = glu_linear64(row[None], *pair, **biases)
            oracle.append(down_linear64(y, *down)[0])
    shape = (*indices.shape, -1)
    return mx.stack(stock).reshape(shape), np.stack(oracle).reshape(shape)


# Routing


def test_routing_takes_the_largest_and_their_softmax():
    logits = mx.array(np.random.default_rng(0).normal(size=(3, 4, 7)).astype("f"))
    o = f64(logits)
    shares = np.exp(o) / np.exp(o).sum(-1, keepdims=True)
    for top_k in (1, 3, 7):
        for renormalise in (False, True):
            indices, weights = route(logits, top_k, renormalise=renormalise)
            found = np.zeros_like(o)
            np.put_along_axis(found, np.array(indices), f64(weights), -1)
            least = np.sort(o, axis=-1)[..., -top_k, None]
            expected = np.where(o >= least, shares, 0)
            if renormalise:
                expected /= expected.sum(-1, keepdims=True)
            assert np.abs(found - expected).max() < 1e-6


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_ties_choose_different_experts_alone_as_in_a_batch(dtype):
    rows = [[1, 1, 1, 1, 1], [0, 2, 2, 2, 1], [3, 0, 3, 0, 3], [-1, -1, -9, -1, -1]]
    logits = mx.array(rows * 20).astype(dtype)
    for top_k in (1, 2, 4, 5):
        indices, weights = route(logits, top_k, renormalise=True)
        assert weights.dtype == mx.float32
        assert np.abs(f64(weights).sum(-1) - 1).max() < 0.01
        for i, own in enumerate(indices.tolist()):
            assert len(set(own)) == top_k
            values = sorted((rows[i % 4][e] for e in own), reverse=True)
            assert values == sorted(rows[i % 4], reverse=True)[:top_k]
        for i in range(4):
            alone = route(logits[i : i + 1], top_k, renormalise=True)
            assert sorted(alone[0][0].tolist()) == sorted(indices[i].tolist())


# Stacked projections

UNITS = {
    "swiglu": variants.get("swiglu"),
    "geglu": variants.get("geglu"),
    "clamped": variants.get("swiglu_clamped", limit=0.8, alpha=1.3),
}


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize(
    ("tokens", "top_k"), [(1, 1), (3, 2), (4, E), (70, 1), (33, 3)]
)
def test_each_token_gets_its_own_experts(tokens, top_k, unit):
    """Few pairs and many, which are sorted; odd sizes; biases that differ."""
    rng = np.random.default_rng(tokens)
    experts = filled(UNITS[unit], bias=True, sizes=(44, 27, E))
    x, indices = normal(rng, tokens, 44), chosen(rng, tokens, top_k)
    y = experts(x, indices)
    assert y.shape == (tokens, top_k, 44)
    assert_no_worse(y, *one_by_one(experts, x, indices), terms=44 * 27)


def test_sorted_is_unsorted():
    rng = np.random.default_rng(1)
    experts, x = filled(bias=True), normal(rng, 2, 40, K)
    indices = chosen(rng, 80, 2).reshape(2, 40, 2)
    assert indices.size >= SORT_FROM
    y = experts(x, indices)
    parts = [experts(x[:, i : i + 8], indices[:, i : i + 8]) for i in range(0, 40, 8)]
    stock, oracle = one_by_one(experts, x.reshape(80, K), indices.reshape(80, 2))
    unsorted = mx.concatenate(parts, axis=1).reshape(80, 2, K)
    assert_no_worse(unsorted, stock, oracle, terms=LENGTH)
    assert_no_worse(y.reshape(80, 2, K), unsorted, oracle, terms=LENGTH)


FORMATS = [Quantization(*m.default, mode) for mode, m in MODES.items()]
FORMATS += [Quantization(32, bits) for bits in (2, 3, 8)]


@pytest.mark.parametrize("tokens", [2, 30])
@pytest.mark.parametrize(
    "form", [None, *FORMATS], ids=lambda f: f.name if f else "dense"
)
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_every_format_and_dtype(dtype, form, tokens):
    """As stored by a GPU; on the CPU few matrices are widened, or all of them."""
    rng = np.random.default_rng(2)
    experts = filled(bias=True, sizes=(128, 64, E), dtype=dtype)
    if form is not None:
        nn.quantize(experts, **form.as_config())
        assert experts.down_proj.mode == form.mode
    x, indices = normal(rng, tokens, 128, dtype=dtype), chosen(rng, tokens, 2)
    y = experts(x, indices)
    assert y.dtype == dtype
    assert_no_worse(y, *one_by_one(experts, x, indices), terms=128 * 64)


def test_mixing_rounds_once():
    rng = np.random.default_rng(3)
    y, weights = normal(rng, 6, 4, K, dtype=mx.bfloat16), mx.softmax(normal(rng, 6, 4))
    weights = weights.astype(mx.bfloat16)
    mixed = mix(y, weights)
    oracle = (f64(y) * f64(weights)[..., None]).sum(1)
    assert mixed.dtype == mx.bfloat16
    assert_no_worse(mixed, mx.array(oracle.astype("f")).astype(mx.bfloat16), oracle)


@pytest.mark.parametrize("tokens", [4, 60])
def test_gradients_are_those_of_all_experts(tokens):
    """By x, by the router and by every weight; experts that nobody chose get 0."""
    rng = np.random.default_rng(4)
    experts, x = filled(bias=True), normal(rng, tokens, K)
    router, cotangent = normal(rng, E, K), normal(rng, tokens, K)

    def sparse(x, router, parameters):
        experts.update(parameters)
        logits = x @ router.T
        indices, weights = route(logits.at[:, 3].add(-1e9), 2, renormalise=True)
        return (mix(experts(x, indices), weights) * cotangent).sum()

    def dense(x, router, parameters):
        logits = (x @ router.T).at[:, 3].add(-1e9)
        least = mx.sort(logits, axis=-1)[:, -2:-1]
        weights = mx.softmax(mx.where(logits >= least, logits, -mx.inf), axis=-1)
        y = 0
        for e in range(E):
            p = {k: {n: a[e] for n, a in v.items()} for k, v in parameters.items()}
            g, u = (
                x @ p[k]["weight"].T + p[k]["bias"] for k in ("gate_proj", "up_proj")
            )
            own = (
                ops.glu_mul(g, u) @ p["down_proj"]["weight"].T + p["down_proj"]["bias"]
            )
            y = y + own * weights[:, e : e + 1]
        return (y * cotangent).sum()

    given = x, router, experts.parameters()
    ours, theirs = (
        tree_flatten(list(mx.grad(f, argnums=(0, 1, 2))(*given)))
        for f in (sparse, dense)
    )
    for (name, a), (_, b) in zip(ours, theirs, strict=True):
        assert mx.abs(b).max() > 0
        assert mx.abs(a - b).max() <= 1e-5 * mx.abs(b).max(), name
        if name.startswith("2."):
            assert not a[3].any()


def test_packed_experts_are_not_trained():
    experts = filled()
    assert len(tree_flatten(experts.trainable_parameters())) == 3
    nn.quantize(experts, 32, 4)
    assert not tree_flatten(experts.trainable_parameters())
    with pytest.raises(ValueError, match="bits 2, 3, 4, 5, 6, 8; got 7"):
        filled().gate_proj.to_quantized(bits=7)


def test_x_of_packed_experts_has_a_gradient():
    rng = np.random.default_rng(5)
    experts, x, indices = filled(), normal(rng, 3, K), chosen(rng, 3, 2)
    nn.quantize(experts, 32, 8)
    plain = filled()
    for name, layer in experts.children().items():
        arrays = layer.weight, layer.scales, layer.biases
        plain[name].weight = dequantize(*arrays, Quantization(32, 8))
    found, expected = (
        mx.grad(lambda x, m=m: m(x, indices).sum())(x) for m in (experts, plain)
    )
    assert mx.abs(found - expected).max() <= 1e-5 * mx.abs(expected).max()


def test_the_product_between_experts_is_a_kernel():
    rng = np.random.default_rng(6)
    experts, x, indices = filled(), normal(rng, 3, K), chosen(rng, 3, 2)
    stock, oracle = one_by_one(experts, x, indices)
    with simulate(mode="fast"), record() as choices:
        y = experts(x, indices)
        mx.eval(y)
    assert [(c.op, c.impl) for c in choices] == [("glu_mul", "fused")]
    assert_no_worse(y, stock, oracle, terms=LENGTH)


# Models


def load_case(folder, case, **changes):
    return load_model(write_checkpoint(folder, CASES[case] | changes, hf_weights(case)))


def difference(case, logits):
    """From Hugging Face's, as a share of the largest |logit|."""
    saved = np.load(HF / f"{case}.npz")
    expected = saved["logits"]
    logits = np.array(logits)[:, saved["positions"]]
    return np.abs(logits - expected).max() / np.abs(expected).max()


#: Each setting that the references are to prove, and another value of it.
SETTINGS = {
    "mixtral": [("sliding_window", None), ("num_experts_per_tok", 3)],
    "qwen2_moe": [
        ("use_sliding_window", False),
        ("max_window_layers", 0),
        ("norm_topk_prob", True),
        ("num_experts_per_tok", 2),
    ],
    "qwen2_moe_norm": [("norm_topk_prob", False)],
    "qwen3_moe": [("use_sliding_window", False), ("norm_topk_prob", False)],
    "gpt_oss": [("sliding_window", 40), ("num_experts_per_tok", 1)],
    "gpt_oss_clamped": [("swiglu_limit", 7.0), ("swiglu_alpha", 1.702)],
}


@pytest.mark.parametrize(
    ("case", "key", "other"),
    [(case, *pair) for case, pairs in SETTINGS.items() for pair in pairs],
)
def test_settings_change_the_logits(case, key, other, tmp_path):
    model = load_case(tmp_path, case, **{key: other})
    assert difference(case, model(IDS)) > 1e-3


def test_yarn_is_not_truncated_and_sinks_count(tmp_path):
    whole = {**FAMILIES["gpt_oss"]["rope_scaling"], "truncate": True}
    model = load_case(tmp_path / "truncated", "gpt_oss", rope_scaling=whole)
    assert difference("gpt_oss", model(IDS)) > 1e-3
    model = load_case(tmp_path / "sinks", "gpt_oss")
    assert difference("gpt_oss", model(IDS)) < 2e-5
    for layer in model.model.layers:
        layer.self_attn.sinks = mx.full((6,), -1e9)
    assert difference("gpt_oss", model(IDS)) > 1e-3


@pytest.mark.parametrize("case", ["mixtral", "qwen2_moe", "gpt_oss"])
def test_order_of_gate_and_up_is_seen(case, tmp_path):
    weights = hf_weights(case)
    for name, value in weights.items():
        if name.endswith("gate_up_proj"):
            swapped = np.roll(value, value.shape[1] // 2, axis=1)
            in_turn = value[..., np.arange(value.shape[2]) ^ 1]
            weights[name] = in_turn if case == "gpt_oss" else swapped
    model = load_model(write_checkpoint(tmp_path, CASES[case], weights))
    assert difference(case, model(IDS)) > 1e-3


def test_explain_says_what_runs_between_experts(tmp_path):
    source = write_checkpoint(tmp_path / "hf", CASES["gpt_oss_clamped"])
    convert(source, tmp_path / "q", quantize=True, q_group_size=32)
    model = load_model(tmp_path / "q", as_stored=True)
    logits = model(IDS[:, :3])
    with simulate():
        (row,) = explain(model).rows
    assert (row.kind, row.size, row.formats) == ("SwitchGLU", "96 x 128", "a4g32")
    assert row.unit == "swiglu_clamped(alpha=1.3, limit=0.75)"
    assert row.runs == [("1+", "fused", "asked for by simulate()")]
    fuse(model)
    assert type(model.model.layers[0].mlp.experts) is SwitchGLU
    unfuse(model)
    assert mx.array_equal(model(IDS[:, :3]), logits)


# mxfp4 as OpenAI packs it

(MXFP4,) = PACKED


@pytest.fixture
def packed(tmp_path):
    """gpt-oss with packed experts, whose logits are those of MXFP4."""
    kind, changes = PACKED[MXFP4]
    weights = {k: mx.array(v) for k, v in in_blocks(hf_weights(MXFP4)).items()}
    folder = write_checkpoint(tmp_path / "hf", config_of(kind, **changes))
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    return folder


@pytest.mark.parametrize("as_stored", [True, False])
def test_mxfp4_has_hugging_faces_logits(as_stored, packed):
    model = load_model(packed, as_stored=as_stored)
    assert ("scales" in model.model.layers[0].mlp.experts.up_proj) == as_stored
    assert difference(MXFP4, model(IDS)) < 2e-5
    cache = model.make_cache()
    parts = [model(IDS[:, i : i + 9], cache) for i in range(0, 40, 9)]
    assert difference(MXFP4, mx.concatenate(parts, axis=1)) < 2e-5


def test_mxfp4_numbers_are_hugging_faces_bit_for_bit(tmp_path):
    """Every code, and scales from 2**-125 to 2**125."""
    blocks, scales = map(mx.array, ALL)
    stored = {"x.down_proj_blocks": blocks, "x.down_proj_scales": scales}
    named = {
        k.replace("x.", "model.layers.0.mlp.experts."): v for k, v in stored.items()
    }
    config = config_of("gpt_oss")
    write_checkpoint(tmp_path, config)
    mx.save_safetensors(str(tmp_path / "model.safetensors"), named)
    checkpoint = open_checkpoint(tmp_path)
    arrange = MODEL_TYPES["gpt_oss"].arrange
    arrangement = arrange(checkpoint.tensors, ModelConfig.from_dict(config))
    found = Arranged(checkpoint, config, arrangement)
    prefix = "model.layers.0.mlp.experts.down_proj"
    arrays = found.load(f"{prefix}.weight"), found.load(f"{prefix}.scales")
    values = dequantize(*arrays, None, Quantization(32, 4, "mxfp4"))
    expected = np.load(HF / f"{MXFP4}.npz")["unpacked"].swapaxes(1, 2)
    assert np.array_equal(f64(values), expected)


def test_mxfp4_is_kept_bit_for_bit(packed, tmp_path):
    convert(packed, tmp_path / "mlx")
    config = json.loads((tmp_path / "mlx" / "config.json").read_text())
    block = config["quantization"]
    assert block["mode"] == "mxfp4"
    assert block["model.layers.0.mlp.router"] is False
    assert "quant_method" not in json.dumps(config)
    weights = in_blocks(hf_weights(MXFP4))
    found = mx.load(str(tmp_path / "mlx" / "model.safetensors"))
    prefix = "model.layers.2.mlp.experts."
    for kind, start in (("gate_proj", 0), ("up_proj", 1)):
        blocks = weights[f"{prefix}gate_up_proj_blocks"][:, start::2]
        ours = np.array(found[f"{prefix}{kind}.weight"])
        assert np.array_equal(ours.view(np.uint8).reshape(blocks.shape), blocks)
        scales = weights[f"{prefix}gate_up_proj_scales"][:, start::2]
        assert np.array_equal(np.array(found[f"{prefix}{kind}.scales"]), scales)
    assert difference(MXFP4, load_model(tmp_path / "mlx")(IDS)) < 2e-5
    convert(packed, tmp_path / "dense", dequantize=True, dtype="float32")
    assert difference(MXFP4, load_model(tmp_path / "dense")(IDS)) < 2e-5


def test_only_gpt_oss_may_name_mxfp4():
    block = {"quantization_config": {"quant_method": "mxfp4"}}
    ModelConfig.from_dict(config_of("gpt_oss", **block))
    with pytest.raises(ValueError, match="quant_method 'mxfp4' is not supported"):
        ModelConfig.from_dict(config_of("mixtral", **block))
    block["quantization_config"]["quant_method"] = "gptq"
    with pytest.raises(ValueError, match="quant_method 'gptq' is not supported"):
        ModelConfig.from_dict(config_of("gpt_oss", **block))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", ["qwen2_moe", "gpt_oss"])
def test_packed_experts_are_those_of_the_dequantized_model(family, mode, tmp_path):
    config = config_of(family, hidden_size=128, num_attention_heads=8)
    source = write_checkpoint(tmp_path / "hf", config)
    report = convert(source, tmp_path / "q", quantize=True, q_mode=mode)
    assert not any("switch_mlp" in path for path in report.kept_float)
    convert(tmp_path / "q", tmp_path / "d", dequantize=True, dtype="float32")
    packed, dense = (load_model(tmp_path / d, as_stored=True) for d in ("q", "d"))
    expected = dense(IDS)
    found = packed(IDS)
    assert mx.abs(found - expected).max() <= 2e-5 * mx.abs(expected).max()


def test_experts_that_cannot_be_packed_stay_float(tmp_path):
    """72 inputs are no multiple of 32."""
    source = write_checkpoint(tmp_path / "hf", CASES["mixtral_one"])
    report = convert(source, tmp_path / "q", quantize=True, q_group_size=32)
    path = "model.layers.1.block_sparse_moe.switch_mlp"
    assert f"{path}.down_proj" in report.kept_float
    assert f"{path}.up_proj" not in report.kept_float
    experts = load_model(tmp_path / "q", as_stored=True).model.layers[1]
    experts = experts.block_sparse_moe.switch_mlp
    assert "scales" not in experts.down_proj
    assert "scales" in experts.up_proj


# mlx-lm

#: What mlx-lm 0.32.2 computes as Hugging Face does: it has no windows and no head_dim
#: for Mixtral and Qwen2-MoE, no dense layers, norm_topk_prob or ties for Qwen2-MoE, no
#: windows and biases for Qwen3-MoE, no limit, alpha or truncate for gpt-oss.
MLX_LM_IS_RIGHT = {
    "mixtral": {"sliding_window": None, "head_dim": 16},
    "qwen2_moe": {"use_sliding_window": False, "mlp_only_layers": [], "qkv_bias": True},
    "qwen3_moe": {"use_sliding_window": False, "attention_bias": False},
    "gpt_oss": {
        "hidden_size": 128,
        "rope_scaling": {**FAMILIES["gpt_oss"]["rope_scaling"], "truncate": True},
    },
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("quantize", [False, True])
@pytest.mark.parametrize("family", MLX_LM_IS_RIGHT)
def test_mlx_lm_opens_ours(family, quantize, tmp_path):
    utils = pytest.importorskip("mlx_lm.utils")
    config = config_of(family, **MLX_LM_IS_RIGHT[family])
    config["rope_parameters"] = {"rope_theta": config.pop("rope_theta")}
    config["rope_parameters"] |= config.pop("rope_scaling", {"rope_type": "default"})
    source = write_checkpoint(tmp_path / "hf", config)
    convert(source, tmp_path / "mlx", quantize, q_group_size=32 if quantize else None)
    ours = np.array(load_model(tmp_path / "mlx")(IDS))
    theirs = np.array(utils.load_model(tmp_path / "mlx")[0](IDS))
    assert np.abs(theirs - ours).max() <= 1e-4 * np.abs(ours).max()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", MLX_LM_IS_RIGHT)
def test_ours_packs_as_mlx_lm_does_and_opens_it(family, tmp_path):
    utils = pytest.importorskip("mlx_lm.utils")
    changes = {**MLX_LM_IS_RIGHT[family], "hidden_size": 128, "intermediate_size": 128}
    if family != "gpt_oss":
        changes |= {"num_attention_heads": 4, "head_dim": 32}
    source = write_checkpoint(tmp_path / "hf", config_of(family, **changes))
    model, config = utils.load_model(source)
    model, config = utils.quantize_model(model, config, 32, 4)
    (tmp_path / "theirs").mkdir()
    utils.save_model(tmp_path / "theirs", model)
    utils.save_config(config, tmp_path / "theirs" / "config.json")
    expected = np.array(model(IDS))
    ours = np.array(load_model(tmp_path / "theirs")(IDS))
    assert np.abs(ours - expected).max() <= 1e-4 * np.abs(expected).max()
    convert(source, tmp_path / "ours", quantize=True, q_group_size=32)
    a, b = (
        mx.load(str(tmp_path / d / "model.safetensors")) for d in ("ours", "theirs")
    )
    assert a.keys() == b.keys()
    for name in a:
        assert mx.array_equal(a[name], b[name]), name


# Damaged checkpoints


def lacking(weights):
    del weights["model.layers.1.mlp.experts.4.up_proj.weight"]


def too_many(weights):
    weights["model.layers.1.mlp.experts.7.up_proj.weight"] = np.zeros((64, 96), "f")


def unlike(weights):
    weights["model.layers.1.mlp.experts.2.down_proj.weight"] = np.zeros((96, 60), "f")


BROKEN = {
    lacking: "7 experts, but there are 6 tensors like 'model.layers.1.mlp.experts.0.up",
    too_many: "7 experts, but there are 8 tensors",
    unlike: r"experts.2.down_proj.weight is mlx.core.float32 \[96, 60\]",
}


@pytest.mark.parametrize("damage", BROKEN)
def test_damage_is_named(damage, tmp_path):
    weights = LAYOUTS["qwen3_moe"]["transformers 4"](hf_weights("qwen3_moe"))
    damage(weights)
    write_checkpoint(tmp_path, CASES["qwen3_moe"], weights)
    with pytest.raises(ValueError, match=BROKEN[damage]) as caught:
        load_model(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("case", "name", "shape"),
    [
        ("mixtral", "model.layers.0.mlp.experts.gate_up_proj", (5, 255, 96)),
        ("mixtral", "model.layers.0.mlp.experts.gate_up_proj", (5,)),
        ("gpt_oss", "model.layers.0.mlp.experts.gate_up_proj", (5, 96, 255)),
        ("gpt_oss", "model.layers.0.mlp.experts.gate_up_proj_bias", (256,)),
        ("gpt_oss", "model.layers.0.mlp.experts.down_proj", ()),
    ],
)
def test_impossible_packing_is_named(case, name, shape, tmp_path):
    weights = hf_weights(case) | {name: np.zeros(shape, "f")}
    write_checkpoint(tmp_path, CASES[case], weights)
    with pytest.raises(ValueError, match=f"{name} must"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("mixtral", {"num_experts_per_tok": 6}, "6 is more than the 5 experts"),
        ("mixtral", {"num_local_experts": 10**12}, "num_local_experts must be"),
        ("qwen2_moe", {"num_experts_per_tok": 0}, "num_experts_per_tok must be"),
        ("qwen2_moe", {"mlp_only_layers": [3]}, "list of integers below 3"),
        ("qwen3_moe", {"mlp_only_layers": "1"}, "list of integers below 3"),
        ("qwen3_moe", {"norm_topk_prob": 1}, "norm_topk_prob must be true or false"),
        ("qwen3_moe", {"decoder_sparse_step": 0}, "decoder_sparse_step must be"),
        ("gpt_oss", {"swiglu_limit": -7.0}, "swiglu_limit must be a positive"),
    ],
)
def test_impossible_settings(family, changes, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_dict(config_of(family, **changes))


def test_either_name_of_the_number_of_experts():
    for family, right, wrong in (
        ("mixtral", "num_local_experts", "num_experts"),
        ("qwen3_moe", "num_experts", "num_local_experts"),
    ):
        config = config_of(family)
        read = ModelConfig.from_dict(config)
        config[wrong] = config.pop(right)
        assert ModelConfig.from_dict(config) == read


def test_a_cut_tensor_keeps_no_more_in_memory(tmp_path):
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 1}
    config = config_of("mixtral", **sizes)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    write_checkpoint(tmp_path, config, {name: np.zeros((5, 2048, 512), "f")})
    checkpoint = open_checkpoint(tmp_path)
    arrange = MODEL_TYPES["mixtral"].arrange
    arrangement = arrange(checkpoint.tensors, ModelConfig.from_dict(config))
    found = Arranged(checkpoint, config, arrangement)
    before = mx.get_active_memory()
    up = found.load("model.layers.0.block_sparse_moe.switch_mlp.up_proj.weight")
    mx.eval(up)
    assert up.nbytes == 5 * 1024 * 512 * 4
    assert mx.get_active_memory() - before < 1.1 * up.nbytes
