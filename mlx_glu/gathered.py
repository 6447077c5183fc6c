"""``x @ weight[e].T + bias[e]``: each row of x by the matrix of its own expert.

MLX's CPU backend multiplies stacked matrices in float32 alone, and rounds packed ones
in 16 bits, as in projection.py.
"""

from __future__ import annotations

import mlx.core as mx

from .quantization import QuantizedWeight, Weight, take_rows


def gathered_linear(
    x: mx.array,
    weight: Weight,
    indices: mx.array,
    bias: mx.array | None = None,
    *,
    is_sorted: bool = False,
) -> mx.array:
    """Project each row of ``x`` with the weight that its index names.

    Args:
        x: [..., 1, K] activations; the axes before the last two are broadcast with
            ``indices``.
        weight: a stack of E matrices, [E, N, K], or a quantized one.
        indices: [...] integers below E.
        bias: [E, N], or None.
        is_sorted: ``indices`` has one axis and never falls; MLX then reads each
            matrix once.

    Returns:
        [..., 1, N] array of the dtype of ``x``, with the axes of ``indices``.
    """
    dtype = x.dtype
    chosen = indices
    if mx.default_device().type == mx.DeviceType.cpu:
        x, weight, chosen = _in_float32(x, weight, indices)
    if isinstance(weight, QuantizedWeight):
        packed, scales, biases, group_size, bits, mode = weight
        y = mx.gather_qmm(
            x,
            packed,
            scales,
            biases,
            rhs_indices=chosen,
            transpose=True,
            group_size=group_size,
            bits=bits,
            mode=mode,
            sorted_indices=is_sorted,
        )
    else:
        y = mx.gather_mm(
            x, weight.swapaxes(-1, -2), rhs_indices=chosen, sorted_indices=is_sorted
        )
    if bias is not None:
        y = y + mx.expand_dims(bias[indices], -2)
    return y.astype(dtype)


def _in_float32(
    x: mx.array, weight: Weight, indices: mx.array
) -> tuple[mx.array, Weight, mx.array]:
    """The same product in float32; of few indices only their matrices are widened."""
    narrow = weight if isinstance(weight, mx.array) else weight.biases
    if narrow is not None and narrow.dtype != mx.float32:
        if indices.size < narrow.shape[0]:
            weight = take_rows(weight, indices.flatten())
            indices = mx.arange(indices.size).reshape(indices.shape)
        weight = _widened(weight)
    return x.astype(mx.float32), weight, indices


def _widened(weight: Weight) -> Weight:
    if not isinstance(weight, QuantizedWeight):
        return weight.astype(mx.float32)
    assert weight.biases is not None
    return weight._replace(
        scales=weight.scales.astype(mx.float32),
        biases=weight.biases.astype(mx.float32),
    )
