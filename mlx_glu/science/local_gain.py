"""How much gradient one unit lets through, exactly, by the scale of its input."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np

from ..reference import PHI, PSI
from ..training.ungated import ACTIVATIONS
from ..variants import VARIANTS

#: Nodes of the midpoint rule: none at 0, where ReLU has its corner. It is exact to
#: 1e-7, as the functions are; the density ends at 1e-32.
_NODES = (np.arange(-12 * 1024, 12 * 1024) + 0.5) / 1024
_DENSITY = np.exp(-(_NODES**2) / 2) / math.sqrt(2 * math.pi) / 1024


def local_gain(unit: str, scale: float) -> float:
    r"""Root mean square of a unit's gradient by its pre-activations.

    .. math:: \sqrt{E[(\partial h / \partial u)^2 + (\partial h / \partial g)^2]}

    for independent g, u ~ N(0, scale^2); without a gate there is no g.

    Args:
        unit: a pointwise variant, or an activation without trainable scalars.
        scale: standard deviation of the pre-activations.

    Source: of the comparison, Dauphin et al. 2017, arXiv:1612.08083, section 3.
    """
    z = mx.array(scale * _NODES, mx.float32)
    if unit in ACTIVATIONS:
        derivative = ACTIVATIONS[unit].derivative
        assert derivative is not None
        return math.sqrt(_mean_square(derivative(z)))
    variant = VARIANTS[unit]
    params = dict(variant.params)
    phi, dphi = PHI[variant.phi]
    psi, dpsi = PSI[variant.psi]
    assert dphi is not None
    by_up = _mean_square(phi(z, params)) * _mean_square(dpsi(z, params))
    by_gate = _mean_square(dphi(z, params)) * _mean_square(psi(z, params))
    return math.sqrt(by_up + by_gate)


def _mean_square(values: mx.array) -> float:
    return float(np.sum(np.array(values).astype(np.float64) ** 2 * _DENSITY))
