"""xIELU, an activation with two trainable scalars."""

from __future__ import annotations

import math
from typing import cast

import mlx.core as mx
import mlx.nn as nn

from ..tracing import is_shapeless
from .fixed import fix


class XIELU(nn.Module):
    r"""Expanded integral of the ELU, with two trainable scalars.

    .. math:: y = \alpha_p x^2 + \beta x \; (x > 0), \quad
        \alpha_n (e^x - 1 - x) + \beta x \; (x \le 0)

    with :math:`\alpha_p = \mathrm{softplus}(a_p)` and :math:`\alpha_n = \beta +
    \mathrm{softplus}(a_n)`. Names and shapes are those of Apertus: ``alpha_p`` [1]
    is :math:`a_p`, ``alpha_n`` [1] is :math:`a_n`; ``beta`` and ``eps`` are fixed,
    also in a model that is unfrozen.

    Source: Huang and Schlag 2024, arXiv:2411.13010; initial values and the bound
    ``eps`` of the exponent from transformers, XIELUActivation.
    """

    def __init__(self) -> None:
        super().__init__()
        beta = 0.5
        self.alpha_p = mx.array([math.log(math.expm1(0.8))])
        self.alpha_n = mx.array([math.log(math.expm1(0.8 - beta))])
        self.beta = mx.array(beta)
        self.eps = mx.array(-1e-6)
        fix(self, "beta", "eps")

    def __call__(self, x: mx.array) -> mx.array:
        """Apply it to ``x`` [...]; the dtype stays."""
        a_p, a_n, beta, eps = (
            self[name].astype(mx.float32)
            for name in ("alpha_p", "alpha_n", "beta", "eps")
        )
        beta, eps = mx.stop_gradient(beta), mx.stop_gradient(eps)
        zero = mx.array(0.0)
        alphas = mx.logaddexp(a_p, zero), beta + mx.logaddexp(a_n, zero)
        run = _xielu if is_shapeless() else _lean_xielu
        return cast(mx.array, run(x, *alphas, beta, eps))


def _xielu(
    x: mx.array, alpha_p: mx.array, alpha_n: mx.array, beta: mx.array, eps: mx.array
) -> mx.array:
    z = x.astype(mx.float32)
    below = mx.expm1(mx.minimum(z, eps)) - z
    y = mx.where(z > 0, alpha_p * z * z, alpha_n * below) + beta * z
    return y.astype(x.dtype)


_lean_xielu = mx.custom_function(_xielu)


@_lean_xielu.vjp
def _xielu_vjp(
    primals: tuple[mx.array, ...], cotangent: mx.array, _: mx.array
) -> tuple[mx.array, ...]:
    x, alpha_p, alpha_n, beta, eps = primals
    z, d, zero = x.astype(mx.float32), cotangent.astype(mx.float32), mx.array(0.0)
    tail = mx.expm1(mx.minimum(z, eps))
    # At 0 it is beta, as in the paper; transformers' minimum gives beta - alpha_n.
    dx = d * (mx.where(z > 0, 2 * alpha_p * z, alpha_n * tail) + beta)
    dp = mx.sum(mx.where(z > 0, d * z * z, zero)).reshape(alpha_p.shape)
    dn = mx.sum(mx.where(z > 0, zero, d * (tail - z))).reshape(alpha_n.shape)
    # Both are fixed; alpha_n already holds its beta.
    return dx.astype(x.dtype), dp, dn, mx.zeros_like(beta), mx.zeros_like(eps)
