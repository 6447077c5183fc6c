"""Launch the elementwise kernels: ``glu_mul`` and its gradients."""

from __future__ import annotations

import math

import mlx.core as mx

from . import jit
from .packing import Layout, Order
from .variants import Variant

_THREADGROUP = 256


#: How one array holds gate and up along its last axis; None for two arrays.
Packing = tuple[Order, Layout] | None


def glu_mul(
    arrays: tuple[mx.array, ...], variant: Variant, packing: Packing = None
) -> mx.array:
    """Compute ``phi(gate) * psi(up)`` in one dispatch.

    Args:
        arrays: gate and up, each [..., N]; or one array [..., 2N] with ``packing``.
        variant: a pointwise variant.
        packing: None for two arrays.

    Returns:
        [..., N] array of the dtype of ``arrays``. Kernel: ``metal/glu_mul.metal``.
    """
    names = ("gate", "up") if packing is None else ("packed",)
    *rows, N = arrays[0].shape
    shape = (*rows, N if packing is None else N // 2)
    V = _vector(shape[-1])
    body = f"mlx_glu::glu_mul<{variant.msl}>({_pairs(V, shape[-1], packing, '')}, h, "
    (h,) = jit.run(
        "glu_mul.metal",
        body + "thread_position_in_grid.x);",
        dict(zip(names, arrays, strict=True)),
        {"h": (shape, arrays[0].dtype)},
        threads=math.prod(shape) // V,
        threadgroup=_THREADGROUP,
    )
    return h


def glu_mul_vjp(
    arrays: tuple[mx.array, ...],
    cotangent: mx.array,
    variant: Variant,
    packing: Packing = None,
) -> tuple[mx.array, ...]:
    """Compute the gradients of :func:`glu_mul` by ``arrays`` in one dispatch.

    Args:
        arrays: as in :func:`glu_mul`.
        cotangent: [..., N], gradient of the loss by the output.
        variant: a pointwise variant.
        packing: None for two arrays.

    Returns:
        One gradient for each array, of its shape. Kernel:
        ``metal/glu_mul_vjp.metal``.
    """
    names = ("gate", "up") if packing is None else ("packed",)
    N = cotangent.shape[-1]
    V = _vector(N)
    read, write = (_pairs(V, N, packing, prefix) for prefix in ("", "d_"))
    body = f"mlx_glu::glu_mul_vjp<{variant.msl}>({read}, d, {write}, "
    gradients = jit.run(
        "glu_mul_vjp.metal",
        body + "thread_position_in_grid.x);",
        {**dict(zip(names, arrays, strict=True)), "d": cotangent},
        {f"d_{n}": (a.shape, a.dtype) for n, a in zip(names, arrays, strict=True)},
        threads=cotangent.size // V,
        threadgroup=_THREADGROUP,
    )
    return tuple(gradients)


def _pairs(V: int, N: int, packing: Packing, prefix: str) -> str:
    """The object of metal/pairs.h that finds gate and up."""
    if packing is None:
        return f"mlx_glu::separate<{V}>({prefix}gate, {prefix}up)"
    order, layout = packing
    first = str(order == "gate_first").lower()
    sizes = f"{V}, {N}, {first}" if layout == "concat" else f"{V}, {first}"
    return f"mlx_glu::{layout}<{sizes}>({prefix}packed)"


def _vector(N: int) -> int:
    """Elements of a thread: vectors must not cross rows."""
    return 4 if N % 4 == 0 else 1
