"""Approximation order of gated units in one dimension: what exists, what Adam finds.

A block of ReLU is piecewise linear, one of ReGLU piecewise quadratic, so on a smooth
function a ReGLU block of P parameters can err by P^-3 where ReLU errs by P^-2 (Queiruga
2026, arXiv:2602.14495, abstract). Least squares over uniform knots shows what exists at
least; beside ReGLU stand ReLU squared, quadratic without a gate, and Bilinear, which
has a product and no knots. Adam from random weights shows what is found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .experiment import Cell, Experiment, Row
from .figures import label, rate_label, style
from .splines import (
    SOLVED,
    features,
    hidden_units,
    outputs,
    random_target,
    rms,
    solved,
    train,
)
from .statistics import least

#: Orders with uniform knots by target: piecewise linear, piecewise quadratic.
ORDERS = {"smooth": (-2.0, -3.0), "kink": (-1.5, -1.5), "rough": (-0.5, -0.5)}


@dataclass(frozen=True)
class Settings:
    """Of the experiment.

    Attributes:
        parameters: P - 1, the output's bias not counted; multiples of 15, so that
            gated and ungated blocks have as many.
        draws: random targets of each kind.
        found: P - 1 of what Adam trains.
        units: that Adam trains.
        learning_rates: of which each unit gets its best.
        tune_seeds: of targets and initial weights with which it is chosen.
        seeds: of those that are reported, less than `draws`.
        steps: of Adam, whole batch, the rate falling to 0 along a cosine.
    """

    parameters: tuple[int, ...] = (30, 60, 120, 240, 480, 960)
    draws: int = 64
    found: int = 240
    units: tuple[str, ...] = ("relu", "gelu", "relu2", "reglu", "geglu", "swiglu")
    learning_rates: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3)
    tune_seeds: tuple[int, ...] = (0, 1, 2)
    seeds: tuple[int, ...] = (3, 4, 5, 6, 7, 8, 9, 10)
    steps: int = 3000


def cells(settings: Settings) -> list[Cell]:
    """What exists, and what is found at every learning rate."""
    exists: list[Cell] = [
        {"phase": "exists", "target": target, "unit": unit, "P": size + 1}
        for target in ORDERS
        for size in settings.parameters
        for unit in SOLVED
    ]
    found: list[Cell] = [
        {"phase": "tune", "unit": unit, "learning_rate": rate, "seed": seed}
        for unit in settings.units
        for rate in settings.learning_rates
        for seed in settings.tune_seeds
    ]
    return exists + found


def then(settings: Settings, rows: Sequence[Row]) -> list[Cell]:
    """Every unit at its best rate, with other targets and weights."""
    rates = {unit: best_rate(rows, unit) for unit in settings.units}
    return [
        {"phase": "report", "unit": unit, "learning_rate": rates[unit], "seed": seed}
        for unit in settings.units
        for seed in settings.seeds
    ]


def best_rate(rows: Sequence[Row], unit: str) -> float:
    """The learning rate of the least median error."""
    tuned = [row for row in rows if row["phase"] == "tune" and row["unit"] == unit]
    return least((row["learning_rate"], row["rmse"]) for row in tuned)


def measure(settings: Settings, cell: Cell) -> dict[str, Any]:
    """Root mean square errors, as shares of the target's standard deviation."""
    if cell["phase"] != "exists":
        return _found(settings, cell)
    draws = [random_target(cell["target"], seed) for seed in range(settings.draws)]
    target = np.stack(draws, axis=1)
    basis = features(cell["unit"], hidden_units(cell["unit"], cell["P"] - 1))
    errors = rms(target - basis @ np.linalg.lstsq(basis, target)[0])
    return {"rmse": np.sqrt(np.mean(errors**2)), "draws": errors.tolist()}


def _found(settings: Settings, cell: Cell) -> dict[str, Any]:
    """How far a trained block is off, and how far the best one with its knots."""
    y = random_target("smooth", cell["seed"])
    block = train(
        cell["unit"],
        hidden_units(cell["unit"], settings.found),
        y,
        learning_rate=cell["learning_rate"],
        steps=settings.steps,
        seed=cell["seed"],
    )
    return {
        "P": settings.found + 1,
        "rmse": rms(outputs(block) - y).item(),
        "solved": rms(solved(block, y) - y).item(),
    }


def summary(rows: Sequence[Row]) -> list[list[str]]:
    """Orders of what exists; errors of what is found, at each unit's best rate."""
    heads = [f"order, {target}" for target in ORDERS]
    table = [["unit", *heads, "P", "exists", "rate", "found", "knots", "from", "to"]]
    units = dict.fromkeys(row["unit"] for row in rows)
    for unit in units:
        solved = unit in SOLVED
        orders = [
            f"{round(slope(rows, t, unit), 2) + 0:.2f}" if solved else "-"
            for t in ORDERS
        ]
        table.append([unit, *orders, *_summary_of_found(rows, unit)])
    return table


def _summary_of_found(rows: Sequence[Row], unit: str) -> list[str]:
    found = reported(rows, unit)
    if not found:
        return ["-"] * 7
    exists = existing(rows, unit)
    tried = {r["learning_rate"] for r in rows if r["phase"] == "tune"}
    errors = [row["rmse"] for row in found]
    knots = np.median([row["solved"] for row in found])
    shown = np.median(errors), knots, min(errors), max(errors)
    return [
        str(found[0]["P"]),
        f"{np.median(exists):.1e}" if exists else "-",
        rate_label(found[0]["learning_rate"], tried),
        *(f"{value:.1e}" for value in shown),
    ]


def slope(rows: Sequence[Row], target: str, unit: str) -> float:
    """Order in P of the error that exists, fitted over the four largest sizes."""
    P, errors = np.log(curve(rows, target, unit))[:, -4:]
    return float(np.polyfit(P, errors, 1)[0])


def curve(rows: Sequence[Row], target: str, unit: str) -> tuple[list[int], list[float]]:
    """P and the errors that exist, over all draws of a kind of target."""
    found = _solutions(rows, target, unit)
    return [row["P"] for row in found], [row["rmse"] for row in found]


def existing(rows: Sequence[Row], unit: str) -> list[float]:
    """Errors that exist with the targets and P of `reported`; empty if not solved."""
    found = reported(rows, unit)
    draws = {row["P"]: row["draws"] for row in _solutions(rows, "smooth", unit)}
    return [draws[r["P"]][r["seed"]] for r in found if r["P"] in draws]


def _solutions(rows: Sequence[Row], target: str, unit: str) -> list[Row]:
    return [r for r in rows if (r.get("target"), r["unit"]) == (target, unit)]


def reported(rows: Sequence[Row], unit: str) -> list[Row]:
    """What Adam found at the unit's best rate."""
    return [r for r in rows if (r["phase"], r["unit"]) == ("report", unit)]


def draw(figure: Any, rows: Sequence[Row]) -> None:
    """Errors that exist on each kind of target, and those that Adam reaches."""
    axes = figure.subplots(2, 2, sharey=True)
    for target, axis in zip(ORDERS, axes.flat, strict=False):
        _draw_orders(axis, rows, target)
    _draw_found(axes[1, 1], rows)
    axes[0, 0].set_yscale("log")
    for axis in axes[:, 0]:
        axis.set_ylabel("RMSE / deviation of the target")


def _draw_orders(axis: Any, rows: Sequence[Row], target: str) -> None:
    for unit in SOLVED:
        axis.plot(*curve(rows, target, unit), **style(unit))
    P, errors = curve(rows, target, "relu")
    for order in dict.fromkeys(ORDERS[target]):
        line = errors[0] * (np.array(P) / P[0]) ** order
        axis.plot(P, line, color="#808080", linewidth=0.8, linestyle=":")
        axis.text(1.1 * P[-1], line[-1], f"$P^{{{order:g}}}$", color="#808080")
    axis.set_xscale("log")
    axis.set_xlim(right=1.8 * P[-1])
    axis.set_xticks(P, P)
    axis.minorticks_off()
    axis.set_xlabel("parameters P")
    axis.set_title(f"Exists, {target} targets: uniform knots")
    axis.legend(loc="lower left")


def _draw_found(axis: Any, rows: Sequence[Row]) -> None:
    units = [u for u in dict.fromkeys(r["unit"] for r in rows) if reported(rows, u)]
    for i, unit in enumerate(units):
        found = reported(rows, unit)
        shown = (
            ("Adam", [row["rmse"] for row in found], "o", None),
            (
                "its knots, the rest solved",
                [row["solved"] for row in found],
                "o",
                "none",
            ),
            ("uniform knots, the rest solved", existing(rows, unit), "_", None),
        )
        for k, (name, errors, mark, face) in enumerate(shown):
            x = [i + (k - 1) / 4] * len(errors)
            own = {"color": style(unit)["color"], "markerfacecolor": face}
            axis.plot(x, errors, mark, label=name if i == 0 else None, **own, ms=4)
    axis.set_xticks(range(len(units)), map(label, units))
    axis.set_title(f"Found, smooth targets: P = {reported(rows, units[0])[0]['P']}")
    axis.legend(loc="lower left")


EXPERIMENT = Experiment(
    quick=Settings(
        parameters=(30, 60, 120, 240),
        draws=2,
        found=60,
        units=("relu", "reglu"),
        learning_rates=(0.03,),
        tune_seeds=(0,),
        seeds=(1,),
        steps=40,
    ),
    full=Settings(),
    cells=cells,
    then=then,
    measure=measure,
    summary=summary,
    draw=draw,
    size=(7.2, 6.4),
)
