"""Student's distribution, Holm's correction, and how often the intervals are right."""

import math

import numpy as np
import pytest

from mlx_glu.science.statistics import (
    detectable,
    difference,
    half_width,
    holm,
    t_quantile,
    t_tail,
)

#: The 97.5% column of printed tables of Student's t.
TABLE = {1: 12.706, 2: 4.303, 4: 2.776, 9: 2.262, 29: 2.045, 120: 1.980}


@pytest.mark.parametrize("degrees", TABLE)
def test_quantiles_are_those_of_the_tables(degrees):
    assert round(t_quantile(0.975, degrees), 3) == TABLE[degrees]


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0, 4.0, 1e4])
def test_tails_with_closed_forms(t):
    """One, two and four degrees of freedom, in forms that do not cancel."""
    cauchy = math.atan2(1, t) / math.pi
    root = math.sqrt(2 + t * t)
    two = 1 / (root * (root + t))
    assert t_tail(t, 1) == pytest.approx(cauchy, rel=1e-11)
    assert t_tail(t, 2) == pytest.approx(two, rel=1e-11)
    if t < 10:
        sine = t / math.sqrt(4 + t * t)
        four = (2 - 3 * sine + sine**3) / 4
        assert t_tail(t, 4) == pytest.approx(four, rel=1e-10)


def test_holm_is_the_example_worked_by_hand():
    """4 * .005; 3 * .01; 2 * .03; and .04, which may not fall below that."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_difference_worked_by_hand():
    found = difference([2, 4, 6, 8, 10], [1, 2, 3, 4, 5])
    assert found.mean == 3
    assert found.sd == pytest.approx(math.sqrt(2.5))
    assert found.low == pytest.approx(3 - 2.7764 * math.sqrt(0.5), abs=1e-4)
    assert found.high == pytest.approx(3 + half_width(math.sqrt(2.5), 5))
    # t = 3 * sqrt(2) with 4 degrees of freedom: the closed form above.
    sine = math.sqrt(18 / 22)
    assert found.p == pytest.approx((2 - 3 * sine + sine**3) / 2)
    assert 1 <= found.bootstrap_low < 1.5 < 4.5 < found.bootstrap_high <= 5
    assert difference([1, 1], [1, 1]).p == 1
    assert difference([2, 2], [1, 1]).p == 0


def test_pairs_are_needed():
    with pytest.raises(ValueError, match="got 2 runs and 3 of the baseline"):
        difference([1, 2], [1, 2, 3])
    for call in (lambda: difference([1], [2]), lambda: detectable(1.0, 1)):
        with pytest.raises(ValueError, match="expected 2 pairs or more but got 1"):
            call()


def test_how_often_the_intervals_of_five_pairs_hold_the_truth():
    """The t interval 95%; the bootstrap 91%, as it is corrected, and else 83%."""
    rng = np.random.default_rng(0)
    trials, held = 1000, np.zeros(3)
    for pairs in rng.normal(0, 1, (trials, 5)):
        found = difference(pairs, np.zeros(5), resamples=4000)
        means = rng.choice(pairs, (2000, 5)).mean(axis=1)
        plain = np.quantile(means, (0.025, 0.975))
        bounds = (found.low, found.high), found[4:6], plain
        held += [low <= 0 <= high for low, high in bounds]
    # Three standard deviations of a share of 1000 trials.
    assert held / trials == pytest.approx([0.95, 0.91, 0.83], abs=0.035)


@pytest.mark.parametrize("n", [2, 5, 20])
def test_the_detectable_difference_is_detected_in_four_of_five(n):
    size = detectable(0.01, n)
    samples = np.random.default_rng(1).normal(size, 0.01, (40_000, n))
    t = samples.mean(1) / samples.std(1, ddof=1) * math.sqrt(n)
    share = np.mean(np.abs(t) > t_quantile(0.975, n - 1))
    assert share == pytest.approx(0.8, abs=3 * math.sqrt(0.8 * 0.2 / 40_000))


def test_detectable_is_the_textbook_sample_size_and_more_than_the_interval():
    """34 pairs is what textbooks ask for half a deviation, and 33 is too few."""
    assert detectable(1.0, 34) < 0.5 < detectable(1.0, 33)
    assert half_width(1.0, 5) == pytest.approx(2.7764 / math.sqrt(5), abs=1e-4)
    assert detectable(1.0, 5, power=0.5) < half_width(1.0, 5) < detectable(1.0, 5)
    assert detectable(1.0, 5, level=0.05 / 7) > 1.5 * detectable(1.0, 5)
