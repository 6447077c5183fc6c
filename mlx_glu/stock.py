"""Stock implementations of the operations: the reference, with lean gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import cast

import mlx.core as mx

from . import reference
from .packing import Layout, Order, split_packed
from .quantization import Weight
from .reference import Norm, down_linear, halves
from .tracing import is_shapeless
from .variants import Variant

__all__ = ["down_linear", "glu_linear", "glu_mul", "glu_mul_packed"]


def glu_mul(gate: mx.array, up: mx.array, variant: Variant) -> mx.array:
    """As ``reference.glu_mul``; its gradient holds gate and up alone."""
    if is_shapeless():
        # MLX cannot replay a custom function; its gradient keeps more than two arrays.
        return reference.glu_mul(gate, up, variant)
    return cast(mx.array, _with_vjp(variant)(gate, up))


def glu_mul_packed(
    packed: mx.array, variant: Variant, order: Order, layout: Layout
) -> mx.array:
    """Split ``packed`` [..., 2N] and combine its halves."""
    gate, up = split_packed(packed, order=order, layout=layout, axis=-1)
    return glu_mul(gate, up, variant)


def glu_linear(
    x: mx.array,
    gate: Weight,
    up: Weight,
    variant: Variant,
    gate_bias: mx.array | None = None,
    up_bias: mx.array | None = None,
    norm: Norm | None = None,
) -> mx.array:
    """As ``reference.glu_linear``; its gradient holds gate and up alone."""
    return glu_mul(*halves(x, gate, up, gate_bias, up_bias, norm), variant)


@lru_cache(maxsize=256)
def _with_vjp(variant: Variant) -> mx.custom_function:
    """Wrap ``reference.glu_mul`` so that its residuals are gate and up alone."""
    forward: Callable[..., mx.array] = partial(reference.glu_mul, variant=variant)
    if mx.metal.is_available():
        # One kernel, as mlx-lm runs it. The CPU would wait seconds for a compiler.
        forward = mx.compile(forward, shapeless=variant.pointwise)

    @mx.custom_function
    def glu_mul(gate: mx.array, up: mx.array) -> mx.array:
        return forward(gate, up)

    @glu_mul.vjp
    def glu_mul_vjp(
        primals: tuple[mx.array, mx.array], cotangent: mx.array, _: mx.array
    ) -> tuple[mx.array, mx.array]:
        gate, up = primals
        return reference.glu_mul_vjp(gate, up, cotangent, variant)

    return glu_mul
