"""Sharpness of the loss of a small character model, gated and not.

The largest eigenvalue of the Hessian bounds the step of plain gradient descent. It is
no property of a unit alone. Training moves it, as far as the learning rate lets it
(Cohen et al. 2021, arXiv:2103.00065; what bounds Adam is the Hessian times its own
scaling, 2207.14484), so each unit is trained with several rates, and its loss stands
beside. Other weights of the same function have another one (Dinh et al. 2017,
arXiv:1703.04933), which is shown by rescaling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..evaluation.windows import SAMPLE
from . import corpus, sharpness_report
from .char_model import CharModel, Recipe, Shape, train, windows_at
from .corpus import Corpus
from .experiment import Cell, Experiment
from .hessian import ends, hessian_product, trace
from .landscape import Landscape

_UNITS = ("relu", "gelu", "glu", "bilinear", "reglu", "swiglu")
_SHAPE, _RECIPE = Shape(layers=2), Recipe(steps=200, warmup=30)


@dataclass(frozen=True)
class Settings:
    """Of the experiment.

    Attributes:
        text: to train on; None for Shakespeare's works.
        shape: of the model.
        recipe: how it is trained.
        windows: of the text for training, on which curvature is taken, for all alike.
        units: that are compared, ReLU first.
        learning_rates: that each is trained with.
        seeds: of weights and batches.
        probes: of the trace.
        examples: units that are sliced, and rescaled, which keeps their function.
        example_rate: learning rate of these.
        scales: by which their ``up_proj`` is multiplied.
        steps: of the slices, in lengths of the weights' own rows.
    """

    text: Path | None = None
    shape: Shape = _SHAPE
    recipe: Recipe = _RECIPE
    windows: int = 16
    units: tuple[str, ...] = _UNITS
    learning_rates: tuple[float, ...] = (1e-3, 4e-3, 1.6e-2)
    seeds: int = 3
    probes: int = 20
    examples: tuple[str, ...] = ("relu", "swiglu")
    example_rate: float = 4e-3
    scales: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    steps: tuple[float, ...] = tuple(i / 10 for i in range(-10, 11))


def cells(settings: Settings) -> list[Cell]:
    """Every unit at its initialisation, rate 0, and trained; then the examples."""
    found: list[Cell] = [
        {"phase": "curvature", "unit": unit, "learning_rate": rate, "seed": seed}
        for seed in range(settings.seeds)
        for rate in (0.0, *settings.learning_rates)
        for unit in settings.units
    ]
    rate = settings.example_rate
    return found + [
        {"phase": "example", "unit": unit, "learning_rate": rate, "seed": 0}
        for unit in settings.examples
    ]


def measure(settings: Settings, cell: Cell) -> dict[str, Any]:
    """Curvature of one model; of an example, its slice and what rescaling changes."""
    assert settings.text is not None
    text, shape = corpus.read(settings.text), settings.shape
    model = CharModel(len(text.characters), shape, cell["unit"], seed=cell["seed"])
    rate = cell["learning_rate"]
    if rate:
        train(model, text, shape.context, settings.recipe, rate, cell["seed"])
    land = Landscape(model, _windows(text, shape.context, settings.windows))
    if cell["phase"] == "example":
        return _example(settings, land)
    loss = float(land(land.point))
    if not math.isfinite(loss):
        return dict.fromkeys(("loss", "largest", "smallest", "trace", "error"))
    product = hessian_product(land, land.point)
    found = ends(product, land.size)
    total, error = trace(product, land.size, probes=settings.probes)
    return {"loss": loss, **found._asdict(), "trace": total, "error": error}


def _example(settings: Settings, land: Landscape) -> dict[str, Any]:
    points = [land.rescaled(scale) for scale in settings.scales]
    products = [hessian_product(land, point) for point in points]
    return {
        "scales": settings.scales,
        "losses": [float(land(point)) for point in points],
        "largest": [ends(product, land.size).largest for product in products],
        "steps": settings.steps,
        "slice": land.slice(settings.steps),
    }


def _windows(text: Corpus, context: int, count: int) -> mx.array:
    starts = np.random.default_rng(0).integers(0, len(text.train) - context, count)
    return windows_at(text.train, starts, context)


EXPERIMENT = Experiment(
    quick=Settings(
        text=SAMPLE,
        shape=Shape(dims=12, layers=1, heads=2, context=16),
        recipe=Recipe(steps=10, batch=4, warmup=2),
        windows=2,
        units=("relu", "swiglu"),
        learning_rates=(4e-3,),
        seeds=2,
        probes=2,
        scales=(1.0, 2.0),
        steps=(-1.0, 0.0, 1.0),
    ),
    full=Settings(),
    cells=cells,
    measure=measure,
    prepare=corpus.prepare,
    summary=sharpness_report.summary,
    draw=sharpness_report.draw,
    size=(10, 6),
)
