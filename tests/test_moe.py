"""A mixture of experts to train: values, gradients, dtypes, and an even load."""

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import tiny_mixture as tiny
from conftest import assert_no_worse, f64, oracle_mul, sigmoid64
from mlx.optimizers import SGD, Adam
from mlx.utils import tree_flatten
from random_arrays import normal
from tiny_checkpoint import config_of

from mlx_glu import VARIANTS, explain, fuse, ops, unfuse
from mlx_glu.config import ModelConfig
from mlx_glu.experts import SORT_FROM, mix
from mlx_glu.layers import RMSNorm
from mlx_glu.models import mixtral, qwen_moe
from mlx_glu.quantization import Quantization, dequantize
from mlx_glu.training.balancing import expert_load, load_balancing_loss, router_z_loss
from mlx_glu.training.moe import MoE
from mlx_glu.training.router import Routing

K, N, E, TOP = 64, 32, 5, 2
HF = np.load(Path(__file__).parent / "data" / "moe.npz")
BIAS = "gate.e_score_correction_bias"
#: Every part of the block at least once.
FORMS = {
    "mixtral": {},
    "biases": {"bias": True},
    "shares of all": {"renormalise": False},
    "shared": {"shared_hidden_dims": 7, "shared_gate": True, "bias": True},
    "sigmoid": {"router": "sigmoid", "routed_scaling_factor": 1.7},
    "sigmoid, shared": {
        "router": "sigmoid",
        "renormalise": False,
        "shared_hidden_dims": 6,
    },
}


def filled(*sizes, dtype=mx.float32, seed=0, **form):
    """A mixture with random weights and biases."""
    moe = MoE(*(sizes or (K, N, E, TOP)), **form)
    rng = np.random.default_rng(seed)
    names = tree_flatten(moe.parameters())
    return moe.load_weights(
        [(k, normal(rng, *a.shape, scale=0.3, dtype=dtype)) for k, a in names]
    )


def numbers(moe):
    """Its parameters in float64, by name."""
    return {name: f64(a) for name, a in tree_flatten(moe.parameters())}


def glu64(p, path, e, x, variant):
    """One gated feed-forward; ``e`` is an expert, or ... for a dense one."""

    def run(name, x):
        y = x @ p[f"{path}.{name}.weight"][e].T
        return y + p[f"{path}.{name}.bias"][e] if f"{path}.{name}.bias" in p else y

    return run("down_proj", oracle_mul(run("gate_proj", x), run("up_proj", x), variant))


def shares64(moe, p, x, chosen=None):
    """[T, E] weights of all experts, 0 where not chosen; and who is chosen."""
    logits = x @ p["gate.weight"].T
    own = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    if moe.gate.kind == "sigmoid":
        own = sigmoid64(logits)
    if chosen is None:
        choice = own + p.get(BIAS, 0)
        chosen = choice >= np.sort(choice, -1)[:, -moe.gate.top_k, None]
        assert (chosen.sum(-1) == moe.gate.top_k).all()
    shares = np.where(chosen, own, 0)
    if moe.gate.renormalise:
        shares /= shares.sum(-1, keepdims=True)
    return moe.gate.routed_scaling_factor * shares, chosen


def moe64(moe, p, x, chosen=None):
    """The block in float64, every expert run on every token; ``x`` is [T, K]."""
    shares, _ = shares64(moe, p, x, chosen)
    variant = moe.switch_mlp.variant
    y = sum(
        shares[:, e, None] * glu64(p, "switch_mlp", e, x, variant)
        for e in range(shares.shape[1])
    )
    if "shared_expert" in moe:
        own = glu64(p, "shared_expert", ..., x, variant)
        if "shared_expert_gate" in moe:
            own *= sigmoid64(x @ p["shared_expert_gate.weight"].T)
        y += own
    return y


def stock(moe, x):
    """Every expert run on every token by stock operations, in the dtype of ``x``."""
    indices, weights = moe.gate(x)[1:]
    own, results = moe.switch_mlp, []
    for e in range(len(own.gate_proj.weight)):
        bias = [a.bias[e] if "bias" in a else None for a in own.children().values()]
        y = ops.glu_linear(
            x,
            own.gate_proj.weight[e],
            own.up_proj.weight[e],
            own.variant,
            gate_bias=bias[0],
            up_bias=bias[1],
        )
        results.append(ops.down_linear(y, own.down_proj.weight[e], bias=bias[2]))
    all_weights = mx.put_along_axis(
        mx.zeros((len(x), len(results))), indices, weights, axis=-1
    )
    y = mix(mx.stack(results, axis=1), all_weights)
    if "shared_expert" in moe:
        share = moe.shared_expert(x)
        if "shared_expert_gate" in moe:
            share = mx.sigmoid(moe.shared_expert_gate(x)) * share
        y = y + share
    return y


# Values


def theirs(family):
    """A mixture of our models, and ours with its weights."""
    config = ModelConfig.from_dict(config_of(family))
    own, K = config.own, config.hidden_size
    if family == "mixtral":
        block = mixtral.Mixture(config)
        sizes, form = (config.intermediate_size, own["num_local_experts"]), {}
    else:
        sizes = own["moe_intermediate_size"], own["num_experts"]
        form = {"renormalise": own["norm_topk_prob"]}
        block = qwen_moe.Mixture(config)
        if family == "qwen2_moe":
            block = qwen_moe.SharedMixture(config)
            width = own["shared_expert_intermediate_size"]
            form |= {"shared_hidden_dims": width, "shared_gate": True}
    ours = MoE(K, *sizes, own["num_experts_per_tok"], variant=config.variant, **form)
    return block, ours.load_weights(tree_flatten(block.parameters()))


@pytest.mark.parametrize("tokens", [3, 70])
@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "qwen3_moe"])
def test_weights_of_the_models_load_and_mean_the_same(family, tokens):
    block, ours = theirs(family)
    rng = np.random.default_rng(tokens)
    x, norm = normal(rng, 1, tokens, 96), RMSNorm(96)
    block.eval()
    assert mx.array_equal(
        ours.eval()(x, norm=norm, residual=x), block(x, norm=norm, residual=x)
    )
    y, routing = ours.with_routing(norm(x))
    assert mx.array_equal(x + y, ours(x, norm=norm, residual=x))
    assert routing.indices.shape == (1, tokens, ours.gate.top_k)
    assert mx.array_equal(routing.logits, ours.gate(norm(x)).logits)


@pytest.mark.parametrize("renormalise", [True, False])
def test_sigmoid_routing_is_hugging_faces_deepseek(renormalise):
    p, sizes = tiny.arrays(), tiny.MIXTURE
    moe = MoE(
        sizes["hidden_size"],
        sizes["moe_intermediate_size"],
        sizes["n_routed_experts"],
        sizes["num_experts_per_tok"],
        router="sigmoid",
        renormalise=renormalise,
        routed_scaling_factor=sizes["routed_scaling_factor"],
        shared_hidden_dims=sizes["n_shared_experts"] * sizes["moe_intermediate_size"],
    )
    gate, up = np.split(p["experts.gate_up_proj"], 2, axis=1)
    named = {k.replace("shared_experts", "shared_expert"): a for k, a in p.items()}
    named |= {
        "switch_mlp.gate_proj.weight": gate,
        "switch_mlp.up_proj.weight": up,
        "switch_mlp.down_proj.weight": p["experts.down_proj"],
    }
    wanted = [k for k, _ in tree_flatten(moe.parameters())]
    moe.load_weights([(k, mx.array(named[k])) for k in wanted])
    x, theirs = p["x"], HF[f"deepseek_{renormalise}"]
    oracle = moe64(moe, numbers(moe), f64(x))
    assert_no_worse(moe(mx.array(x)), theirs, oracle, terms=12 * 20)
    # The bias is for choosing; the same numbers without it choose others.
    _, biased = shares64(moe, numbers(moe), f64(x))
    _, plain = shares64(moe, numbers(moe) | {BIAS: 0}, f64(x))
    assert (biased != plain).any()


@pytest.mark.parametrize("tokens", [4, 70])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_every_form_and_dtype(dtype, form, tokens):
    moe = filled(dtype=dtype, **FORMS[form])
    x = normal(np.random.default_rng(1), tokens, K, dtype=dtype)
    y, routing = moe.with_routing(x)
    assert y.dtype == dtype
    assert routing.logits.dtype == routing.weights.dtype == mx.float32
    wide = filled(dtype=dtype, **FORMS[form])
    wide.set_dtype(mx.float32)
    for a, b in zip(routing, wide.gate(x.astype(mx.float32)), strict=True):
        assert mx.array_equal(a, b)
    oracle = moe64(moe, numbers(moe), f64(x))
    assert_no_worse(y, stock(moe, x), oracle, terms=K * N)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("is_training", [True, False], ids=["sorted", "unsorted"])
def test_every_variant(name, is_training):
    moe = filled(variant=name).train(is_training)
    x = normal(np.random.default_rng(2), 9, K)
    oracle = moe64(moe, numbers(moe), f64(x))
    assert_no_worse(moe(x), stock(moe, x), oracle, terms=K * N)


def test_sorted_is_unsorted():
    """Few pairs are sorted in training only, many always."""
    moe, x = filled(bias=True), normal(np.random.default_rng(3), 33, K)
    assert 16 * TOP < SORT_FROM <= 33 * TOP
    oracle = moe64(moe, numbers(moe), f64(x))
    alone = mx.concatenate([moe.eval()(x[i : i + 1]) for i in range(33)])
    for y in (moe.eval()(x), moe.train()(x), moe(x[None])[0]):
        assert_no_worse(y, alone, oracle, terms=K * N)
    parts = mx.concatenate([moe(x[:16]), moe(x[16:])])
    assert_no_worse(parts, alone, oracle, terms=K * N)
    assert moe(x[:0]).shape == (0, K)


@pytest.mark.parametrize("router", ["softmax", "sigmoid"])
def test_ties_are_decided_alike_each_time(router):
    moe = filled(router=router)
    moe.gate.weight = mx.zeros((E, K)).at[1].add(-1)
    x = mx.abs(normal(np.random.default_rng(4), 40, K))  # all but expert 1 tie
    y, routing = moe.with_routing(x)
    again, same = moe.with_routing(x)
    assert mx.array_equal(y, again)
    assert mx.array_equal(routing.indices, same.indices)
    for i, own in enumerate(routing.indices.tolist()):
        assert len(set(own) - {1}) == TOP
        assert sorted(own) == sorted(moe.gate(x[i : i + 1]).indices[0].tolist())


@pytest.mark.parametrize("size", [60.0, -200.0])
def test_sigmoids_at_their_ends_share_evenly_and_have_gradients(size):
    """They round to 1, or to 0, of which Hugging Face's sum is 0 too."""
    moe = filled(router="sigmoid")
    x = mx.ones((3, K))
    moe.gate.weight = mx.full((E, K), size / K)
    routing = moe.gate(x)
    assert mx.array_equal(routing.weights, mx.full((3, TOP), 1 / TOP))
    grads = nn.value_and_grad(moe, lambda m: m(x).sum())(moe)[1]
    assert all(mx.isfinite(g).all() for _, g in tree_flatten(grads))


# Gradients


def gradients64(moe, x, cotangent):
    """Of sum(y * cotangent) by x and all parameters: central differences.

    Those of fourth order with this step err by less than 1e-9; the experts chosen do
    not change, as a derivative has none of that.
    """
    p, h = {"x": f64(x), **numbers(moe)}, 2.0**-10
    _, chosen = shares64(moe, p, p["x"])
    found = {name: np.zeros_like(a) for name, a in p.items()}
    for name, a in p.items():
        for at in np.ndindex(a.shape):
            was, values = a[at], []
            for step in (h, -h, 2 * h, -2 * h):
                a[at] = was + step
                values.append((moe64(moe, p, p["x"], chosen) * f64(cotangent)).sum())
            a[at] = was
            near, far = values[0] - values[1], values[2] - values[3]
            found[name][at] = (8 * near - far) / (12 * h)
    return found


def gradients(moe, x, cotangent):
    """The same by MLX."""

    def loss(parameters, x):
        moe.update(parameters)
        return (moe(x) * cotangent).sum()

    by_parameters, by_x = mx.grad(loss, argnums=(0, 1))(moe.parameters(), x)
    return dict(tree_flatten(by_parameters)) | {"x": by_x}


@pytest.mark.parametrize("form", FORMS)
def test_gradients_by_everything_are_those_of_a_dense_loop(form):
    """Sorted as in training, and unsorted."""
    moe = filled(6, 5, 4, 2, **FORMS[form])
    rng = np.random.default_rng(5)
    x, cotangent = normal(rng, 8, 6), normal(rng, 8, 6)
    oracle = gradients64(moe, x, cotangent)
    for is_training in (True, False):
        found = gradients(moe.train(is_training), x, cotangent)
        assert found.keys() == oracle.keys()
        for name, g in found.items():
            o = oracle[name]
            assert o.any() == (name != BIAS), name
            # No stock gradient here: what float32 sums of this length may err.
            assert_no_worse(g, o.astype(np.float32), o, terms=3 * x.size)


@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_of_every_variant_are_a_dense_loops(name):
    """Of experts run one by one, whose gradients test_ops.py proves."""
    moe = filled(variant=name, bias=True)
    rng = np.random.default_rng(6)
    x, cotangent = normal(rng, 40, K), normal(rng, 40, K)

    def dense(parameters):
        moe.update(parameters)
        return (stock(moe, x) * cotangent).sum()

    expected = dict(tree_flatten(mx.grad(dense)(moe.parameters())))
    found = gradients(moe, x, cotangent)
    for key, g in expected.items():
        assert g.any()
        assert_no_worse(found[key], g, f64(g), terms=40 * 3 * K)


@pytest.mark.parametrize("tokens", [10, 50])
def test_experts_that_nobody_chose_have_no_gradient(tokens):
    moe = filled(router="sigmoid", bias=True)
    moe.gate.e_score_correction_bias = mx.array([0.0, 0, 0, -9, 0])
    x = normal(np.random.default_rng(7), tokens, K)
    assert not expert_load(moe.gate(x))[3]
    found = gradients(moe, x, mx.ones(x.shape))
    for name, g in found.items():
        if name.startswith("switch_mlp"):
            assert not g[3].any()
            assert g[0].any()
    assert not found["gate.weight"][3].any()
    assert found["gate.weight"][0].any()
    assert not found[BIAS].any()
    for model in (moe, moe.unfreeze(), nn.Sequential(moe).unfreeze().layers[0]):
        assert BIAS not in dict(tree_flatten(model.trainable_parameters()))


def test_one_expert_of_weight_1_gives_the_router_no_gradient():
    x = normal(np.random.default_rng(11), 8, K)
    for form in FORMS.values():
        found = gradients(filled(K, N, E, 1, **form), x, mx.ones(x.shape))
        assert found["gate.weight"].any() == (not form.get("renormalise", True))


def test_a_small_batch_needs_no_matrix_for_each_pair():
    """As MLX's gradient by a stack does where its indices are not sorted.

    What has to be held is a gradient as large as the weights, and little more.
    """
    moe = MoE(256, 1024, 8)
    x = mx.ones((31, 256))
    step = nn.value_and_grad(moe, lambda m, x: m(x).sum())
    mx.eval(step(moe, x))
    nbytes = sum(a.nbytes for _, a in tree_flatten(moe.parameters()))
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(step(moe, x))
    assert mx.get_peak_memory() - before < 1.6 * nbytes


def train(moe, x, target, penalty=0.0, rate=0.0, steps=120):
    """Mean square error and load after some steps of two of four experts."""

    def loss(moe):
        y, routing = moe.with_routing(x)
        error = ((y - target) ** 2).mean()
        extra = penalty * load_balancing_loss(routing.logits, 4, 2)
        return error + extra, error, expert_load(routing)

    optimizer = Adam(0.01)
    step = nn.value_and_grad(moe, loss)
    for _ in range(steps):
        (_, error, load), grads = step(moe)
        optimizer.update(moe, grads)
        if rate:
            moe.gate.balance(load, rate)
        mx.eval(moe.parameters(), optimizer.state)
    return error.item(), np.array(load)


@pytest.mark.parametrize("router", ["softmax", "sigmoid"])
def test_training_keeps_a_collapse_unless_something_evens_the_load(router):
    """Two of four experts take every token at first; an even load is 0.5 for each."""
    rng = np.random.default_rng(0)
    x = normal(rng, 256, 8)
    x[:, 0] = 1
    target = mx.sin(x @ normal(rng, 8, 8))
    found = {}
    ways = {"nothing": {}, "loss": {"penalty": 0.1}, "bias": {"rate": 0.02}}
    for name, how in ways.items():
        if name == "bias" and router == "softmax":
            continue
        mx.random.seed(0)
        moe = MoE(8, 8, 4, 2, router=router)
        moe.gate.weight[:, 0] = mx.array([2.0, 2.0, -2.0, -2.0])
        assert expert_load(moe.gate(x)).tolist() == [1, 1, 0, 0]
        error, load = train(moe, x, target, **how)
        assert abs(load.sum() - 2) < 1e-5
        assert error < 0.25  # from 0.53
        found[name] = load.max()
    assert found.pop("nothing") > 0.75
    assert max(found.values()) < 0.6


def test_a_compiled_step_is_the_same_step():
    """The routing is a value: nothing of a step stays in the module.

    In its simplest form: each kernel of MLX's is a second of the C++ compiler.
    """
    form = {"router": "sigmoid", "renormalise": False, "variant": "bilinear"}
    rng = np.random.default_rng(8)
    x, cotangent = normal(rng, 40, K), normal(rng, 40, K)
    runs = []
    for compiled in (False, True):
        moe, optimizer = filled(**form), SGD(0.001)
        state = [moe.state, optimizer.state]

        def loss(moe, x):
            y, routing = moe.with_routing(x)
            return (y @ cotangent.T).sum(), expert_load(routing)

        def step(x, moe=moe, optimizer=optimizer, loss=loss):
            (value, load), grads = nn.value_and_grad(moe, loss)(moe, x)
            optimizer.update(moe, grads)
            moe.gate.balance(load)
            return value

        if compiled:
            step = mx.compile(step, inputs=state, outputs=state)
        values = [step(x).item() for _ in range(4)]
        assert values[-1] < values[0]
        runs.append((values, moe.gate.e_score_correction_bias))
    # Compiled code rounds a fused product and sum once.
    assert np.allclose(*(values for values, _ in runs), rtol=1e-5)
    assert mx.array_equal(runs[0][1], runs[1][1])
    assert not mx.array_equal(runs[0][1], filled(**form).gate[BIAS[5:]])


# Balancing


def loss64(layers, top_k, mask):
    """Of [layers, T, E] logits and [T]."""
    logits = f64(layers)
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    least = np.sort(logits, -1)[..., -top_k, None]
    count = mask.sum() * len(logits)
    f = ((logits >= least) * mask[:, None]).sum((0, 1)) / count
    p = (shares * mask[:, None]).sum((0, 1)) / count
    return logits.shape[-1] * (f * p).sum()


@pytest.mark.parametrize("name", ["loss", "masked_loss"])
def test_load_balancing_loss_is_hugging_faces(name):
    arrays, top_k = tiny.arrays(), tiny.CHOSEN
    layers = list(map(mx.array, arrays["logits"]))
    mask = arrays["mask"] if name == "masked_loss" else np.ones(30)
    given = None if name == "loss" else mx.array(mask)
    oracle = loss64(arrays["logits"], top_k, mask)
    y = load_balancing_loss(layers, 6, top_k, given)
    assert y.dtype == mx.float32
    assert_no_worse(y, HF[name], oracle, terms=90)
    # Of any shape of batch, and of one array.
    shaped = [a.reshape(2, 15, 6) for a in layers]
    given = None if given is None else given.reshape(2, 15).astype(mx.bool_)
    assert load_balancing_loss(shaped, 6, top_k, given) == y
    one = loss64(arrays["logits"][:1], top_k, mask)
    alone = load_balancing_loss(shaped[0], 6, top_k, given)
    assert_no_worse(alone, np.float32(one), one, terms=30)


def test_z_loss_is_its_formula():
    logits, mask = tiny.arrays()["logits"], tiny.arrays()["mask"]
    square = np.log(np.exp(f64(logits)).sum(-1)) ** 2
    for own, given in ((np.ones(30), None), (mask, mx.array(mask))):
        oracle = (square * own).sum() / own.sum() / 3
        y = router_z_loss(list(map(mx.array, logits)), given)
        assert_no_worse(y, np.float32(oracle), oracle, terms=90)


def test_padding_counts_nowhere():
    logits = mx.array(tiny.arrays()["logits"][0])
    mask = mx.arange(30) < 20
    for loss in (lambda z, m: load_balancing_loss(z, 6, 2, m), router_z_loss):
        other = mx.where(mask[:, None], logits, 7 * logits[::-1])
        assert loss(logits, mask) == loss(other, mask)
        assert abs((loss(logits, mask) - loss(logits[:20], None)).item()) < 1e-5
        grads = mx.grad(lambda z, loss=loss: loss(z, mask))(logits)
        assert grads[:20].any()
        assert not grads[20:].any()
        assert loss(logits, mx.zeros((30,))) == 0
    indices = mx.array([[0, 1], [0, 2], [3, 4]])
    routing = Routing(mx.zeros((3, 5)), indices, mx.ones((3, 2)))
    load = expert_load(routing, mx.array([1, 1, 0]))
    assert load.tolist() == [1, 0.5, 0.5, 0, 0]


def test_an_even_load_costs_k_and_a_collapse_e():
    even = 9 * mx.eye(4)
    assert abs(load_balancing_loss(even, 4, 1).item() - 1) < 1e-6
    assert abs(load_balancing_loss(even + even[:, ::-1], 4, 2).item() - 2) < 1e-6
    assert abs(load_balancing_loss(mx.tile(50 * even[:1], (8, 1)), 4, 1) - 4) < 1e-6


# Around it


def test_quantizing_keeps_the_router():
    moe = filled(shared_hidden_dims=32, shared_gate=True)
    rng = np.random.default_rng(9)
    x, plain = normal(rng, 40, K), filled(shared_hidden_dims=32, shared_gate=True)
    before = moe.gate.weight
    nn.quantize(moe, 32, 8)
    assert mx.array_equal(moe.gate.weight, before)
    packed = ("switch_mlp.", "shared_expert.", "shared_expert_gate")
    weights = {}
    for path, layer in moe.named_modules():
        if "scales" in layer:
            assert path.startswith(packed)
            arrays = layer.weight, layer.scales, layer.biases
            weights[f"{path}.weight"] = dequantize(*arrays, Quantization(32, 8))
    assert len(weights) == 7
    plain.load_weights(list(weights.items()), strict=False)
    oracle = moe64(plain, numbers(plain), f64(x))
    assert_no_worse(moe(x), plain(x), oracle, terms=K * N)
    assert [k for k, _ in tree_flatten(moe.trainable_parameters())] == ["gate.weight"]
    by_router = nn.value_and_grad(moe, lambda m: (m(x) ** 2).sum())(moe)[1]
    assert by_router["gate"]["weight"].any()


def test_fuse_finds_the_experts_and_leaves_the_block():
    model = nn.Sequential(filled(shared_hidden_dims=32, shared_gate=True), filled())
    x = normal(np.random.default_rng(10), 3, K)
    keys = [k for k, _ in tree_flatten(model.parameters())]
    y = model(x)
    kinds = {row.kind for row in explain(model).rows}
    assert kinds == {"GatedMLP", "SwitchGLU"}
    fuse(model)
    assert type(model.layers[0]) is MoE
    assert mx.array_equal(model(x), y)
    unfuse(model)
    assert [k for k, _ in tree_flatten(model.parameters())] == keys


@pytest.mark.parametrize(
    ("sizes", "form", "message"),
    [
        ((8, 8, 2, 3), {}, "top_k = 3, num_experts = 2"),
        ((8, 8, 4, 0), {}, "1 <= top_k"),
        ((8, 8, 0, 0), {}, "num_experts = 0"),
        ((0, 8, 4), {}, "dims = 0"),
        ((8, 0, 4), {}, "hidden_dims = 0"),
        ((8, 8, 4), {"router": "noisy"}, "softmax, sigmoid but got 'noisy'"),
        ((8, 8, 4), {"variant": "swish"}, "swish"),
        ((8, 8, 4), {"shared_hidden_dims": 0}, "shared_hidden_dims = 0"),
        ((8, 8, 4), {"shared_gate": True}, "there is none; give shared_hidden_dims"),
    ],
    ids=str,
)
def test_impossible_settings(sizes, form, message):
    with pytest.raises(ValueError, match=message):
        MoE(*sizes, **form)


def test_impossible_calls():
    logits = mx.zeros((6, 4))
    with pytest.raises(ValueError, match="4 logits a token, num_experts = 8"):
        load_balancing_loss(logits, 8, 2)
    with pytest.raises(ValueError, match="top_k = 5"):
        load_balancing_loss(logits, 4, 5)
    with pytest.raises(ValueError, match=r"\[router_z_loss\] .* got 5 for \[6, 6\]"):
        router_z_loss([logits, logits], mx.ones((5,)))
    with pytest.raises(ValueError, match="expected a sigmoid router"):
        MoE(8, 8, 4).gate.balance(mx.ones((4,)))
    with pytest.raises(ValueError, match="matmul"):
        MoE(8, 8, 4)(mx.ones((2, 9)))
    x = mx.ones((2, 8))
    for residual in (x[0], x.astype(mx.float16)):
        with pytest.raises(ValueError, match="residual is float32"):
            MoE(8, 8, 4)(x, residual=residual)
