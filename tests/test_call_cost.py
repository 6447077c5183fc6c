"""What a call costs in Python, and that what is kept between calls is never stale."""

import copy
import gc
import sys
import weakref
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from conftest import assert_no_worse, f64
from mlx.utils import tree_flatten, tree_map
from sim_programs import needs_simulator

from mlx_glu import GatedMLP, choosing, ops, simulate, use_impl
from mlx_glu.dispatch import counts, record
from mlx_glu.feed_forward import Block
from mlx_glu.fusion import patches
from mlx_glu.layers import RMSNorm
from mlx_glu.variants import VARIANTS

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import time_calls

K, N = 64, 96


@pytest.mark.parametrize("format", time_calls.FORMATS)
def test_a_call_is_a_few_python_calls(format):
    """Before plans were kept, 4-bit fused made 607 calls and all stock 187."""
    found = {}
    for arm in time_calls.ARMS:
        with time_calls.calls(format, arm) as run:
            found[arm] = time_calls.count_calls(run)
    assert 5 < found["stock"] < 20
    assert found["fused"] < 150
    assert found["patched, all stock"] - found["stock"] < 130


@pytest.mark.parametrize("format", time_calls.FORMATS)
def test_what_is_timed_is_what_it_is_called(format):
    impls = {}
    for arm in time_calls.ARMS:
        with time_calls.calls(format, arm) as run, record() as choices:
            run()
        impls[arm] = [(c.op, c.impl) for c in choices]
    assert impls["stock"] == []
    assert {impl for _, impl in impls["patched, all stock"]} == {"stock"}
    assert impls["fused"] == [("glu_linear", "fused"), ("down_linear", "fused")]


def test_the_table_names_its_clock(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["time_calls", "--number", "1"])
    time_calls.main()
    head, *rows = capsys.readouterr().out.splitlines()
    assert "CPU, Python only, no kernel runs" in head
    assert len(rows) == len(time_calls.FORMATS) * len(time_calls.ARMS)


class Adapter(nn.Module):
    def __init__(self, linear):
        super().__init__()
        self.linear = linear
        self.scale = mx.array(0.5)

    def __call__(self, x):
        return self.linear(x) * self.scale


def make(kind=GatedMLP, bias=True):
    mx.random.seed(0)
    if kind is GatedMLP:
        return GatedMLP(K, N, bias=bias)
    mlp = time_calls.MLP(K, N)
    patches.patch_block(mlp, Block(VARIANTS["swiglu"]))
    return mlp


def rows(M=1, dtype=mx.float32, columns=K):
    x = np.random.default_rng(M).normal(size=(1, M, columns))
    return mx.array(x.astype(np.float32)).astype(dtype)


def check(mlp, x, wanted=("glu_linear", "down_linear"), **given):
    """A call is right for the weights of now, and fuses what is wanted."""
    with simulate(mode="fast"), record() as choices:
        y = mlp(x, **given)
        mx.eval(y)
    assert {c.op for c in choices if c.impl == "fused"} == set(wanted)
    with use_impl("stock"):
        stock = mlp(x, **given)
        wide = copy.deepcopy(mlp)
        wide.set_dtype(mx.float32)
        oracle = f64(wide(x.astype(mx.float32), **given))
    assert (y.shape, y.dtype) == (stock.shape, stock.dtype)
    assert_no_worse(y, stock, oracle, terms=K * N)
    return y


KINDS = [GatedMLP, time_calls.MLP]


@needs_simulator
@pytest.mark.parametrize("kind", KINDS)
def test_new_weights_are_read(kind):
    mlp, x = make(kind), rows()
    before = check(mlp, x)
    mlp.update(tree_map(lambda a: a * 2, mlp.parameters()))
    assert not mx.allclose(check(mlp, x), before)
    before = check(mlp, x)
    mlp.load_weights([(k, -a) for k, a in tree_flatten(mlp.parameters())])
    assert not mx.allclose(check(mlp, x), before)
    mlp.down_proj.weight[0] = 0  # in place
    assert check(mlp, x)[0, 0, 0] == mlp.down_proj.get("bias", mx.zeros(1))[0]


@needs_simulator
@pytest.mark.parametrize("kind", KINDS)
def test_formats_that_change_are_noticed(kind):
    mlp, x = make(kind), rows()
    check(mlp, x)
    nn.quantize(mlp, group_size=32, bits=8)
    check(mlp, x)
    dense = make(kind)
    for name in ("gate_proj", "up_proj", "down_proj"):
        mlp[name] = dense[name].to_quantized(32, 4, "mxfp4")
    check(mlp, x)
    mlp.up_proj = dense.up_proj
    check(mlp, x)
    mlp.gate_proj = dense.gate_proj
    check(mlp, x)


@needs_simulator
@pytest.mark.parametrize("kind", KINDS)
def test_adapters_that_come_and_go_are_noticed(kind):
    mlp, x = make(kind), rows()
    before, gate = check(mlp, x), mlp.gate_proj
    mlp.gate_proj = Adapter(gate)
    assert not mx.allclose(check(mlp, x, ("glu_mul", "down_linear")), before)
    mlp.gate_proj = gate
    mlp.down_proj = Adapter(mlp.down_proj)
    halved = check(mlp, x, ("glu_linear",))
    assert mx.allclose(halved, before / 2, rtol=1e-4, atol=1e-5)
    mlp.down_proj = mlp.down_proj.linear
    assert mx.array_equal(check(mlp, x), before)


@needs_simulator
def test_dtypes_that_change_are_noticed():
    mlp, half = make(), rows(dtype=mx.float16)
    check(mlp, rows())
    mlp.set_dtype(mx.float16)
    check(mlp, half)
    with simulate(mode="fast"), pytest.raises(ValueError, match="gate has the dtype"):
        mlp(rows())
    mlp.down_proj.weight = mlp.down_proj.weight.astype(mx.float32)
    with simulate(mode="fast"), pytest.raises(ValueError, match="weight has the dtype"):
        mlp(half)
    # In a patched module stock goes on, and gives what it always gave.
    patched = make(time_calls.MLP)
    check(patched, rows())
    patched.up_proj.weight = patched.up_proj.weight.astype(mx.float16)
    check(patched, rows(), ())
    with simulate(mode="fast"), record() as choices:
        assert patched(half).dtype == mx.float32
    assert {c.impl for c in choices} == {"stock"}
    assert "of gate_proj is float32 and x float16" in choices[0].why


@needs_simulator
def test_a_format_without_a_kernel_is_stocks():
    """MLX 0.32.4 also packs one bit."""
    patched = make(time_calls.MLP)
    nn.quantize(patched, group_size=32, bits=1)
    with simulate(mode="fast"), record() as choices:
        y = patched(rows())
    assert y.shape == (1, 1, K)
    assert {c.impl for c in choices} == {"stock"}
    assert "1 bits in groups of 32" in choices[0].why


@needs_simulator
def test_shapes_that_change_are_noticed():
    mlp, x = make(bias=False), rows()
    check(mlp, x)
    large = GatedMLP(2 * K, 2 * N)
    wrong = {
        "K": ("gate_proj", large.gate_proj, r"gate is \[N, K\] with K = 64"),
        "N": (
            "up_proj",
            nn.Linear(K, N + 4, bias=False),
            "gate has 96 rows and up 100",
        ),
        "down": ("down_proj", large.down_proj, r"weight is \[N, K\] with K = 96"),
    }
    for name, layer, message in wrong.values():
        kept, mlp[name] = mlp[name], layer
        with simulate(mode="fast"), pytest.raises(ValueError, match=message):
            mlp(x)
        mlp[name] = kept
    # The same layer with other arrays, as load_weights puts them.
    mlp.gate_proj.weight, mlp.up_proj.weight = (
        large.gate_proj.weight,
        large.up_proj.weight,
    )
    with simulate(mode="fast"), pytest.raises(ValueError, match="with K = 64"):
        mlp(x)
    mlp.down_proj.weight = large.down_proj.weight
    check(mlp, rows(columns=2 * K))
    with simulate(mode="fast"), pytest.raises(ValueError, match="residual is"):
        mlp(rows(2, columns=2 * K), residual=rows(1, columns=2 * K))


@needs_simulator
@pytest.mark.parametrize("packed", [False, True], ids=["dense", "4-bit"])
def test_other_columns_are_refused_after_a_good_call(packed):
    """Kernels have sizes as numbers: what is too small would be read beyond its end."""
    mlp = make()
    if packed:
        nn.quantize(mlp, group_size=32, bits=4)
    check(mlp, rows())
    with (
        simulate(mode="fast"),
        pytest.raises(ValueError, match=r"K = 32|K \* bits / 32"),
    ):
        mlp(rows(columns=32))
    for name, parts in (("gate_proj", mlp.gate_proj), ("down_proj", mlp.down_proj)):
        for part, a in list(parts.items()):
            mlp[name][part] = a[: len(a) - 8]
            with simulate(mode="fast"), pytest.raises(ValueError, match=r"^\["):
                mlp(rows())
            mlp[name][part] = a
    check(mlp, rows())


@needs_simulator
def test_norms_residuals_and_rows_are_told_apart():
    mlp = make()
    for M in (1, 2, 3, 5, 2, 1):
        x = rows(M)
        for eps in (1e-5, 0.5):
            norm = RMSNorm(K, eps)
            check(mlp, x, norm=norm)
            check(mlp, x, norm=norm, residual=x)
            norm.offset = 1
            check(mlp, x, norm=norm)
        check(mlp, x, residual=x)
        check(mlp, x)
        check(mlp, x[0])


@needs_simulator
def test_rows_of_a_tiny_x_are_told_apart():
    """Their number is in the text."""
    w = mx.random.normal((31, 3))
    for M in (1, 2, 3, 5, 2, 1):
        x = mx.random.normal((M, 3))
        with simulate(mode="fast"), record() as choices:
            y = ops.glu_linear(x, w, w)
        assert [c.impl for c in choices] == ["fused"]
        with use_impl("stock"):
            stock = ops.glu_linear(x, w, w)
        assert_no_worse(y, stock, f64(stock), terms=3)


@needs_simulator
def test_the_steps_of_an_optimizer_are_seen():
    mlp, x = make(), rows(2)
    step = nn.value_and_grad(mlp, lambda x: (mlp(x) ** 2).mean())
    losses = []
    with simulate(mode="fast"):
        for _ in range(4):
            loss, grads = step(x)
            losses.append(loss.item())
            move = lambda p, g: p - 0.2 * g
            mlp.update(tree_map(move, mlp.parameters(), grads))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]
    check(mlp, x)


@needs_simulator
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_keeps_old_weights(kind):
    size = 1 << 20
    mlp = make(kind)
    check(mlp, rows())
    gc.collect()
    before = mx.get_active_memory()
    wide = nn.Linear(K, size // 4, bias=False)
    mlp.gate_proj, mlp.up_proj = wide, wide
    mlp.down_proj = nn.Linear(size // 4, K, bias=False)
    with use_impl("stock"):
        mx.eval(mlp(rows()))
    with time_calls.no_kernels(), use_impl("fused"):
        mlp(rows())
    assert mx.get_active_memory() - before > K * size
    seen = weakref.ref(wide)
    for name, layer in make(kind).children().items():
        mlp[name] = layer
    del wide
    gc.collect()
    assert seen() is None
    assert mx.get_active_memory() - before < K * size // 8


def test_plans_do_not_pile_up(monkeypatch):
    monkeypatch.setattr(choosing, "_PLANS", 8)
    for n in range(1, 30):
        w = mx.zeros((n, 4))
        ops.glu_linear(mx.zeros((1, 4)), w, w)
        assert len(choosing._plans) <= 8


def test_many_rows_share_a_plan():
    w = mx.zeros((3, 4))
    ops.glu_linear(mx.zeros((1, 4)), w, w)
    before = len(choosing._plans)
    for M in range(40):
        ops.glu_linear(mx.zeros((M, 4)), w, w)
    assert len(choosing._plans) == before


def test_every_call_is_counted_and_asked_anew():
    with time_calls.calls("4-bit", "fused") as run:
        with record() as choices:
            run()
        case = choices[0].case
        before = counts()
        run()
        with use_impl("stock"):
            run()
        after = counts()
    assert after[case, "fused"] == before[case, "fused"] + 1
    assert after[case, "stock"] == before.get((case, "stock"), 0) + 1
