"""Functions of one number, and the feed-forward blocks that come near them."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np

from ..layers import GatedMLP
from ..ops import glu_mul
from ..training.ungated import ACTIVATIONS, MLP, feed_forward

#: Points at which functions are known and errors are taken.
GRID = np.linspace(-1, 1, 2049)

#: Every so manieth of them is trained on.
STRIDE = 8

#: Random targets.
TARGETS = ("smooth", "kink", "rough")

#: Units whose best weights at given knots are a linear problem.
SOLVED = ("relu", "relu2", "bilinear", "reglu")


def random_target(kind: str, seed: int) -> np.ndarray:
    """A random function on the grid, of mean 0 and deviation 1.

    Args:
        kind: "smooth", three random waves; "kink", an absolute value; "rough", a
            Brownian path.
        seed: of the function.
    """
    rng = np.random.default_rng([seed, TARGETS.index(kind)])
    if kind == "smooth":
        phases = np.pi * np.outer(GRID, range(1, 4)) + rng.uniform(0, 2 * np.pi, 3)
        y = np.sin(phases) @ rng.normal(size=3)
    elif kind == "kink":
        y = np.abs(GRID - rng.uniform(-0.5, 0.5))
    else:
        y = np.cumsum(rng.normal(size=GRID.size))
    return np.asarray((y - y.mean()) / y.std())


def rms(errors: np.ndarray) -> np.ndarray:
    """Root mean square over the grid, the first axis."""
    return np.asarray(np.sqrt(np.mean(errors**2, axis=0)))


def hidden_units(unit: str, parameters: int) -> int:
    """N of a block from one number to one with ``parameters`` and an output bias."""
    return parameters // (3 if unit in ACTIVATIONS else 5)


def knots(unit: str, N: int) -> np.ndarray:
    """Where N units with evenly spread knots switch on, [N]."""
    # ReLU squared needs two units outside to be any parabola before the first knot.
    outside = 1 if unit == "relu2" else 0
    return -1 + 2 * np.arange(-outside, N - outside) / (N - outside)


def features(unit: str, N: int) -> np.ndarray:
    """What a block with uniform knots adds up.

    Args:
        unit: of `SOLVED`.
        N: its hidden units, one at each knot.

    Returns:
        [2049, F] values on the grid: a constant and for each unit one column, or for
        "reglu" a second one, as its value is any linear function. Products of linear
        functions alone have no knots: "bilinear" is a parabola, whatever N is.
    """
    if unit == "bilinear":
        return np.vander(GRID, 3)
    hinges = np.maximum(GRID[:, None] - knots(unit, N), 0)
    columns = [np.ones((GRID.size, 1)), hinges**2 if unit == "relu2" else hinges]
    columns += [GRID[:, None] * hinges] if unit == "reglu" else []
    return np.hstack(columns)


def train(
    unit: str, N: int, y: np.ndarray, *, learning_rate: float, steps: int, seed: int
) -> GatedMLP | MLP:
    """A block with biases, trained on every 8th point of ``y`` [2049] at once.

    By Adam, whose rate falls to 0 along a cosine, from MLX's own initialisation.
    """
    mx.random.seed(seed)
    block = feed_forward(unit, 1, N, bias=True)
    x, wanted = _column(GRID[::STRIDE]), _column(y[::STRIDE])
    gradient = nn.value_and_grad(block, lambda: mx.mean((block(x) - wanted) ** 2))
    rate = optim.cosine_decay(learning_rate, steps)
    optimizer = optim.Adam(rate, bias_correction=True)
    for _ in range(steps):
        _, found = gradient()
        optimizer.update(block, found)
        mx.eval(block.parameters(), optimizer.state)
    return block


def outputs(block: GatedMLP | MLP) -> np.ndarray:
    """Of a block, on the grid, [2049]."""
    return np.array(block(_column(GRID)), np.float64)[:, 0]


def solved(block: GatedMLP | MLP, y: np.ndarray) -> np.ndarray:
    """Outputs of a block whose last layer, and value, are solved for ``y`` [2049].

    What it switches by stays as it was trained: weights and biases of the gate, or of
    the only projection.
    """
    x = _column(GRID)
    if isinstance(block, MLP):
        columns = [np.array(block.act_fn(block.up_proj(x)), np.float64)]
    else:
        gate = block.gate_proj(x)
        phi = np.array(glu_mul(gate, mx.ones_like(gate), block.variant), np.float64)
        columns = [phi, GRID[:, None] * phi]
    basis = np.hstack([np.ones((GRID.size, 1)), *columns])
    # Columns are exact to 1e-7: what they differ by less is noise.
    fit = np.linalg.lstsq(basis[::STRIDE], y[::STRIDE], rcond=1e-6)[0]
    return np.asarray(basis @ fit)


def _column(values: np.ndarray) -> mx.array:
    return mx.array(values[:, None], mx.float32)
