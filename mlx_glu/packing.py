"""How checkpoints pack gate and up into one array."""

from __future__ import annotations

from typing import Literal, get_args

import mlx.core as mx

Order = Literal["gate_first", "value_first"]
Layout = Literal["separate", "concat", "interleave"]


def split_packed(
    packed: mx.array, *, order: Order, layout: Layout, axis: int
) -> tuple[mx.array, mx.array]:
    """Split a packed projection, its weight or its output, into gate and up.

    A quantized weight is split array by array along its rows, axis 0.

    Args:
        packed: array with 2N along ``axis``.
        order: which half, or which of two neighbours, comes first.
        layout: "concat" for halves, "interleave" for neighbours.
        axis: the axis of 2N: 0 for weights and biases, -1 for outputs.

    Returns:
        gate and up, in this order, each with N along ``axis``.

    Raises:
        ValueError: ``order`` or ``layout`` is unknown, or "separate"; there is no
            such axis, or its size is odd.
    """
    axis = check_packed("split_packed", packed, order, layout, axis)
    n = packed.shape[axis] // 2
    inner = layout == "interleave"
    pairs = mx.unflatten(packed, axis, (n, 2) if inner else (2, n))
    halves = mx.split(pairs, 2, axis=axis + inner)
    first, second = (mx.squeeze(half, axis=axis + inner) for half in halves)
    return (first, second) if order == "gate_first" else (second, first)


def pack(
    gate: mx.array, up: mx.array, *, order: Order, layout: Layout, axis: int
) -> mx.array:
    """Pack gate and up, each N along ``axis``; the inverse of `split_packed`.

    Returns:
        Array with 2N along ``axis``.

    Raises:
        ValueError: as in :func:`split_packed`.
    """
    axis = _check_packing("pack", gate, order, layout, axis)
    pair = [gate, up] if order == "gate_first" else [up, gate]
    stacked = mx.stack(pair, axis=axis + (layout == "interleave"))
    return mx.flatten(stacked, axis, axis + 1)


def check_packed(op: str, a: mx.array, order: str, layout: str, axis: int) -> int:
    """Check what holds gate and up; returns the axis counted from the front.

    Raises:
        ValueError: as in :func:`split_packed`.
    """
    axis = _check_packing(op, a, order, layout, axis)
    if a.shape[axis] % 2:
        raise ValueError(
            f"[{op}] axis {axis} holds gate and up, an even size, but got "
            f"{list(a.shape)}; choose the axis of the outputs"
        )
    return axis


def _check_packing(op: str, a: mx.array, order: str, layout: str, axis: int) -> int:
    layouts = [known for known in get_args(Layout) if known != "separate"]
    if order not in get_args(Order) or layout not in layouts:
        raise ValueError(
            f"[{op}] order is one of {list(get_args(Order))} and layout of {layouts} "
            f"but got {order!r} and {layout!r}; separate weights need no packing"
        )
    if not -a.ndim <= axis < a.ndim:
        raise ValueError(
            f"[{op}] axis {axis} is not in {list(a.shape)}; "
            "take 0 for a weight, -1 for an output"
        )
    return axis % a.ndim
