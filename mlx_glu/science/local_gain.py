"""How much gradient one unit lets through, exactly, by the scale of its input."""

from __future__ import annotations

import math

from ..reference import PHI, PSI
from ..training.gains import mean_square, unit_normal
from ..training.ungated import ACTIVATIONS
from ..variants import VARIANTS


def local_gain(unit: str, scale: float) -> float:
    r"""Root mean square of a unit's gradient by its pre-activations.

    .. math:: \sqrt{E[(\partial h / \partial u)^2 + (\partial h / \partial g)^2]}

    for independent g, u ~ N(0, scale^2); without a gate there is no g.

    Args:
        unit: a pointwise variant, or an activation without trainable scalars.
        scale: standard deviation of the pre-activations.

    Source: of the comparison, Dauphin et al. 2017, arXiv:1612.08083, section 3.
    """
    # Between the nodes lies 0, where ReLU's gradient jumps.
    nodes, weights = unit_normal(0.5)
    z = scale * nodes
    if unit in ACTIVATIONS:
        derivative = ACTIVATIONS[unit].derivative
        assert derivative is not None
        return math.sqrt(mean_square(derivative(z), weights))
    variant = VARIANTS[unit]
    params = dict(variant.params)
    phi, dphi = PHI[variant.phi]
    psi, dpsi = PSI[variant.psi]
    assert dphi is not None
    size = lambda f: mean_square(f(z, params), weights)
    by_up, by_gate = size(phi) * size(dpsi), size(dphi) * size(psi)
    return math.sqrt(by_up + by_gate)
