"""Orders of approximation as the theory has them, and blocks that have them."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from mlx_glu.science import approximation
from mlx_glu.science.approximation import EXPERIMENT, ORDERS, cells, measure
from mlx_glu.science.running import open_rows, run
from mlx_glu.science.splines import (
    SOLVED,
    STRIDE,
    features,
    hidden_units,
    knots,
    outputs,
    random_target,
    rms,
    solved,
    train,
)
from mlx_glu.training.ungated import feed_forward


def test_it_runs_from_end_to_end(tmp_path):
    file = open_rows(tmp_path / "rows.jsonl", "approximation", EXPERIMENT.quick)
    done = list(run("approximation", EXPERIMENT.quick, file))
    assert done[-1] == (len(file.rows), len(cells(EXPERIMENT.quick)) + 2)
    table = EXPERIMENT.summary(file.rows)
    assert [row[0] for row in table] == ["unit", *SOLVED]
    assert len({len(row) for row in table}) == 1
    figure = pytest.importorskip("matplotlib.figure").Figure()
    EXPERIMENT.draw(figure, file.rows)
    assert len(figure.axes) == 4


@pytest.fixture(scope="module")
def solutions():
    settings = EXPERIMENT.full
    solved = [cell for cell in cells(settings) if cell["phase"] == "exists"]
    return [{**cell, **measure(settings, cell)} for cell in solved]


@pytest.mark.parametrize("unit", ["relu", "relu2", "reglu"])
@pytest.mark.parametrize("target", ORDERS)
def test_orders_are_those_of_the_theory(solutions, target, unit):
    """Quadratics gain an order where the target has three derivatives, else nothing."""
    linear, quadratic = ORDERS[target]
    found = approximation.slope(solutions, target, unit)
    assert found == pytest.approx(linear if unit == "relu" else quadratic, abs=0.15)


def test_squares_without_a_gate_are_as_good(solutions):
    """What the order needs is x squared; ReLU squared has it for fewer parameters."""
    errors = {u: approximation.curve(solutions, "smooth", u)[1][-1] for u in SOLVED}
    assert errors["relu2"] < errors["reglu"] / 3 < errors["relu"] / 30


def test_a_product_without_a_hinge_buys_nothing(solutions):
    errors = approximation.curve(solutions, "smooth", "bilinear")[1]
    assert len(set(errors)) == 1
    assert 0.3 < errors[0] < 1


@pytest.mark.parametrize("unit", ["relu", "relu2", "reglu"])
def test_what_is_solved_is_a_block_of_the_package(unit):
    """Weights of the solution, put into the layer, give the solution."""
    N = hidden_units(unit, 60)
    y, basis = random_target("smooth", 3), features(unit, N)
    fit = np.linalg.lstsq(basis, y)[0]
    block = feed_forward(unit, 1, N, bias=True)
    assert sum(p.size for p in (*weights(block), *biases(block))) == 61
    switch = block.gate_proj if unit == "reglu" else block.up_proj
    switch.weight, switch.bias = mx.ones((N, 1)), mx.array(-knots(unit, N), mx.float32)
    down = fit[1:]
    if unit == "reglu":
        down, block.up_proj.bias = mx.ones(N), mx.array(fit[1 : N + 1], mx.float32)
        block.up_proj.weight = mx.array(fit[N + 1 :, None], mx.float32)
    block.down_proj.weight = mx.array(down, mx.float32)[None]
    block.down_proj.bias = mx.array(fit[:1], mx.float32)
    # Sums of float32 products that cancel: their size times eps.
    noise = 1e-6 * np.abs(basis * fit).sum(1)
    assert np.all(np.abs(outputs(block) - basis @ fit) < noise)


def weights(block):
    return [block[name].weight for name in block if name.endswith("_proj")]


def biases(block):
    return [block[name].bias for name in block if name.endswith("_proj")]


@pytest.mark.parametrize("unit", ["relu", "gelu", "reglu", "swiglu"])
def test_solving_can_only_help_on_the_points_of_training(unit):
    y = random_target("smooth", 0)
    N = hidden_units(unit, 60)
    block = train(unit, N, y, learning_rate=0.01, steps=100, seed=1)
    found, best = outputs(block), solved(block, y)
    errors = [rms((f - y)[::STRIDE]) for f in (np.zeros_like(y), found, best)]
    assert errors[0] > errors[1] > errors[2]
    again = train(unit, N, y, learning_rate=0.01, steps=100, seed=1)
    assert np.array_equal(outputs(again), found)


def test_a_bilinear_layer_learns_a_parabola():
    y, basis = random_target("smooth", 0), features("bilinear", 48)
    parabola = basis @ np.linalg.lstsq(basis, y)[0]
    block = train("bilinear", 48, y, learning_rate=0.03, steps=300, seed=0)
    assert rms(outputs(block) - y) == pytest.approx(rms(parabola - y), rel=0.01)


def test_the_rate_of_the_least_median_is_reported():
    def row(rate, seed, rmse):
        cell = {"phase": "tune", "unit": "relu", "learning_rate": rate, "seed": seed}
        return {**cell, "rmse": rmse}

    errors = {0.1: (1.0, 9.0, 2.0), 0.2: (3.0, 3.0, 3.0)}
    rows = [row(rate, *pair) for rate in errors for pair in enumerate(errors[rate])]
    settings = replace(EXPERIMENT.quick, units=("relu",), seeds=(5, 6))
    found = EXPERIMENT.then(settings, rows)
    assert [(c["learning_rate"], c["seed"]) for c in found] == [(0.1, 5), (0.1, 6)]
