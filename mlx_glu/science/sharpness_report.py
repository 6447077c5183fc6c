"""What the rows of sharpness say: table and figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .experiment import Row
from .figures import label, rate_label, style
from .statistics import difference, holm, least

#: Every other unit is compared with it.
BASELINE = "relu"


def summary(rows: Sequence[Row]) -> list[list[str]]:
    """Largest eigenvalues: medians of the seeds that did not diverge.

    Ratios to ReLU are geometric means over seeds at the rate of the examples, with
    95% t intervals and p values that Holm's correction raised.
    """
    rates = _rates(rows)
    fixed = _examples(rows)[0]["learning_rate"]
    heads = [f"rate {rate:g}" if rate else "untrained" for rate in rates]
    table = [["unit", *heads, "of ReLU", "p", "trace", "loss", "best rate", "there"]]
    units = _units(rows)
    compared = {unit: _log_ratios(rows, unit, fixed) for unit in units}
    found = {
        u: difference(*pairs) for u, pairs in compared.items() if len(pairs[0]) > 1
    }
    p_values = dict(zip(found, holm([d.p for d in found.values()]), strict=True))
    for unit in units:
        ratio = "-"
        if unit in found:
            d = found[unit]
            mean, low, high = (math.exp(x) for x in (d.mean, d.low, d.high))
            ratio = f"{mean:.2f} ({low:.2f} .. {high:.2f})"
        best = best_rate(rows, unit)
        table.append(
            [
                unit,
                *(_median(rows, unit, rate, "largest") for rate in rates),
                ratio,
                f"{p_values[unit]:.3f}" if unit in found else "-",
                _median(rows, unit, fixed, "trace"),
                _median(rows, unit, fixed, "loss"),
                rate_label(best, filter(None, rates)),
                _median(rows, unit, best, "largest"),
            ]
        )
    return table


def best_rate(rows: Sequence[Row], unit: str) -> float:
    """The learning rate of the least median loss; of those that diverged, none."""
    return least(
        (rate, loss)
        for rate in _rates(rows)
        if rate
        for loss in _values(rows, unit, rate, "loss")
    )


def _log_ratios(
    rows: Sequence[Row], unit: str, rate: float
) -> tuple[list[float], list[float]]:
    """Logarithms of the unit's and of the baseline's sharpness, by seed."""
    own = _values(rows, unit, rate, "largest")
    other = _values(rows, BASELINE, rate, "largest")
    pairs = [(a, b) for a, b in zip(own, other, strict=True) if a and b]
    if unit == BASELINE or not pairs:
        return [], []
    logs = np.log(pairs).T.tolist()
    return logs[0], logs[1]


def _values(rows: Sequence[Row], unit: str, rate: float, key: str) -> list[Any]:
    """Of all seeds, in their order."""
    wanted = ("curvature", unit, rate)
    found = [
        (row["seed"], row[key])
        for row in rows
        if (row["phase"], row["unit"], row["learning_rate"]) == wanted
    ]
    return [value for _, value in sorted(found)]


def _median(rows: Sequence[Row], unit: str, rate: float, key: str) -> str:
    values = _values(rows, unit, rate, key)
    known = [v for v in values if v is not None]
    if not known:
        return "diverged"
    left = f" ({len(known)} of {len(values)})" if len(known) < len(values) else ""
    return f"{np.median(known):.3g}{left}"


def _units(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["unit"] for row in rows))


def _rates(rows: Sequence[Row]) -> list[float]:
    return sorted({row["learning_rate"] for row in rows})


def _examples(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["phase"] == "example"]


def draw(figure: Any, rows: Sequence[Row]) -> None:
    """Sharpness by unit and by learning rate; slices; the same function rescaled."""
    places = [["units", "units", "rates"], ["slice 0", "slice 1", "scales"]]
    axes = figure.subplot_mosaic(places)
    _draw_units(axes["units"], rows)
    _draw_rates(axes["rates"], rows)
    examples = _examples(rows)
    highest = max(max(map(max, row["slice"])) for row in examples)
    lowest = min(min(map(min, row["slice"])) for row in examples)
    levels = np.geomspace(lowest, highest, 16)[:-1]
    for i, row in enumerate(examples):
        _draw_slice(axes[f"slice {i}"], row, levels)
        axes["scales"].plot(row["scales"], row["largest"], **style(row["unit"]))
    axes["scales"].set_xscale("log", base=2)
    axes["scales"].set_yscale("log", base=2)
    axes["scales"].set_xlabel("s: up_proj * s, down_proj / s")
    axes["scales"].set_ylabel("largest eigenvalue, nats")
    axes["scales"].set_title("The same function, other weights")
    axes["scales"].legend()


def _draw_units(axes: Any, rows: Sequence[Row]) -> None:
    fixed = _examples(rows)[0]["learning_rate"]
    units = _units(rows)
    for i, unit in enumerate(units):
        color = style(unit)["color"]
        shown = ((-0.15, 0.0, "none", "untrained"), (0.15, fixed, color, "trained"))
        for at, rate, face, name in shown:
            values = _values(rows, unit, rate, "largest")
            known = [v for v in values if v is not None]
            own = {"color": color, "markerfacecolor": face, "ms": 5}
            x = [i + at] * len(known)
            axes.plot(x, known, "o", label=name if i == 0 else None, **own)
    axes.set_xticks(range(len(units)), map(label, units))
    axes.set_ylim(bottom=0)
    axes.set_ylabel("largest eigenvalue, nats")
    axes.set_title(f"Every seed, untrained and trained with rate {fixed:g}")
    axes.legend()


def _draw_rates(axes: Any, rows: Sequence[Row]) -> None:
    rates = [rate for rate in _rates(rows) if rate]
    for unit in _units(rows):
        values = [_values(rows, unit, rate, "largest") for rate in rates]
        known = [[v for v in found if v is not None] for found in values]
        medians = [np.median(found) if found else math.nan for found in known]
        axes.plot(rates, medians, **style(unit))
    axes.set_xscale("log")
    axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axes.minorticks_off()
    axes.set_xlabel("learning rate")
    axes.set_title("Medians of trained models")
    axes.legend(ncols=2, fontsize=7, loc="lower left")


def _draw_slice(axes: Any, row: Row, levels: np.ndarray) -> None:
    steps, color = row["steps"], style(row["unit"])["color"]
    drawn = axes.contour(steps, steps, row["slice"], levels, colors=color)
    axes.clabel(drawn, fontsize=6, fmt="%.1f")
    axes.plot([0], [0], "+", color=color)
    axes.set_aspect("equal")
    axes.set_xlabel("second direction, lengths of rows")
    axes.set_ylabel("first direction")
    axes.set_title(f"{label(row['unit'])}: loss, nats a character")
