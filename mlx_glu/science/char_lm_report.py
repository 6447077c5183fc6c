"""What the rows of the character model say: tests and figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from .experiment import Row
from .figures import label, rate_label, style
from .published import tables
from .statistics import Difference, detectable, difference, holm

#: Every other unit is compared with it.
BASELINE = "relu"
_FULL_WIDTH = " at full width"
_NOISE = "ReLU, other seeds"


class Comparison(NamedTuple):
    """One unit against the baseline.

    Attributes:
        name: of the unit, as it is drawn.
        unit: its key.
        phase: of its rows.
        rate: its learning rate.
        loss: mean of its test losses.
        found: the paired difference, nats a character.
        pairs: that it is of.
        p: corrected for all units that are compared; None of controls.
    """

    name: str
    unit: str
    phase: str
    rate: float
    loss: float
    found: Difference
    pairs: int
    p: float | None


def compare(rows: Sequence[Row]) -> list[Comparison]:
    """All units, the controls last; none before there are two pairs.

    Runs that diverged have no pair; the name says how many are left.
    """
    baseline = _losses(rows, "compare", BASELINE)
    found = []
    for phase, unit in dict.fromkeys((row["phase"], row["unit"]) for row in rows):
        own = _losses(rows, phase, unit)
        if phase == "tune" or (phase, unit) == ("compare", BASELINE):
            continue
        if phase == "noise":  # other seeds, so pairs are as they come
            pairs = list(zip(own.values(), baseline.values(), strict=False))
        else:
            pairs = [(own[s], baseline[s]) for s in own if s in baseline]
        if len(pairs) < 2:
            continue
        runs, others = zip(*pairs, strict=True)
        ran = [r for r in rows if (r["phase"], r["unit"]) == (phase, unit)]
        name = _name(phase, unit)
        if len(pairs) < len(ran):
            name += f" ({len(pairs)} of {len(ran)} seeds)"
        rate = ran[0]["learning_rate"]
        mean, result = sum(runs) / len(runs), difference(runs, others)
        found.append(
            Comparison(name, unit, phase, rate, mean, result, len(pairs), None)
        )
    family = [c for c in found if c.phase == "compare"]
    adjusted = iter(holm([c.found.p for c in family]))
    found = [c._replace(p=next(adjusted)) if c in family else c for c in found]
    order = ("compare", "wide", "noise")
    return sorted(found, key=lambda c: order.index(c.phase))


def _name(phase: str, unit: str) -> str:
    names = {"wide": label(unit) + _FULL_WIDTH, "noise": _NOISE}
    return names.get(phase, label(unit))


def _losses(rows: Sequence[Row], phase: str, unit: str) -> dict[int, float]:
    """Test losses by seed, of the runs that did not diverge."""
    return {
        row["seed"]: row["test_loss"]
        for row in rows
        if (row["phase"], row["unit"]) == (phase, unit) and row["test_loss"] is not None
    }


def summary(rows: Sequence[Row]) -> list[list[str]]:
    """Losses, nats a character, and differences from ReLU.

    Where the best learning rate is the highest or lowest that was tried, it says so: a
    better one may lie beyond. Units at full width have the rate of the others.
    """
    head = ["unit", "learning rate", "loss", "minus ReLU", "95% interval"]
    table = [[*head, "bootstrap", "p, Holm", "detectable"]]
    own = _losses(rows, "compare", BASELINE)
    tried = {row["learning_rate"] for row in rows if row["phase"] == "tune"}
    if own:
        rate = next(r["learning_rate"] for r in rows if r["phase"] == "compare")
        loss = f"{sum(own.values()) / len(own):.4f}"
        table.append([label(BASELINE), rate_label(rate, tried), loss, *["-"] * 5])
    compared = compare(rows)
    tests = sum(c.p is not None for c in compared) or 1
    for c in compared:
        d = c.found
        table.append(
            [
                c.name,
                rate_label(c.rate, tried),
                f"{c.loss:.4f}",
                f"{d.mean:+.4f}",
                f"{d.low:+.4f} .. {d.high:+.4f}",
                f"{d.bootstrap_low:+.4f} .. {d.bootstrap_high:+.4f}",
                "-" if c.p is None else f"{c.p:.3f}",
                f"{detectable(d.sd, c.pairs, level=0.05 / tests):.4f}",
            ]
        )
    shown = {(c.phase, c.unit) for c in compared} | {("compare", BASELINE)}
    for phase, unit in dict.fromkeys((row["phase"], row["unit"]) for row in rows):
        if phase in ("compare", "wide") and (phase, unit) not in shown:
            table.append([_name(phase, unit), "-", "diverged", *["-"] * 5])
    return table


def draw(figure: Any, rows: Sequence[Row]) -> None:
    """Loss against learning rate, differences at the best one, and those of papers."""
    curves, forest, papers = figure.subplots(1, 3, width_ratios=(4, 4, 3))
    _draw_rates(curves, [row for row in rows if row["phase"] == "tune"])
    _draw_forest(forest, compare(rows))
    _draw_papers(papers)


def _draw_rates(axes: Any, rows: Sequence[Row]) -> None:
    for unit in dict.fromkeys(row["unit"] for row in rows):
        own = [row for row in rows if row["unit"] == unit]
        rates = sorted({row["learning_rate"] for row in own})
        means = [_mean([r for r in own if r["learning_rate"] == x]) for x in rates]
        axes.plot(rates, means, **style(unit))
    axes.set_xscale("log", base=2)
    ticks = sorted({row["learning_rate"] for row in rows})
    axes.set_xticks(ticks, [f"{1000 * x:g}" for x in ticks])
    axes.set_xlabel("learning rate, thousandths")
    axes.set_ylabel("loss on the tuning text, nats a character")
    axes.set_title("One seed, every learning rate")
    axes.legend(ncols=2, fontsize=7)


def _mean(rows: Sequence[Row]) -> float:
    losses = [row["tune_loss"] for row in rows]
    return float("nan") if None in losses else sum(losses) / len(losses)


def _draw_forest(axes: Any, compared: Sequence[Comparison]) -> None:
    for y, c in enumerate(compared):
        d = c.found
        shown = style(c.unit) | {"linestyle": "", "label": c.name}
        axes.errorbar(
            [d.mean],
            [-y],
            xerr=[[d.mean - d.low], [d.high - d.mean]],
            capsize=2,
            **shown,
        )
    axes.axvline(0, color="#808080", linewidth=1)
    axes.set_yticks([-y for y in range(len(compared))], [c.name for c in compared])
    axes.set_xlabel("test loss minus ReLU's, nats a character")
    axes.set_title(
        "Best learning rate, fresh seeds\n(mean and 95% interval; left is better)"
    )


def _draw_papers(axes: Any) -> None:
    shazeer, narang = tables()["shazeer"], tables()["narang"]
    columns = {
        "Shazeer 2020, 524k steps": (shazeer.column("loss"), "o"),
        "Narang 2021": (narang.column("loss"), "s"),
    }
    units = [unit for unit in shazeer.rows if unit != BASELINE]
    for (name, (losses, marker)), color in zip(
        columns.items(), ("#0089d6", "#d55e00"), strict=True
    ):
        xs = [losses[unit] - losses[BASELINE] for unit in units]
        ys = [-y for y in range(len(units))]
        axes.plot(xs, ys, linestyle="", marker=marker, color=color, label=name)
    axes.axvline(0, color="#808080", linewidth=1)
    axes.set_yticks([-y for y in range(len(units))], [label(unit) for unit in units])
    axes.set_xlabel("loss minus ReLU's, nats a token")
    axes.set_title("Published: T5, 220M, one run each")
    axes.legend(fontsize=7)
