"""Is a block what its module is? Both run on the first rows of the real weights."""

from __future__ import annotations

import copy
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..dispatch import use_impl
from ..feed_forward import Block
from ..linear_layers import PARTS, weight_of
from ..proof.oracle import linear64, oracle_mul
from ..proof.tolerance import f64, worst
from .anatomy import projections
from .probing import Unknown, Wire

_ROWS = 32


def confirm(module: nn.Module, block: Block) -> str:
    """Compare a module and its block in float32, down to what goes into ``down``.

    Args:
        module: the feed-forward.
        block: what it was found to be.

    Returns:
        What is wrong, or "" where the one tolerance holds. Projections that are more
        than their arrays are called by both, so nothing is left to compare.
    """
    names = [name for name in (block.gate, block.up) if name]
    if any(weight_of(getattr(module, name)) is None for name in names):
        return ""
    K = projections(module)[block.gate][1]
    small = copy.copy(module)
    for name in names:
        setattr(small, name, _first_rows(getattr(module, name), block))
    setattr(small, block.down, Wire(slice(None)))
    x = mx.array(np.random.default_rng(0).normal(0, 1, (1, 2, K)), mx.float32)
    with use_impl("stock"):
        given, expected = block(small, x), small(x)
    halves = [_product64(x, getattr(small, name)) for name in names]
    gate, up = _pair(halves, block)
    oracle = oracle_mul(gate, up, block.variant)
    # The module is judged by what the block claims that it is.
    return worst(expected, given, oracle, terms=K).fault


def _product64(x: mx.array, layer: Any) -> np.ndarray:
    weight = weight_of(layer)
    assert weight is not None
    return linear64(f64(x), weight, layer.get("bias"))


def _pair(halves: list[np.ndarray], block: Block) -> list[np.ndarray]:
    """Gate and up, as one projection or two gave them."""
    if block.packing is None:
        return halves
    order, layout = block.packing
    y = halves[0]
    pair = np.split(y, 2, -1) if layout == "concat" else [y[..., ::2], y[..., 1::2]]
    return pair if order == "gate_first" else pair[::-1]


def _first_rows(layer: Any, block: Block) -> Any:
    """The layer with a few rows of its weight, in float32."""
    small, N = copy.copy(layer), layer["weight"].shape[0]
    rows = mx.arange(min(_ROWS, N))
    if block.packing is not None and block.packing[1] == "concat":
        few = min(_ROWS, N // 2)
        rows = mx.concatenate([mx.arange(few), mx.arange(few) + N // 2])
    for name in PARTS:
        a = layer.get(name)
        if a is not None and a.shape[0] != N:
            raise Unknown(f"its {name} is {a.shape} beside a weight of {N} rows")
        if a is not None:
            is_float = mx.issubdtype(a.dtype, mx.floating)
            small[name] = a[rows].astype(mx.float32) if is_float else a[rows]
    return small
