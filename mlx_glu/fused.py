"""Fused implementations: kernels, with the derivatives of their stock twins.

A Metal kernel is opaque to ``mx.grad``, so each goes into an ``mx.custom_function``:
the gradient of the elementwise product is a kernel of its own, the others are those
of stock. ``mx.vmap`` and ``mx.jvp`` cannot be served: MLX 0.32 asks the kernel inside
a custom function too, and raises ``Not implemented for CustomKernel``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, cast

import mlx.core as mx

from . import elementwise, kernels, reference, stock
from .packing import Layout, Order
from .quantization import QuantizedWeight, Weight
from .reference import Norm
from .variants import Variant

Result = mx.array | tuple[mx.array, ...]

#: What an argument is beside its arrays: a class and its settings, hashable.
Form = tuple[type, tuple[Any, ...]]


def glu_mul(gate: mx.array, up: mx.array, variant: Variant) -> mx.array:
    """As ``reference.glu_mul``, in one dispatch."""
    return cast(mx.array, _product(variant, None)(gate, up))


def glu_mul_packed(
    packed: mx.array, variant: Variant, order: Order, layout: Layout
) -> mx.array:
    """As ``stock.glu_mul_packed``, in one dispatch and without a copy."""
    return cast(mx.array, _product(variant, (order, layout))(packed))


def glu_linear(
    x: mx.array,
    gate: Weight,
    up: Weight,
    variant: Variant,
    gate_bias: mx.array | None = None,
    up_bias: mx.array | None = None,
    norm: Norm | None = None,
) -> mx.array:
    """As ``reference.glu_linear``, in one dispatch, rounded once."""
    arrays, forms = _flatten((x, gate, up, gate_bias, up_bias, norm))
    return cast(mx.array, _gated(variant, forms)(*arrays))


def down_linear(
    x: mx.array,
    weight: Weight,
    bias: mx.array | None = None,
    residual: mx.array | None = None,
) -> mx.array:
    """As ``reference.down_linear``, in one dispatch, rounded once."""
    arrays, forms = _flatten((x, weight, bias, residual))
    return cast(mx.array, _down(forms)(*arrays))


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


@lru_cache(maxsize=256)
def _gated(variant: Variant, forms: tuple[Form, ...]) -> Any:
    def call(run: Callable[..., mx.array], arrays: Sequence[mx.array]) -> mx.array:
        x, gate, up, *rest = _restore(arrays, forms)
        return run(x, gate, up, variant, *rest)

    return _with_rules(
        lambda *arrays: call(kernels.glu_linear, arrays),
        lambda *arrays: call(stock.glu_linear, arrays),
    )


@lru_cache(maxsize=256)
def _down(forms: tuple[Form, ...]) -> Any:
    return _with_rules(
        lambda *arrays: kernels.down_linear(*_restore(arrays, forms)),
        lambda *arrays: stock.down_linear(*_restore(arrays, forms)),
    )


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


def _flatten(given: Sequence[Any]) -> tuple[list[mx.array], tuple[Form, ...]]:
    """Arrays in a row, and what :func:`_restore` needs to put them back."""
    arrays: list[mx.array] = []
    forms: list[Form] = []
    for value in given:
        fields = value if isinstance(value, (QuantizedWeight, Norm)) else (value,)
        own = [field for field in fields if isinstance(field, mx.array)]
        arrays += own
        rest = tuple(None if isinstance(f, mx.array) else (f,) for f in fields)
        forms.append((type(value), rest))
    return arrays, tuple(forms)


def _restore(arrays: Sequence[mx.array], forms: tuple[Form, ...]) -> list[Any]:
    """Undo :func:`_flatten`: None in a form stands for the next array."""
    left = iter(arrays)
    values = []
    for kind, rest in forms:
        fields = [next(left) if part is None else part[0] for part in rest]
        values.append(fields[0] if len(fields) == 1 else kind(*fields))
    return values
