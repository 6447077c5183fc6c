"""``x @ weight.T + bias`` by stock operations, the way each device runs it best.

MLX's CPU backend needs help: 16-bit quantized products accumulate in 16 bits and
are wrong by percents, and only a float32 product under a threaded BLAS uses more
than one core. Measurements: bench/LOG.md, 2026-11-22.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache

import mlx.core as mx

from . import blas
from .quantization import (
    Quantization,
    QuantizedWeight,
    Weight,
    dequantize,
    dtype_name,
    rows,
    take_rows,
)
from .tracing import is_shapeless

Product = Callable[[mx.array, Weight, mx.array | None], mx.array]

#: Rows of x from which a product with the unpacked float32 weight pays: under a fast
#: BLAS, and under MLX's own, where the weight is also transposed (x @ W runs there
#: twice as fast as x @ W.T). What is not listed stays as it is.
UNPACK_FROM = {"float32": 1, "affine": 8, "mxfp4": 48, "mxfp8": 4, "nvfp4": 48}
TRANSPOSE_FROM = {"float32": 16, "affine": 16, "mxfp4": 256, "mxfp8": 8, "nvfp4": 256}

#: Multiplications below which a second core costs more than it gives.
SPLIT_FROM = 1 << 18


def linear(x: mx.array, weight: Weight, bias: mx.array | None = None) -> mx.array:
    """Project with stock operations: ``x @ weight.T + bias``.

    The only place where this package calls a stock projection.

    Args:
        x: [..., K] activations.
        weight: [N, K] array, or a quantized one.
        bias: [N], or None.

    Returns:
        [..., N] array of the dtype of ``x``.
    """
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    run = _on_cpu if on_cpu else _product
    return run(x, weight, bias).astype(x.dtype)


def _product(x: mx.array, weight: Weight, bias: mx.array | None) -> mx.array:
    if not isinstance(weight, QuantizedWeight):
        if bias is None or is_shapeless():
            # Replayed on other shapes, addmm crashes the process (MLX 0.32.4).
            return _add(x @ weight.T, bias)
        return mx.addmm(bias, x, weight.T)
    y = mx.quantized_matmul(
        x,
        weight.weight,
        weight.scales,
        weight.biases,
        transpose=True,
        group_size=weight.group_size,
        bits=weight.bits,
        mode=weight.mode,
    )
    return _add(y, bias)


def _add(y: mx.array, bias: mx.array | None) -> mx.array:
    return y if bias is None else y + bias


def _on_cpu(x: mx.array, weight: Weight, bias: mx.array | None) -> mx.array:
    M, K = x.size // x.shape[-1], x.shape[-1]
    kind = dtype_name(x.dtype)
    if isinstance(weight, QuantizedWeight):
        x, weight, kind = x.astype(mx.float32), _float32_scales(weight), weight.mode
    starts = UNPACK_FROM if blas.is_fast() else TRANSPOSE_FROM
    run = _product
    if starts.get(kind, M + 1) <= M:
        if blas.is_fast():
            return _product(x, _unpack(weight), bias)
        run = _transposed
    if M * K * rows(weight) < SPLIT_FROM:
        return run(x, weight, bias)
    return _split(run, x, weight, bias)


def _transposed(x: mx.array, weight: Weight, bias: mx.array | None) -> mx.array:
    return _add(x @ mx.contiguous(_unpack(weight).T), bias)


def _split(
    run: Product, x: mx.array, weight: Weight, bias: mx.array | None
) -> mx.array:
    """Give each core some of the weight's rows."""
    streams, N = cpu_streams(), rows(weight)
    cuts = [N * i // len(streams) for i in range(len(streams) + 1)]
    parts = []
    for stream, start, end in zip(streams, cuts, cuts[1:], strict=False):
        with mx.stream(stream):
            own = None if bias is None else bias[start:end]
            parts.append(run(x, take_rows(weight, slice(start, end)), own))
    return mx.concatenate(parts, axis=-1)


def _unpack(weight: Weight) -> mx.array:
    if isinstance(weight, QuantizedWeight):
        return dequantize(*weight[:3], Quantization(*weight[3:]))
    return weight


def _float32_scales(weight: QuantizedWeight) -> QuantizedWeight:
    if weight.biases is None:
        return weight
    return weight._replace(
        scales=weight.scales.astype(mx.float32),
        biases=weight.biases.astype(mx.float32),
    )


@cache
def cpu_streams() -> list[mx.Stream]:
    """One CPU stream a core; MLX runs each on a thread of its own."""
    return [mx.new_stream(mx.cpu) for _ in range(min(4, os.cpu_count() or 1))]
