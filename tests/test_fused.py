"""Fused kernels inside the package: derivatives, layers, whole models, tracing."""

import mlx.core as mx
import numpy as np
import pytest
from conftest import assert_no_worse, f64
from random_arrays import normal, quantized
from sim_programs import needs_simulator
from tiny_checkpoint import FAMILIES, config_of, token_ids, write_checkpoint

from mlx_glu import (
    GatedMLP,
    jit,
    load_model,
    metal_source,
    ops,
    simulate,
    use_impl,
    warmup,
)
from mlx_glu.dispatch import record
from mlx_glu.experts import SwitchGLU
from mlx_glu.layers import RMSNorm
from mlx_glu.ops import Norm, down_linear, glu_linear, glu_mul
from mlx_glu.quantization import MODES
from mlx_glu.variants import VARIANTS

pytestmark = needs_simulator
POINTWISE = [v for v in VARIANTS.values() if v.pointwise]


def both(run):
    """The results of ``run`` fused, in the simulator, and stock; and the choices."""
    with simulate(), record() as choices:
        fused = run()
        mx.eval(fused)
    with use_impl("stock"):
        return fused, run(), choices


def assert_same(run, *, terms, fused=None):
    ours, stock, choices = both(run)
    for a, b in zip(ours, stock, strict=True):
        assert_no_worse(a, b, f64(b), terms=terms)
    used = [c.op for c in choices if c.impl == "fused"]
    assert used if fused is None else used == fused


@pytest.mark.parametrize("variant", POINTWISE, ids=lambda v: v.name)
def test_product_is_differentiable(variant):
    rng = np.random.default_rng(0)
    gate, up, d = (normal(rng, 3, 12) for _ in range(3))
    loss = lambda g, u: (glu_mul(g, u, variant) * d).sum()
    assert_same(lambda: mx.grad(loss, (0, 1))(gate, up), terms=2)
    packed = mx.concatenate([up, gate], axis=-1)
    how = {"order": "value_first", "layout": "concat"}
    loss = lambda p: (ops.glu_mul_packed(p, variant, **how) * d).sum()
    assert_same(lambda: [mx.grad(loss)(packed)], terms=2)


def test_product_transforms_as_stock():
    rng = np.random.default_rng(1)
    gate, up, d = (normal(rng, 4, 16) for _ in range(3))
    loss = lambda f: lambda g, u: (f(g, u) * d).sum()
    grads = lambda f: mx.grad(loss(f), (0, 1))
    assert_same(lambda: grads(mx.checkpoint(glu_mul))(gate, up), terms=16)
    second = mx.grad(lambda g: (mx.grad(loss(glu_mul))(g, up) ** 2).sum())
    assert_same(lambda: [second(gate)], terms=16)


@pytest.mark.parametrize("M", [1, 3])
def test_linear_is_differentiable(M):
    rng = np.random.default_rng(M)
    x, d = normal(rng, M, 64), normal(rng, M, 7)
    gate, up = (normal(rng, 7, 64, scale=0.1) for _ in range(2))
    biases = normal(rng, 7), normal(rng, 7)
    weight = 1 + normal(rng, 64, scale=0.1)

    def loss(x, gate, up, gate_bias, up_bias, weight):
        norm = Norm(weight, 1e-5, 1)
        kwargs = {"gate_bias": gate_bias, "up_bias": up_bias, "norm": norm}
        return (glu_linear(x, gate, up, "geglu_tanh", **kwargs) * d).sum()

    given = x, gate, up, *biases, weight
    grad = mx.grad(loss, tuple(range(6)))
    assert_same(lambda: grad(*given), terms=64, fused=["glu_linear"])


def test_packed_scales_and_x_have_gradients():
    """As in stock: of an affine weight all but the codes, of the others x alone."""
    rng = np.random.default_rng(2)
    x, d, r = normal(rng, 2, 64), normal(rng, 2, 7), normal(rng, 2, 7)
    affine = quantized(normal(rng, 7, 64, scale=0.1), group_size=32)
    mxfp4 = quantized(normal(rng, 7, 64, scale=0.1), 4, 32, "mxfp4")

    def loss(x, scales, biases, r):
        gate = affine._replace(scales=scales, biases=biases)
        return (glu_linear(x, gate, mxfp4) * down_linear(x, gate, residual=r) * d).sum()

    grad = mx.grad(loss, (0, 1, 2, 3))
    assert_same(lambda: grad(x, affine.scales, affine.biases, r), terms=64)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("M", [1, 2, 5])
def test_a_decode_ffn_is_two_dispatches(mode, M):
    from mlx_glu import metal_sim

    mx.random.seed(0)
    block, norm = GatedMLP(64, 96, bias=True), RMSNorm(64, 1e-5)
    block = block.to_quantized(32 if mode == "affine" else None, mode=mode)
    x = mx.random.normal((M, 64))
    with simulate(), metal_sim.record() as runs:
        y = block(x, norm=norm, residual=x)
    assert len(runs) == 2
    with use_impl("stock"):
        stock = block(x, norm=norm, residual=x)
        assert mx.array_equal(stock, x + block(norm(x)))
    assert_no_worse(y, stock, f64(stock), terms=96 * 64)


def test_many_rows_and_other_layers_run_stock_products():
    mx.random.seed(0)
    block, norm = GatedMLP(64, 96), RMSNorm(64, 1e-5)
    x = mx.random.normal((6, 64))
    assert_same(
        lambda: [block(x, norm=norm, residual=x)], terms=96 * 64, fused=["glu_mul"]
    )
    block.gate_proj = lambda x, inner=block.gate_proj: inner(x)
    adapted = lambda: [block(x[:1], norm=norm, residual=x[:1])]
    assert_same(adapted, terms=96 * 64, fused=["glu_mul", "down_linear"])


@pytest.mark.parametrize("family", FAMILIES)
def test_models_decode_through_kernels(family, tmp_path):
    """Stock prompt, then tokens of fused FFNs: the logits of stock all the way."""
    from mlx_glu import metal_sim

    model = load_model(write_checkpoint(tmp_path, config_of(family)))
    ids = mx.array(token_ids()[:1, :12])

    def logits():
        cache = model.make_cache()
        parts = [model(ids[:, :8], cache)]
        parts += [model(ids[:, i : i + 1], cache) for i in (8, 9)]
        return mx.concatenate([*parts, model(ids[:, 10:12], cache)], axis=1)

    with simulate(mode="fast"), metal_sim.record() as runs:
        fused = logits()
    stock = logits()
    assert mx.abs(fused - stock).max() <= 2e-5 * mx.abs(stock).max()
    names = [run.name for run in runs]
    dense, experts = (
        sum(isinstance(m, kind) for m in model.modules())
        for kind in (GatedMLP, SwitchGLU)
    )
    inputs = sum("per_layer_input_gate" in m for m in model.modules())
    # Prompt: the product alone. Then two kernels a layer and step; between experts,
    # and where a layer has an input of its own, the product in all of them.
    assert len(names) == dense * (1 + 3 * 2) + (experts + inputs) * 4
    blocks = (m for m in model.modules() if isinstance(m, GatedMLP))
    sizes = {block.down_proj.weight.shape for block in blocks}
    assert len(set(names)) <= 5 * (len(sizes) + (experts > 0))


def test_warmup_builds_what_generation_needs(tmp_path):
    model = load_model(write_checkpoint(tmp_path, config_of("llama")))
    assert warmup(model) == 0
    with simulate(mode="fast"):
        jit._build.cache_clear()
        assert warmup(model) == 5
        assert warmup(model) == 0
        built = jit.built()
        for L in (1, 3, 5, 9):
            mx.eval(model(mx.zeros((1, L), mx.int32)))
        assert jit.built() == built


def test_tracing_in_the_simulator_runs_stock():
    mx.random.seed(0)
    x, w = mx.random.normal((2, 64)), mx.random.normal((31, 64))
    f = lambda x: glu_linear(x, w, w)
    cases = [
        (mx.compile(f), x),
        (mx.vmap(lambda row: f(row[None])[0]), x),
        # A weight alone is traced: the step of a training loop.
        (mx.compile(mx.grad(lambda w: glu_linear(x, w, w).sum())), w),
        (mx.compile(lambda up: glu_mul(x, up)), x + 1),
    ]
    for transformed, given in cases:
        with simulate(), record() as choices:
            y = transformed(given)
        assert "the simulator needs values" in choices[0].why
        stock = transformed(given)
        assert_no_worse(y, stock, f64(stock), terms=64)


@pytest.mark.parametrize("M", [1, 2])
@pytest.mark.parametrize("K", [1, 3, 4, 7])
def test_less_than_eight_elements_of_x(K, M):
    """MLX would bind them as constant memory, so they are padded."""
    rng = np.random.default_rng(K)
    x, w = normal(rng, M, K), normal(rng, 31, K)
    assert_same(lambda: [glu_linear(x, w, w)], terms=K, fused=["glu_linear"])
    assert_same(lambda: [down_linear(x, w)], terms=K, fused=["down_linear"])


def test_scales_and_biases_of_two_dtypes():
    rng = np.random.default_rng(3)
    x, w = normal(rng, 2, 64), quantized(normal(rng, 7, 64, scale=0.1), group_size=32)
    mixed = w._replace(scales=w.scales.astype(mx.float16))
    assert_same(lambda: [glu_linear(x, mixed, w)], terms=64, fused=["glu_linear"])


def test_empty_and_scalar_results():
    x, w = mx.ones((2, 64)), mx.zeros((0, 64))
    with simulate(), record() as choices:
        assert glu_linear(x, w, w).shape == down_linear(x, w).shape == (2, 0)
        assert glu_mul(x[:0], x[:0]).shape == (0, 64)
        assert {c.impl for c in choices} == {"stock"}
        y = glu_mul(mx.array(1.0), mx.array(2.0))
        assert choices[-1].impl == "fused"
    assert y.shape == ()
    assert abs(y.item() - 2 / (1 + np.exp(-1))) < 1e-6


def test_arrays_that_start_anywhere_in_their_buffer():
    """Vector loads ask for no more alignment than one element has."""
    flat = mx.random.normal((132,)).astype(mx.float16)
    gate, up = flat[1:65].reshape(1, 64), flat[67:131].reshape(1, 64)
    assert_same(lambda: [glu_mul(gate, up)], terms=2)
    text = metal_source.read("load.h")
    assert "device metal::vec" not in text.split("write_floats")[0]


def on_metal(monkeypatch, build):
    """Run ``build(x)`` as on Metal, but without evaluating: MLX can trace there."""
    monkeypatch.setattr(jit, "backend", lambda x=None: "metal")
    found = []

    def trace(x):
        found.append(build(x))
        return x + 1

    with use_impl("fused"):
        mx.export_function(lambda _: None, trace, mx.ones((2, 64)))
    return found[0]


@pytest.mark.parametrize("transform", ["none", "compile", "grad", "both", "checkpoint"])
def test_real_kernels_build_their_graph(transform, monkeypatch):
    w = mx.random.normal((31, 64))
    f = lambda x: down_linear(glu_linear(x, w, w), w.T, residual=x)
    loss = lambda x: f(x).sum()
    build = {
        "none": f,
        "compile": mx.compile(f),
        "grad": mx.grad(loss),
        "both": mx.compile(mx.grad(loss)),
        "checkpoint": mx.grad(lambda x: mx.checkpoint(f)(x).sum()),
    }[transform]
    with record() as choices:
        assert on_metal(monkeypatch, build).shape == (2, 64)
    assert [c.impl for c in choices[:2]] == ["fused", "fused"]


@pytest.mark.parametrize("transform", ["vmap", "jvp"])
def test_what_mlx_cannot_do_with_a_real_kernel(transform, monkeypatch):
    """When this fails MLX has learnt it: give `fused` a rule, mend its docstring."""
    product = lambda x: glu_mul(x, x)
    run = {
        "vmap": mx.vmap(product),
        "jvp": lambda x: mx.jvp(product, [x], [x])[1][0],
    }[transform]
    with pytest.raises(ValueError, match=rf"{transform}\] Not implemented for Custom"):
        on_metal(monkeypatch, run)
    with use_impl("stock"):
        assert run(mx.ones((2, 64))).shape == (2, 64)


def test_without_metal_or_simulator_fused_is_refused():
    x = mx.ones((1, 64))
    with use_impl("fused"), pytest.raises(ValueError, match=r"needs an Apple GPU"):
        glu_mul(x, x)
