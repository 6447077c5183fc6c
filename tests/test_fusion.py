"""What fusing must not break, one test for each way in which others broke it."""

import copy
import pickle
from collections import Counter
from itertools import product

import mlx.core as mx
import mlx.nn as nn
import mlx_lm_zoo as zoo
import numpy as np
import pytest
from conftest import assert_no_worse, f64, oracle_mul
from mlx.utils import tree_flatten
from mlx_lm.models.switch_layers import SwiGLU, SwitchGLU
from mlx_lm.tuner.utils import linear_to_lora_layers
from sim_programs import needs_simulator

from mlx_glu import (
    VARIANTS,
    GatedMLP,
    dispatch,
    explain,
    fuse,
    simulate,
    unfuse,
    use_impl,
)
from mlx_glu.feed_forward import Block
from mlx_glu.fusion import patches, probing
from mlx_glu.fusion.confirm import confirm
from mlx_glu.fusion.explanation import folded
from mlx_glu.fusion.patches import block_of
from mlx_glu.fusion.survey import survey
from mlx_glu.proof.oracle import linear64

pytestmark = needs_simulator

K, N = 64, 128
TOKENS = mx.array([[3, 1, 4]])


class MLP(nn.Module):
    """A block that can be told to be odd."""

    def __init__(self, act=nn.silu, bias=False, names=("gate_proj", "up_proj")):
        super().__init__()
        self._names = names
        setattr(self, names[0], nn.Linear(K, N, bias=bias))
        setattr(self, names[1], nn.Linear(K, N, bias=bias))
        self.down_proj = nn.Linear(N, K, bias=bias)
        self.act = act

    def __call__(self, x):
        gate, up = (self[name](x) for name in self._names)
        return self.down_proj(self.act(gate) * up)


class Packed(nn.Module):
    def __init__(self, gate_first=True, interleaved=False):
        super().__init__()
        self.proj_1, self.proj_2 = nn.Linear(K, 2 * N), nn.Linear(N, K)
        self._how = gate_first, interleaved

    def __call__(self, x):
        y = self.proj_1(x)
        gate_first, interleaved = self._how
        pair = (y[..., ::2], y[..., 1::2]) if interleaved else mx.split(y, 2, -1)
        gate, up = pair if gate_first else pair[::-1]
        return self.proj_2(nn.gelu(gate) * up)


class Scaled(MLP):
    def __call__(self, x):
        return 2 * super().__call__(x)


class Residual(MLP):
    def __call__(self, x):
        return x + super().__call__(x)


class Sparse(MLP):
    """Cuts rows of the gate, which no pointwise kernel may do."""

    def __call__(self, x):
        gate = self.gate_proj(x)
        gate = mx.where(gate < gate.mean(-1, keepdims=True), 0, gate)
        return self.down_proj(nn.silu(gate) * self.up_proj(x))


def x(rows=3, dtype=mx.float32):
    rng = np.random.default_rng(0)
    return mx.array(rng.normal(0, 1, (1, rows, K)), mx.float32).astype(dtype)


def units(model):
    return [
        str(site.block.variant) if site.block else site.fault for site in survey(model)
    ]


def run(module, *given, fused=True):
    """The result in the simulator; checks that kernels ran, or that none did."""
    with simulate(mode="fast"), dispatch.record() as choices:
        y = module(*given)
        mx.eval(y)
    assert any(c.impl == "fused" for c in choices) == fused, choices
    return y


def close(a, b):
    return bool(mx.allclose(a, b, rtol=1e-5, atol=1e-6)) and a.dtype == b.dtype


@pytest.mark.parametrize(
    ("act", "unit"),
    [
        (nn.silu, "swiglu"),
        (nn.gelu, "geglu"),
        (nn.gelu_approx, "geglu_tanh"),
        (nn.gelu_fast_approx, "quick_geglu"),
        (nn.relu, "reglu"),
        (mx.sigmoid, "glu"),
        (nn.relu2, "relu2_glu"),
        (nn.Identity(), "bilinear"),
        (mx.compile(lambda g: g * mx.sigmoid(g)), "swiglu"),
    ],
)
def test_the_activation_is_probed(act, unit):
    mlp = MLP(act)
    assert units(mlp) == [unit]
    assert close(run(fuse(mlp), x()), unfuse(mlp)(x()))


@pytest.mark.parametrize("act", [nn.tanh, nn.elu, lambda g: 1.01 * nn.silu(g)])
def test_another_activation_is_left_alone(act):
    mlp = fuse(MLP(act))
    assert type(mlp) is MLP
    assert "none of the table" in str(explain(mlp))


class Dropping(MLP):
    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def __call__(self, x):
        return self.dropout(super().__call__(x))


class Learned(MLP):
    def __init__(self):
        super().__init__()
        self.scale = mx.array(1.0)  # until it is loaded or trained

    def __call__(self, x):
        return self.scale * super().__call__(x)


class Widened(MLP):
    def __call__(self, x):
        gate = nn.silu(self.gate_proj(x).astype(mx.float32))
        return self.down_proj(gate * self.up_proj(x))


class Narrow(MLP):
    def __call__(self, x):
        y = super().__call__(x)
        return mx.clip(y, -0.05, 0.05) if x.dtype == mx.float16 else y


class Decoding(MLP):
    def __call__(self, x):
        y = super().__call__(x)
        return y * 0.5 if x.shape[-2] == 1 else y


class Batched(MLP):
    def __call__(self, x):
        return super().__call__(x) * x.shape[0]


OTHERS = [Scaled, Residual, Sparse, Dropping, Learned, Widened, Narrow, Decoding]


@pytest.mark.parametrize("kind", [*OTHERS, Batched])
def test_a_call_that_does_more_is_left_alone(kind):
    mlp = kind().eval()  # without dropout
    before = mlp(x())
    assert type(fuse(mlp)) is kind
    assert mx.array_equal(run(mlp, x(), fused=False), before)


def test_a_single_input_says_nothing():
    mlp = MLP()
    mlp.gate_proj, mlp.up_proj = nn.Linear(1, 4), nn.Linear(1, 4)
    mlp.down_proj = nn.Linear(4, 1)
    assert type(fuse(mlp)) is MLP


@pytest.mark.parametrize("bits", [None, 4])
def test_a_block_is_confirmed_with_real_weights(bits):
    mlp, packed = MLP(bias=True), Packed()
    if bits:
        nn.quantize(mlp, 32, bits)
        nn.quantize(packed, 32, bits)
    right = {Block(VARIANTS["swiglu"])}
    wrong = {Block(v) for v in VARIANTS.values() if "swiglu" not in v.name}
    wrong.add(Block(VARIANTS["swiglu"], "up_proj", "gate_proj"))
    assert all(confirm(mlp, block) == "" for block in right)
    assert all("worse than stock" in confirm(mlp, block) for block in wrong)
    names = "proj_1", "", "proj_2"
    orders = product(("gate_first", "value_first"), ("concat", "interleave"))
    found = {
        how: confirm(packed, Block(VARIANTS["geglu"], *names, how)) for how in orders
    }
    assert [how for how, fault in found.items() if not fault] == [
        ("gate_first", "concat")
    ]


def test_a_module_that_raises_is_left_alone():
    mlp = nn.Sequential(MLP(), MLP())
    mlp.layers[1].gate_proj.bias = mx.zeros((1, N))  # MLX broadcasts it
    before = mlp(x())
    fuse(mlp)
    assert [block_of(m) is not None for m in mlp.layers] == [True, False]
    assert close(run(mlp, x()), before)


def test_alike_modules_are_probed_once(monkeypatch, tmp_path):
    model = nn.Sequential(*(MLP() for _ in range(4)))
    model.layers[3].act = nn.relu
    probed = []
    real = probing.probe_block
    count = lambda *given: probed.append(1) or real(*given)
    monkeypatch.setattr(probing, "probe_block", count)
    assert units(model) == ["swiglu"] * 3 + ["reglu"]
    assert len(probed) == 2


def test_settings_in_lists_tell_modules_apart():
    class Listed(MLP):
        def __init__(self, scales):
            super().__init__()
            self.scales = scales

        def __call__(self, x):
            return self.scales[0] * super().__call__(x)

    model = nn.Sequential(Listed([1.0]), Listed([3.0]))
    assert [bool(site.block) for site in survey(model)] == [True, False]


def test_arguments_by_name():
    class Named(MLP):
        def __call__(self, hidden_states):
            return super().__call__(hidden_states)

    mlp = fuse(Named())
    assert block_of(mlp)
    assert mx.array_equal(mlp(hidden_states=x()), mlp(x()))


def test_a_fused_model_is_pickled_and_copied():
    for name in ("llama", "gpt_oss"):
        model = fuse(zoo.build(name))
        for site in survey(model):
            module = pickle.loads(pickle.dumps(site.module))
            assert type(module) is type(site.module)
            assert type(copy.deepcopy(module)) is type(site.module)
            assert survey(unfuse(module))


def test_a_call_that_is_replaced_later_is_seen():
    class Own(MLP):
        pass

    fuse(Own())
    Own.__call__ = lambda self, x: 0 * MLP.__call__(self, x)
    mlp = Own()
    patches.patch_block(mlp, Block(VARIANTS["swiglu"]))
    assert not mx.any(mlp(x()))


def test_a_subclass_of_our_block_with_its_own_call():
    class Doubled(GatedMLP):
        def __call__(self, x):
            return 2 * super().__call__(x)

    mlp = Doubled(K, N)
    assert "none of the table" in str(explain(fuse(mlp)))


def test_roles_do_not_go_by_name():
    for names in (("w1", "w3"), ("w3", "w1"), ("up_proj", "gate_proj")):
        mlp = MLP(names=names)
        block = survey(mlp)[0].block
        assert (block.gate, block.up) == names
        assert close(run(fuse(mlp), x()), unfuse(mlp)(x()))


@pytest.mark.parametrize("gate_first", [True, False])
@pytest.mark.parametrize("interleaved", [True, False])
def test_the_order_of_packed_halves_is_proven_by_value(gate_first, interleaved):
    mlp = Packed(gate_first, interleaved)
    order, layout = survey(mlp)[0].block.packing
    assert order == ("gate_first" if gate_first else "value_first")
    assert layout == ("interleave" if interleaved else "concat")
    for rows in (1, 3, 9):
        assert close(run(fuse(mlp), x(rows)), unfuse(mlp)(x(rows)))


def test_learned_biases_are_kept():
    mlp = MLP(bias=True)
    mlp.update({"gate_proj": {"bias": mx.ones(N)}, "down_proj": {"bias": mx.ones(K)}})
    before = mlp(x())
    assert close(run(fuse(mlp), x()), before)


def test_a_projection_with_a_call_of_its_own_is_called():
    class Doubled(nn.Linear):
        def __call__(self, x):
            return 2 * super().__call__(x)

    for name in ("gate_proj", "up_proj", "down_proj"):
        mlp = MLP()
        sizes = mlp[name].weight.shape[::-1]
        setattr(mlp, name, Doubled(*sizes))
        before = mlp(x())
        assert close(run(fuse(mlp), x()), before)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_quantized_and_then_fused_or_the_other_way(bits):
    mlp = MLP()
    before = MLP()
    before.update(mlp.parameters())
    nn.quantize(before, 32, bits)
    wanted = before(x())
    assert close(run(fuse(before), x()), wanted)
    fuse(mlp)
    nn.quantize(mlp, 32, bits)
    assert close(run(mlp, x()), wanted)
    assert f"a{bits}g32" in str(explain(mlp))


def test_formats_may_differ():
    mlp = MLP()
    mlp.gate_proj = mlp.gate_proj.to_quantized(32, 3)
    mlp.up_proj = mlp.up_proj.to_quantized(64, 6)
    mlp.down_proj = mlp.down_proj.to_quantized(32, 4, mode="mxfp4")
    wanted = mlp(x())
    assert close(run(fuse(mlp), x()), wanted)
    assert "a3g32/a6g64/mxfp4" in str(explain(mlp))


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision(dtype):
    mlp = MLP()
    mlp.down_proj.weight = mx.eye(K, N)  # one rounding, as the rule has it
    mlp.set_dtype(dtype)
    given = x(3, dtype)
    wanted, fused = mlp(given), run(fuse(mlp), given)
    pair = [linear64(f64(given), mlp[name].weight) for name in ("gate_proj", "up_proj")]
    oracle = oracle_mul(*pair, VARIANTS["swiglu"])[..., :K]
    assert fused.dtype == dtype
    assert_no_worse(fused, wanted, oracle, terms=K)


def test_an_adapter_that_widens_is_the_modules():
    class Widening(nn.Module):
        def __init__(self, linear):
            super().__init__()
            self.linear = linear

        def __call__(self, x):
            return self.linear(x).astype(mx.float32)

    for name in ("gate_proj", "up_proj", "down_proj"):
        mlp = MLP()
        mlp.set_dtype(mx.float16)
        setattr(mlp, name, Widening(mlp[name]))
        wanted = mlp(x(2, mx.float16))
        with simulate(mode="fast"):
            y = fuse(mlp)(x(2, mx.float16))
        assert y.dtype == wanted.dtype == mx.float32
        assert mx.allclose(y, wanted, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("part", ["gate_proj", "down_proj"])
def test_an_input_that_stock_would_widen_is_stocks(part):
    mlp = MLP()
    mlp[part].set_dtype(mx.float16)
    nn.quantize(mlp, 32, 4)
    for dtype in (mx.float16, mx.bfloat16, mx.float32):
        given = x(2, dtype)
        wanted = unfuse(mlp)(given)
        fuse(mlp)
        y = run(mlp, given, fused=False)
        assert y.dtype == wanted.dtype
        assert mx.array_equal(y, wanted)


def test_other_arguments_and_empty_inputs_go_to_the_module():
    class Flexible(MLP):
        def __call__(self, x, scale=1):
            return scale * super().__call__(x)

    mlp = Flexible()
    twice = mlp(x(), 2)
    fuse(mlp)
    assert block_of(mlp)
    with simulate(mode="fast"):
        assert mx.array_equal(mlp(x(), 2), twice)
    assert fuse(mlp)(mx.zeros((1, 0, K))).shape == (1, 0, K)
    assert run(mlp, mx.ones(K)).shape == (K,)  # one token, as dbrx gives it


def test_keys_weights_and_files_stay(tmp_path):
    model = zoo.build("llama")
    keys = [path for path, _ in tree_flatten(model.parameters())]
    before = zoo.logits(model, TOKENS)
    fuse(model)
    model.save_weights(str(tmp_path / "model.safetensors"))
    assert sorted(mx.load(str(tmp_path / "model.safetensors"))) == sorted(keys)
    fresh = zoo.build("llama")
    fresh.load_weights(str(tmp_path / "model.safetensors"))
    assert mx.array_equal(zoo.logits(fresh, TOKENS), before)
    twin = copy.deepcopy(model)
    assert mx.array_equal(zoo.logits(twin, TOKENS), before)
    unfuse(twin)
    assert block_of(model.layers[0].mlp)
    assert not block_of(twin.layers[0].mlp)
    assert isinstance(model.layers[0].mlp, type(twin.layers[0].mlp))


def test_fusing_twice_is_fusing_once():
    model = zoo.build("deepseek_v3")
    fuse(model)
    kinds = {path: type(m) for path, m in model.named_modules()}
    fuse(model)
    assert {path: type(m) for path, m in model.named_modules()} == kinds
    unfuse(model)
    assert not any(type(m).__name__.startswith("Fused") for m in model.modules())
    unfuse(model)


def test_models_that_share_an_activation_are_told_apart():
    """mlx-lm's SwitchGLU has one SwiGLU object as its default argument."""
    first, second = SwitchGLU(K, N, 4), SwitchGLU(K, N, 4)
    shared = first.activation
    assert shared is second.activation
    fuse(first)
    assert second.activation is shared
    assert type(shared) is SwiGLU
    assert first.activation is not shared
    unfuse(first)
    assert first.activation is shared


@pytest.mark.parametrize("tokens", [1, 3, 40])  # from 64 routes on they are sorted
@pytest.mark.parametrize("bits", [None, 4])
def test_experts(tokens, bits):
    moe = SwitchGLU(K, N, 4)
    if bits:
        nn.quantize(moe, 32, bits)
    routes = mx.array(np.random.default_rng(0).integers(0, 4, (1, tokens, 2)))
    wanted = moe(x(tokens), routes)
    assert wanted.shape == (1, tokens, 2, K)
    assert close(run(fuse(moe), x(tokens), routes), wanted)
    assert mx.array_equal(moe(x(tokens), routes), wanted)


def test_an_activation_may_be_a_function():
    moe = SwitchGLU(K, N, 2, activation=lambda up, gate: nn.gelu(gate) * up)
    function, routes = moe.activation, mx.zeros((1, 3, 1), mx.int32)
    wanted = moe(x(), routes)
    assert close(run(fuse(moe), x(), routes), wanted)
    assert "geglu" in str(explain(moe))
    assert unfuse(moe).activation is function


def adapted(use_dora, model=None):
    model = model or zoo.build("llama")
    keys = {f"mlp.{name}_proj" for name in ("gate", "up", "down")}
    linear_to_lora_layers(
        model, 2, {"rank": 4, "scale": 2.0, "dropout": 0.0, "keys": keys}, use_dora
    )
    noise = lambda path, a: 0.3 * mx.random.normal(a.shape) if "lora_" in path else a
    mx.random.seed(1)
    flat = [(path, noise(path, a)) for path, a in tree_flatten(model.parameters())]
    return model.load_weights(flat)


@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("fuse_first", [False, True])
def test_adapters_stay_alive(use_dora, bits, fuse_first):
    model = zoo.build("llama")
    if bits:
        nn.quantize(model, 32, bits)
    without = zoo.logits(model, TOKENS)
    if fuse_first:
        fuse(model)
    adapted(use_dora, model).eval()
    wanted = zoo.logits(unfuse(copy.deepcopy(model)), TOKENS)
    assert mx.max(mx.abs(wanted - without)) > 0.1
    fuse(model)
    assert close(run(lambda: zoo.logits(model, TOKENS)), wanted)
    assert "oRALinear" in str(explain(model))


def loss(model, given):
    return (model(given) ** 2).mean()


@pytest.mark.parametrize("adapters", [False, True])
def test_gradients_are_stocks(adapters):
    model = adapted(False).train() if adapters else zoo.build("qwen2").train()
    model.unfreeze()
    value, wanted = nn.value_and_grad(model, loss)(model, TOKENS)
    fuse(model)
    with simulate(mode="fast"), dispatch.record() as choices:
        fused, gradients = nn.value_and_grad(model, loss)(model, TOKENS)
        mx.eval(fused, gradients)
    assert any(c.impl == "fused" for c in choices)
    assert close(fused, value)
    for (path, a), (_, b) in zip(
        tree_flatten(wanted), tree_flatten(gradients), strict=True
    ):
        assert mx.max(mx.abs(a - b)) <= 2e-5 * (1e-3 + mx.max(mx.abs(a))), path


@pytest.mark.parametrize("shapeless", [False, True])
def test_compiled(shapeless):
    mlp = MLP()
    mx.eval(mlp.parameters())
    wanted = {rows: mlp(x(rows)) for rows in (1, 3, 9)}
    fuse(mlp)
    compiled = mx.compile(lambda a: mlp(a), shapeless=shapeless)
    with simulate(mode="fast"):  # has no values inside a trace, so stock runs
        for rows, y in wanted.items():
            assert close(compiled(x(rows)), y)


def test_stock_means_the_modules_own_code():
    mlp, calls = MLP(act=lambda g: calls.append(1) or nn.silu(g)), []
    before = mlp(x())
    fuse(mlp)
    calls.clear()
    with simulate(mode="fast"), use_impl("stock"):
        assert mx.array_equal(mlp(x()), before)
    assert calls == [1]
    run(mlp, x())
    assert calls == [1]


def test_the_environment_turns_it_off(set_impl):
    set_impl("stock")
    mlp = fuse(MLP())
    run(mlp, x(), fused=False)
    assert "MLX_GLU_IMPL=stock" in str(explain(mlp))


def test_sharded_layers_stay_sharded():
    mlp = MLP(bias=True)
    before = mlp(x())
    group = mx.distributed.init()
    for name in ("gate_proj", "up_proj"):
        setattr(
            mlp,
            name,
            nn.layers.distributed.shard_linear(
                mlp[name], "all-to-sharded", group=group
            ),
        )
    mlp.down_proj = nn.layers.distributed.shard_linear(
        mlp.down_proj, "sharded-to-all", group=group
    )
    assert close(run(fuse(mlp), x()), before)
    assert "AllToSharded" in type(mlp.gate_proj).__name__


def test_our_own_blocks_need_no_patch():
    model = nn.Sequential(GatedMLP(K, N), nn.ReLU(), GatedMLP(K, N, variant="geglu"))
    fuse(model)
    assert all(type(m) is GatedMLP for m in (model.layers[0], model.layers[2]))
    table = str(explain(model))
    assert "layers.0 (GatedMLP)" in table
    assert "geglu" in table


def test_random_numbers_are_not_drawn():
    mx.random.seed(7)
    wanted = mx.random.uniform(shape=(4,))
    model = zoo.build("llama")
    mx.random.seed(7)
    fuse(model)
    explain(model)
    assert mx.array_equal(mx.random.uniform(shape=(4,)), wanted)


def test_explain_counts_what_ran():
    mlp = fuse(MLP(bias=True, act=nn.relu))
    calls = lambda: Counter(explain(mlp).rows[0].calls)
    before = calls()
    run(mlp, x(1))
    assert calls() - before == {"fused": 2}  # of two operations
    mlp(x(1))
    assert (calls() - before)["stock"] > 0
    row = explain(mlp).rows[0]
    assert [rows for rows, *_ in row.runs] == ["1+"]
    with simulate():
        runs = explain(mlp).rows[0].runs
    assert [(rows, impl) for rows, impl, _ in runs] == [
        ("1-5", "fused"),
        ("6+", "glu_mul"),
    ]


def test_paths_are_folded():
    paths = ["model.layers.0.mlp", "model.layers.1.mlp", "model.layers.3.mlp", "head"]
    assert folded(paths) == "head, model.layers.0-1,3.mlp"
    assert folded(["a.0.b.1", "a.0.b.2"]) == "a.0.b.1, a.0.b.2"


@pytest.mark.parametrize("call", [fuse, unfuse, explain])
def test_what_load_returns_is_not_a_model(call):
    with pytest.raises(ValueError, match=r"^\[fuse\] expected an mlx.nn.Module.*tuple"):
        call((MLP(), "tokenizer"))


def test_a_wrong_environment_is_said_and_not_taken_for_a_fault(set_impl):
    set_impl("off")
    with pytest.raises(ValueError, match="MLX_GLU_IMPL is one of stock, fused"):
        fuse(MLP())


def test_a_model_without_feed_forwards():
    assert "no feed-forward" in str(explain(nn.Linear(3, 4)))
    assert fuse(nn.Linear(3, 4))


@pytest.mark.parametrize("bits", [None, 4])
def test_halves_of_a_packed_weight_are_not_copied(bits):
    """A kernel copies what is not row-contiguous, all weights for each token."""
    mlp = Packed()
    mlp.proj_1 = nn.Linear(1024, 4096)
    if bits:
        mlp.proj_1 = mlp.proj_1.to_quantized(64, bits)
    mx.eval(mlp.parameters())
    block = Block(VARIANTS["geglu"], "proj_1", "", "proj_2", ("gate_first", "concat"))
    (gate, _), (up, _) = block.halves(mlp)
    arrays = [a for w in (gate, up) for a in (w[:3] if bits else (w,))]
    before = mx.get_active_memory()
    mx.eval(arrays)
    assert mx.get_active_memory() - before < 4096
    assert all(memoryview(np.array(a, copy=False)).c_contiguous for a in arrays)
