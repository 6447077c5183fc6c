"""Figures of rows, twice: for paper and for a dark screen. By matplotlib."""

from __future__ import annotations

import importlib
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..bench import png
from ..bench.report import write
from ..training.ungated import ACTIVATIONS
from .experiment import Experiment, Row

#: Ink and ground.
_THEMES = {"": ("#1a1a1a", "#ffffff"), "-dark": ("#e6e6e6", "#0d1117")}

#: Colour and marker; gated units have full lines, the others dashes, so that print
#: without colour keeps them apart. Colours: near Okabe and Ito's, legible on both.
STYLES = {
    "relu": ("#d55e00", "o"),
    "gelu": ("#e69f00", "s"),
    "gelu_tanh": ("#e69f00", "s"),
    "silu": ("#cc79a7", "D"),
    "relu2": ("#b0521a", "p"),
    "xielu": ("#8c6bb1", "P"),
    "sigmoid": ("#999999", "v"),
    "tanh": ("#777777", "^"),
    "glu": ("#56b4e9", "v"),
    "gtu": ("#6a8caf", "^"),
    "bilinear": ("#8a8f00", "d"),
    "reglu": ("#d55e00", "o"),
    "geglu": ("#e69f00", "s"),
    "geglu_tanh": ("#e69f00", "s"),
    "swiglu": ("#0089d6", "D"),
    "linear": ("#888888", "|"),
}

#: How papers write the names.
_LABELS = {
    "relu": "ReLU",
    "gelu": "GELU",
    "silu": "SiLU",
    "relu2": "ReLU²",
    "xielu": "xIELU",
    "glu": "GLU",
    "gtu": "GTU",
    "bilinear": "Bilinear",
    "reglu": "ReGLU",
    "geglu": "GEGLU",
    "geglu_tanh": "GEGLU-tanh",
    "swiglu": "SwiGLU",
}


def label(unit: str) -> str:
    """A unit's name in the literature."""
    return _LABELS.get(unit, unit)


def rate_label(rate: float, tried: Iterable[float]) -> str:
    """A learning rate that was the best; says where none beyond it was tried."""
    rates = set(tried)
    edge = {min(rates): ", the lowest", max(rates): ", the highest"}
    return f"{rate:g}{edge.get(rate, '') if len(rates) > 1 else ''}"


def style(unit: str) -> dict[str, Any]:
    """How a unit is drawn in every figure; keywords of matplotlib's ``plot``."""
    color, marker = STYLES.get(unit, ("#888888", "o"))
    gated = unit not in ACTIVATIONS
    return {
        "color": color,
        "marker": marker,
        "linestyle": "-" if gated else "--",
        "markerfacecolor": color if gated else "none",
        "markersize": 5,
        "linewidth": 1.4,
        "label": label(unit),
    }


def save(experiment: Experiment[Any], rows: Sequence[Row], stem: Path) -> list[Path]:
    """Draw ``STEM.svg`` and ``STEM-dark.svg``.

    Returns:
        Their paths.

    Raises:
        ValueError: matplotlib is not installed.
    """
    png.check("a figure")
    paths = []
    for suffix, (ink, ground) in _THEMES.items():
        path = stem.with_name(f"{stem.name}{suffix}.svg")
        write(path, _draw(experiment, rows, ink, ground))
        paths.append(path)
    return paths


def _draw(
    experiment: Experiment[Any], rows: Sequence[Row], ink: str, ground: str
) -> bytes:
    matplotlib: Any = importlib.import_module("matplotlib")
    figures: Any = importlib.import_module("matplotlib.figure")
    inks = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color")
    settings = dict.fromkeys((*inks, "ytick.color"), ink) | {
        "axes.facecolor": ground,
        "legend.facecolor": ground,
        "legend.framealpha": 0.7,
        "legend.fontsize": 8,
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.grid": True,
        "grid.color": "#808080",
        "grid.alpha": 0.25,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "svg.hashsalt": "mlx_glu",
    }
    with matplotlib.rc_context(settings):
        figure = figures.Figure(
            figsize=experiment.size, layout="constrained", facecolor=ground
        )
        experiment.draw(figure, rows)
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    # Places to a hundredth of a point; matplotlib writes six digits, and a space at the
    # end of lines.
    svg = re.sub(
        rb' (?:d|x|y)="[^"]*"',
        lambda found: re.sub(rb"(\.\d\d)\d+", rb"\1", found[0]),
        file.getvalue(),
    )
    return b"\n".join(line.rstrip() for line in svg.splitlines()) + b"\n"
