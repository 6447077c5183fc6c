"""Timings of several arms side by side, and what their differences prove."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

Run = Callable[[], object]

#: Seconds that an arm, by its name, takes for one run.
Timer = Callable[[str, Run], float]


class Spread(NamedTuple):
    """Seconds of one arm: the percentiles 20, 50 and 80."""

    p20: float
    p50: float
    p80: float

    @property
    def variation(self) -> float:
        """How far the middle 60% lie apart, over the median."""
        return (self.p80 - self.p20) / self.p50


class Comparison(NamedTuple):
    """How much faster an arm is than another.

    Attributes:
        speedup: median over blocks of the other's seconds over the arm's.
        low: lower end of its 95% interval.
        high: upper end.
    """

    speedup: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Faster or slower where the interval leaves no doubt, else within noise."""
        if self.low > 1:
            return "faster"
        return "slower" if self.high < 1 else "within noise"


def wall_clock(arm: str, run: Run) -> float:
    """A timer; ``run`` must wait for its own result."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def interleave(
    arms: Mapping[str, Run], blocks: int, *, timer: Timer = wall_clock, warmup: int = 1
) -> dict[str, list[float]]:
    """Run all arms in turn, there and back again, so that drift meets each alike.

    Args:
        arms: what to time, by name.
        blocks: how often; each is all arms in order, then in reverse: ABBA.
        timer: of one run.
        warmup: untimed runs of each arm before.

    Returns:
        For each arm the mean seconds of a run in each block.
    """
    for _ in range(warmup):
        for run in arms.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for i in range(blocks):
        # The arm in the middle runs twice in a row; let each be that one.
        order = _rotated(list(arms), i)
        once = {name: timer(name, arms[name]) for name in order}
        for name in reversed(order):
            seconds[name].append((once[name] + timer(name, arms[name])) / 2)
    return seconds


def _rotated(names: list[str], by: int) -> list[str]:
    by %= len(names)
    return names[by:] + names[:by]


def spread(seconds: Sequence[float]) -> Spread:
    """Percentiles of one arm's blocks."""
    return Spread(*(float(p) for p in np.percentile(seconds, (20, 50, 80))))


def compare(
    stock: Sequence[float], other: Sequence[float], *, resamples: int = 2000
) -> Comparison:
    """Compare two arms of one :func:`interleave`, block by block.

    Args:
        stock: seconds of the arm that is the measure.
        other: seconds of the arm in question, of the same blocks.
        resamples: of the bootstrap, which always draws the same ones.

    Returns:
        The median ratio of a block and its percentile bootstrap 95% interval
        (Efron and Tibshirani 1993, chapter 13).
    """
    ratios = np.asarray(stock) / np.asarray(other)
    drawn = np.random.default_rng(0).choice(ratios, (resamples, len(ratios)))
    low, high = np.percentile(np.median(drawn, axis=1), (2.5, 97.5))
    return Comparison(float(np.median(ratios)), float(low), float(high))
