"""Table and figure of the experiment on a trained model's activations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .experiment import Row
from .thresholding import RULES

#: The largest number of float8 (E4M3).
_FLOAT8 = 448.0
#: Colour and marker of each rule.
_STYLES = {
    "down": ("#0089d6", "o"),
    "cats": ("#e69f00", "s"),
    "m_countdown": ("#cc79a7", "^"),
    "d_countdown": ("#0089d6", "D"),
    "teal": ("#d55e00", "v"),
    "wina": ("#8a8f00", "X"),
}


def summary(rows: Sequence[Row]) -> list[list[str]]:
    """What was found, a line each."""
    layers = _layers_row(rows)
    table = [["what", "found", "and"]]
    for name, words in (
        ("phi_below_0", "gates that turn the sign: activation below 0"),
        ("phi_inside", "gates between 0 and 1"),
        ("phi_above_1", "gates that amplify: above 1"),
    ):
        low, mean, high = (100 * f(layers[name]) for f in (min, np.mean, max))
        table.append([words, f"{mean:.1f} %", f"{low:.1f} to {high:.1f} % by layer"])
    for name, words in (
        ("h_max", "largest input of a down projection"),
        ("h_max_later", "largest but for the first token of each window"),
    ):
        top = int(np.argmax(layers[name]))
        table.append([words, f"{layers[name][top]:.4g}", f"in layer {top}"])
    ratios = np.divide(layers["h_max"], layers["h_rms"])
    low, middle, high = np.percentile(ratios, (0, 50, 100))
    words = "largest over root mean square, median layer"
    table.append([words, f"{middle:.0f}", f"{low:.0f} to {high:.0f} by layer"])
    for row in _perplexities(rows):
        if row["rule"] == "none":
            found = f"{row['perplexity']:.2f}"
            words = f"perplexity of {row['tokens']} tokens"
            table.append([words, found, f"± {row['perplexity_error']:.2f}"])
            continue
        words = f"{RULES[row['rule']].label}, {row['share']:.0%} left out"
        change, error = _percent(row)
        unread = f"{100 * row['model_skipped']:.1f} % of the weights unread"
        table.append([words, f"{change:+.1f} ± {error:.1f} %", unread])
    return table


def draw(figure: Any, rows: Sequence[Row]) -> None:
    """Gates and outliers by layer, and what unread weights cost."""
    panels = figure.subplot_mosaic([["gates", "outliers"], ["rules", "rules"]])
    _draw_gates(panels["gates"], _layers_row(rows))
    _draw_outliers(panels["outliers"], _layers_row(rows))
    _draw_rules(panels["rules"], _perplexities(rows))


def _draw_gates(axes: Any, layers: Row) -> None:
    names = ("phi_below_0", "phi_inside", "phi_above_1")
    shares = [100 * np.array(layers[name]) for name in names]
    labels = ("below 0: turns the sign", "between 0 and 1", "above 1: amplifies")
    colors = ("#d55e00", "#56b4e9", "#8a8f00")
    axes.stackplot(range(len(shares[0])), shares, labels=labels, colors=colors)
    axes.set(xlabel="layer", ylabel="share of the gates, %", ylim=(0, 100))
    axes.margins(x=0)
    axes.legend(loc="lower left", fontsize=7)
    axes.set_title("Activated gates")


def _draw_outliers(axes: Any, layers: Row) -> None:
    for name, color, marker, words in (
        ("h_max", "#d55e00", "o", "largest"),
        ("h_max_later", "#0089d6", "v", "without first tokens"),
        ("h_rms", "#888888", ".", "root mean square"),
    ):
        style = {"color": color, "marker": marker, "markersize": 4, "linewidth": 1}
        axes.plot(layers[name], label=words, **style)
    axes.axhline(_FLOAT8, color="#888888", linestyle=":", linewidth=1)
    axes.text(0, _FLOAT8, "largest float8", fontsize=7, va="bottom")
    axes.set(xlabel="layer", ylabel="size of an entry", yscale="log")
    axes.legend(loc="upper center", bbox_to_anchor=(0.66, 1), fontsize=7)
    axes.set_title("Inputs of the down projection")


def _draw_rules(axes: Any, rows: Sequence[Row]) -> None:
    for rule, (color, marker) in _STYLES.items():
        own = [row for row in rows if row["rule"] == rule]
        if not own:
            continue
        changes, errors = zip(*map(_percent, own), strict=True)
        ideal = rule == "d_countdown"  # no rule that one can run
        axes.errorbar(
            [100 * row["model_skipped"] for row in own],
            changes,
            errors,
            color=color,
            marker=marker,
            markersize=5,
            linewidth=1.2,
            capsize=2,
            linestyle="--" if ideal else "-",
            markerfacecolor="none" if ideal else color,
            label=RULES[rule].label,
        )
    axes.set_yscale("symlog", linthresh=1)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlim(left=0)
    axes.set_xlabel("weights of the whole model that a token does not read, %")
    axes.set_ylabel("rise of the perplexity, %, linear below 1")
    axes.legend(ncols=2, fontsize=7)
    axes.set_title("Thresholding rules")


def _percent(row: Row) -> tuple[float, float]:
    """Rise of the perplexity and its paired standard error, per cent."""
    ratio = float(np.exp(row["loss_change"]))
    return 100 * (ratio - 1), 100 * ratio * row["loss_change_error"]


def _layers_row(rows: Sequence[Row]) -> Row:
    return next(row for row in rows if row["part"] == "layers")


def _perplexities(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["part"] == "perplexity"]
