"""What differences between paired runs prove, when the pairs are few.

Of 5 pairs the percentile bootstrap covers 83% where it says 95%, as there is no
resample outside of five numbers. The t interval is right for normal differences and is
the one that verdicts go by; beside it stands a bootstrap interval that is corrected for
small samples and covers 91% (tests/test_science_statistics.py measures these shares).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

_NORMAL = NormalDist()
#: Gauss and Legendre's, from -1 to 1; enough for the t distribution to 12 digits.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(100)


class Difference(NamedTuple):
    """A mean difference between paired runs, in the unit of the runs.

    Attributes:
        mean: of the differences.
        sd: their standard deviation, of a sample.
        low: end of the 95% t interval of the mean.
        high: its other end.
        bootstrap_low: end of the expanded percentile bootstrap's 95% interval.
        bootstrap_high: its other end.
        p: of the paired t test, two-sided; 1 where all differences are 0.
    """

    mean: float
    sd: float
    low: float
    high: float
    bootstrap_low: float
    bootstrap_high: float
    p: float


def difference(
    runs: Sequence[float], baseline: Sequence[float], *, resamples: int = 20000
) -> Difference:
    """Compare runs with those of a baseline, pair by pair.

    Args:
        runs: results, one for each seed.
        baseline: of the same seeds in the same order.
        resamples: of the bootstrap, which always draws the same ones.

    Returns:
        The mean of ``runs - baseline`` and what is known of it. The bootstrap's
        levels are those of Hesterberg 2015, arXiv:1411.5279, at which it agrees with
        the t interval where differences are symmetric.

    Raises:
        ValueError: there are fewer than 2 pairs, or lengths differ.
    """
    if len(runs) != len(baseline):
        raise ValueError(
            f"[difference] expected pairs but got {len(runs)} runs and "
            f"{len(baseline)} of the baseline; run the same seeds of both"
        )
    degrees = _degrees(len(runs))
    pairs = np.asarray(runs, np.float64) - np.asarray(baseline, np.float64)
    n, mean, sd = len(pairs), float(pairs.mean()), float(pairs.std(ddof=1))
    width = half_width(sd, n)
    tail = _NORMAL.cdf(-math.sqrt(n / (n - 1)) * t_quantile(0.975, degrees))
    drawn = np.random.default_rng(0).choice(pairs, (resamples, n)).mean(axis=1)
    low, high = np.quantile(drawn, (tail, 1 - tail))
    if sd:
        p = 2 * t_tail(abs(mean) / sd * math.sqrt(n), degrees)
    else:
        p = 0.0 if mean else 1.0
    bounds = mean - width, mean + width, float(low), float(high)
    return Difference(mean, sd, *bounds, p)


def least(
    found: Iterable[tuple[float, float | None]],
    average: Callable[[list[float]], Any] = np.median,
) -> float:
    """The setting whose results are least on average, such as a learning rate.

    Args:
        found: pairs of a setting and one result of it, None for one that diverged,
            which is larger than any.
        average: of the results of one setting.
    """
    results: dict[float, list[float]] = {}
    for setting, result in found:
        own = results.setdefault(setting, [])
        own.append(math.inf if result is None else result)
    return min(results, key=lambda setting: float(average(results[setting])))


def holm(p_values: Sequence[float]) -> list[float]:
    """P values of several tests such that all may be compared with one level.

    The chance of any false find is then that level, whatever their dependence.

    Returns:
        The adjusted p values, in the order given; at most 1.

    Source: Holm 1979, Scandinavian Journal of Statistics 6.
    """
    order = np.argsort(p_values, kind="stable")
    m = len(order)
    adjusted, bound = [0.0] * m, 0.0
    for rank, i in enumerate(order):
        bound = max(bound, min(1.0, (m - rank) * p_values[i]))
        adjusted[i] = bound
    return adjusted


def half_width(sd: float, n: int) -> float:
    """Half the 95% t interval, ``t * sd / sqrt(n)``: what a mean found must exceed.

    A true difference of that size is missed about as often as it is found; see
    `detectable`.

    Args:
        sd: standard deviation of the paired differences.
        n: pairs.

    Raises:
        ValueError: there are fewer than 2 pairs.
    """
    return t_quantile(0.975, _degrees(n)) * sd / math.sqrt(n)


def detectable(sd: float, n: int, *, power: float = 0.8, level: float = 0.05) -> float:
    """The smallest true mean difference that a paired t test finds often enough.

    Args:
        sd: standard deviation of the paired differences, which are normal.
        n: pairs.
        power: how often it is found.
        level: of the two-sided test; over m for the first step of Holm's with m tests.

    Returns:
        The difference, in the unit of ``sd``; 1.68 sd for 5 pairs.

    Raises:
        ValueError: there are fewer than 2 pairs.
    """
    critical = t_quantile(1 - level / 2, _degrees(n))
    found = _root(lambda shift: _power(shift, n - 1, critical) - power)
    return found * sd / math.sqrt(n)


def t_tail(t: float, degrees: int) -> float:
    """P(T > t) of Student's distribution, for t >= 0, to 12 digits of the value."""
    # With t = sqrt(degrees) tan(angle) the density is a power of the cosine.
    low, high = math.atan(t / math.sqrt(degrees)), math.pi / 2
    angle = (low + high) / 2 + (high - low) / 2 * _NODES
    area = (high - low) / 2 * float(_WEIGHTS @ np.cos(angle) ** (degrees - 1))
    log = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)
    return area * math.exp(log) / math.sqrt(math.pi)


def t_quantile(probability: float, degrees: int) -> float:
    """The t with P(T < t) = ``probability``, which is at least 1/2."""
    return _root(lambda t: 1 - probability - t_tail(t, degrees))


def _power(shift: float, degrees: int, critical: float) -> float:
    """How often |t| > ``critical`` for a mean ``shift`` standard errors from 0."""
    # The sample's deviation over the true one: chi, over the root of its degrees.
    reach = 12 / math.sqrt(2 * degrees)
    low, high = max(0.0, 1 - reach), 1 + reach
    s = (low + high) / 2 + (high - low) / 2 * _NODES
    half = degrees / 2
    log = math.log(2) + half * math.log(half) - math.lgamma(half)
    density = np.exp(log + (degrees - 1) * np.log(s) - half * s**2)
    found = [
        _NORMAL.cdf(shift - critical * x) + _NORMAL.cdf(-shift - critical * x)
        for x in s.tolist()
    ]
    return (high - low) / 2 * float(_WEIGHTS @ (density * found))


def _root(rising: Callable[[float], float]) -> float:
    """Where a rising function of x >= 0 crosses 0."""
    high = 1.0
    while rising(high) < 0:
        high *= 2
    low = 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return high


def _degrees(n: int) -> int:
    if n < 2:
        raise ValueError(
            f"[statistics] expected 2 pairs or more but got {n}; run more seeds"
        )
    return n - 1
