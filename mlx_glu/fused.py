"""Fused implementations: kernels, with the derivatives of their stock twins.

A Metal kernel is opaque to ``mx.grad``, so each goes into an ``mx.custom_function``:
the gradient of the elementwise product is a kernel of its own, the others are those
of stock. ``mx.vmap`` and ``mx.jvp`` cannot be served: MLX 0.32 asks the kernel inside
a custom function too, and raises ``Not implemented for CustomKernel``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, cast

import mlx.core as mx

from . import elementwise, kernels, reference, stock
from .packing import Layout, Order
from .variants import Variant

_ARRAY = mx.array

Result = mx.array | tuple[mx.array, ...]

#: What arguments are beside the values of their arrays: classes, dtypes, shapes and
#: settings, hashable.
Forms = tuple[Any, ...]

#: An operation on x and on other arrays in a row.
Run = Callable[..., mx.array]


def glu_mul(gate: mx.array, up: mx.array, variant: Variant) -> mx.array:
    """As ``reference.glu_mul``, in one dispatch."""
    return cast(mx.array, _product(variant, None)(gate, up))


def glu_mul_packed(
    packed: mx.array, variant: Variant, order: Order, layout: Layout
) -> mx.array:
    """As ``stock.glu_mul_packed``, in one dispatch and without a copy."""
    return cast(mx.array, _product(variant, (order, layout))(packed))


def glu_linear(variant: Variant, forms: Forms) -> Run:
    """As ``reference.glu_linear``, in one dispatch, rounded once.

    Args:
        variant: a pointwise one.
        forms: of norm, gate, up, gate_bias and up_bias, as :func:`flatten` says.

    Returns:
        A function of x [..., K] and of the arrays of such arguments.
    """

    def arguments(x: mx.array, *arrays: mx.array) -> Any:
        norm, gate, up, gate_bias, up_bias = restore(arrays, forms)
        return x, gate, up, variant, gate_bias, up_bias, norm

    run = kernels.by_rows(lambda *arrays: kernels.glu_linear(*arguments(*arrays)))
    plain = lambda *arrays: stock.glu_linear(*arguments(*arrays))
    return cast(Run, _with_rules(run, plain))


def down_linear(forms: Forms) -> Run:
    """As ``reference.down_linear``, in one dispatch, rounded once.

    Args:
        forms: of weight and bias, as :func:`flatten` says.

    Returns:
        A function of x [..., K], of the arrays of such arguments, and of a residual:
        either each call has one or none has.
    """

    def arguments(x: mx.array, *arrays: mx.array) -> Any:
        left = iter(arrays)
        return x, *restore(left, forms), next(left, None)

    run = kernels.by_rows(lambda *arrays: kernels.down_linear(*arguments(*arrays)))
    plain = lambda *arrays: stock.down_linear(*arguments(*arrays))
    return cast(Run, _with_rules(run, plain))


def flatten(given: Iterable[Any]) -> tuple[list[mx.array], Forms]:
    """The arrays of some arguments in a row, and the forms of the arguments.

    An argument is an array, or a tuple of arrays and settings, such as a weight; of
    anything else its class is all that is told. Each call of a layer pays for this.
    """
    arrays: list[mx.array] = []
    forms: list[Any] = []
    for value in given:
        kind = type(value)
        forms.append(kind)
        if kind is _ARRAY:
            arrays.append(value)
            forms += (value.dtype, value.shape)
        elif isinstance(value, tuple):
            for part in value:
                if type(part) is _ARRAY:
                    arrays.append(part)
                    forms += (part.dtype, part.shape)
                else:
                    forms.append(part)
    return arrays, tuple(forms)


def restore(arrays: Iterable[mx.array], forms: Forms) -> list[Any]:
    """Undo :func:`flatten` of arrays, weights, norms and None."""
    left, parts = iter(arrays), iter(forms)

    def field() -> Any:
        part = next(parts)
        if isinstance(part, mx.Dtype):
            next(parts)  # the shape
            return next(left)
        return part

    values: list[Any] = []
    for kind in parts:
        if kind is type(None):
            values.append(None)
        else:
            fields = [field() for _ in getattr(kind, "_fields", ("array",))]
            values.append(fields[0] if kind is _ARRAY else kind(*fields))
    return values


@lru_cache(maxsize=256)
def _product(variant: Variant, packing: elementwise.Packing) -> Any:
    """``glu_mul`` of gate and up, or of one array that packs them."""

    def plain(*arrays: mx.array) -> mx.array:
        if packing is not None:
            return stock.glu_mul_packed(arrays[0], variant, *packing)
        gate, up = arrays
        return reference.glu_mul(gate, up, variant)

    def plain_gradient(*arrays: mx.array) -> Result:
        *primals, cotangent = arrays
        return tuple(mx.vjp(plain, primals, [cotangent])[1])

    def gradient(*arrays: mx.array) -> Result:
        *primals, cotangent = arrays
        return elementwise.glu_mul_vjp(tuple(primals), cotangent, variant, packing)

    def product(*arrays: mx.array) -> mx.array:
        return elementwise.glu_mul(arrays, variant, packing)

    return _with_rules(product, plain, _with_rules(gradient, plain_gradient))


def _with_rules(
    kernel: Callable[..., Result],
    plain: Callable[..., Result],
    gradient: Callable[..., Result] | None = None,
) -> Any:
    """``kernel`` of float and integer arrays, transformed as ``plain`` is.

    Args:
        kernel: what runs forward.
        plain: the same in operations that MLX can transform.
        gradient: of primals and a cotangent; None derives ``plain``.
    """
    run = mx.custom_function(kernel)

    # MLX hands over one array bare, several in a tuple.
    @run.vjp
    def vjp(primals: Any, cotangents: Any, _: Any) -> Any:
        primals, cotangents = _row(primals), _row(cotangents)
        if gradient is not None:
            return gradient(*primals, *cotangents)
        floats = [i for i, a in enumerate(primals) if _is_float(a)]

        def of_floats(*values: mx.array) -> Result:
            arrays = list(primals)
            for i, value in zip(floats, values, strict=True):
                arrays[i] = value
            return plain(*arrays)

        found = mx.vjp(of_floats, [primals[i] for i in floats], cotangents)[1]
        gradients = dict(zip(floats, found, strict=True))
        # Codes and their byte scales have no gradient; zeros are never computed.
        return tuple(gradients.get(i, mx.zeros_like(a)) for i, a in enumerate(primals))

    return run


def _row(arrays: Any) -> list[mx.array]:
    return [arrays] if isinstance(arrays, mx.array) else list(arrays)


def _is_float(a: mx.array) -> bool:
    return bool(mx.issubdtype(a.dtype, mx.floating))
