"""The one tolerance: element by element, against float64, no worse than stock."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

EPS = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
# Smallest normal number where hardware may flush to 0, one step in float16.
TINY = {"float32": 2.0**-126, "float16": 2.0**-24, "bfloat16": 2.0**-126}
MAX = {"float32": 3.4028235e38, "float16": 65504.0, "bfloat16": 3.3895314e38}


class Worst(NamedTuple):
    """How an array stands against the rule.

    Attributes:
        ratio: the largest error over what is allowed; the rule holds up to 1.
        at: where it is; () in an empty array.
        fault: what is wrong, in one line; "" where the rule holds.
    """

    ratio: float
    at: tuple[int, ...]
    fault: str


def f64(a: Any) -> np.ndarray:
    """Values of an array, exact, as float64."""
    if isinstance(a, mx.array):
        a = a.astype(mx.float32)
    return np.array(a).astype(np.float64)


def worst(y: Any, stock: Any, oracle: Any, *, terms: int = 0) -> Worst:
    """Check, element by element, that ``y`` errs no more than stock does.

    |y - o| <= max(2 |stock - o|, 2 eps max(|o|, 1e-3 max|o|)), eps of y's dtype.

    Args:
        y: the array to check, float16, bfloat16 or float32.
        stock: what stock operations give, of the same shape.
        oracle: the true values, float64.
        terms: length of the sums behind an element: K of a contraction, 2 for the
            derivative of a product. It adds 8 eps32 sqrt(terms) max|o| to the
            second bound, as a float32 sum errs by its largest term.

    Returns:
        The largest error over its bound. TINY is added to the second bound. Where
        the oracle exceeds the dtype, y must be the infinity of its sign.
    """
    dtype = str(y.dtype).split(".")[-1]
    eps, limit = EPS[dtype], MAX[dtype]
    y, stock, o = f64(y), f64(stock), np.asarray(oracle, np.float64)
    assert y.shape == o.shape == stock.shape, (y.shape, stock.shape, o.shape)
    over = np.abs(o) >= limit * (1 + eps)
    size = np.where(over, 0.0, np.abs(o))
    top = size.max(initial=0.0)
    floor = 2 * eps * np.maximum(size, 1e-3 * top)
    floor += 8 * EPS["float32"] * math.sqrt(terms) * top + TINY[dtype]
    with np.errstate(invalid="ignore"):
        slack = 2 * np.abs(np.where(np.isfinite(stock), stock - o, 0.0))
        error = np.where(over, np.where(y == np.sign(o) * np.inf, 0, np.inf), y - o)
        ratio = np.asarray(np.abs(error) / np.maximum(slack, floor))
    if not ratio.size:
        return Worst(0.0, (), "")
    ratio[np.isnan(ratio)] = np.inf
    top_at = np.unravel_index(ratio.argmax(), ratio.shape)
    fault = _describe(ratio > 1, y, stock, o)
    return Worst(float(ratio.max()), tuple(int(i) for i in top_at), fault)


def _describe(bad: np.ndarray, y: np.ndarray, stock: np.ndarray, o: np.ndarray) -> str:
    if not bad.any():
        return ""
    at = tuple(int(i) for i in np.argwhere(bad)[0])
    last = bad[..., -1].sum() if bad.ndim else 0
    return (
        f"{bad.sum()} of {bad.size} elements are worse than stock ({last} in the "
        f"last column); first at {at}: got {float(y[at])!r}, stock "
        f"{float(stock[at])!r}, oracle {float(o[at])!r}"
    )
