"""docs/gradients.md says what the code computes."""

import math
import re
from pathlib import Path
from statistics import NormalDist

import mlx.core as mx
import numpy as np
import pytest
from conftest import _erf, assert_no_worse, f64, sigmoid64

from mlx_glu import GatedMLP, ops
from mlx_glu.variants import VARIANTS

PAGE = (Path(__file__).parents[1] / "docs" / "gradients.md").read_text()
CODE = r"(?:`([^`]*)`)?"
ROWS = {
    name: (where, by_gate, by_up)
    for name, where, by_gate, by_up in re.findall(
        rf"^\| `(\w+)` \| {CODE} ?\| {CODE} \| {CODE} \|$", PAGE, re.M
    )
}
FUNCTIONS = {
    "sigmoid": sigmoid64,
    "erf": _erf,
    "quantile": NormalDist().inv_cdf,
    "mean": lambda a: a.mean(-1, keepdims=True),
    "std": lambda a: a.std(-1, keepdims=True),
    "pi": math.pi,
    "abs": np.abs,
} | {
    name: getattr(np, name)
    for name in ("clip", "exp", "maximum", "minimum", "sqrt", "tanh")
}


def evaluate(name, g, u, d):
    """Both gradients as the page has them."""
    where, *formulas = ROWS[name]
    names = FUNCTIONS | dict(VARIANTS[name].params) | {"g": g, "u": u, "d": d}
    for line in filter(None, where.split(";")):
        left, right = line.split("=", 1)
        names[left.strip()] = eval(right.strip(), {"__builtins__": {}}, names)
    return [eval(formula, {"__builtins__": {}}, names) for formula in formulas]


def test_every_variant_has_a_row():
    assert list(ROWS) == list(VARIANTS)


def inputs(seed=0):
    """Some units wide, with zeros and bounds of clamps among gates and values."""
    rng = np.random.default_rng(seed)
    g, u, d = rng.normal(size=(3, 40, 64)) * [[[4.0]], [[4.0]], [[1.0]]]
    special = np.array([0.0, 7.0, -7.0, 1.0])
    g[0, :16], u[0, :16] = np.repeat(special, 4), np.tile(special, 4)
    return [mx.array(a.astype(np.float32)) for a in (g, u, d)]


@pytest.mark.parametrize("name", VARIANTS)
def test_formulas_are_what_the_code_computes(name):
    gate, up, d = inputs()
    found = mx.vjp(lambda g, u: ops.glu_mul(g, u, name), [gate, up], [d])[1]
    terms = 2 if VARIANTS[name].pointwise else gate.shape[-1]
    for y, formula in zip(
        found, evaluate(name, f64(gate), f64(up), f64(d)), strict=True
    ):
        # The formula in stock's place leaves the floor of the rule alone.
        assert_no_worse(y, formula, formula, terms=terms)


def test_a_wrong_formula_is_found(monkeypatch):
    """The test of the test: a thousandth more, or another formula."""
    for name, (where, by_gate, by_up) in list(ROWS.items()):
        for wrong in ((where, f"{by_gate} * 1.001", by_up), (where, by_gate, "d")):
            monkeypatch.setitem(ROWS, name, wrong)
            with pytest.raises(AssertionError, match="worse than stock"):
                test_formulas_are_what_the_code_computes(name)
        monkeypatch.setitem(ROWS, name, (where, by_gate, by_up))


def test_the_linear_path_is_where_the_page_says():
    sentence = re.search(r"free of `u`.*?ones\.", PAGE, re.S)[0]
    bent = {*re.findall(r"`(\w+)`", sentence)} - {"u"}
    assert "the two clamped ones" in sentence
    bent |= {name for name in VARIANTS if "clamp" in name}
    g, u, d = map(f64, inputs())
    for name in VARIANTS:
        is_free = np.array_equal(*(evaluate(name, g, v, d)[1] for v in (u, u + 1)))
        assert is_free is (name not in bent), name


def test_gradients_at_bounds_are_zero():
    bound = mx.array([7.0, -7.0, 0.0])
    slope = lambda f: mx.grad(lambda a: f(a).sum())(bound).tolist()
    assert slope(lambda a: mx.minimum(a, 7.0)) == [0, 1, 1]
    assert slope(lambda a: mx.clip(a, -7.0, 7.0)) == [0, 0, 1]
    assert slope(lambda a: mx.maximum(a, 0.0)) == [1, 0, 0]
    one = mx.ones(3)
    by_up = lambda name: slope(lambda u: ops.glu_mul(one, u, name))
    assert by_up("swiglu_clamped")[:2] == by_up("swiglu_clamp_post")[:2] == [0, 0]
    assert slope(lambda g: ops.glu_mul(g, one, "swiglu_clamped"))[0] == 0
    assert slope(lambda g: ops.glu_mul(g, one, "reglu"))[2] == 0


DEGREES = {"bilinear": 2, "reglu": 2, "drelu": 2, "relu2_glu": 3}


@pytest.mark.parametrize("name", DEGREES)
def test_degrees(name):
    """By a power of two nothing is rounded."""
    gate, up, _ = inputs()
    scaled = ops.glu_mul(4 * gate, 4 * up, name)
    assert mx.array_equal(scaled, 4 ** DEGREES[name] * ops.glu_mul(gate, up, name))


@pytest.mark.parametrize(
    "name", [n for n, v in VARIANTS.items() if v.psi == "identity"]
)
def test_rows_of_up_and_columns_of_down_trade_a_factor(name):
    mx.random.seed(0)
    mlp, x = GatedMLP(16, 24, variant=name), mx.random.normal((3, 16))
    factors = 2.0 ** mx.random.randint(-3, 4, (24,))
    grad = lambda: mx.grad(lambda p: (mlp.update(p)(x) ** 2).sum())(mlp.parameters())
    y, before = mlp(x), grad()
    mlp.up_proj.weight = mlp.up_proj.weight * factors[:, None]
    mlp.down_proj.weight = mlp.down_proj.weight / factors
    assert mx.array_equal(mlp(x), y)
    after = grad()
    rows, columns = (p["weight"] for p in (after["up_proj"], after["down_proj"]))
    assert mx.array_equal(rows * factors[:, None], before["up_proj"]["weight"])
    assert mx.array_equal(columns / factors, before["down_proj"]["weight"])
