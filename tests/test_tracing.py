"""Shapeless compilation is seen, and survived by every operation."""

import mlx.core as mx
import pytest

from mlx_glu import VARIANTS, GatedMLP, dispatch, jit, ops, simulate
from mlx_glu.tracing import is_shapeless


def seen(wrap):
    found = []

    def f(x):
        found.append(is_shapeless())
        return (x * 2).sum()

    wrap(f)(mx.ones(3))
    return found[0]


@pytest.mark.parametrize(
    ("wrap", "expected"),
    [
        (lambda f: f, False),
        (mx.compile, False),
        (mx.grad, False),
        (mx.vmap, False),
        (lambda f: mx.grad(mx.checkpoint(f)), False),
        (lambda f: mx.compile(f, shapeless=True), True),
        (lambda f: mx.compile(lambda x: mx.grad(f)(x), shapeless=True), True),
        (lambda f: mx.compile(lambda x: mx.compile(f)(x), shapeless=True), True),
        # The outermost trace is the one that is replayed.
        (lambda f: mx.compile(lambda x: mx.compile(f, shapeless=True)(x)), False),
    ],
)
def test_is_shapeless(wrap, expected):
    assert seen(wrap) is expected
    assert not is_shapeless()


@pytest.mark.parametrize("name", VARIANTS)
def test_a_block_compiles_shapeless(name):
    mlp = GatedMLP(64, 128, variant=name, bias=True)
    mx.eval(mlp.parameters())
    compiled = mx.compile(lambda x: mlp(x, residual=x), shapeless=True)
    for rows in (1, 7, 3, 40):
        x = mx.random.normal((rows, 64))  # MLX 0.32.0 replays [B, L, K] wrongly
        assert mx.allclose(compiled(x), mlp(x, residual=x), rtol=1e-5, atol=1e-6)


def test_no_kernel_is_launched_without_shapes(monkeypatch):
    """As on a GPU: whatever asks for a kernel gets stock, and is told why."""
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    places = []

    def f(x):
        places.append(jit.backend(x))
        return x + 1

    mx.compile(f, shapeless=True)(mx.ones(3))
    mx.compile(f)(mx.ones(3))
    assert places == ["shapeless", "metal"]


def test_the_simulator_says_why_it_runs_stock():
    f = mx.compile(lambda g: ops.glu_mul(g, g), shapeless=True)
    with simulate(), dispatch.record() as choices:
        assert f(mx.ones((1, 8))).shape == (1, 8)
    assert [c.impl for c in choices] == ["stock"]
    assert "mx.compile" in choices[0].why
    assert f(mx.ones((5, 8))).shape == (5, 8)
