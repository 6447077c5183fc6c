"""A chart as SVG inside HTML; its colours are the page's."""

from __future__ import annotations

from collections.abc import Callable
from html import escape

from .charts import COLORS, Chart, Series, scaled, y_range, y_ticks

WIDTH, HEIGHT = 620, 360
#: Of the plot inside: left, top, right, bottom.
_LEFT, _TOP, _RIGHT, _BOTTOM = 72, 44, WIDTH - 150, HEIGHT - 56

#: From x and a y in the measure of its axis to where that is in the image.
Place = Callable[[float, float], tuple[float, float]]


def draw(chart: Chart) -> str:
    """The chart as an ``<svg>`` element."""
    xs = [x for x, _ in chart.ticks]
    first, last = min(xs) - 0.3, max(xs) + 0.3
    low, high = y_range(chart)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - first) / (last - first)
        up = (y - low) / (high - low)
        return _LEFT + across * (_RIGHT - _LEFT), _BOTTOM - up * (_BOTTOM - _TOP)

    parts = [_text(_LEFT, 18, chart.title, "title")]
    for x, name in chart.ticks:
        at, _ = place(x, low)
        parts.append(_line(at, _TOP, at, _BOTTOM, "grid"))
        parts.append(_text(at, _BOTTOM + 18, name, "middle"))
    for y, name in y_ticks(chart):
        _, at = place(first, y)
        parts.append(_line(_LEFT, at, _RIGHT, at, "grid"))
        parts.append(_text(_LEFT - 8, at + 4, name, "end"))
    if chart.level is not None:
        _, at = place(first, scaled(chart, chart.level))
        parts.append(_line(_LEFT, at, _RIGHT, at, "level"))
    middle = (_LEFT + _RIGHT) / 2, (_TOP + _BOTTOM) / 2
    parts.append(_text(middle[0], HEIGHT - 14, chart.x_label, "middle"))
    turned = f'transform="rotate(-90 16 {middle[1]:.1f})"'
    parts.append(_text(16, middle[1], chart.y_label, "middle", turned))
    for i, series in enumerate(chart.series):
        color = COLORS[series.name]
        # A step aside, so that intervals of several arms can be seen.
        aside = (i - (len(chart.series) - 1) / 2) * 0.06
        parts += _series(chart, series, color, aside, place)
        at = _TOP + 18 * i
        parts.append(_dot(_RIGHT + 16, at - 4, color))
        parts.append(_text(_RIGHT + 26, at, series.name, "start"))
    label = escape(f"{chart.title}: {chart.y_label} over {chart.x_label}")
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}"'
    return f'<svg {size} role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _series(
    chart: Chart, series: Series, color: str, aside: float, place: Place
) -> list[str]:
    parts, ends = [], []
    for x, y, low, high in series.points:
        at, middle = place(x + aside, scaled(chart, y))
        top, bottom = (place(x, scaled(chart, end))[1] for end in (high, low))
        parts.append(_line(at, top, at, bottom, "whisker", color))
        parts.append(_dot(at, middle, color))
        ends.append(f"{at:.1f},{middle:.1f}")
    line = f'<polyline points="{" ".join(ends)}" stroke="{color}" class="line"/>'
    return [line, *parts]


def _line(
    x1: float, y1: float, x2: float, y2: float, name: str, color: str = ""
) -> str:
    stroke = f' stroke="{color}"' if color else ""
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} class="{name}"{stroke}/>'


def _dot(x: float, y: float, color: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{color}"/>'


def _text(x: float, y: float, text: str, name: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{name}" {more}>{escape(text)}</text>'
