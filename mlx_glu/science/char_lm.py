"""Units in a small character model: equal parameters, each at its best learning rate.

First every unit is trained with every learning rate and one seed; then, at the rate
that was best on the text to tune by, with fresh seeds, paired: the same batches, and
the same weights of all that is not the feed-forward. Beside them stand a noise floor,
ReLU with other seeds, and gated units of full width, which cost half more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..evaluation.windows import SAMPLE
from ..training.ungated import matched_width
from . import char_lm_report, corpus
from .char_lm_report import BASELINE
from .char_model import (
    CharModel,
    Recipe,
    Shape,
    count_parameters,
    evaluate,
    train,
)
from .experiment import Cell, Experiment, Row
from .statistics import least

_UNGATED = ("relu", "gelu", "silu", "relu2")
_GATED = ("glu", "bilinear", "reglu", "geglu", "swiglu")
_SHAPE, _RECIPE = Shape(), Recipe()


@dataclass(frozen=True)
class Settings:
    """Of the experiment.

    Attributes:
        text: to train on; None for Shakespeare's works.
        shape: of the model.
        recipe: how it is trained.
        units: that are compared, the baseline first.
        wide: gated units that are also trained at the width of an ungated one.
        learning_rates: of which each unit gets its best.
        tune_seeds: with which it is chosen.
        seeds: with which units are compared.
        noise_seeds: as many others, for the baseline against itself.
    """

    text: Path | None = None
    shape: Shape = _SHAPE
    recipe: Recipe = _RECIPE
    units: tuple[str, ...] = (*_UNGATED, *_GATED)
    wide: tuple[str, ...] = ("bilinear", "geglu", "swiglu")
    learning_rates: tuple[float, ...] = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
    tune_seeds: tuple[int, ...] = (0,)
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    noise_seeds: tuple[int, ...] = (6, 7, 8, 9, 10)


def cells(settings: Settings) -> list[Cell]:
    """Every unit with every learning rate."""
    return [
        {"phase": "tune", "unit": unit, "learning_rate": rate, "seed": seed}
        for seed in settings.tune_seeds
        for rate in settings.learning_rates
        for unit in settings.units
    ]


def then(settings: Settings, rows: Sequence[Row]) -> list[Cell]:
    """Every unit at its best rate, seed by seed: what is done is paired."""
    found: list[Cell] = []
    for seed, other in zip(settings.seeds, settings.noise_seeds, strict=True):
        named = [("compare", unit, seed) for unit in settings.units]
        named += [("wide", unit, seed) for unit in settings.wide]
        named += [("noise", BASELINE, other)]
        found += [
            {
                "phase": phase,
                "unit": unit,
                "learning_rate": best_rate(rows, unit),
                "seed": seed,
            }
            for phase, unit, seed in named
        ]
    return found


def best_rate(rows: Sequence[Row], unit: str) -> float:
    """The learning rate of the least mean loss on the text to tune by.

    Raises:
        ValueError: none trained.
    """
    tried = [
        (row["learning_rate"], row["tune_loss"])
        for row in rows
        if row["phase"] == "tune" and row["unit"] == unit
    ]
    best = least(tried, np.mean)
    if (best, None) in tried:
        raise ValueError(
            f"[science] {unit} trains with a learning rate of "
            f"{min(rate for rate, _ in tried)} or more but its loss was never finite; "
            "take lower rates"
        )
    return best


def measure(settings: Settings, cell: Cell) -> dict[str, Any]:
    """Losses, nats a character; the curve is of training, in 20 means."""
    assert settings.text is not None
    text, shape, unit = corpus.read(settings.text), settings.shape, cell["unit"]
    wide = cell["phase"] == "wide"
    full = 4 * shape.dims
    hidden_dims = full if wide else matched_width(unit, full)
    model = CharModel(
        len(text.characters), shape, unit, hidden_dims=hidden_dims, seed=cell["seed"]
    )
    losses = train(
        model, text, shape.context, settings.recipe, cell["learning_rate"], cell["seed"]
    )
    step = max(settings.recipe.steps // 20, 1)
    pieces = [losses[i : i + step] for i in range(0, len(losses), step)]
    return {
        "hidden_dims": hidden_dims,
        "parameters": count_parameters(model),
        "curve": [sum(piece) / len(piece) for piece in pieces],
        "tune_loss": evaluate(model, text.tune, shape.context),
        "test_loss": evaluate(model, text.test, shape.context),
    }


FULL = Settings()
QUICK = Settings(
    text=SAMPLE,
    shape=Shape(dims=12, layers=1, heads=2, context=16),
    recipe=Recipe(steps=10, batch=4, warmup=2),
    units=("relu", "swiglu"),
    wide=("swiglu",),
    learning_rates=(2e-3, 8e-3),
    seeds=(1, 2),
    noise_seeds=(3, 4),
)

EXPERIMENT = Experiment(
    quick=QUICK,
    full=FULL,
    cells=cells,
    then=then,
    measure=measure,
    prepare=corpus.prepare,
    summary=char_lm_report.summary,
    draw=char_lm_report.draw,
    size=(11, 4.2),
)
