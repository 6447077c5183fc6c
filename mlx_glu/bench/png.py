"""Charts as a PNG image, by matplotlib."""

from __future__ import annotations

import importlib
import importlib.util
import io
from collections.abc import Sequence
from typing import Any

from .charts import COLORS, Chart, scaled, y_range, y_ticks

#: Inches of one chart.
_SIZE = 6.4, 3.8


def check(what: str = "--plot") -> None:
    """Whether matplotlib is there.

    Args:
        what: needs it.

    Raises:
        ValueError: it is not; the message says how to get it.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError(
            f"{what} needs matplotlib, which is not installed; pip install "
            "'mlx-glu[plot]'"
        )


def draw(charts: Sequence[Chart], foot: str) -> bytes:
    """All charts below each other, two in a row; ``foot`` says where it was measured.

    On white ground with dark letters, so that a dark page shows it as well.
    """
    check()
    figures: Any = importlib.import_module("matplotlib.figure")
    columns = min(2, len(charts))
    lines = -(-len(charts) // columns)
    size = _SIZE[0] * columns, _SIZE[1] * lines + 0.4
    figure = figures.Figure(figsize=size, layout="constrained", facecolor="white")
    axes = figure.subplots(lines, columns, squeeze=False).flat
    for ax, chart in zip(axes, charts, strict=False):
        _draw_one(ax, chart)
    for ax in list(axes)[len(charts) :]:
        ax.set_visible(False)
    figure.supxlabel(foot, fontsize=7)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=144)
    return file.getvalue()


def _draw_one(ax: Any, chart: Chart) -> None:
    for i, series in enumerate(chart.series):
        aside = (i - (len(chart.series) - 1) / 2) * 0.06
        xs = [p[0] + aside for p in series.points]
        ys = [scaled(chart, p[1]) for p in series.points]
        below = [
            y - scaled(chart, p[2]) for y, p in zip(ys, series.points, strict=True)
        ]
        above = [
            scaled(chart, p[3]) - y for y, p in zip(ys, series.points, strict=True)
        ]
        style = {"marker": "o", "markersize": 4, "linewidth": 1.2, "capsize": 2}
        color = COLORS[series.name]
        ax.errorbar(xs, ys, [below, above], label=series.name, color=color, **style)
    if chart.level is not None:
        ax.axhline(
            scaled(chart, chart.level), color="#555", linewidth=1, linestyle="--"
        )
    ax.set_title(chart.title, fontsize=8, loc="left")
    ax.set_xlabel(chart.x_label, fontsize=8)
    ax.set_ylabel(chart.y_label, fontsize=8)
    ax.set_xticks(*map(list, zip(*chart.ticks, strict=True)), fontsize=8)
    ax.set_ylim(*y_range(chart))
    ax.set_yticks(*map(list, zip(*y_ticks(chart), strict=True)), fontsize=8)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
