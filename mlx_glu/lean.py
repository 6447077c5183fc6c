"""Gradients that keep some arrays alone, and compute the others again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from . import ops
from .linear_layers import own_weight
from .reference import Norm
from .tracing import is_shapeless

Run = Callable[..., mx.array]


def project_back(layer: Any, y: mx.array, residual: mx.array | None) -> mx.array:
    """Apply the last layer of a block to ``y`` [..., N], and add ``residual``."""
    weight = own_weight(layer)
    if weight is not None:
        bias = layer.get("bias")
        return ops.down_linear(y, weight, bias=bias, residual=residual)
    return plus(residual, layer(y))


def project_product_back(
    layer: Any, multiply: Run, halves: Sequence[mx.array], residual: mx.array | None
) -> mx.array:
    """As :func:`project_back` of ``multiply(*halves)``, which is not kept.

    Only the gradient by a float weight needs the product again.

    Args:
        layer: the last layer of a block.
        multiply: the gated product.
        halves: gate and up, [..., N] each, or one array [..., 2N] with both.
        residual: [..., K], added to the result, or None.
    """
    if not isinstance(own_weight(layer), mx.array) or is_shapeless():
        return project_back(layer, multiply(*halves), residual)
    count = len(halves)

    def run(*arrays: mx.array) -> mx.array:
        weight, *bias = arrays[count:]
        product = multiply(*arrays[:count])
        return ops.down_linear(product, weight, bias=bias[0] if bias else None)

    own = {name: layer[name] for name in ("weight", "bias") if name in layer}
    trained = layer.trainable_parameters()
    first = [False] * count + [name in trained for name in own]
    return plus(residual, _recomputed(run, [*halves, *own.values()], first))


def from_input(
    block: Run,
    module: nn.Module,
    x: mx.array,
    norm: Norm | None,
    residual: mx.array | None,
) -> mx.array:
    """Run ``block(module, x, norm, residual)``; the gradient keeps x alone.

    Args:
        block: what runs the module.
        module: gradients flow to all its parameters.
        x: [..., K] activations.
        norm: of ``x``, or None.
        residual: [..., K], added to the result, or None.

    Raises:
        ValueError: a layer draws random numbers, as dropout does.
    """
    if is_shapeless():
        return block(module, x, norm, residual)
    arrays: dict[str, mx.array] = dict(tree_flatten(module.parameters()))
    own = {k: a for k, a in arrays.items() if mx.issubdtype(a.dtype, mx.floating)}
    packed = [(k, a) for k, a in arrays.items() if k not in own]
    trained = dict(tree_flatten(module.trainable_parameters()))
    weight = [] if norm is None else [norm.weight]

    def run(x: mx.array, *arrays: mx.array) -> mx.array:
        given = norm and norm._replace(weight=arrays[-1])
        key, before = _random_key(), module.parameters()
        now = [*zip(own, arrays, strict=False), *packed]
        module.update(tree_unflatten(now))
        try:
            y = block(module, x, given)
        finally:
            module.update(before)
        if _random_key() is not key:
            raise ValueError(
                "[recompute] the layers are run twice and must compute the same, but "
                "one draws random numbers; take the dropout out, or recompute nothing"
            )
        return y

    first = [False, *(name in trained for name in own), *(True for _ in weight)]
    return plus(residual, _recomputed(run, [x, *own.values(), *weight], first))


def plus(residual: mx.array | None, y: mx.array) -> mx.array:
    """Add what goes around a block; it has the shape and dtype of ``y`` [..., K]."""
    if residual is None:
        return y
    ops.check_residual(residual, y, y.shape[-1])
    return residual + y


def _random_key() -> Any:
    state: Any = mx.random.state
    return state[0]


def _recomputed(
    run: Run, arrays: Sequence[mx.array], first: Sequence[bool]
) -> mx.array:
    """``run(*arrays)``; its gradient keeps the arrays alone, and runs it again.

    MLX would leave the gradients of weights to the end of a step, and keep all that
    they are made of. Here the others wait for those marked ``first``, and so do the
    layers before, which need the others.
    """

    @mx.custom_function
    def once(arrays: list[mx.array]) -> mx.array:
        return run(*arrays)

    @once.vjp
    def vjp(
        primals: list[mx.array], cotangent: mx.array, _: mx.array
    ) -> list[mx.array]:
        again = [_after(a, [cotangent]) for a in primals]
        found = list(zip(mx.vjp(run, again, [cotangent])[1], first, strict=True))
        signals = [g for g, is_first in found if is_first]
        return [g if is_first else _after(g, signals) for g, is_first in found]

    return cast(mx.array, once(list(arrays)))


def _after(value: mx.array, signals: list[mx.array]) -> mx.array:
    return cast(mx.array, _ordered(value, signals))


@mx.custom_function
def _ordered(value: mx.array, signals: list[mx.array]) -> mx.array:
    """``value``, when ``signals`` are computed: ``mx.depends`` for ``mx.vmap`` too.

    MLX evaluates all arguments of a custom function, also those that it ignores.
    """
    return value


@_ordered.vmap
def _ordered_vmap(inputs: Any, axes: Any) -> Any:
    return _ordered(*inputs), axes[0]
