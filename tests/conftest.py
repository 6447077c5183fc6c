"""The float64 oracle of the GLU family and the one tolerance of the suite."""

import math
from statistics import NormalDist

import mlx.core as mx
import numpy as np

EPS = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
# Smallest normal number where hardware may flush to 0, one step in float16.
TINY = {"float32": 2.0**-126, "float16": 2.0**-24, "bfloat16": 2.0**-126}
MAX = {"float32": 3.4028235e38, "float16": 65504.0, "bfloat16": 3.3895314e38}


def f64(a):
    """Values of an array, exact, as float64."""
    if isinstance(a, mx.array):
        a = a.astype(mx.float32)
    return np.array(a).astype(np.float64)


def assert_no_worse(y, stock, oracle, *, terms=0):
    """Check, element by element, that ``y`` errs no more than stock does.

    |y - o| <= max(2 |stock - o|, 2 eps max(|o|, 1e-3 max|o|)), eps of y's dtype.

    ``terms`` is the length of the sums behind an element: K of a contraction, 2
    for the derivative of a product. It adds 8 eps32 sqrt(terms) max|o| to the
    second bound, as a float32 sum errs by its largest term. TINY is added to it
    too. Where the oracle exceeds the dtype, y must be the infinity of its sign.
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
        bad = ~(np.abs(error) <= np.maximum(slack, floor))
    if bad.any():
        at = tuple(int(i) for i in np.argwhere(bad)[0])
        last = bad[..., -1].sum() if bad.ndim else 0
        raise AssertionError(
            f"{bad.sum()} of {bad.size} elements are worse than stock ({last} in the "
            f"last column); first at {at}: got {y[at]!r}, stock {stock[at]!r}, "
            f"oracle {o[at]!r}"
        )


_erf = np.vectorize(math.erf, otypes=[np.float64])
_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def sigmoid64(x):
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1.0) / (1 + e)


def gelu_tanh64(g):
    # 1 + tanh(z) = 2 sigmoid(2 z), which does not cancel for z < 0.
    return g * sigmoid64(2 * math.sqrt(2 / math.pi) * (g + 0.044715 * g**3))


def gelu_topk64(g, sparsity):
    cut = g.mean(-1, keepdims=True)
    cut = cut + NormalDist().inv_cdf(sparsity) * g.std(-1, keepdims=True)
    return gelu_tanh64(np.maximum(g - cut, 0))


# The definitions once more, from the papers, in NumPy; keys as in variants.py.
PHI64 = {
    "sigmoid": lambda g: sigmoid64(g),
    "identity": lambda g: g,
    "relu": lambda g: np.maximum(g, 0),
    "relu2": lambda g: np.maximum(g, 0) ** 2,
    "gelu": lambda g: g * 0.5 * _erfc(-g / math.sqrt(2)),
    "gelu_tanh": gelu_tanh64,
    "silu": lambda g, beta: g * sigmoid64(beta * g),
    "silu_clamped": lambda g, alpha, limit, offset: (
        np.minimum(g, limit) * sigmoid64(alpha * np.minimum(g, limit))
    ),
    "silu_clamp_post": lambda g, limit: np.minimum(g * sigmoid64(g), limit),
    "gelu_topk": gelu_topk64,
}
PSI64 = {
    "identity": lambda u, **_: u,
    "tanh": lambda u: np.tanh(u),
    "relu": lambda u: np.maximum(u, 0),
    "clip": lambda u, limit, offset=0.0, **_: np.clip(u, -limit, limit) + offset,
}


def oracle_mul(gate, up, variant):
    """``phi(gate) * psi(up)`` in float64; gate and up are NumPy float64."""
    params = dict(variant.params)
    return PHI64[variant.phi](gate, **params) * PSI64[variant.psi](up, **params)


def derivative64(f, x, h=2.0**-12):
    """Fourth-order central difference of ``f``, for pointwise ``f``."""
    return (8 * (f(x + h) - f(x - h)) - (f(x + 2 * h) - f(x - 2 * h))) / (12 * h)
