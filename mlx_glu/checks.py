"""Errors in the arguments of the operations: expected, received, what to do."""

from __future__ import annotations

import mlx.core as mx

from .quantization import MODES, QuantizedWeight, Weight, dtype_name
from .reference import Norm

DTYPES = (mx.float16, mx.bfloat16, mx.float32)


def show(a: mx.array, shape: tuple[int, ...] | None = None) -> str:
    """Dtype and shape, its own or another, in words."""
    return f"{dtype_name(a.dtype)} {list(a.shape if shape is None else shape)}"


def check_dtype(op: str, name: str, a: mx.array) -> None:
    """A float array of 16 or 32 bits."""
    if not isinstance(a, mx.array):
        raise ValueError(
            f"[{op}] {name} is an mx.array but got {type(a).__name__}; "
            "wrap it in mx.array"
        )
    if a.dtype not in DTYPES:
        raise ValueError(
            f"[{op}] {name} is float16, bfloat16 or float32 but got {show(a)}; "
            "cast it first"
        )


def check_norm(op: str, norm: Norm | None, x: mx.array) -> None:
    """A weight [K] of floats, or no norm."""
    if norm is None:
        return
    if not isinstance(norm, Norm):
        raise ValueError(
            f"[{op}] norm is an ops.Norm but got {type(norm).__name__}; take "
            "parts() of a layers.RMSNorm, or build Norm(weight, eps)"
        )
    check_dtype(op, "the weight of norm", norm.weight)
    if norm.weight.shape != x.shape[-1:]:
        raise ValueError(
            f"[{op}] the weight of norm is [K] = [{x.shape[-1]}] as x but got "
            f"{show(norm.weight)}; take the norm of the same layer"
        )


def check_bias(op: str, name: str, bias: mx.array | None, rows: int) -> None:
    """[N] floats, or no bias."""
    if bias is None:
        return
    check_dtype(op, name, bias)
    if bias.shape != (rows,):
        raise ValueError(
            f"[{op}] {name} is [N] = [{rows}] but got {show(bias)}; "
            "take the bias of the same layer"
        )


def check_weight(op: str, name: str, weight: Weight, x: mx.array) -> int:
    """Check ``x`` [..., K] and one weight; returns the weight's N."""
    check_dtype(op, "x", x)
    if x.ndim == 0:
        raise ValueError(f"[{op}] x is [..., K] but got a scalar; add an axis")
    if isinstance(weight, QuantizedWeight):
        return _check_quantized(op, name, weight, x.shape[-1])
    if not isinstance(weight, mx.array):
        raise ValueError(
            f"[{op}] {name} is an mx.array or a QuantizedWeight but got "
            f"{type(weight).__name__}; wrap it in mx.array"
        )
    if weight.ndim != 2 or weight.shape[1] != x.shape[-1]:
        raise ValueError(
            f"[{op}] {name} is [N, K] with K = {x.shape[-1]} as x but got "
            f"{list(weight.shape)}; pass the transposed weight?"
        )
    if weight.dtype != x.dtype:
        raise ValueError(
            f"[{op}] {name} has the dtype of x but {name} is {show(weight)} "
            f"and x is {show(x)}; cast one, or pack uint32 as QuantizedWeight"
        )
    return int(weight.shape[0])


def _check_quantized(op: str, name: str, q: QuantizedWeight, k: int) -> int:
    known = MODES.get(q.mode)
    if (
        known is None
        or q.bits not in known.bits
        or q.group_size not in known.group_sizes
    ):
        raise ValueError(
            f"[{op}] {name} is in a format of quantization.MODES but got mode "
            f"{q.mode!r} with {q.bits} bits in groups of {q.group_size}; quantize it "
            "again"
        )
    if k % q.group_size:
        raise ValueError(
            f"[{op}] {name} needs K divisible by group_size = {q.group_size} "
            f"but x has K = {k}; choose a smaller group or pad K"
        )
    if q.weight.dtype != mx.uint32 or q.weight.ndim != 2:
        raise ValueError(
            f"[{op}] {name} packs [N, K] into uint32 [N, K * bits / 32] but got "
            f"{show(q.weight)}; pass the first array that mx.quantize returns"
        )
    n = int(q.weight.shape[0])
    if q.weight.shape[1] * 32 != k * q.bits:
        raise ValueError(
            f"[{op}] {name} has K * bits / 32 = {k} * {q.bits} / 32 columns, K "
            f"as x, but got {show(q.weight)}; check bits, or the K of x"
        )
    _check_scales(op, name, q, (n, k // q.group_size))
    return n


def _check_scales(
    op: str, name: str, q: QuantizedWeight, scales: tuple[int, int]
) -> None:
    affine = q.mode == "affine"
    for part, a in (("scales", q.scales), ("biases", q.biases)):
        wanted = part == "scales" or affine
        if a is None and not wanted:
            continue
        dtypes = DTYPES if affine else (mx.uint8,)
        if a is None or not wanted or a.shape != scales or a.dtype not in dtypes:
            shape = f"{' or '.join(map(str, dtypes))} {list(scales)}"
            raise ValueError(
                f"[{op}] {part} of {name} ({q.mode}) is "
                f"{shape if wanted else None} but got {None if a is None else show(a)}"
                "; pass the arrays of one mx.quantize call"
            )
