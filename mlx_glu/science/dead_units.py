"""Do units die, by learning rate, with and without normalisation?

Dead is strict: the gradient of the training error by all weights and biases that lead
into a unit is exactly 0 over the whole training set. Two reasons are told apart.
Closed: at every input its ReLU or gate is 0, or all of a block behind it is. Underflow:
the gradient is only too small for float32.

Two feed-forward blocks without residuals, which are four matrices, and a linear head
fit a sum of sinusoids, without weight decay or clipping. The weights at the start keep
the variance; four blocks of products without a norm overflow in the first steps of SGD,
even at a rate of 1e-5.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.optimizers import SGD, AdamW

from ..layers import GatedMLP, RMSNorm
from ..training.gains import scale_preserving
from ..training.ungated import feed_forward, matched_width
from .dead_report import draw, summary
from .experiment import Cell, Experiment
from .fitting import Task, error, sinusoids, train

_UNGATED = ("relu", "gelu", "silu", "relu2")
_GATED = ("glu", "bilinear", "reglu", "geglu", "swiglu")
_RATES = (1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3)

#: Units of which all that is not positive closes the activation, exactly.
_CLOSING = ("relu", "relu2", "reglu")

_OPTIMIZERS = {
    "SGD": lambda rate: SGD(rate, momentum=0.9),
    "AdamW": lambda rate: AdamW(rate, weight_decay=0.0),
}


@dataclass(frozen=True)
class Settings:
    """Of the experiment.

    Attributes:
        units: that are compared.
        optimizers: SGD has momentum 0.9.
        learning_rates: of each.
        norms: whether RMSNorm stands before each block.
        seeds: of weights, task and batches.
        blocks: of a network.
        dims: K, of its input and of each block.
        hidden_dims: of an ungated block; a gated one has two thirds.
        inputs: of the training set.
        steps: of training.
        batch: inputs of a step.
    """

    units: tuple[str, ...] = (*_UNGATED, *_GATED)
    optimizers: tuple[str, ...] = tuple(_OPTIMIZERS)
    learning_rates: tuple[float, ...] = _RATES
    norms: tuple[bool, ...] = (False, True)
    seeds: int = 3
    blocks: int = 2
    dims: int = 16
    hidden_dims: int = 96
    inputs: int = 512
    steps: int = 400
    batch: int = 64


class Network(nn.Module):
    """Blocks one after the other, and a linear head; [n, K] to [n, 1]."""

    def __init__(self, settings: Settings, unit: str, *, norm: bool) -> None:
        super().__init__()
        K, N = settings.dims, matched_width(unit, settings.hidden_dims)
        self.unit = unit
        self.blocks = [
            scale_preserving(feed_forward(unit, K, N, bias=True))
            for _ in range(settings.blocks)
        ]
        self.norms = [RMSNorm(K) if norm else None for _ in self.blocks]
        self.head = nn.Linear(K, 1)

    def __call__(self, x: mx.array) -> mx.array:
        """Apply it."""
        for block, norm in zip(self.blocks, self.norms, strict=True):
            x = block(x, norm=norm)
        return self.head(x)


def cells(settings: Settings) -> list[Cell]:
    """One for each network that is trained; all of a seed see one task."""
    return [
        {"optimizer": o, "norm": norm, "learning_rate": rate, "unit": u, "seed": seed}
        for seed in range(settings.seeds)
        for o in settings.optimizers
        for norm in settings.norms
        for rate in settings.learning_rates
        for u in settings.units
    ]


def measure(settings: Settings, cell: Cell) -> dict[str, Any]:
    """Error after training, in variances of the target, and percent of dead units.

    Null for the error: it overflowed, which ends the training. Null for the units: the
    gradient overflows.
    """
    mx.random.seed(cell["seed"])
    task = sinusoids(settings.inputs, settings.dims)
    network = Network(settings, cell["unit"], norm=cell["norm"])
    optimizer = _OPTIMIZERS[cell["optimizer"]](cell["learning_rate"])
    how = {"steps": settings.steps, "batch": settings.batch, "seed": cell["seed"]}
    found = {"error": train(network, task, optimizer, **how)}
    count = count_dead(network, task)
    if count is None:
        return found | {"dead": None, "closed": None}
    percent = 100 / count.units
    return found | {"dead": percent * count.dead, "closed": percent * count.closed}


class Dead(NamedTuple):
    """How many units of a network are dead, and how many of these closed."""

    units: int
    dead: int
    closed: int


def count_dead(network: Network, task: Task) -> Dead | None:
    """Count over the task; None where the gradient is not finite."""
    _, gradient = nn.value_and_grad(network, partial(error, network))(*task)
    units = dead = closed = 0
    shut = closed_units(network, task.x)
    for block, is_closed in zip(gradient["blocks"], shut, strict=True):
        leading = [block[name] for name in ("gate_proj", "up_proj") if name in block]
        parts = [np.array(a) for layer in leading for a in layer.values()]
        columns = np.column_stack(parts)
        if not np.isfinite(columns).all():
            return None
        is_dead = np.all(columns == 0, axis=1)
        units += len(is_dead)
        dead += int(is_dead.sum())
        closed += int((is_dead & is_closed).sum())
    return Dead(units, dead, closed)


def closed_units(network: Network, x: mx.array) -> list[np.ndarray]:
    """Which units, by block [N], get no gradient in exact arithmetic, at any input."""
    is_open = []
    for block, norm in zip(network.blocks, network.norms, strict=True):
        name = "gate_proj" if isinstance(block, GatedMLP) else "up_proj"
        z = np.array(block[name](x if norm is None else norm(x)))
        is_open.append(z > 0 if network.unit in _CLOSING else np.ones(z.shape, bool))
        x = block(x, norm=norm)
    closed, passes = [], np.ones(len(x), bool)
    for mask in is_open[::-1]:
        closed.append(~np.any(mask & passes[:, None], axis=0))
        passes &= mask.any(axis=1)
    return closed[::-1]


EXPERIMENT = Experiment(
    quick=Settings(
        units=("relu", "swiglu"),
        learning_rates=(0.01, 0.1),
        seeds=1,
        dims=8,
        hidden_dims=24,
        inputs=64,
        steps=10,
    ),
    full=Settings(),
    cells=cells,
    measure=measure,
    summary=summary,
    draw=draw,
    size=(8.0, 5.6),
)
