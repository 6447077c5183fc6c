"""Initialisation that keeps the variance: the gain of each unit, and what it sets.

Source: He et al. 2015, arXiv:1502.01852, section 2.2, for the product of a unit
instead of ReLU.
"""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist
from typing import TypeVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..layers import GatedMLP
from ..reference import PHI, PSI
from ..variants import VARIANTS, Variant
from .ungated import ACTIVATIONS, MLP

FFN = TypeVar("FFN", bound=GatedMLP | MLP)


def gain(unit: str | Variant) -> float:
    r"""What a unit's output is multiplied by to have mean square 1.

    .. math:: 1 / \sqrt{E[h^2]}, \quad h = \phi(g) \psi(u)

    for independent g, u ~ N(0, 1), or h the activation of one of them. A
    row of "gelu_topk" is taken as infinitely long; "xielu" has its initial scalars.

    Args:
        unit: a variant, or a key of ``VARIANTS`` or ``ACTIVATIONS``.

    Returns:
        The gain, to 6 digits; :math:`\sqrt 2` for "relu" and "reglu", 1 for "bilinear".

    Raises:
        ValueError: neither table has the name.
    """
    if isinstance(unit, str) and unit not in VARIANTS and unit not in ACTIVATIONS:
        raise ValueError(
            f"[gain] expected one of {', '.join((*VARIANTS, *ACTIVATIONS))} but got "
            f"{unit!r}; take a name of these, or a variant"
        )
    return _gain(unit)


def scale_preserving(ffn: FFN, *, key: mx.array | None = None) -> FFN:
    """Draw weights with which an input of variance 1 gives an output of variance 1.

    Projections to N are ~ N(0, 1/K), the one back ~ N(0, gain^2/N); biases are 0.
    The output's mean square is exact in expectation for independent unit normals.

    Args:
        ffn: a block of floats, changed in place; dtypes stay.
        key: of ``mx.random``; None for the global state.

    Returns:
        ``ffn``.

    Raises:
        ValueError: a projection is quantized or adapted.
    """
    if isinstance(ffn, MLP):
        unit, first = gain(ffn.activation.name), ["up_proj"]
        last = "down_proj"
    else:
        unit, last = gain(ffn.variant), ffn.block.down
        first = [name for name in (ffn.block.gate, ffn.block.up) if name]
    layers = [ffn[name] for name in (*first, last)]
    for layer in layers:
        if type(layer) is not nn.Linear:
            raise ValueError(
                f"[scale_preserving] projections are nn.Linear but one is "
                f"{type(layer).__name__}; initialise before it is quantized or adapted"
            )
    gains = [1.0] * len(first) + [unit]
    keys = [None] * len(layers) if key is None else mx.random.split(key, len(layers))
    for layer, size, own in zip(layers, gains, keys, strict=True):
        shape, dtype = layer.weight.shape, layer.weight.dtype
        scale = size / math.sqrt(shape[1])
        layer.weight = mx.random.normal(shape, scale=scale, key=own).astype(dtype)
        if "bias" in layer:
            layer.bias = mx.zeros_like(layer.bias)
    return ffn


@lru_cache(maxsize=2)
def unit_normal(offset: float = 0.0) -> tuple[mx.array, np.ndarray]:
    """Nodes, exact in float32, and weights of sums over N(0, 1), which end at 1e-32.

    Args:
        offset: of the nodes, in their distance; 0.5 leaves 0 out, where a function
            may jump.
    """
    nodes = (np.arange(-12 * 1024, 12 * 1024 + 1) + offset) / 1024
    weights = np.exp(-(nodes**2) / 2) / math.sqrt(2 * math.pi) / 1024
    return mx.array(nodes, mx.float32), weights


def mean_square(values: mx.array, weights: np.ndarray) -> float:
    """Of a function's values at the nodes of `unit_normal`."""
    return float(np.sum(np.array(values).astype(np.float64) ** 2 * weights))


@lru_cache(maxsize=256)
def _gain(unit: str | Variant) -> float:
    nodes, weights = unit_normal()
    if isinstance(unit, str) and unit in ACTIVATIONS:
        return 1 / math.sqrt(mean_square(ACTIVATIONS[unit].layer()(nodes), weights))
    variant = VARIANTS[unit] if isinstance(unit, str) else unit
    params = dict(variant.params)
    if variant.phi == "gelu_topk":
        # A long row has mean 0 and deviation 1, so its cutoff is a constant.
        cut = NormalDist().inv_cdf(params["sparsity"])
        phi = PHI["gelu_tanh"][0](mx.maximum(nodes - cut, 0.0), params)
    else:
        phi = PHI[variant.phi][0](nodes, params)
    psi = PSI[variant.psi][0](nodes, params)
    return 1 / math.sqrt(mean_square(phi, weights) * mean_square(psi, weights))
