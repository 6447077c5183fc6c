"""Gradient flow and dead units: what they measure is checked, not only run."""

import math
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from conftest import PHI64, PSI64, derivative64
from mlx.optimizers import SGD

from mlx_glu import VARIANTS
from mlx_glu.science import dead_units, figures, gradient_flow
from mlx_glu.science.dead_units import Network, closed_units, count_dead
from mlx_glu.science.experiment import find
from mlx_glu.science.fitting import Task, error, sinusoids, teacher, train
from mlx_glu.science.local_gain import local_gain
from mlx_glu.science.running import open_rows, run
from mlx_glu.science.stacks import REGIMES, Stack, profile

SCALES = (0.25, 1, 2, 4, 8, 16)
EXACT = {
    "sigmoid": (0.2463, 0.2117, 0.1704, 0.1265, 0.09071, 0.06438),
    "tanh": (0.9469, 0.6815, 0.5059, 0.3629, 0.2575, 0.1823),
    "gtu": (0.4805, 0.3923, 0.3281, 0.2583, 0.1933, 0.1405),
    "glu": (0.5075, 0.5816, 0.6817, 0.8153, 0.9889, 1.2395),
    "swiglu": (0.1813, 0.8575, 1.9036, 3.9796, 8.0228, 16.0375),
    "relu": (math.sqrt(0.5),) * 6,
    "reglu": SCALES,
    "bilinear": [scale * math.sqrt(2) for scale in SCALES],
}


@pytest.mark.parametrize("unit", EXACT)
def test_local_gain_has_its_known_values(unit):
    """To the digits that are written, of a float64 sum over 8e6 nodes."""
    for scale, expected in zip(SCALES, EXACT[unit], strict=True):
        assert abs(local_gain(unit, scale) - expected) < 6e-5


@pytest.mark.parametrize("unit", ["geglu", "geglu_tanh", "swiglu", "gtu", "glu"])
def test_local_gain_is_that_of_the_definition(unit):
    """Another rule on other nodes, differences for derivatives; float32 has 1e-7."""
    variant = VARIANTS[unit]
    params = dict(variant.params)
    nodes = np.linspace(-9, 9, 20_001)
    density = np.exp(-(nodes**2) / 2)
    mean_square = lambda values: np.sum(values**2 * density) / density.sum()
    for scale in (0.3, 3.0):
        square = 0.0
        parts = [lambda z: PHI64[variant.phi](z, **params)]
        parts.append(lambda z: PSI64[variant.psi](z, **params))
        for f, other in (parts, parts[::-1]):
            slope = derivative64(f, scale * nodes)
            square += mean_square(slope) * mean_square(other(scale * nodes))
        assert local_gain(unit, scale) == pytest.approx(math.sqrt(square), rel=1e-6)


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("unit", ["tanh", "glu"])
def test_profile_is_the_gradient_of_the_error(unit, regime):
    """By every layer's input at once, as one backward pass has it."""
    mx.random.seed(0)
    task = teacher(16, 24, 3)
    stack = Stack(unit, REGIMES[regime], 24, 6, 3)

    def from_layer(k, h):
        for layer in stack.layers[k:]:
            h = layer(h)
        return error(stack.head, h, task.y)

    h, norms = task.x, []
    for k in range(7):
        gradient = mx.grad(from_layer, argnums=1)(k, h)
        norms.append(np.linalg.norm(np.array(gradient, np.float64)))
        h = stack.layers[k](h) if k < 6 else h
    expected = np.log10(np.array(norms) / norms[-1])
    # Sums of 384 squares in float32.
    assert np.abs(profile(stack, task).gradient - expected).max() < 1e-5


def test_profile_does_not_underflow():
    """200 layers that each take two thirds of a decade: float32 ends at 45 of 133."""
    mx.random.seed(0)
    task = teacher(16, 24, 3)
    logs = profile(Stack("sigmoid", REGIMES["plain"], 24, 200, 3), task).gradient
    assert -150 < logs[0] < -100


@pytest.mark.parametrize(("factor", "fate"), [(0.01, "dies"), (10.0, "explodes")])
def test_products_die_or_explode_in_plain_stacks(factor, fate):
    mx.random.seed(0)
    task = teacher(16, 24, 3)
    stack = Stack("bilinear", REGIMES["plain"], 24, 30, 3)
    stack.layers[0].up_proj *= factor
    found = profile(stack, task)
    assert gradient_flow._fate(found.forward) == fate
    assert math.isnan(found.gradient[0])


@pytest.mark.parametrize("unit", ["relu", "glu", "swiglu"])
def test_matched_layers_keep_the_variance(unit):
    """Of independent unit normals; heavy tails need the tenth that is allowed."""
    mx.random.seed(0)
    layer = Stack(unit, REGIMES["matched"], 256, 1, 1).layers[0]
    h = np.array(layer(mx.random.normal((1024, 256))), np.float64)
    assert np.mean(h**2) == pytest.approx(1, rel=0.1)


def test_training_lowers_the_error_or_says_that_it_diverged():
    mx.random.seed(0)
    task = teacher(64, 16, 2)
    assert float(mx.abs(mx.mean(task.y))) < 1e-6
    stack = Stack("tanh", REGIMES["residual"], 16, 2, 2)
    before = error(stack, *task).item()
    how = {"steps": 100, "batch": 16, "seed": 0}
    assert train(stack, task, SGD(0.05), **how) < 0.5 * before
    assert math.isnan(train(stack, task, SGD(1e6), **how))


def network(unit, *, norm=False):
    mx.random.seed(0)
    settings = replace(dead_units.EXPERIMENT.quick, blocks=3, dims=24)
    return Network(settings, unit, norm=norm), sinusoids(256, settings.dims)


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])
@pytest.mark.parametrize(
    ("unit", "closed"), [("relu", 1), ("reglu", 1), ("silu", 0), ("swiglu", 0)]
)
def test_a_unit_that_never_opens_is_dead(unit, closed, norm):
    """SiLU of -1000 and its slope are not 0, but they are in float32."""
    net, task = network(unit, norm=norm)
    assert count_dead(net, task).dead == 0
    block = net.blocks[-1]
    first = block.gate_proj if "gate_proj" in block else block.up_proj
    first.bias[2] = -1000.0
    count = count_dead(net, task)
    assert (count.dead, count.closed) == (1, closed)
    assert count.units == 3 * (24 if unit in ("relu", "silu") else 16)


def test_a_unit_that_opens_once_is_not_dead():
    net, task = network("relu")
    layer = net.blocks[0].up_proj
    z = np.array(layer(task.x))[:, 5]
    layer.bias[5] = layer.bias[5] - float(np.sort(z)[-2:].mean())
    assert np.sum(np.array(layer(task.x))[:, 5] > 0) == 1
    assert count_dead(net, task).dead == 0


def test_units_before_a_closed_block_are_dead_and_closed():
    net, task = network("relu")
    net.blocks[1].up_proj.bias = mx.full((24,), -1000.0)
    net.blocks[2].up_proj.bias = mx.full((24,), 1.0)
    count = count_dead(net, task)
    assert (count.dead, count.closed) == (48, 48)
    assert [found.sum() for found in closed_units(net, task.x)] == [24, 24, 0]


def test_a_gate_without_a_reader_is_not_closed():
    """Bilinear has no region without a gradient: a zero value is where it is read."""
    net, task = network("bilinear")
    net.blocks[0].down_proj.weight[:, 3] = 0
    assert (count_dead(net, task).dead, count_dead(net, task).closed) == (1, 0)


def test_overflow_is_not_death():
    net, task = network("swiglu")
    net.blocks[0].up_proj.weight *= 1e30
    assert count_dead(net, Task(task.x, task.y)) is None


@pytest.fixture(scope="module", params=["gradient-flow", "dead-units"])
def finished(request, tmp_path_factory):
    """The quick run of an experiment: its name, itself and its rows."""
    name = request.param
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    return name, find(name).load(), finish(path, name)


def finish(path, name):
    settings = find(name).load().quick
    file = open_rows(path, name, settings)
    *_, (done, total) = run(name, settings, file)
    assert done == total == len(file.rows)
    return file


def without_times(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def test_rows_do_not_depend_on_what_was_measured_before(finished, tmp_path):
    name, _, file = finished
    lines = file.path.read_text().splitlines(keepends=True)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join([lines[0], *lines[:2:-2]]))
    assert without_times(finish(path, name).rows) == without_times(file.rows)


def test_figure_and_table_show_every_unit(finished, tmp_path):
    pytest.importorskip("matplotlib")
    name, experiment, file = finished
    light, dark = figures.save(experiment, file.rows, tmp_path / name)
    units = {row["unit"] for row in file.rows}
    assert all(f"<!-- {figures.label(unit)} -->" in light.read_text() for unit in units)
    assert light.read_text() != dark.read_text()
    head, *table = experiment.summary(file.rows)
    assert {len(line) for line in table} == {len(head)}
    assert {line[0] for line in table} == units


def test_stacks_that_diverge_are_named_and_drawn(tmp_path):
    experiment = gradient_flow.EXPERIMENT
    file = finish(tmp_path / "rows.jsonl", "gradient-flow")
    lost = {"errors": [None], "error": None, "after": None}
    rows = [row | (lost if row.get("regime") == "norm" else {}) for row in file.rows]
    cells = [cell for line in experiment.summary(rows) for cell in line]
    assert sum("then diverges" in cell for cell in cells) == 3
    figure = pytest.importorskip("matplotlib.figure")
    experiment.draw(figure.Figure(), rows)


def test_full_measures_every_unit_at_equal_parameters():
    """Three matrices at two thirds of the width."""
    settings = dead_units.EXPERIMENT.full
    sizes = set()
    for unit in settings.units:
        block = Network(settings, unit, norm=False).blocks[0]
        names = [n for n in ("gate_proj", "up_proj", "down_proj") if n in block]
        sizes.add(sum(block[name].weight.size for name in names))
    assert sizes == {2 * settings.dims * settings.hidden_dims}
