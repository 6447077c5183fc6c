"""Which modules may be a gated feed-forward, by the shapes of their projections."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from ..linear_layers import inner


class Roles(NamedTuple):
    """Names of a module's projections; ``up`` is "" where ``gate`` holds both."""

    gate: str
    up: str
    down: str


def projections(module: nn.Module) -> dict[str, tuple[int, int]]:
    """The children of a module that are linear layers, and N and K of each."""
    sizes = {name: size_of(child) for name, child in module.children().items()}
    return {name: size for name, size in sizes.items() if size is not None}


def size_of(layer: Any) -> tuple[int, int] | None:
    """N and K of a linear layer of any class; an adapter has its layer inside."""
    if not isinstance(layer, nn.Module) or isinstance(layer, nn.Embedding):
        return None
    weight = inner(layer).get("weight")
    if not isinstance(weight, mx.array) or weight.ndim != 2:
        return None
    return stack_size(layer)


def stack_size(layer: Any) -> tuple[int, int]:
    """N and K of a linear layer, or of each of a stack."""
    layer = inner(layer)
    N, columns = layer["weight"].shape[-2:]
    scales = layer.get("scales")
    if isinstance(scales, mx.array) and "group_size" in vars(layer):
        columns = scales.shape[-1] * layer.group_size
    return N, columns


def roles(module: nn.Module) -> Iterator[Roles]:
    """Ways in which a module's projections, all of them, can be gate, up and down.

    Names prove nothing: the gate is ``w1``, ``w2``, ``c_fc_0`` or ``proj_1`` in
    models that people use. What fits is probed.
    """
    sizes = projections(module)
    if len(sizes) == 3:
        for gate, up, down in permutations(sizes):
            if sizes[gate] == sizes[up] == sizes[down][::-1]:
                yield Roles(gate, up, down)
    if len(sizes) == 2:
        for gate, down in permutations(sizes):
            K, N = sizes[down]
            if sizes[gate] == (2 * N, K):
                yield Roles(gate, "", down)


def has_experts(module: nn.Module) -> bool:
    """Whether a module has three stacks of projections and a callable between them."""
    names = ("gate_proj", "up_proj", "down_proj")
    children = module.children()
    if not all(isinstance(children.get(name), nn.Module) for name in names):
        return False
    weights = [inner(children[name]).get("weight") for name in names]
    stacked = all(isinstance(w, mx.array) and w.ndim == 3 for w in weights)
    return stacked and callable(getattr(module, "activation", None))


def is_ungated(module: nn.Module) -> bool:
    """Whether a module is two projections, there and back."""
    sizes = list(projections(module).values())
    return len(sizes) == 2 and sizes[0] == sizes[1][::-1]
