"""Launch the elementwise kernels: ``glu_mul`` and its gradients."""

from __future__ import annotations

import math
from functools import lru_cache

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
    *rows, N = arrays[0].shape
    if packing is not None:
        N //= 2
    h, threads = (*rows, N), math.prod(rows) * N // _vector(N)
    (y,) = jit.run(
        _product(variant, N, packing),
        arrays,
        [(h, arrays[0].dtype)],
        threads=threads,
        threadgroup=_THREADGROUP,
    )
    return y


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
    N = cotangent.shape[-1]
    gradients = jit.run(
        _gradient(variant, N, packing),
        (*arrays, cotangent),
        [(a.shape, a.dtype) for a in arrays],
        threads=cotangent.size // _vector(N),
        threadgroup=_THREADGROUP,
    )
    return tuple(gradients)


@lru_cache(maxsize=256)
def _product(variant: Variant, N: int, packing: Packing) -> jit.Source:
    pairs = _pairs(_vector(N), N, packing, "")
    body = f"mlx_glu::glu_mul<{variant.msl}>({pairs}, h, thread_position_in_grid.x);"
    return jit.Source("glu_mul.metal", body, _names(packing), ("h",))


@lru_cache(maxsize=256)
def _gradient(variant: Variant, N: int, packing: Packing) -> jit.Source:
    read, write = (_pairs(_vector(N), N, packing, prefix) for prefix in ("", "d_"))
    body = f"mlx_glu::glu_mul_vjp<{variant.msl}>({read}, d, {write}, "
    names = _names(packing)
    return jit.Source(
        "glu_mul_vjp.metal",
        body + "thread_position_in_grid.x);",
        (*names, "d"),
        tuple(f"d_{name}" for name in names),
    )


def _names(packing: Packing) -> tuple[str, ...]:
    return ("gate", "up") if packing is None else ("packed",)


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
