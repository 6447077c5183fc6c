"""Launch the elementwise kernels: ``glu_mul`` and its gradients."""

from __future__ import annotations

import math
from typing import NamedTuple

import mlx.core as mx

from . import jit
from .variants import Variant

_THREADGROUP = 256


class Packing(NamedTuple):
    """How one array holds gate and up along its last axis.

    Attributes:
        layout: "concat" for halves, "interleave" for neighbours.
        gate_first: whether the gate is the first of the two.
    """

    layout: str
    gate_first: bool


def glu_mul(
    arrays: tuple[mx.array, ...], variant: Variant, packing: Packing | None = None
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
    first = arrays[0]
    shape = first.shape if packing is None else _half(first)
    V = _vector(shape, first.size)
    body = f"mlx_glu::glu_mul<{variant.msl}>({_pairs(V, shape[-1], packing, '')}, h, "
    (h,) = jit.run(
        "glu_mul.metal",
        body + "thread_position_in_grid.x);",
        dict(zip(names, arrays, strict=True)),
        {"h": (shape, first.dtype)},
        threads=_size(shape) // V,
        threadgroup=_THREADGROUP,
    )
    return h


def glu_mul_vjp(
    arrays: tuple[mx.array, ...],
    cotangent: mx.array,
    variant: Variant,
    packing: Packing | None = None,
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
    shape = cotangent.shape
    V = _vector(shape, cotangent.size)
    pairs = (_pairs(V, shape[-1], packing, prefix) for prefix in ("", "d_"))
    read, write = pairs
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


def _pairs(V: int, N: int, packing: Packing | None, prefix: str) -> str:
    """The object of metal/pairs.h that finds gate and up."""
    if packing is None:
        return f"mlx_glu::separate<{V}>({prefix}gate, {prefix}up)"
    first = str(packing.gate_first).lower()
    sizes = f"{V}, {N}, {first}" if packing.layout == "concat" else f"{V}, {first}"
    return f"mlx_glu::{packing.layout}<{sizes}>({prefix}packed)"


def _vector(shape: tuple[int, ...], size: int) -> int:
    """Elements of a thread: vectors must not cross rows."""
    return 4 if shape[-1] % 4 == 0 and size >= 8 else 1


def _half(packed: mx.array) -> tuple[int, ...]:
    return (*packed.shape[:-1], packed.shape[-1] // 2)


def _size(shape: tuple[int, ...]) -> int:
    return math.prod(shape)
