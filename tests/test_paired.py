"""Timings that drift, scatter or differ, and what is said of them."""

import numpy as np
import pytest

from mlx_glu.paired import compare, interleave, spread, wall_clock


class Clock:
    """A timer with a duration for each arm; a machine that slows down all the time."""

    def __init__(self, seconds, drift=0.0, noise=0.0):
        self.seconds, self.drift, self.noise = seconds, drift, noise
        self.order = []
        self.rng = np.random.default_rng(1)

    def __call__(self, arm, run):
        run()
        slow = 1 + self.drift * len(self.order) + self.noise * self.rng.normal()
        self.order.append(arm)
        return self.seconds[arm] * slow


def test_arms_run_there_and_back_and_each_comes_first():
    clock, runs = Clock({"a": 1.0, "b": 1.0, "c": 1.0}), []
    arms = {name: lambda name=name: runs.append(name) for name in "abc"}
    seconds = interleave(arms, 3, timer=clock, warmup=2)
    assert "".join(clock.order) == "abccba" + "bcaacb" + "cabbac"
    assert runs[:6] == list("abcabc")
    assert runs[6:] == clock.order
    assert {name: len(times) for name, times in seconds.items()} == dict(a=3, b=3, c=3)


def verdict(a, b, **machine):
    timer = Clock({"a": a, "b": b}, **machine)
    seconds = interleave({"a": int, "b": int}, 12, timer=timer)
    return compare(seconds["a"], seconds["b"])


def test_drift_alone_is_no_difference():
    same = verdict(1.0, 1.0, drift=0.05)
    assert same.speedup == pytest.approx(1, abs=1e-9)
    assert same.verdict == "within noise"


@pytest.mark.parametrize(
    ("b", "expected"), [(0.9, "faster"), (1.1, "slower"), (1.0, "within noise")]
)
def test_verdicts(b, expected):
    assert verdict(1.0, b, noise=0.02).verdict == expected


def test_the_interval_covers_what_is_true():
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(200):
        stock, other = rng.lognormal(0, 0.1, (2, 30))
        low, high = compare(stock, other / 1.05, resamples=300)[1:]
        covered += low <= 1.05 <= high
    assert 180 <= covered <= 200


def test_spread_is_percentiles():
    found = spread([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11])
    assert tuple(found) == (3, 6, 9)
    assert found.variation == 1
    assert wall_clock("", lambda: sum(range(10000))) > 0
