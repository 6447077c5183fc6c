"""Eigenvalues and traces that are known; slices and rescaled weights of a model."""

import math

import mlx.core as mx
import numpy as np
import pytest
from conftest import PHI64

from mlx_glu.science import sharpness_report
from mlx_glu.science.char_model import CharModel, Shape
from mlx_glu.science.experiment import EXPERIMENTS
from mlx_glu.science.hessian import ends, hessian_product, trace
from mlx_glu.science.landscape import Landscape
from mlx_glu.science.running import open_rows, run
from mlx_glu.science.sharpness import EXPERIMENT, cells
from mlx_glu.training.ungated import ACTIVATIONS, feed_forward
from mlx_glu.variants import VARIANTS


def matrix(eigenvalues, seed=0):
    size = len(eigenvalues)
    basis, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))
    return basis @ np.diag(eigenvalues) @ basis.T


@pytest.mark.parametrize(
    "eigenvalues",
    [
        np.linspace(0, 1, 200) ** 8 * 50,
        np.linspace(-9, 5, 200),
        np.linspace(-9, -5, 200),
        [3.0, -4.0, 1.0],
        [2.0, 2.0, 2.0],
        [0.0, 0.0],
    ],
    ids=["outliers", "indefinite", "negative", "three", "equal", "zero"],
)
def test_the_ends_of_a_spectrum(eigenvalues):
    """The largest by its sign, also where the smallest is farther from 0."""
    a = matrix(eigenvalues)
    found = ends(lambda v: a @ v, len(a))
    assert found.largest == pytest.approx(max(eigenvalues), rel=2e-3, abs=1e-9)
    # Looked for less closely, and approached from inside.
    assert min(eigenvalues) - 1e-9 <= found.smallest <= min(eigenvalues) + 0.5
    assert found.residual < 0.01 or found.products == len(a)


def test_traces():
    a = matrix(np.linspace(-1, 9, 100))
    found, error = trace(lambda v: a @ v, 100, probes=200)
    assert abs(found - np.trace(a)) < 3 * error < 0.15 * np.trace(a)
    # Signs square to 1, so nothing is left to chance.
    assert trace(lambda v: np.arange(5) * v, 5) == (10, 0)


K, N, M = 3, 4, 6


def loss64(unit, weights, x, y):
    """A block's mean square error, in float64, from the definitions."""
    variant = None if unit in ACTIVATIONS else VARIANTS[unit]
    names = ["down_proj", "up_proj"] if variant is None else sorted(SHAPES)
    sizes = [math.prod(SHAPES[name]) for name in names]
    pieces = np.split(weights, np.cumsum(sizes)[:-1])
    w = {n: p.reshape(SHAPES[n]) for n, p in zip(names, pieces, strict=True)}
    up = x @ w["up_proj"].T
    if variant is None:
        h = PHI64[unit](up)
    else:
        gate = x @ w["gate_proj"].T
        h = PHI64[variant.phi](gate, **dict(variant.params)) * up
    return np.mean((h @ w["down_proj"].T - y) ** 2)


SHAPES = {"down_proj": (K, N), "gate_proj": (N, K), "up_proj": (N, K)}


def dense_hessian(f, at, step=1e-4):
    """Second central differences of a function of float64."""
    size = len(at)
    found = np.zeros((size, size))
    axes = step * np.eye(size)
    for i, a in enumerate(axes):
        for j, b in enumerate(axes[: i + 1]):
            corners = f(at + a + b) - f(at + a - b) - f(at - a + b) + f(at - a - b)
            found[i, j] = found[j, i] = corners / (4 * step**2)
    return found


@pytest.mark.parametrize("unit", ["relu", "gelu", "glu", "bilinear", "reglu", "swiglu"])
def test_the_hessian_of_a_block_is_that_of_float64(unit):
    """Against differences of the definition; they err by 1e-7 here, float32 by 1e-6."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(M, K)), rng.normal(size=(M, K))
    ffn = feed_forward(unit, K, N)
    names = sorted(name for name in SHAPES if name in ffn)
    point = [mx.array(rng.normal(size=SHAPES[name]), mx.float32) for name in names]
    inputs, wanted = mx.array(x, mx.float32), mx.array(y, mx.float32)

    def loss(weights):
        for name, weight in zip(names, weights, strict=True):
            ffn[name].weight = weight
        return mx.mean((ffn(inputs) - wanted) ** 2)

    flat = np.concatenate([np.array(a, np.float64).ravel() for a in point])
    x64, y64 = np.array(inputs, np.float64), np.array(wanted, np.float64)
    oracle = dense_hessian(lambda w: loss64(unit, w, x64, y64), flat)
    product = hessian_product(loss, point)
    found = np.stack([product(row) for row in np.eye(len(flat))])
    assert np.abs(found - oracle).max() < 1e-5 * np.abs(oracle).max()
    values = np.linalg.eigvalsh(oracle)
    assert ends(product, len(flat)).largest == pytest.approx(values[-1], rel=1e-3)
    total, error = trace(product, len(flat), probes=50)
    assert abs(total - np.trace(oracle)) < 4 * error


def landscape(unit, seed=0):
    model = CharModel(9, Shape(dims=12, layers=2, heads=2, context=8), unit, seed=seed)
    ids = np.random.default_rng(seed).integers(0, 9, (4, 9))
    return Landscape(model, mx.array(ids))


@pytest.mark.parametrize("unit", ["gelu", "swiglu"])
def test_the_hessian_of_a_model_is_a_difference_of_gradients(unit):
    """Through attention, norms and the loss; a step of 1e-2 leaves some percents."""
    land = landscape(unit)
    product = hessian_product(land, land.point)
    u, v = np.random.default_rng(0).normal(size=(2, land.size))
    Hu, Hv = product(u), product(v)
    assert v @ Hu == pytest.approx(u @ Hv, rel=1e-3)
    step = 1e-2 / np.linalg.norm(v)
    cuts = np.cumsum([w.size for w in land.point])[:-1]

    def gradient(sign):
        pieces = np.split(sign * step * v, cuts)
        moved = [
            w + mx.array(p.reshape(w.shape), mx.float32)
            for w, p in zip(land.point, pieces, strict=True)
        ]
        found = mx.grad(land)(moved)
        return np.concatenate([np.array(g, np.float64).ravel() for g in found])

    difference = (gradient(1) - gradient(-1)) / (2 * step)
    assert np.linalg.norm(Hv - difference) < 0.02 * np.linalg.norm(Hv)


@pytest.mark.parametrize("unit", ["relu", "glu", "bilinear", "swiglu", "silu"])
def test_rescaling_keeps_the_function_and_not_its_sharpness(unit):
    land = landscape(unit)
    one, four = (land.rescaled(scale) for scale in (1, 4))
    losses = [float(land(point)) for point in (one, four)]
    if unit == "silu":  # neither linear in its input nor homogeneous
        assert abs(losses[0] - losses[1]) > 1e-3
        return
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    sharp = [ends(hessian_product(land, p), land.size).largest for p in (one, four)]
    assert sharp[1] > 1.5 * sharp[0]


def test_directions_are_as_long_as_the_weights_row_by_row():
    land = landscape("swiglu")
    for name, weight, step in zip(
        land.names, land.point, land.direction(3), strict=True
    ):
        own, other = (np.linalg.norm(np.array(a), axis=-1) for a in (weight, step))
        if weight.ndim == 1:
            assert name.endswith("norm.weight")
            assert other == 0
        else:
            assert other == pytest.approx(own, rel=1e-5)


def test_a_slice_goes_through_the_point_along_both_directions():
    land = landscape("relu")
    steps = (-0.5, 0.0, 0.5)
    found = land.slice(steps)
    assert found[1][1] == pytest.approx(float(land(land.point)), rel=1e-6)
    one, two = land.direction(0), land.direction(1)
    corner = [
        w - 0.5 * a + 0.5 * b for w, a, b in zip(land.point, one, two, strict=True)
    ]
    assert found[0][2] == pytest.approx(float(land(corner)), rel=1e-6)


def test_it_runs_from_end_to_end(tmp_path):
    assert EXPERIMENTS["sharpness"].load() is EXPERIMENT
    settings = EXPERIMENT.prepare(EXPERIMENT.quick)
    file = open_rows(tmp_path / "rows.jsonl", "sharpness", settings)
    done = list(run("sharpness", settings, file))
    assert done[-1] == (len(file.rows), len(cells(settings)))
    heads, *table = EXPERIMENT.summary(file.rows)
    assert [row[0] for row in table] == ["relu", "swiglu"]
    assert {len(row) for row in table} == {len(heads)}
    figure = pytest.importorskip("matplotlib.figure").Figure()
    EXPERIMENT.draw(figure, file.rows)
    assert len(figure.axes) == 5


def test_a_run_that_diverged_is_no_pair_and_no_best_rate():
    def row(unit, rate, seed, largest):
        cell = {"phase": "curvature", "unit": unit, "learning_rate": rate, "seed": seed}
        loss = None if largest is None else largest / 10
        return {**cell, "largest": largest, "loss": loss, "trace": largest}

    rows = [row("relu", 0.1, seed, 8.0) for seed in (2, 1, 0)]
    rows += [row("glu", 0.1, 0, 4.0), row("glu", 0.1, 1, None), row("glu", 0.1, 2, 4.0)]
    rows += [row(unit, 0.2, 0, None) for unit in ("relu", "glu")]
    example = {"phase": "example", "unit": "relu", "learning_rate": 0.1, "seed": 0}
    heads, relu, glu = sharpness_report.summary([*rows, example])
    found = dict(zip(heads, glu, strict=True))
    assert found["rate 0.1"] == "4 (2 of 3)"
    assert found["rate 0.2"] == "diverged"
    assert found["best rate"] == relu[heads.index("best rate")]
    assert found["best rate"] == "0.1, the lowest"
    assert found["of ReLU"] == "0.50 (0.50 .. 0.50)"
