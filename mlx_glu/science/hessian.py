"""The Hessian of a loss at a point: its ends, and its trace.

Products with it are exact: the gradient of the gradient's product with a vector, not a
difference. So a kink, as ReLU has at 0, counts for nothing: this is the curvature
between kinks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np

#: Maps a vector [D] to a vector [D], in float64.
Product = Callable[[np.ndarray], np.ndarray]


class Ends(NamedTuple):
    """The ends of a symmetric matrix's spectrum.

    Attributes:
        largest: eigenvalue.
        smallest: eigenvalue, found less well, so too large if anything; below 0 where
            the loss curves down in some direction.
        residual: bound on the largest one's error, as a share of it.
        products: that were needed.
    """

    largest: float
    smallest: float
    residual: float
    products: int


def hessian_product(
    loss: Callable[[list[mx.array]], mx.array], point: Sequence[mx.array]
) -> Product:
    """Products with the Hessian of ``loss`` at ``point``, whose arrays make up D."""
    gradient = mx.grad(loss)

    def slope(at: list[mx.array], along: list[mx.array]) -> mx.array:
        parts = zip(gradient(at), along, strict=True)
        return mx.sum(mx.stack([mx.sum(a * b) for a, b in parts]))

    second = mx.grad(slope)
    ends = np.cumsum([a.size for a in point])[:-1]

    def product(vector: np.ndarray) -> np.ndarray:
        pieces = np.split(vector, ends)
        along = [
            mx.array(piece.reshape(a.shape), a.dtype)
            for piece, a in zip(pieces, point, strict=True)
        ]
        found = second(list(point), along)
        return np.concatenate([np.array(a, np.float64).ravel() for a in found])

    return product


def ends(
    product: Product, size: int, *, most: int = 80, tolerance: float = 0.01
) -> Ends:
    """Largest and smallest eigenvalue, by Lanczos's method.

    Power iteration would give the one that is farther from 0, and slowly; this gives
    both, of an indefinite matrix too.

    Args:
        product: with the matrix.
        size: D.
        most: products at most.
        tolerance: share of the largest eigenvalue, at which a residual is small. The
            eigenvalue's own error is of the order of its square.

    Source: Parlett 1980, The Symmetric Eigenvalue Problem, chapter 13.
    """
    rng = np.random.default_rng(0)
    vector = rng.normal(size=size)
    basis = [vector / np.linalg.norm(vector)]
    diagonal: list[float] = []
    beside: list[float] = []
    while True:
        vector = product(basis[-1])
        diagonal.append(float(vector @ basis[-1]))
        # Twice is enough: rounding would bring found directions back.
        for _ in range(2):
            for known in basis:
                vector = vector - (vector @ known) * known
        beside.append(float(np.linalg.norm(vector)))
        inner = np.diag(diagonal) + np.diag(beside[:-1], 1) + np.diag(beside[:-1], -1)
        values, vectors = np.linalg.eigh(inner)
        residual = beside[-1] * abs(vectors[-1, -1]) / max(abs(values[-1]), 1e-30)
        count = len(diagonal)
        if residual < tolerance or count == min(most, size) or not residual < np.inf:
            return Ends(float(values[-1]), float(values[0]), float(residual), count)
        basis.append(vector / beside[-1])


def trace(product: Product, size: int, *, probes: int = 20) -> tuple[float, float]:
    """The sum of all eigenvalues, estimated, and the estimate's standard error.

    Source: Hutchinson 1990: the mean of ``z H z`` over random signs z.
    """
    rng = np.random.default_rng(1)
    signs = rng.choice((-1.0, 1.0), (probes, size))
    found = np.array([z @ product(z) for z in signs])
    return float(found.mean()), float(found.std(ddof=1) / np.sqrt(probes))
