"""Quality against size, as a PNG or SVG image, by matplotlib."""

import importlib
import io
import math
from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

from ..bench.charts import COLORS

#: Colour, marker and legend of each kind of setting; they differ without colour too.
_STYLES = {
    "affine": ("stock", "o", "affine, bits:group size"),
    "recipe": ("concat", "s", "recipes of mlx-lm"),
    "float formats": ("fused", "^", "float formats"),
    "mixed": ("fused_block", "D", "with overrides"),
}
#: Where a label may stand beside its point: direction and how text is aligned there.
_SIDES = (
    (1, 0, "left", "center"),
    (-1, 0, "right", "center"),
    (0, 1, "center", "bottom"),
    (0, -1, "center", "top"),
    (1, 1, "left", "bottom"),
    (1, -1, "left", "top"),
    (-1, 1, "right", "bottom"),
    (-1, -1, "right", "top"),
)
#: Times the perplexity of the source from which on a setting is not drawn.
_BROKEN = 10
#: Points of distance; from the second on a line leads to the label.
_DISTANCES = (6, 14, 24, 38)
#: Pixels that a label keeps from points.
_CLEAR = 5.0


class Point(NamedTuple):
    """One setting.

    Attributes:
        name: stands beside it.
        kind: a key of the styles.
        bits: per weight.
        perplexity: and the standard error of its difference from the source's.
        kl: mean KL divergence from the source, and its standard error.
    """

    name: str
    kind: str
    bits: float
    perplexity: tuple[float, float]
    kl: tuple[float, float]


def draw(
    points: Sequence[Point], level: float, title: str, weights: int, suffix: str
) -> bytes:
    """Perplexity and divergence over size, below each other.

    Args:
        points: the settings.
        level: perplexity of the source.
        title: which model and text.
        weights: of the model, for a second scale in MB.
        suffix: "png" or "svg".
    """
    figures: Any = importlib.import_module("matplotlib.figure")
    agg: Any = importlib.import_module("matplotlib.backends.backend_agg")
    figure = figures.Figure(figsize=(6.6, 8), layout="constrained", facecolor="white")
    agg.FigureCanvasAgg(figure)  # measures text
    upper, lower = figure.subplots(2, 1, sharex=True)
    shown = [p for p in points if p.perplexity[0] <= _BROKEN * level] or points
    label = "perplexity (bars: error of the difference)"
    _panel(upper, shown, label, [p.perplexity for p in shown])
    upper.axhline(level, color="#555", linewidth=1, linestyle="--", label="the source")
    _panel(lower, points, "KL divergence from the source, nats", [p.kl for p in points])
    lower.set_xlabel("bits per weight, scales included")
    _second_scales(upper, weights / 8e6)
    upper.legend(fontsize=8)
    broken = [f"{p.name}: {p.perplexity[0]:.2g}" for p in points if p not in shown]
    if broken:
        text = f"above the scale: {', '.join(broken)}"
        upper.text(0.02, 0.97, text, transform=upper.transAxes, fontsize=7, va="top")
    figure.suptitle(title, fontsize=9)
    figure.draw_without_rendering()  # the layout, which labels depend on
    _label(upper, [(p.name, p.bits, p.perplexity[0]) for p in shown])
    _label(lower, [(p.name, p.bits, p.kl[0]) for p in points])
    file = io.BytesIO()
    figure.savefig(file, format=suffix, dpi=160)
    return file.getvalue()


def _second_scales(axes: Any, scale: float) -> None:
    """MB above the panel; perplexities that are no powers of ten beside it."""
    both_ways = (lambda bits: bits * scale, lambda size: size / scale)
    axes.secondary_xaxis("top", functions=both_ways).set_xlabel("MB")
    ticker: Any = importlib.import_module("matplotlib.ticker")
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.yaxis.set_minor_locator(ticker.NullLocator())


def _panel(
    axes: Any, points: Sequence[Point], label: str, ys: Sequence[tuple[float, float]]
) -> None:
    for kind, (color, marker, legend) in _STYLES.items():
        own = [(p.bits, *y) for p, y in zip(points, ys, strict=True) if p.kind == kind]
        if own:
            xs, values, errors = zip(*sorted(own), strict=True)
            style = {"color": COLORS[color], "marker": marker, "capsize": 2}
            line = {"linewidth": 1, "linestyle": "-" if kind == "affine" else ""}
            axes.errorbar(
                xs, values, errors, label=legend, markersize=5, **style, **line
            )
    axes.set_yscale("log")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    axes.margins(x=0.08, y=0.1)


def _label(axes: Any, points: Sequence[tuple[str, float, float]]) -> None:
    """Names beside points, none over another, nor over a point."""
    renderer = axes.figure.canvas.get_renderer()
    at = [axes.transData.transform((x, y)) for _, x, y in points]
    others = [axes.get_legend(), *axes.texts]
    taken = [other.get_window_extent(renderer) for other in others if other]
    inside = axes.get_window_extent(renderer)
    for i, (name, x, y) in enumerate(points):
        for distance, (across, up, ha, va) in product(_DISTANCES, _SIDES):
            place = {
                "xy": (x, y),
                "xytext": (across * distance, up * distance),
                "textcoords": "offset points",
                "horizontalalignment": ha,
                "verticalalignment": va,
                "fontsize": 8,
                "bbox": {"color": "white", "alpha": 0.7, "pad": 0.5},
            }
            text = axes.annotate(name, **place)
            box = text.get_window_extent(renderer)
            apart = [_apart(box, *point) for point in at]
            leads = distance > _DISTANCES[0]
            clear = min(apart) > _CLEAR and (leads or apart[i] == min(apart))
            clear &= inside.x0 < box.x0 and box.x1 < inside.x1
            if clear and not any(map(box.overlaps, taken)):
                if leads:
                    line = {"arrowstyle": "-", "color": "#999", "linewidth": 0.6}
                    text.remove()
                    axes.annotate(name, **place, arrowprops=line)
                taken.append(box)
                break
            text.remove()


def _apart(box: Any, x: float, y: float) -> float:
    """Pixels between a box and a point."""
    across = max(box.x0 - x, 0.0, x - box.x1)
    return math.hypot(across, max(box.y0 - y, 0.0, y - box.y1))
