"""Does gating keep gradients alive: in one unit, and through a deep stack of them?

One unit: exact, `local_gain`. Stacks: `stacks`, in four regimes, at initialisation and
after some training by Adam on a teacher's outputs, with the better of some learning
rates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.optimizers import Adam

from .experiment import Cell, Experiment
from .fitting import Task, teacher, train
from .gradient_report import draw, summary
from .local_gain import local_gain
from .stacks import REGIMES, Stack, profile

_STACKED = ("sigmoid", "tanh", "relu", "gelu", "gtu", "glu", "bilinear", "swiglu")

#: Of the teacher, whose outputs have variance 1, and of a batch of it.
_OUTPUTS, _BATCH = 8, 32


@dataclass(frozen=True)
class Settings:
    """Of the experiment.

    Attributes:
        gains: units whose local gain is computed.
        scales: of their pre-activations, standard deviations.
        stacked: units of the stacks.
        depths: of the stacks.
        dims: d of every layer, gated or not.
        seeds: of weights and task.
        inputs: of the task; gradients are those of its first 128.
        steps: of training, with batches of 32.
        learning_rates: of which the one with the smallest error counts.
    """

    gains: tuple[str, ...] = (*_STACKED, "reglu", "geglu")
    scales: tuple[float, ...] = tuple(2.0**k for k in range(-4, 6))
    stacked: tuple[str, ...] = _STACKED
    depths: tuple[int, ...] = (16, 48)
    dims: int = 128
    seeds: int = 3
    inputs: int = 512
    steps: int = 150
    learning_rates: tuple[float, ...] = (3e-4, 1e-3)


def cells(settings: Settings) -> list[Cell]:
    """One for each unit by itself, and for each stack."""
    alone = [{"part": "unit", "unit": unit} for unit in settings.gains]
    return alone + [
        {"part": "stack", "unit": u, "regime": r, "depth": depth, "seed": seed}
        for depth in settings.depths[::-1]
        for seed in range(settings.seeds)
        for u in settings.stacked
        for r in REGIMES
    ]


def measure(settings: Settings, cell: Cell) -> dict[str, Any]:
    """Gains by scale; or of a stack, gradients by layer and errors, as `_trained`."""
    if cell["part"] == "unit":
        gains = [local_gain(cell["unit"], scale) for scale in settings.scales]
        return {"scale": list(settings.scales), "gain": gains}
    stack, task = _fresh(settings, cell)
    before = profile(stack, Task(task.x[:128], task.y[:128]))
    found = {"fate": _fate(before.forward), "before": _rounded(before.gradient)}
    return found | _trained(settings, cell, found["fate"] == "")


def _fresh(settings: Settings, cell: Cell) -> tuple[Stack, Task]:
    """The task depends on the seed alone."""
    mx.random.seed(cell["seed"])
    task = teacher(settings.inputs, settings.dims, _OUTPUTS)
    regime = REGIMES[cell["regime"]]
    return Stack(cell["unit"], regime, settings.dims, cell["depth"], _OUTPUTS), task


def _fate(forward: Sequence[float]) -> str:
    """What becomes of the activations: they vanish, overflow, or neither."""
    if -math.inf in forward:
        return "dies"
    return "" if np.isfinite(forward).all() else "explodes"


def _trained(settings: Settings, cell: Cell, trainable: bool) -> dict[str, Any]:
    """Errors by learning rate (nan: diverged), and gradients of the best; else null.

    A stack whose activations die or explode is not trained: no gradient moves it.
    """
    errors, best, after = [], math.inf, None
    for rate in settings.learning_rates if trainable else ():
        stack, task = _fresh(settings, cell)
        how = {"steps": settings.steps, "batch": _BATCH, "seed": cell["seed"]}
        errors.append(train(stack, task, Adam(rate), **how))
        if errors[-1] < best:
            best = errors[-1]
            found = profile(stack, Task(task.x[:128], task.y[:128]))
            after = _rounded(found.gradient)
    return {"errors": errors, "error": best, "after": after}


def _rounded(logs: Sequence[float]) -> list[float]:
    return [round(log, 3) for log in logs]


EXPERIMENT = Experiment(
    quick=Settings(
        gains=("relu", "tanh", "glu", "bilinear"),
        scales=(0.25, 1.0, 4.0),
        stacked=("tanh", "glu", "bilinear"),
        depths=(12,),
        dims=32,
        seeds=1,
        inputs=128,
        steps=4,
        learning_rates=(1e-3,),
    ),
    full=Settings(),
    cells=cells,
    measure=measure,
    summary=summary,
    draw=draw,
    size=(9.0, 6.6),
)
