"""The table, and every formula of it against float64."""

import re

import mlx.core as mx
import numpy as np
import pytest
from conftest import (
    PHI64,
    PSI64,
    _erf,
    assert_no_worse,
    derivative64,
    f64,
    oracle_mul,
    sigmoid64,
)

from mlx_glu import reference
from mlx_glu.variants import VARIANTS, Variant, get, resolve

ALL = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
POINTWISE = [v for v in VARIANTS.values() if v.pointwise]
DTYPES = pytest.mark.parametrize(
    "dtype", [mx.float32, mx.float16, mx.bfloat16], ids=["fp32", "fp16", "bf16"]
)


def pair(dtype, shape=(8, 515), scale=3.0, seed=0):
    """Gate and up clear of the corners of every variant, in fp32 and fp16."""
    rng = np.random.default_rng(seed)
    arrays = (np.floor(rng.normal(size=shape) * scale * 64) + 0.5 for _ in range(2))
    return [mx.array((a / 64).astype(np.float32)).astype(dtype) for a in arrays]


def eager(gate, up, variant):
    """The variant as MLX code writes it: each operation in the input dtype."""
    params = dict(variant.params)
    phi, psi = reference.PHI[variant.phi][0], reference.PSI[variant.psi][0]
    return phi(gate, params) * psi(up, params)


def test_tables_name_the_same_functions():
    assert list(VARIANTS) == [v.name for v in VARIANTS.values()]
    assert {v.phi for v in VARIANTS.values()} == set(reference.PHI) == set(PHI64)
    assert {v.psi for v in VARIANTS.values()} == set(reference.PSI) == set(PSI64)
    assert [v.name for v in VARIANTS.values() if not v.pointwise] == ["gelu_topk"]


def test_each_hidden_act_means_one_variant():
    acts = [(act, v) for v in VARIANTS.values() for act in v.hf_acts]
    assert len({act for act, _ in acts}) == len(acts)
    assert all(resolve(act) is v for act, v in acts)
    expected = {"silu": "swiglu", "swish": "swiglu", "gelu": "geglu"}
    expected |= {"gelu_pytorch_tanh": "geglu_tanh", "gelu_fast": "geglu_tanh"}
    expected |= {"quick_gelu": "quick_geglu", "relu2": "relu2_glu"}
    assert {act: resolve(act).name for act in expected} == expected
    with pytest.raises(ValueError, match=r"silu.*but got 'mish'"):
        resolve("mish")


def test_get_and_with_params():
    assert get("swiglu") is VARIANTS["swiglu"] is get(VARIANTS["swiglu"])
    special = get("swiglu_clamped", limit=10, alpha=1, offset=0)
    assert special.params == (("alpha", 1.0), ("limit", 10.0), ("offset", 0.0))
    assert hash(special) != hash(get("swiglu_clamped"))
    assert get("swiglu", beta=1.702).msl == get("quick_geglu").msl


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: get("SwiGLU"), r"glu, bilinear.*but got 'SwiGLU'"),
        (lambda: get("reglu", beta=1.0), r"parameters \[\] but got 'beta'"),
        (lambda: get("swiglu", beta=float("inf")), "finite beta but got inf"),
        (lambda: get("swiglu_clamped", limit=0), "limit = 0"),
        (lambda: get("gelu_topk", sparsity=0.0), "sparsity = 0.0.*geglu_tanh"),
        (lambda: get("gelu_topk").msl, "gelu_topk is not"),
    ],
)
def test_wrong_names_and_parameters_are_refused(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert str(error.value).startswith("[variants] ")


@DTYPES
@ALL
def test_value_is_no_worse_than_eager(variant, dtype):
    gate, up = pair(dtype)
    y = reference.glu_mul(gate, up, variant)
    assert y.dtype == dtype
    # The cutoff of gelu_topk is a sum over the row.
    terms = 0 if variant.pointwise else gate.shape[-1]
    oracle = oracle_mul(f64(gate), f64(up), variant)
    assert_no_worse(y, eager(gate, up, variant), oracle, terms=terms)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("variant", POINTWISE, ids=lambda v: v.name)
def test_derivatives_match_finite_differences_and_autograd(variant, dtype):
    gate, up = pair(dtype)
    g, u = f64(gate), f64(up)
    d = pair(dtype, seed=1)[0]
    ours = reference.glu_mul_vjp(gate, up, d, variant)
    _, stock = mx.vjp(lambda g, u: eager(g, u, variant), [gate, up], [d])
    by_gate = f64(d) * derivative64(lambda a: oracle_mul(a, u, variant), g)
    by_up = f64(d) * derivative64(lambda a: oracle_mul(g, a, variant), u)
    for y, base, oracle in zip(ours, stock, (by_gate, by_up), strict=True):
        assert y.dtype == dtype
        assert_no_worse(y, base, oracle, terms=2)


def test_gelu_topk_gradient_matches_finite_differences():
    variant = get("gelu_topk", sparsity=0.8)
    gate, up = pair(mx.float32, (3, 40))
    g, u, d = f64(gate), f64(up), f64(pair(mx.float32, (3, 40), seed=1)[0])
    oracle = np.zeros_like(g)
    for i in np.ndindex(g.shape):
        step = np.zeros_like(g)
        step[i] = 1
        loss = lambda t, step=step: (oracle_mul(g + t * step, u, variant) * d).sum()
        oracle[i] = derivative64(loss, 0.0)
    d32 = mx.array(d.astype(np.float32))
    ours = reference.glu_mul_vjp(gate, up, d32, variant)
    _, stock = mx.vjp(lambda g, u: eager(g, u, variant), [gate, up], [d32])
    assert_no_worse(ours[0], stock[0], oracle, terms=g.shape[-1])
    by_up = d * oracle_mul(g, np.ones_like(u), variant)
    assert_no_worse(ours[1], stock[1], by_up, terms=g.shape[-1])


def test_gelu_topk_of_a_constant_row_is_finite():
    gate, up = mx.ones((2, 8)), mx.ones((2, 8))
    variant = get("gelu_topk")
    ours = reference.glu_mul_vjp(gate, up, mx.ones((2, 8)), variant)
    assert f64(reference.glu_mul(gate, up, variant)).any() == 0
    assert all(f64(a).any() == 0 for a in ours)


@pytest.mark.parametrize("name", ["swiglu_clamped", "swiglu_clamp_post"])
def test_gradient_is_zero_exactly_at_a_clamp(name):
    variant = get(name, limit=2.0)
    inside = float(np.nextafter(np.float32(2), np.float32(0)))
    up = mx.array([2.0, -2.0, inside, -inside], mx.float32)
    by_up = reference.glu_mul_vjp(mx.ones(4), up, mx.ones(4), variant)[1]
    assert f64(by_up).astype(bool).tolist() == [False, False, True, True]
    if name == "swiglu_clamped":
        gate = mx.array([2.0, inside, -2.0, 3.0])
        wanted = [False, True, True, False]
    else:
        # silu(gate) against 2: a limit that silu takes exactly at gate = 2.
        gate = mx.array([2.0, 1.5, -2.0, 3.0])
        limit = float(reference.glu_mul(gate, mx.ones(4), get("swiglu"))[0].item())
        variant = get(name, limit=limit)
        wanted = [False, True, True, False]
    by_gate, _ = reference.glu_mul_vjp(gate, mx.ones(4), mx.ones(4), variant)
    assert f64(by_gate).astype(bool).tolist() == wanted
    fn = lambda g, u: eager(g, u, variant)
    _, stock = mx.vjp(fn, [gate, mx.ones(4)], [mx.ones(4)])
    assert f64(stock[0]).astype(bool).tolist() == wanted


@pytest.mark.parametrize("name", ["reglu", "relu2_glu", "drelu"])
def test_gradient_is_zero_at_the_corner_of_a_relu(name):
    zero, one = mx.zeros(1), mx.ones(1)
    assert reference.glu_mul_vjp(zero, one, one, get(name))[0].item() == 0


@DTYPES
@ALL
def test_large_gates_stay_finite(variant, dtype):
    big = np.array([[1e4, -1e4, 6e4, -6e4, 100, -100, 30, -30]], np.float32)
    gate, up = mx.array(big).astype(dtype), mx.full(big.shape, 0.5).astype(dtype)
    values = reference.glu_mul(gate, up, variant)
    grads = reference.glu_mul_vjp(gate, up, mx.ones_like(up), variant)
    for a in (values, *grads):
        # relu2 of 6e4 is past the range of float16: infinite, never NaN.
        assert not np.isnan(f64(a)).any()
        assert dtype == mx.float16 or np.isfinite(f64(a)).all()


@pytest.mark.parametrize("variant", POINTWISE, ids=lambda v: v.name)
def test_gates_near_the_end_of_float32_give_no_nan(variant):
    gate, up = mx.array([1e30, -1e30, 1e20, -1e20]), mx.full(4, 0.5)
    values = reference.glu_mul(gate, up, variant)
    for a in (values, *reference.glu_mul_vjp(gate, up, mx.ones(4), variant)):
        assert not np.isnan(f64(a)).any()


def test_fp16_overflow_is_infinite_where_the_oracle_is():
    gate = mx.array([255.0, 256.0, 257.0, 400.0], mx.float16)
    up = mx.array([255.0, 255.0, -257.0, 400.0], mx.float16)
    y = reference.glu_mul(gate, up, get("swiglu"))
    assert_no_worse(y, y, oracle_mul(f64(gate), f64(up), get("swiglu")))
    assert np.isinf(f64(y)).tolist() == [False, False, True, True]
    # phi alone overflows, the product does not: one rounding keeps it.
    tiny = mx.full(4, 2.0**-10).astype(mx.float16)
    kept = reference.glu_mul(gate, tiny, get("relu2_glu"))
    assert np.isfinite(f64(kept)).all()
    assert np.isinf(f64(eager(gate, tiny, get("relu2_glu")))).any()


def test_identities():
    gate, up = pair(mx.float32)
    mul = lambda g, u, v: f64(reference.glu_mul(g, u, v))
    assert np.array_equal(mul(gate, gate, get("reglu")), np.maximum(f64(gate), 0) ** 2)
    swapped = mul(up, gate, get("bilinear"))
    assert np.array_equal(mul(gate, up, get("bilinear")), swapped)
    halves = mul(gate, up, get("swiglu", beta=0.0))
    assert np.array_equal(halves, mul(gate, up, get("bilinear")) / 2)
    steep = mul(gate, up, get("swiglu", beta=1e6))
    assert np.array_equal(steep, mul(gate, up, get("reglu")))
    same = mul(gate, up, get("swiglu", beta=1.702))
    assert np.array_equal(same, mul(gate, up, get("quick_geglu")))
    wide = get("swiglu_clamped", limit=1e6, alpha=1, offset=0)
    assert np.array_equal(mul(gate, up, wide), mul(gate, up, get("swiglu")))


def test_float64_runs_on_the_cpu():
    gate, up = (np.array(a).astype(np.float64) for a in pair(mx.float32, (2, 31)))
    with mx.stream(mx.cpu):
        for variant in VARIANTS.values():
            arrays = mx.array(gate, mx.float64), mx.array(up, mx.float64)
            y = reference.glu_mul(*arrays, variant)
            assert y.dtype == mx.float64
            stock = np.array(y).astype(np.float32)
            oracle = oracle_mul(gate, up, variant)
            assert_no_worse(stock, stock.copy() * np.nan, oracle, terms=31)


def strict_data(dtype, seed):
    """Data whose true output is never 0, as a missing element must show."""
    rng = np.random.default_rng(seed)
    arrays = (rng.uniform(0.5, 3, size=(8, 515)) for _ in range(2))
    return [mx.array(a.astype(np.float32)).astype(dtype) for a in arrays]


def mutants(gate, up, variant):
    """Wrong kernels: bf16 arithmetic inside, and the last element not written."""
    half = eager(gate.astype(mx.bfloat16), up.astype(mx.bfloat16), variant)
    unwritten = reference.glu_mul(gate, up, variant)
    unwritten[-1, -1] = 0
    return half, unwritten


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("variant", POINTWISE, ids=lambda v: v.name)
def test_the_rule_refuses_wrong_kernels(variant, dtype):
    gate, up = strict_data(dtype, 2)
    oracle = oracle_mul(f64(gate), f64(up), variant)
    stock = eager(gate, up, variant)
    assert_no_worse(reference.glu_mul(gate, up, variant), stock, oracle)
    for y in mutants(gate, up, variant):
        with pytest.raises(AssertionError, match="worse than stock"):
            assert_no_worse(y.astype(dtype), stock, oracle)


@pytest.mark.parametrize(
    "variant", [v for v in POINTWISE if v.phi != v.psi], ids=lambda v: v.name
)
def test_the_rule_refuses_swapped_gate_and_up(variant):
    gate, up = pair(mx.float16)
    oracle = oracle_mul(f64(gate), f64(up), variant)
    y = reference.glu_mul(up, gate, variant)
    with pytest.raises(AssertionError, match="worse than stock"):
        assert_no_worse(y, eager(gate, up, variant), oracle)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16], ids=["fp32", "fp16"])
def test_the_rule_refuses_the_tanh_form_for_erf(dtype):
    gate, up = pair(dtype)
    oracle = oracle_mul(f64(gate), f64(up), get("geglu"))
    y = reference.glu_mul(gate, up, get("geglu_tanh"))
    with pytest.raises(AssertionError, match="worse than stock"):
        assert_no_worse(y, eager(gate, up, get("geglu")), oracle)


def test_the_rule_refuses_nan_and_says_where():
    ones = np.ones((2, 5), np.float32)
    y = ones.copy()
    y[:, -1] = np.nan
    with pytest.raises(AssertionError, match=r"2 of 10 .*\(2 in the last column\)"):
        assert_no_worse(y, ones, ones)


def test_the_oracle_agrees_with_textbook_forms():
    g = np.linspace(-4, 4, 101)
    gelu = g * (1 + _erf(g / 2**0.5)) / 2
    assert np.abs(PHI64["gelu"](g) - gelu).max() < 1e-15
    assert np.abs(sigmoid64(g) - (1 + np.tanh(g / 2)) / 2).max() < 1e-15
    # The two GELUs differ by at most 4.8e-4.
    gap = np.abs(PHI64["gelu_tanh"](g) - gelu).max()
    assert 4e-4 < gap < 5e-4


def test_sources_are_cited():
    for variant in VARIANTS.values():
        assert isinstance(variant, Variant)
        assert re.search(r"20\d\d", variant.source), variant.name
