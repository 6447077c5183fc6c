"""What the charts of a report show; drawn by svg.py and png.py."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from .rows import Row

#: By arm, told apart on light and dark ground, and by eyes that see few colours: Okabe
#: and Ito 2008.
COLORS = {
    "stock": "#0072b2",
    "concat": "#e69f00",
    "fused": "#009e73",
    "fused_block": "#cc79a7",
    "stock_1000_ops": "#56b4e9",
}


class Series(NamedTuple):
    """Points of one arm: x, y and the ends of what is uncertain of y."""

    name: str
    points: list[tuple[float, float, float, float]]


class Chart(NamedTuple):
    """Lines over M, or over the phases of a model.

    Attributes:
        title: what was measured.
        x_label: with unit.
        y_label: with unit.
        ticks: positions on x and what stands there.
        log_y: powers of 2 are equally far apart.
        series: one an arm.
        level: a line across, or None.
    """

    title: str
    x_label: str
    y_label: str
    ticks: list[tuple[float, str]]
    log_y: bool
    series: list[Series]
    level: float | None = None


def charts(rows: Iterable[Row]) -> Iterator[Chart]:
    """For each table its times, and its speed-ups if there are any."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row.us_p50 is not None:
            groups.setdefault(row.group, []).append(row)
    for title, own in groups.items():
        if own[0].op == "ffn":
            positions = {str(r.M): math.log2(r.M or 1) for r in own}
            label = "M, rows of x (log scale)"
        else:
            positions = {op: float(i) for i, op in enumerate(("prompt", "decode"))}
            label = "phase"
        ticks = [(x, name) for name, x in positions.items()]
        unit = "µs per FFN" if own[0].op == "ffn" else "µs per token"
        times = _series(own, positions, ("us_p50", "us_p20", "us_p80"))
        yield Chart(title, label, f"{unit}, p20 to p80 (log scale)", ticks, True, times)
        gains = _series(own, positions, ("speedup", "low", "high"))
        if gains:
            what = "speed-up over stock, 95% interval"
            yield Chart(title, label, what, ticks, False, gains, 1.0)


def _series(
    rows: Sequence[Row], positions: dict[str, float], names: tuple[str, str, str]
) -> list[Series]:
    series: dict[str, Series] = {}
    for row in rows:
        y, low, high = (getattr(row, name) for name in names)
        if y is None or low is None:  # not timed, or too few runs for an interval
            continue
        x = positions[str(row.M) if row.op == "ffn" else row.op]
        own = series.setdefault(row.arm, Series(row.arm, []))
        own.points.append((x, y, low, high))
    return list(series.values())


def y_range(chart: Chart) -> tuple[float, float]:
    """Ends of the y axis, in its own measure: log2 where it is logarithmic."""
    ends = [
        end
        for s in chart.series
        for _, y, low, high in s.points
        for end in (low, high, y)
    ]
    ends += [] if chart.level is None else [chart.level]
    values = [scaled(chart, end) for end in ends]
    margin = max(0.06 * (max(values) - min(values)), 0.5 if chart.log_y else 0.02)
    return min(values) - margin, max(values) + margin


def scaled(chart: Chart, y: float) -> float:
    """A value in the measure of the y axis."""
    return math.log2(y) if chart.log_y else y


def y_ticks(chart: Chart) -> list[tuple[float, str]]:
    """Positions on the y axis, in its measure, and what stands there."""
    low, high = y_range(chart)
    if chart.log_y:
        step = max(1, round((high - low) / 6))
        powers = range(math.ceil(low), math.floor(high) + 1, step)
        return [(float(p), _short(2.0**p)) for p in powers]
    size = 10 ** math.floor(math.log10(high - low))
    step_size = next(
        s * size for s in (0.1, 0.2, 0.5, 1, 2) if (high - low) / (s * size) <= 7
    )
    first = math.ceil(low / step_size)
    last = math.floor(high / step_size)
    return [(i * step_size, f"{i * step_size:.3g}") for i in range(first, last + 1)]


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 1 else f"{value:.3g}"
