"""Public operations: check the arguments, select an implementation, run it.

Gradients keep gate and up alone and recompute the rest. ``mx.compile`` works;
its ``shapeless=True`` does not, as MLX cannot infer shapes of a custom function.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import cast

import mlx.core as mx

from . import reference, variants
from .dispatch import select
from .quantization import MODES, QuantizedWeight, Weight
from .variants import Variant

__all__ = ["QuantizedWeight", "Weight", "glu_linear", "glu_mul"]

DTYPES = (mx.float16, mx.bfloat16, mx.float32)


def glu_mul(
    gate: mx.array, up: mx.array, variant: str | Variant = "swiglu"
) -> mx.array:
    r"""Combine the two halves of a gated linear unit.

    .. math:: y = \phi(gate) \odot \psi(up)

    Args:
        gate: [..., N] pre-activation; float16, bfloat16 or float32.
        up: [..., N], shape and dtype of ``gate``.
        variant: a key of :data:`variants.VARIANTS`, or a variant.

    Returns:
        [..., N] array of the dtype of ``gate``; computed in float32, rounded once.

    Raises:
        ValueError: shapes or dtypes do not match; ``variant`` is unknown.

    Reference: ``reference.glu_mul``.
    Source: Shazeer 2020, arXiv:2002.05202, section 2.
    """
    _check_dtype("glu_mul", "gate", gate)
    _check_dtype("glu_mul", "up", up)
    if gate.shape != up.shape or gate.dtype != up.dtype:
        raise ValueError(
            f"[glu_mul] gate and up have one shape and dtype but gate is "
            f"{_show(gate)} and up is {_show(up)}; broadcast or cast one of them"
        )
    choice = select("glu_mul")
    return _MUL[choice.impl](gate, up, variants.get(variant))


def glu_linear(
    x: mx.array,
    gate: Weight,
    up: Weight,
    variant: str | Variant = "swiglu",
    *,
    gate_bias: mx.array | None = None,
    up_bias: mx.array | None = None,
) -> mx.array:
    r"""Apply a gated linear unit: two projections and their gated product.

    .. math:: y = \phi(x W_g^\top + b_g) \odot \psi(x W_u^\top + b_u)

    Args:
        x: [..., K] activations; float16, bfloat16 or float32.
        gate: weights [N, K] of the dtype of ``x``, or a :class:`QuantizedWeight`.
        up: as ``gate``; bits, group size and mode may differ.
        variant: a key of :data:`variants.VARIANTS`, or a variant.
        gate_bias: [N] floats, or None.
        up_bias: [N] floats, or None.

    Returns:
        [..., N] array of the dtype of ``x``. The stock path rounds each projection
        to that dtype; the product is computed in float32 and rounded once.

    Raises:
        ValueError: shapes, dtypes or quantization do not match; ``variant`` is
            unknown.

    Reference: ``reference.glu_linear``.
    Source: Shazeer 2020, arXiv:2002.05202, section 2.
    """
    _check_dtype("glu_linear", "x", x)
    if x.ndim == 0:
        raise ValueError("[glu_linear] x is [..., K] but got a scalar; add an axis")
    rows = _check_weight("gate", gate, x), _check_weight("up", up, x)
    if rows[0] != rows[1]:
        raise ValueError(
            f"[glu_linear] gate and up have the same N but gate has {rows[0]} rows "
            f"and up {rows[1]}; are the weights of one layer?"
        )
    _check_bias("gate_bias", gate_bias, rows[0])
    _check_bias("up_bias", up_bias, rows[1])
    choice = select("glu_linear")
    run = _LINEAR[choice.impl]
    return run(x, gate, up, variants.get(variant), gate_bias, up_bias)


def _stock_mul(gate: mx.array, up: mx.array, variant: Variant) -> mx.array:
    return cast(mx.array, _with_vjp(variant)(gate, up))


def _stock_linear(
    x: mx.array,
    gate: Weight,
    up: Weight,
    variant: Variant,
    gate_bias: mx.array | None,
    up_bias: mx.array | None,
) -> mx.array:
    g = reference.linear(x, gate, gate_bias)
    u = reference.linear(x, up, up_bias)
    return _stock_mul(g, u, variant)


_MUL = {"stock": _stock_mul}
_LINEAR = {"stock": _stock_linear}


@cache
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


def _show(a: mx.array) -> str:
    return f"{str(a.dtype).removeprefix('mlx.core.')} {list(a.shape)}"


def _check_dtype(op: str, name: str, a: mx.array) -> None:
    if not isinstance(a, mx.array):
        raise ValueError(
            f"[{op}] {name} is an mx.array but got {type(a).__name__}; "
            "wrap it in mx.array"
        )
    if a.dtype not in DTYPES:
        raise ValueError(
            f"[{op}] {name} is float16, bfloat16 or float32 but got {_show(a)}; "
            "cast it first"
        )


def _check_bias(name: str, bias: mx.array | None, rows: int) -> None:
    if bias is None:
        return
    _check_dtype("glu_linear", name, bias)
    if bias.shape != (rows,):
        raise ValueError(
            f"[glu_linear] {name} is [N] = [{rows}] but got {_show(bias)}; "
            "take the bias of the same layer"
        )


def _check_weight(name: str, weight: Weight, x: mx.array) -> int:
    """Check one weight against x [..., K] and return its N."""
    if isinstance(weight, QuantizedWeight):
        return _check_quantized(name, weight, x.shape[-1])
    if weight.ndim != 2 or weight.shape[1] != x.shape[-1]:
        raise ValueError(
            f"[glu_linear] {name} is [N, K] with K = {x.shape[-1]} as x but got "
            f"{list(weight.shape)}; pass the transposed weight?"
        )
    if weight.dtype != x.dtype:
        raise ValueError(
            f"[glu_linear] {name} has the dtype of x but {name} is {_show(weight)} "
            f"and x is {_show(x)}; cast one, or pack uint32 as QuantizedWeight"
        )
    return int(weight.shape[0])


def _check_quantized(name: str, q: QuantizedWeight, k: int) -> int:
    known = MODES.get(q.mode)
    if (
        known is None
        or q.bits not in known.bits
        or q.group_size not in known.group_sizes
    ):
        raise ValueError(
            f"[glu_linear] {name} is in a format of quantization.MODES but got mode "
            f"{q.mode!r} with {q.bits} bits in groups of {q.group_size}; quantize it "
            "again"
        )
    if k % q.group_size:
        raise ValueError(
            f"[glu_linear] {name} needs K divisible by group_size = {q.group_size} "
            f"but x has K = {k}; choose a smaller group or pad K"
        )
    if q.weight.dtype != mx.uint32 or q.weight.ndim != 2:
        raise ValueError(
            f"[glu_linear] {name} packs [N, K] into uint32 [N, K * bits / 32] but got "
            f"{_show(q.weight)}; pass the first array that mx.quantize returns"
        )
    n = int(q.weight.shape[0])
    if q.weight.shape[1] * 32 != k * q.bits:
        raise ValueError(
            f"[glu_linear] {name} has K * bits / 32 = {k} * {q.bits} / 32 columns, K "
            f"as x, but got {_show(q.weight)}; check bits, or the K of x"
        )
    scales = (n, k // q.group_size)
    affine = q.mode == "affine"
    for part, a in (("scales", q.scales), ("biases", q.biases)):
        wanted = part == "scales" or affine
        if a is None and not wanted:
            continue
        dtypes = DTYPES if affine else (mx.uint8,)
        if a is None or not wanted or a.shape != scales or a.dtype not in dtypes:
            shape = f"{' or '.join(map(str, dtypes))} {list(scales)}"
            raise ValueError(
                f"[glu_linear] {part} of {name} ({q.mode}) is "
                f"{shape if wanted else None} but got {None if a is None else _show(a)}"
                "; pass the arrays of one mx.quantize call"
            )
    return n
