"""Conditioning of the neural tangent kernel, gated and not, at matched parameters.

K = J J^T over a batch says how fast gradient descent on a wide network fits each
direction of the targets; its condition number is the ratio of the fastest to the
slowest. Source: Jacot et al. 2018, arXiv:1806.07572; of gated units, arXiv:2605.20749.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..training.ungated import feed_forward, matched_width
from .experiment import Cell, Experiment, Row
from .figures import label, style

_UNITS = ("relu", "silu", "gelu", "gtu", "glu", "bilinear", "reglu", "geglu", "swiglu")


@dataclass(frozen=True)
class Settings:
    """Of the experiment.

    Attributes:
        sizes: pairs (K, n) of input size and inputs.
        hidden_dims: of the ungated block; a gated one has two thirds.
        seeds: of weights and inputs.
        units: that are compared.
    """

    sizes: tuple[tuple[int, int], ...] = ((16, 64), (32, 128), (64, 128))
    hidden_dims: int = 3072
    seeds: int = 5
    units: tuple[str, ...] = _UNITS


def cells(settings: Settings) -> list[Cell]:
    """One for each size, seed and unit: all units see the same inputs."""
    return [
        {"K": K, "n": n, "seed": seed, "unit": unit}
        for K, n in settings.sizes
        for seed in range(settings.seeds)
        for unit in settings.units
    ]


def measure(settings: Settings, cell: Cell) -> dict[str, Any]:
    """Condition number, and largest and smallest eigenvalue over their mean."""
    x = _inputs(cell["K"], cell["n"], cell["seed"])
    N = matched_width(cell["unit"], settings.hidden_dims)
    eigenvalues = np.linalg.eigvalsh(kernel(cell["unit"], x, N, cell["seed"]))
    mean = eigenvalues.mean()
    return {
        "hidden_dims": N,
        "condition": eigenvalues[-1] / eigenvalues[0],
        "largest": eigenvalues[-1] / mean,
        "smallest": eigenvalues[0] / mean,
    }


def kernel(unit: str, x: np.ndarray, hidden_dims: int, seed: int) -> np.ndarray:
    """The kernel of one output of a feed-forward block at its initialisation.

    Args:
        unit: a name of `feed_forward`.
        x: [n, K] inputs of length 1.
        hidden_dims: N.
        seed: of the weights.

    Returns:
        [n, n] float64 matrix in NTK parametrisation: the gradient by a weight counts
        times the standard deviation that it is drawn with, so that every layer counts.
    """
    mx.random.seed(seed)
    ffn = feed_forward(unit, x.shape[1], hidden_dims)
    deviations = {"gate_proj": 1.0, "up_proj": 1.0, "down_proj": hidden_dims**-0.5}
    for name, deviation in deviations.items():
        if name in ffn:
            shape = ffn[name].weight.shape
            ffn[name].weight = deviation * mx.random.normal(shape)
    gradient = nn.value_and_grad(ffn, lambda row: ffn(row[None])[0, 0])
    found = [gradient(mx.array(row, mx.float32))[1] for row in x]
    total = np.zeros((len(x), len(x)))
    for name, deviation in deviations.items():
        if name in ffn:
            rows = [np.array(of_row[name]["weight"]).ravel() for of_row in found]
            jacobian = deviation * np.stack(rows).astype(np.float64)
            total += jacobian @ jacobian.T
    return total


def relu_kernel(cosine: np.ndarray) -> np.ndarray:
    """The infinitely wide ReLU block's, by the cosine of two inputs; 1 at 1.

    ``(rho * k0 + k1) / 2`` with the arc-cosine kernels of Cho and Saul 2009.
    """
    k0, k1 = _arc_cosine(cosine)
    return np.asarray((cosine * k0 + k1) / 2)


def reglu_kernel(cosine: np.ndarray) -> np.ndarray:
    """The infinitely wide ReGLU block's; every term has one more cosine.

    ``(rho^2 * k0 + 2 * rho * k1) / 3``: the value's own product with the input
    multiplies the kernel of the gate (Schur).
    """
    k0, k1 = _arc_cosine(cosine)
    return np.asarray((cosine**2 * k0 + 2 * cosine * k1) / 3)


def _arc_cosine(cosine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    angle = np.arccos(np.clip(cosine, -1, 1))
    k0 = (np.pi - angle) / np.pi
    return k0, (np.sin(angle) + (np.pi - angle) * cosine) / np.pi


def _inputs(K: int, n: int, seed: int) -> np.ndarray:
    x = np.random.default_rng([seed, K, n]).normal(size=(n, K))
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True))


def summary(rows: Sequence[Row]) -> list[list[str]]:
    """Median condition numbers, a column for each size."""
    sizes = list(dict.fromkeys((row["K"], row["n"]) for row in rows))
    table = [["unit", *(f"K={K}, n={n}" for K, n in sizes)]]
    for unit in dict.fromkeys(row["unit"] for row in rows):
        medians = [np.median(_conditions(rows, unit, size)) for size in sizes]
        table.append([unit, *(f"{m:.1f}" for m in medians)])
    return table


def draw(figure: Any, rows: Sequence[Row]) -> None:
    """Condition numbers, and the kernels that explain them."""
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    sizes = list(dict.fromkeys((row["K"], row["n"]) for row in rows))
    for unit in dict.fromkeys(row["unit"] for row in rows):
        found = [np.percentile(_conditions(rows, unit, s), (25, 50, 75)) for s in sizes]
        low, middle, high = np.transpose(found)
        left.errorbar(
            range(len(sizes)),
            middle,
            (middle - low, high - middle),
            capsize=2,
            **style(unit),
        )
    left.set_xticks(range(len(sizes)), [f"K={K}\nn={n}" for K, n in sizes])
    left.set_xlabel("input size, number of inputs")
    left.set_yscale("log")
    left.set_ylabel("condition number of the NTK (1 is best)")
    left.legend(ncols=3, fontsize=7)
    left.set_title(
        "Blocks of equal parameters, at the start\n(median and quartiles of seeds)"
    )
    cosine = np.linspace(-1, 1, 201)
    for unit, curve in (("relu", relu_kernel), ("reglu", reglu_kernel)):
        right.plot(cosine, curve(cosine), **(style(unit) | {"marker": ""}))
    right.set_xlabel("cosine of two inputs")
    right.set_ylabel("kernel over its value at cosine 1")
    right.legend()
    right.set_title(f"{label('reglu')}: one more factor cosine")


def _conditions(rows: Sequence[Row], unit: str, size: tuple[int, int]) -> list[float]:
    return [
        row["condition"]
        for row in rows
        if row["unit"] == unit and (row["K"], row["n"]) == size
    ]


EXPERIMENT = Experiment(
    quick=Settings(sizes=((8, 16),), hidden_dims=192, seeds=2),
    full=Settings(),
    cells=cells,
    measure=measure,
    summary=summary,
    draw=draw,
)
