"""Linear layers of any class, read without being called where that is possible."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from . import reference
from .quantization import QuantizedWeight, Weight, dtype_name, size

_DENSE = (nn.Linear, nn.Embedding, nn.AllToShardedLinear)
_PACKED = (nn.QuantizedLinear, nn.QuantizedEmbedding, nn.QuantizedAllToShardedLinear)
#: Each device of a group has some rows of the weight; gradients by x are summed.
SHARDED = (nn.AllToShardedLinear, nn.QuantizedAllToShardedLinear)
#: Arrays that a linear layer may have.
PARTS = ("weight", "scales", "biases", "bias")


def weight_of(layer: Any) -> Weight | None:
    """The weight of a layer that is its arrays alone; a subclass may compute more."""
    kind = type(layer)
    if kind in _DENSE:
        weight: mx.array = layer["weight"]
        return weight
    if kind in _PACKED:
        arrays = layer["weight"], layer["scales"], layer.get("biases")
        return QuantizedWeight(*arrays, layer.group_size, layer.bits, layer.mode)
    return None


def inner(layer: Any) -> Any:
    """The layer that an adapter adds to, or the layer itself."""
    while isinstance(layer, nn.Module) and isinstance(layer.get("linear"), nn.Module):
        layer = layer["linear"]
    return layer


def project(layer: Any, x: mx.array) -> mx.array:
    """Apply a linear layer, or an embedding as the output head that it is tied to.

    Args:
        layer: a linear layer or an embedding, plain or quantized; or any other
            module, such as an adapter, which is called.
        x: [..., K] activations.

    Returns:
        [..., N] array of the dtype of ``x``.
    """
    weight = own_weight(layer)
    if weight is not None:
        return reference.linear(x, weight, layer.get("bias"))
    y: mx.array = layer(x)
    return y


class Half(NamedTuple):
    """Gate or up: its weight [N, K] and its bias [N], or None."""

    weight: Weight
    bias: mx.array | None


def child_of(module: nn.Module, name: str) -> Any:
    """As ``getattr``, which takes its time in a module; "" is no child."""
    if name in module:
        return module[name]
    return getattr(module, name) if name else None


def parts_of(layer: Any) -> tuple[Any, Any]:
    """Weight and bias of a layer; arrays and settings inside any other."""
    weight = weight_of(layer)
    if weight is not None:
        return weight, layer.get("bias")
    settings = vars(inner(layer)) if isinstance(layer, nn.Module) else {}
    return arrays_inside(layer), tuple(
        map(settings.get, ("group_size", "bits", "mode"))
    )


def arrays_inside(layer: Any) -> tuple[mx.array | None, ...]:
    """The arrays named :data:`PARTS` of a layer, or of the one in an adapter."""
    own = inner(layer)
    return tuple(map(own.get if isinstance(own, nn.Module) else {}.get, PARTS))


def misfit(module: nn.Module, names: Iterable[str], dtype: mx.Dtype) -> str:
    """Whether stock would give an x of this dtype a result of another, or "".

    It widens where a weight has another dtype; fused operations do not.
    """
    for name in names:
        for part, a in zip(PARTS, arrays_inside(getattr(module, name)), strict=True):
            if a is not None and a.dtype not in (dtype, mx.uint32, mx.uint8):
                return (
                    f"{part} of {name} is {dtype_name(a.dtype)} and x "
                    f"{dtype_name(dtype)}; stock widens the result"
                )
    return ""


def own_weight(layer: Any) -> Weight | None:
    """As :func:`weight_of`, but None where other devices have a share."""
    return None if type(layer) in SHARDED else weight_of(layer)


def columns_of(layer: Any) -> int:
    """K of a layer that has to be called; 0 where it cannot be seen."""
    weight = weight_of(inner(layer))
    return 0 if weight is None else size(weight)[1]
