"""Public operations: check the arguments, select an implementation, run it.

Fused operations have the gradients of their stock twins, so ``mx.grad``,
``mx.checkpoint`` and ``mx.compile`` work on both. ``mx.vmap`` and ``mx.jvp`` need
stock, as MLX cannot batch or push forward a kernel. Gradients of the product keep
gate and up alone. Inside ``mx.compile(shapeless=True)`` stock runs.
"""

from __future__ import annotations

import mlx.core as mx

from . import dispatch, fused, stock, variants
from .checks import DTYPES, check_dtype, show
from .choosing import (
    count_rows,
    decide,
    mul_case,
    plan_down,
    plan_gated,
    planned,
    row_form,
)
from .dispatch import Case
from .packing import Layout, Order, check_packed
from .quantization import QuantizedWeight, Weight
from .reference import Norm, halves
from .variants import Variant

__all__ = [
    "DTYPES",
    "Norm",
    "QuantizedWeight",
    "Weight",
    "down_linear",
    "glu_linear",
    "glu_mul",
    "glu_mul_packed",
]


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

    Reference: ``reference.glu_mul``. Kernel: ``metal/glu_mul.metal``.
    Source: Shazeer 2020, arXiv:2002.05202, section 2.
    """
    check_dtype("glu_mul", "gate", gate)
    check_dtype("glu_mul", "up", up)
    if gate.shape != up.shape or gate.dtype != up.dtype:
        raise ValueError(
            f"[glu_mul] gate and up have one shape and dtype but gate is {show(gate)} "
            f"and up is {show(up)}; broadcast or cast one of them"
        )
    variant = variants.get(variant)
    if gate.ndim == 0:
        return glu_mul(gate[None], up[None], variant)[0]
    case = mul_case(gate.dtype, gate.shape[-1], variant)
    is_fused = _choose(case, count_rows(gate), (gate, up)) == "fused"
    run = fused.glu_mul if is_fused else stock.glu_mul
    return run(gate, up, variant)


def glu_mul_packed(
    packed: mx.array,
    variant: str | Variant = "swiglu",
    *,
    order: Order,
    layout: Layout,
) -> mx.array:
    """Combine gate and up that one projection gave, side by side or alternating.

    Args:
        packed: [..., 2N]; float16, bfloat16 or float32.
        variant: a key of :data:`variants.VARIANTS`, or a variant.
        order: which of the two comes first.
        layout: "concat" for halves, "interleave" for neighbours.

    Returns:
        [..., N] array of the dtype of ``packed``; computed in float32, rounded once.

    Raises:
        ValueError: ``order``, ``layout`` or ``variant`` is unknown; 2N is odd.

    Reference: ``packing.split_packed`` and ``reference.glu_mul``. Kernel:
    ``metal/glu_mul.metal``.
    """
    check_dtype("glu_mul_packed", "packed", packed)
    check_packed("glu_mul_packed", packed, order, layout, -1)
    variant = variants.get(variant)
    case = mul_case(packed.dtype, packed.shape[-1] // 2, variant, (order, layout))
    is_fused = _choose(case, count_rows(packed), packed) == "fused"
    run = fused.glu_mul_packed if is_fused else stock.glu_mul_packed
    return run(packed, variant, order, layout)


def glu_linear(
    x: mx.array,
    gate: Weight,
    up: Weight,
    variant: str | Variant = "swiglu",
    *,
    gate_bias: mx.array | None = None,
    up_bias: mx.array | None = None,
    norm: Norm | None = None,
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
        norm: RMSNorm of ``x`` before the projections, or None.

    Returns:
        [..., N] array of the dtype of ``x``. The stock path rounds the norm and each
        projection to that dtype; the fused one rounds once, at the end.

    Raises:
        ValueError: shapes, dtypes or quantization do not match; ``variant`` is
            unknown.

    Reference: ``reference.glu_linear``. Kernels: ``metal/glu_qmv.metal`` and
    ``metal/glu_gemv.metal``, for 1 to ``dispatch.MAX_M`` rows.
    Source: Shazeer 2020, arXiv:2002.05202, section 2.
    """
    given = norm, gate, up, gate_bias, up_bias
    arrays, forms = fused.flatten(given)
    plan = planned(plan_gated, (*row_form(x), variant, forms), x, variant, *given)
    if _choose(plan.case, count_rows(x), (x, arrays)) == "fused":
        return plan.run(x, *arrays)
    # Any number of rows comes here; their product may still be a kernel.
    return glu_mul(*halves(x, gate, up, gate_bias, up_bias, norm), variant)


def down_linear(
    x: mx.array,
    weight: Weight,
    *,
    bias: mx.array | None = None,
    residual: mx.array | None = None,
) -> mx.array:
    r"""Project, and add what goes around the layer.

    .. math:: y = x W^\top + b + r

    Args:
        x: [..., K] activations; float16, bfloat16 or float32.
        weight: [N, K] of the dtype of ``x``, or a :class:`QuantizedWeight`.
        bias: [N] floats, or None.
        residual: [..., N] of the dtype of ``x``, or None.

    Returns:
        [..., N] array of the dtype of ``x``. The stock path rounds before the
        residual is added, the fused one at the end alone.

    Raises:
        ValueError: shapes, dtypes or quantization do not match.

    Reference: ``reference.down_linear``. Kernels: ``metal/down_qmv.metal`` and
    ``metal/down_gemv.metal``, for 1 to ``dispatch.MAX_M`` rows.
    """
    arrays, forms = fused.flatten((weight, bias))
    key = *row_form(x), residual is None, forms
    plan = planned(plan_down, key, x, weight, bias, residual is not None)
    if residual is not None:
        check_residual(residual, x, plan.case.N)
        arrays.append(residual)
    if _choose(plan.case, count_rows(x), (x, arrays)) == "fused":
        return plan.run(x, *arrays)
    return stock.down_linear(x, weight, bias, residual)


def check_residual(residual: mx.array, x: mx.array, N: int) -> None:
    """[..., N] of the dtype of ``x`` [..., K]."""
    shape = (*x.shape[:-1], N)
    check_dtype("down_linear", "residual", residual)
    if residual.shape != shape or residual.dtype != x.dtype:
        raise ValueError(
            f"[down_linear] residual is {show(x, shape)}, as the result, but got "
            f"{show(residual)}; broadcast or cast it"
        )


def _choose(case: Case, M: int, inputs: object) -> str:
    """Ask the one place that decides, for M rows."""
    choice = decide(case, M, inputs)
    dispatch.note(choice)
    return choice.impl
