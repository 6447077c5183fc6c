"""Stock MLX operations for every operation of this package: oracle and fallback.

16-bit inputs are computed in float32 and rounded once, at the store. float64 runs
too (on the CPU), but MLX's CPU ``exp`` and ``erf`` hold float32 accuracy only, so
the float64 oracle of the tests is NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import NormalDist
from typing import NamedTuple

import mlx.core as mx

from .projection import linear
from .quantization import Weight
from .variants import Variant

Params = Mapping[str, float]
Act = Callable[[mx.array, Params], mx.array]


class Norm(NamedTuple):
    """RMSNorm: ``x * rsqrt(mean(x * x) + eps) * (offset + weight)``.

    Attributes:
        weight: [K] floats.
        eps: what is added to the mean square.
        offset: 1 where the weight is stored as ``w - 1`` (Gemma), else 0.
    """

    weight: mx.array
    eps: float
    offset: int = 0


def rms_norm(x: mx.array, norm: Norm) -> mx.array:
    """Normalise ``x`` [..., K] along K, in its dtype; 1 + w is formed in float32."""
    weight = norm.weight
    if norm.offset:
        weight = norm.offset + weight.astype(mx.float32)
    return mx.fast.rms_norm(x, weight, norm.eps).astype(x.dtype)


def glu_mul(gate: mx.array, up: mx.array, variant: Variant) -> mx.array:
    """Compute ``phi(gate) * psi(up)``.

    Args:
        gate: [..., N] pre-activation.
        up: [..., N], of the dtype of ``gate``.
        variant: the unit; "gelu_topk" reduces over the last axis.

    Returns:
        [..., N] array of the dtype of ``gate``.
    """
    params = dict(variant.params)
    phi, psi = PHI[variant.phi][0], PSI[variant.psi][0]
    y = phi(widen(gate), params) * psi(widen(up), params)
    return y.astype(gate.dtype)


def glu_mul_vjp(
    gate: mx.array, up: mx.array, cotangent: mx.array, variant: Variant
) -> tuple[mx.array, mx.array]:
    """Compute the gradients of :func:`glu_mul` from its inputs alone.

    At a bound of a clamp and at the corner of a ReLU the gradient is 0, as in
    MLX's own ``minimum``, ``clip`` and ``maximum``.

    Args:
        gate: [..., N].
        up: [..., N].
        cotangent: [..., N], gradient of the loss by the output.
        variant: the unit.

    Returns:
        Gradients by ``gate`` and ``up``, of their dtypes.
    """
    params = dict(variant.params)
    g, u, d = widen(gate), widen(up), widen(cotangent)
    phi, dphi = PHI[variant.phi]
    psi, dpsi = PSI[variant.psi]
    d_phi = d * psi(u, params)
    if dphi is None:
        d_gate = _gelu_topk_vjp(g, params, d_phi)
    else:
        d_gate = d_phi * dphi(g, params)
    d_up = d * phi(g, params) * dpsi(u, params)
    return d_gate.astype(gate.dtype), d_up.astype(up.dtype)


def glu_linear(
    x: mx.array,
    gate: Weight,
    up: Weight,
    variant: Variant,
    gate_bias: mx.array | None = None,
    up_bias: mx.array | None = None,
    norm: Norm | None = None,
) -> mx.array:
    """Compute ``phi(x @ gate.T + gate_bias) * psi(x @ up.T + up_bias)``.

    The norm and both projections are rounded to the dtype of ``x``; shapes and
    dtypes as in ``ops.glu_linear``, which checks them.
    """
    return glu_mul(*halves(x, gate, up, gate_bias, up_bias, norm), variant)


def halves(
    x: mx.array,
    gate: Weight,
    up: Weight,
    gate_bias: mx.array | None = None,
    up_bias: mx.array | None = None,
    norm: Norm | None = None,
) -> tuple[mx.array, mx.array]:
    """Compute what :func:`glu_linear` multiplies: both projections, [..., N] each."""
    x = x if norm is None else rms_norm(x, norm)
    return linear(x, gate, gate_bias), linear(x, up, up_bias)


def down_linear(
    x: mx.array,
    weight: Weight,
    bias: mx.array | None = None,
    residual: mx.array | None = None,
) -> mx.array:
    """Compute ``x @ weight.T + bias``, round it, and add ``residual``."""
    y = linear(x, weight, bias)
    return y if residual is None else residual + y


def widen(a: mx.array) -> mx.array:
    """16-bit arrays as float32, others as they are."""
    return a.astype(mx.float32) if a.dtype.size < 4 else a


def _masked(mask: mx.array, a: mx.array) -> mx.array:
    return mx.where(mask, a, mx.zeros_like(a))


def _relu(g: mx.array, p: Params) -> mx.array:
    return mx.maximum(g, 0.0)


def _step(g: mx.array, p: Params) -> mx.array:
    return (g > 0).astype(g.dtype)


def _sigmoid_grad(g: mx.array, p: Params) -> mx.array:
    return mx.sigmoid(g) * mx.sigmoid(-g)  # 1 - sigmoid(g) would cancel


def _silu(g: mx.array, slope: float) -> mx.array:
    return g * mx.sigmoid(g if slope == 1.0 else slope * g)


def _silu_grad(g: mx.array, slope: float) -> mx.array:
    return mx.sigmoid(slope * g) * (1 + slope * g * mx.sigmoid(-slope * g))


def _gelu(g: mx.array, p: Params) -> mx.array:
    return g * (1 + mx.erf(g / math.sqrt(2))) / 2


def _gelu_grad(g: mx.array, p: Params) -> mx.array:
    density = mx.exp(-0.5 * mx.square(g)) / math.sqrt(2 * math.pi)
    return (1 + mx.erf(g / math.sqrt(2))) / 2 + g * density


def _gelu_tanh_inner(g: mx.array) -> tuple[mx.array, mx.array]:
    # Beyond 10 the tanh is 1 to the last bit; the clip keeps the cube finite.
    c = mx.clip(g, -10.0, 10.0)
    k = math.sqrt(2 / math.pi)
    t = mx.tanh(k * (c + 0.044715 * c * c * c))
    return t, (1 - t * t) * k * (1 + 3 * 0.044715 * c * c)


def _gelu_tanh(g: mx.array, p: Params) -> mx.array:
    t, _ = _gelu_tanh_inner(g)
    return 0.5 * g * (1 + t)


def _gelu_tanh_grad(g: mx.array, p: Params) -> mx.array:
    t, dt = _gelu_tanh_inner(g)
    return 0.5 * (1 + t) + 0.5 * g * dt


def _topk(g: mx.array, p: Params) -> tuple[mx.array, mx.array, mx.array, float]:
    """What exceeds the cutoff, mean, deviation and the cutoff in deviations."""
    k = NormalDist().inv_cdf(p["sparsity"])
    mu = mx.mean(g, axis=-1, keepdims=True)
    sigma = mx.sqrt(mx.mean(mx.square(g - mu), axis=-1, keepdims=True))
    return mx.maximum(g - (mu + k * sigma), 0.0), mu, sigma, k


def _gelu_topk_vjp(g: mx.array, p: Params, d: mx.array) -> mx.array:
    z, mu, sigma, k = _topk(g, p)
    dz = _masked(z > 0, d * _gelu_tanh_grad(z, p))
    # A constant row has sigma 0 and g - mu 0; its slope is taken as 0.
    slope = k * (g - mu) / mx.where(sigma > 0, sigma, mx.ones_like(sigma))
    return dz - mx.mean(dz, axis=-1, keepdims=True) * (1 + slope)


# Gate activation: value and derivative, both of (gate, parameters); None where
# the derivative is not pointwise.
PHI: dict[str, tuple[Act, Act | None]] = {
    "sigmoid": (lambda g, p: mx.sigmoid(g), _sigmoid_grad),
    "identity": (lambda g, p: g, lambda g, p: mx.ones_like(g)),
    "relu": (_relu, _step),
    "relu2": (lambda g, p: mx.square(_relu(g, p)), lambda g, p: 2 * _relu(g, p)),
    "gelu": (_gelu, _gelu_grad),
    "gelu_tanh": (_gelu_tanh, _gelu_tanh_grad),
    "silu": (lambda g, p: _silu(g, p["beta"]), lambda g, p: _silu_grad(g, p["beta"])),
    "silu_clamped": (
        lambda g, p: _silu(mx.minimum(g, p["limit"]), p["alpha"]),
        lambda g, p: _masked(g < p["limit"], _silu_grad(g, p["alpha"])),
    ),
    "silu_clamp_post": (
        lambda g, p: mx.minimum(_silu(g, 1.0), p["limit"]),
        lambda g, p: _masked(_silu(g, 1.0) < p["limit"], _silu_grad(g, 1.0)),
    ),
    "gelu_topk": (lambda g, p: _gelu_tanh(_topk(g, p)[0], p), None),
}

# Value map: value and derivative, both of (up, parameters).
PSI: dict[str, tuple[Act, Act]] = {
    "identity": (lambda u, p: u, lambda u, p: mx.ones_like(u)),
    "tanh": (lambda u, p: mx.tanh(u), lambda u, p: 4 * _sigmoid_grad(2 * u, p)),
    "relu": (_relu, _step),
    "clip": (
        lambda u, p: mx.clip(u, -p["limit"], p["limit"]) + p.get("offset", 0.0),
        lambda u, p: (mx.abs(u) < p["limit"]).astype(u.dtype),
    ),
}
