"""Small tasks of regression and the plain loop that trains on them."""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.optimizers import Optimizer


class Task(NamedTuple):
    """A training set.

    Attributes:
        x: [n, d] inputs ~ N(0, 1).
        y: [n, outputs], of mean 0 and variance 1: who predicts the mean has error 1.
    """

    x: mx.array
    y: mx.array


def teacher(n: int, dims: int, outputs: int, *, hidden_dims: int = 32) -> Task:
    """The outputs of a fixed tanh network; draws from the global state.

    Args:
        n: inputs.
        dims: d.
        outputs: of the network.
        hidden_dims: of its one layer, whose pre-activations have deviation 2.
    """
    x = mx.random.normal((n, dims))
    first = mx.random.normal((dims, hidden_dims), scale=2 * dims**-0.5)
    return _standard(x, mx.tanh(x @ first) @ mx.random.normal((hidden_dims, outputs)))


def sinusoids(n: int, dims: int, *, waves: int = 8) -> Task:
    """One output, a sum of waves along random directions; from the global state.

    Args:
        n: inputs.
        dims: d.
        waves: that are added; arguments have deviation 1.5.
    """
    x = mx.random.normal((n, dims))
    directions = mx.random.normal((dims, waves), scale=1.5 * dims**-0.5)
    phases = 2 * math.pi * mx.random.uniform(shape=(waves,))
    return _standard(x, mx.sum(mx.sin(x @ directions + phases), axis=1, keepdims=True))


def _standard(x: mx.array, y: mx.array) -> Task:
    return Task(x, (y - mx.mean(y, axis=0)) / mx.sqrt(mx.var(y, axis=0)))


def error(model: nn.Module, x: mx.array, y: mx.array) -> mx.array:
    """Mean squared error."""
    return mx.mean(mx.square(model(x) - y))


def number(a: mx.array) -> float:
    """The value of a scalar, computed now."""
    return cast(float, a.item())


def train(
    model: nn.Module,
    task: Task,
    optimizer: Optimizer,
    *,
    steps: int,
    batch: int,
    seed: int,
) -> float:
    """Train in place, without clipping.

    Args:
        model: maps ``task.x`` to ``task.y``.
        task: the training set.
        optimizer: of this training alone.
        steps: updates.
        batch: inputs of one, drawn with replacement.
        seed: of the draws.

    Returns:
        The error over the whole task; nan as soon as that of a batch is not finite.
    """
    gradient = nn.value_and_grad(model, partial(error, model))
    order = np.random.default_rng(seed)
    for _ in range(steps):
        at = mx.array(order.integers(len(task.x), size=batch))
        loss, found = gradient(task.x[at], task.y[at])
        optimizer.update(model, found)
        mx.eval(model.parameters(), optimizer.state)
        if not math.isfinite(number(loss)):
            return math.nan
    return number(error(model, *task))
