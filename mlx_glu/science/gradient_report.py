"""What the rows of ``gradient-flow`` say: the table and the figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .experiment import Row
from .figures import label, style
from .stacks import REGIMES

#: A stack learned if its error is below; who predicts the mean has 1.
_LEARNED = 0.5


def summary(rows: Sequence[Row]) -> list[list[str]]:
    """Medians over seeds: local gains, then stacks.

    A stack has log10 of the gradient at the first layer over that at the last, before
    and after training, and the error reached.
    """
    units, stacks = _units(rows), _stacks(rows)
    scales = [scale for scale in (0.25, 1, 4, 16) if scale in units[0]["scale"]]
    heads = [f"gain at {scale:g}" for scale in scales]
    table = [["unit", *heads, "depth", *REGIMES]]
    for row in units:
        gains = [f"{row['gain'][row['scale'].index(scale)]:.3g}" for scale in scales]
        table.append([row["unit"], *gains, *[""] * (1 + len(REGIMES))])
    for depth in sorted({depth for _, _, depth in stacks}):
        for unit in dict.fromkeys(unit for unit, _, _ in stacks):
            found = [_told(stacks[unit, regime, depth]) for regime in REGIMES]
            table.append([unit, *[""] * len(scales), str(depth), *found])
    return table


def _told(rows: Sequence[Row]) -> str:
    if any(row["fate"] for row in rows):
        return " or ".join(sorted({row["fate"] or "lives" for row in rows}))
    before = f"{_median(rows, 'before')[0]:.1f}"
    if any(row["after"] is None for row in rows):
        return f"{before}, then diverges"
    error = np.median([row["error"] for row in rows])
    return f"{before} to {_median(rows, 'after')[0]:.1f}, error {error:.2g}"


def draw(figure: Any, rows: Sequence[Row]) -> None:
    """Local gains, the effect of training, and gradients by layer in each regime."""
    upper, lower = figure.subfigures(2, 1, height_ratios=(11, 10))
    gains, ends = upper.subplots(1, 2, width_ratios=(2, 3))
    _draw_gains(gains, _units(rows))
    stacks = _stacks(rows)
    depth = max(depth for _, _, depth in stacks)
    deepest = {(u, r): found for (u, r, d), found in stacks.items() if d == depth}
    _draw_ends(ends, deepest, depth)
    panels = lower.subplots(1, len(REGIMES), sharey=True)
    for axes, regime in zip(panels, REGIMES, strict=True):
        found = {u: rows for (u, r), rows in deepest.items() if r == regime}
        _draw_profiles(axes, found, regime)
    panels[0].set_ylabel("log10 of the gradient,\nlayer over last layer")
    figure.legend(
        *gains.get_legend_handles_labels(), loc="outside lower center", ncols=5
    )


def _draw_gains(axes: Any, rows: Sequence[Row]) -> None:
    for row in rows:
        axes.loglog(row["scale"], row["gain"], base=2, **style(row["unit"]))
    axes.set_xlabel("standard deviation of pre-activations")
    axes.set_ylabel("root mean square of the unit's gradient")
    axes.set_title("One unit: exact")


def _draw_ends(axes: Any, stacks: dict[tuple[str, str], list[Row]], depth: int) -> None:
    """Hollow before and full after training, a cross where little was learned."""
    units = list(dict.fromkeys(unit for unit, _ in stacks))
    for (unit, regime), rows in stacks.items():
        at = list(REGIMES).index(regime) + 0.8 * (units.index(unit) + 0.5) / len(units)
        color, marker = style(unit)["color"], style(unit)["marker"]
        before, after = (_median(rows, key)[0] for key in ("before", "after"))
        if any(row["fate"] for row in rows):
            continue
        learned = np.median([row["error"] or math.inf for row in rows]) < _LEARNED
        axes.plot([at, at], [before, after], color=color, linewidth=1)
        axes.plot(at, before, marker, color=color, markerfacecolor="none", markersize=5)
        axes.plot(at, after, marker if learned else "x", color=color, markersize=5)
    names = [r.label.replace(" and", ",\n") for r in REGIMES.values()]
    axes.set_xticks([k + 0.4 for k in range(len(names))], names)
    axes.set_ylabel("log10 of the gradient,\nfirst layer over last")
    axes.set_title(
        f"{depth} layers, before (hollow) and after training (full)\n"
        "cross: did not learn; hollow alone: diverged; none: dies or explodes"
    )


def _draw_profiles(axes: Any, stacks: dict[str, list[Row]], regime: str) -> None:
    lost = []
    for unit, rows in stacks.items():
        if any(row["fate"] for row in rows):
            lost.append(label(unit))
            continue
        logs = _median(rows, "before")
        axes.plot(logs, **style(unit), markevery=max(len(logs) // 6, 1))
    if lost:
        text = f"{', '.join(lost)}:\nactivations die or explode"
        axes.text(0.5, 0.04, text, ha="center", fontsize=7, transform=axes.transAxes)
    axes.set_xlabel("layer")
    axes.set_title(REGIMES[regime].label)


def _median(rows: Sequence[Row], key: str) -> np.ndarray:
    """By layer; nan where a seed has none."""
    found = [row[key] for row in rows if row[key] is not None]
    if len(found) < len(rows):
        return np.full(len(rows[0]["before"]), np.nan)
    return np.asarray(np.median(np.array(found, np.float64), axis=0))


def _units(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["part"] == "unit"]


def _stacks(rows: Sequence[Row]) -> dict[tuple[str, str, int], list[Row]]:
    """Rows of the seeds, by unit, regime and depth."""
    found: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        if row["part"] == "stack":
            key = row["unit"], row["regime"], row["depth"]
            found.setdefault(key, []).append(row)
    return found
