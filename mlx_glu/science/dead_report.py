"""What the rows of ``dead-units`` say: the table and the figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .experiment import Row
from .figures import style

#: What became of a network, by the least error that is too large for it; who predicts
#: the mean has 1. With the marker in the figure, if it is not the unit's own.
_OUTCOMES = {
    "learned": (0.5, None),
    "unlearned": (2.0, "x"),
    "diverged": (math.inf, "+"),
}


def summary(rows: Sequence[Row]) -> list[list[str]]:
    """Mean percent of dead units, and of closed ones, over seeds that did not overflow.

    With what became of the median seed, how many did not overflow if some did, or
    "overflow" where all did.
    """
    rates = sorted({row["learning_rate"] for row in rows})
    table = [["unit", "optimizer", "RMSNorm", *(f"{rate:g}" for rate in rates)]]
    groups = _groups(rows)
    for unit, optimizer, norm in dict.fromkeys(key[:3] for key in groups):
        told = [_told(groups[unit, optimizer, norm, rate]) for rate in rates]
        table.append([unit, optimizer, "yes" if norm else "no", *told])
    return table


def _told(rows: Sequence[Row]) -> str:
    counted = [row for row in rows if row["dead"] is not None]
    if not counted:
        return "overflow"
    dead = np.mean([row["dead"] for row in counted])
    closed = np.mean([row["closed"] for row in counted])
    outcome = _outcome(rows).replace("learned", "")
    left = f"{len(counted)} of {len(rows)}" if len(counted) < len(rows) else ""
    return " ".join(filter(None, (f"{dead:.1f} ({closed:.1f})", outcome, left)))


def _outcome(rows: Sequence[Row]) -> str:
    """Of the median seed."""
    errors = [math.inf if row["error"] is None else row["error"] for row in rows]
    fits = (name for name, (end, _) in _OUTCOMES.items() if np.median(errors) < end)
    return next(fits, "diverged")


def draw(figure: Any, rows: Sequence[Row]) -> None:
    """Dead units by learning rate; a line ends where all runs overflow."""
    groups = _groups(rows)
    optimizers = list(dict.fromkeys(row["optimizer"] for row in rows))
    norms = sorted({row["norm"] for row in rows})
    grid = figure.subplots(
        len(optimizers), len(norms), sharex=True, sharey=True, squeeze=False
    )
    for line, optimizer in zip(grid, optimizers, strict=True):
        for axes, norm in zip(line, norms, strict=True):
            for unit in dict.fromkeys(row["unit"] for row in rows):
                _draw_unit(axes, groups, (unit, optimizer, norm))
            axes.set_xscale("log")
            axes.set_yscale("symlog", linthresh=0.1)
            axes.set_ylim(-0.02, 130)
            norm_name = "RMSNorm before each block" if norm else "no norm"
            axes.set_title(f"{optimizer}, {norm_name}")
        line[0].set_ylabel("dead units, %")
    for axes in grid[-1]:
        axes.set_xlabel("learning rate")
    handles, names = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper")
    told = "x: unlearned\n+: diverged\nline ends:\noverflow"
    figure.text(0.99, 0.03, told, ha="right", fontsize=8)


def _draw_unit(axes: Any, groups: dict[Any, list[Row]], key: tuple[Any, ...]) -> None:
    points = []
    for rate in sorted({found[3] for found in groups}):
        rows = groups[(*key, rate)]
        counted = [row["dead"] for row in rows if row["dead"] is not None]
        if counted:
            points.append((rate, np.mean(counted), _outcome(rows)))
    look = style(key[0])
    axes.plot([], [], **look)  # in the legend
    line = look | {"marker": "", "label": None}
    axes.plot([p[0] for p in points], [p[1] for p in points], **line)
    for outcome, (_, marker) in _OUTCOMES.items():
        marked = [p[:2] for p in points if p[2] == outcome]
        found = look | {"linestyle": "", "label": None}
        found["marker"] = marker or look["marker"]
        axes.plot([p[0] for p in marked], [p[1] for p in marked], **found)


def _groups(rows: Sequence[Row]) -> dict[Any, list[Row]]:
    """Rows of the seeds, by unit, optimizer, norm and learning rate."""
    found: dict[Any, list[Row]] = {}
    for row in rows:
        key = row["unit"], row["optimizer"], row["norm"], row["learning_rate"]
        found.setdefault(key, []).append(row)
    return found
