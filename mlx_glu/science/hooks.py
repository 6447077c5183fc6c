"""Look at what goes into a model's projections, or change it, while a context lasts.

The model itself runs: a projection is replaced by one that calls it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from ..layers import GatedMLP
from ..linear_layers import project, weight_of
from ..models.llama import Model
from ..quantization import Quantization, QuantizedWeight, dequantize, size
from ..reference import PHI
from ..variants import Variant

#: What an input [..., K] of a projection passes on its way in.
Pass = Callable[[mx.array], mx.array]


class Unit:
    """What gate and up of one block gave last.

    Attributes:
        variant: of the block.
        gate: [..., N] pre-activation.
        up: [..., N].
    """

    gate: mx.array
    up: mx.array

    def __init__(self, variant: Variant) -> None:
        self.variant = variant

    @property
    def phi(self) -> mx.array:
        """The activated gate [..., N], float32."""
        params = dict(self.variant.params)
        return PHI[self.variant.phi][0](self.gate.astype(mx.float32), params)


@dataclass(frozen=True)
class Site:
    """The input of one projection.

    Attributes:
        path: of the projection in its model.
        layer: the projection, [N, K].
        unit: of the same block; has gate and up where `hooked` took the down
            projections alone.
    """

    path: str
    layer: Any
    unit: Unit

    @property
    def rows(self) -> int:
        """N: weights that one entry of the input multiplies."""
        return size(_weight(self.layer))[0]

    @cached_property
    def norms(self) -> mx.array:
        """Length of each column of the weight, [K] float32."""
        weight = _weight(self.layer)
        if isinstance(weight, QuantizedWeight):
            weight = dequantize(*weight[:3], Quantization(*weight[3:]))
        return mx.linalg.norm(weight.astype(mx.float32), axis=0)


class Hooked(nn.Module):
    """A projection whose input passes a function, and whose output is shown to one.

    Args:
        linear: the projection; so called, ``GatedMLP`` sees its size as an adapter's.
        before: what an input passes; None for nothing.
        after: called with each output; None for nothing.
    """

    def __init__(
        self,
        linear: nn.Module,
        *,
        before: Pass | None = None,
        after: Callable[[mx.array], object] | None = None,
    ) -> None:
        super().__init__()
        self.linear = linear
        self.before, self.after = before, after

    def __call__(self, x: mx.array) -> mx.array:
        """Project ``x`` [..., K] to [..., N]."""
        y = project(self.linear, x if self.before is None else self.before(x))
        if self.after is not None:
            self.after(y)
        return y


@contextmanager
def hooked(
    model: Model, make: Callable[[Site], Pass], *, everywhere: bool = False
) -> Iterator[None]:
    """Let inputs of projections pass functions while the context lasts.

    Args:
        model: changed, and changed back.
        make: gives the function of a site.
        everywhere: at every projection of every layer; else at the down projections.

    Raises:
        ValueError: a layer's feed-forward is no ``GatedMLP`` of three projections.
    """
    hooks: dict[str, nn.Module] = {}
    for i, mlp in enumerate(feed_forwards(model)):
        layers, unit = projections(model, i), Unit(mlp.variant)
        if not everywhere:
            gate, up, down = (
                f"model.layers.{i}.mlp.{name}_proj" for name in ("gate", "up", "down")
            )
            for name, path in (("gate", gate), ("up", up)):
                see = partial(setattr, unit, name)
                hooks[path] = Hooked(layers[path], after=see)
            layers = {down: layers[down]}
        for path, layer in layers.items():
            hooks[path] = Hooked(layer, before=make(Site(path, layer, unit)))
    own = [(path, module) for path, module in model.named_modules() if path in hooks]
    try:
        model.update_modules(tree_unflatten(list(hooks.items())))
        yield
    finally:
        model.update_modules(tree_unflatten(own))


def feed_forwards(model: Model) -> list[GatedMLP]:
    """That of each layer.

    Raises:
        ValueError: one is no ``GatedMLP`` of three projections.
    """
    found = []
    for i, block in enumerate(model.model.layers):
        mlp = block.get("mlp")
        if not isinstance(mlp, GatedMLP) or mlp.block.packing is not None:
            raise ValueError(
                "[science] expected gate_proj, up_proj and down_proj in the "
                f"feed-forward of every layer, but layer {i} has {type(mlp).__name__} "
                "of other parts; take a dense model such as the default one"
            )
        found.append(mlp)
    return found


def projections(model: Model, layer: int) -> dict[str, nn.Module]:
    """The linear layers of one of the model's layers, by their path in the model."""
    named = sorted(model.model.layers[layer].named_modules())
    linear = [(path, module) for path, module in named if weight_of(module) is not None]
    return {f"model.layers.{layer}.{path}": module for path, module in linear}


def _weight(layer: Any) -> mx.array | QuantizedWeight:
    weight = weight_of(layer)
    assert weight is not None
    return weight
