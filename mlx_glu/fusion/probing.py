"""What a module computes between its projections, found by asking it.

A copy of the module gets wires for projections: the gate's lets the first half of x
through, the value's the second half, and the one back lets everything through. So
the copy returns its activation of numbers that we choose, exact and in float32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import product
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .. import reference
from ..elementwise import Packing
from ..packing import pack
from ..proof.oracle import oracle_mul
from ..proof.tolerance import f64, worst
from ..variants import VARIANTS, Variant
from .anatomy import Roles

#: Spread of gates and values: the plain shape, the tails, and where limits cut.
_SCALES = (1.0, 4.0, 40.0)
_ROWS = 3

_PACKINGS: tuple[Packing, ...] = (
    ("gate_first", "concat"),
    ("value_first", "concat"),
    ("gate_first", "interleave"),
    ("value_first", "interleave"),
)

Pairs = tuple[tuple[mx.array, mx.array], ...]


class Unknown(ValueError):
    """No variant is what a module computes; the message says what it does."""


def probe_block(module: nn.Module, roles: Roles, K: int) -> tuple[Variant, Packing]:
    """The variant of a module whose projections have these roles.

    Args:
        module: takes x [..., K] and nothing else.
        roles: which of its children are projections.
        K: inputs of the module.

    Returns:
        The variant, and how one projection packs gate and up, or None.

    Raises:
        Unknown: no variant fits, or the module does not run on wires.
    """
    pairs = _pairs(K // 2)
    probe = copy.copy(module)
    half = K // 2
    setattr(probe, roles.down, Wire(slice(None)))
    setattr(probe, roles.gate, Wire(slice(None) if not roles.up else slice(half)))
    if roles.up:
        setattr(probe, roles.up, Wire(slice(half, None)))
    for packing in _PACKINGS if not roles.up else (None,):
        order, layout = packing or ("gate_first", "concat")
        inputs = [pack(g, u, order=order, layout=layout, axis=-1) for g, u in pairs]
        results = _run(probe, [(x,) for x in inputs], module, pairs)
        variant = _match(results, pairs, module)
        if variant is not None:
            return variant, packing
    raise Unknown("its activation is none of the table's")


def probe_activation(activation: Callable[..., Any]) -> tuple[Variant, bool]:
    """The variant of a function of two arrays.

    Args:
        activation: of gate and value, in either order.

    Returns:
        The variant, and whether the value comes first.

    Raises:
        Unknown: no variant fits.
    """
    pairs = _pairs(32)
    for value_first in (True, False):
        calls = [(u, g) if value_first else (g, u) for g, u in pairs]
        variant = _match(_run(activation, calls, activation, pairs), pairs, activation)
        if variant is not None:
            return variant, value_first
    raise Unknown("its activation is none of the table's")


class Wire(nn.Module):
    """Lets some columns through."""

    def __init__(self, columns: slice) -> None:
        super().__init__()
        self.columns = columns
        self.weight = mx.zeros((1, 1))  # who asks for its dtype

    def __call__(self, x: mx.array) -> mx.array:
        """Some columns of x [..., K]."""
        return x[..., self.columns]


@lru_cache(8)
def _pairs(n: int) -> Pairs:
    rng = np.random.default_rng(0)
    draw = lambda scale: mx.array(rng.normal(0, scale, (1, _ROWS, n)), mx.float32)
    return tuple((draw(scale), draw(scale)) for scale in _SCALES)


def _run(
    call: Callable[..., Any], inputs: Sequence[Any], named: object, pairs: Pairs
) -> list[mx.array]:
    try:
        results = [call(*given) for given in inputs]
        mx.eval(results)
    except Exception as error:
        # Whatever a stranger's module raises means that it is not this simple.
        reason = str(error).splitlines()[0] if str(error) else ""
        raise Unknown(
            f"{type(named).__name__} computes more than a gated product "
            f"({type(error).__name__}: {reason})"
        ) from None
    if any(y.shape != g.shape for y, (g, _) in zip(results, pairs, strict=True)):
        raise Unknown(f"{type(named).__name__} gives another shape than gate and up")
    return results


def _match(results: Sequence[mx.array], pairs: Pairs, owner: object) -> Variant | None:
    """The first variant that is right by the one tolerance, at every scale."""
    if not all(mx.all(mx.isfinite(y)).item() for y in results):
        return None
    for variant in _candidates(owner):
        if all(
            worst(y, reference.glu_mul(g, u, variant), oracle, terms=1).ratio <= 1
            for y, (g, u), oracle in zip(
                results, pairs, _oracles(variant, pairs[0][0].shape[-1]), strict=True
            )
        ):
            return variant
    return None


@lru_cache(256)
def _oracles(variant: Variant, n: int) -> list[np.ndarray]:
    return [oracle_mul(f64(g), f64(u), variant) for g, u in _pairs(n)]


def _candidates(owner: object) -> Iterator[Variant]:
    """The table, then its rows with parameters that the owner holds as numbers."""
    yield from VARIANTS.values()
    numbers = sorted(set(_numbers(owner)))
    for variant in VARIANTS.values():
        values = [{v, 0.0, 1.0, *numbers} for _, v in variant.params]
        for chosen in product(*values):
            params = dict(zip(dict(variant.params), chosen, strict=True))
            try:
                yield variant.with_params(**params)
            except ValueError:  # not a value for this parameter
                continue


def _numbers(owner: object) -> Iterator[float]:
    """Numbers of a module and of its children, but no sizes."""
    for value in vars(owner).values() if hasattr(owner, "__dict__") else ():
        if isinstance(value, float) or (isinstance(value, int) and value < 64):
            yield float(value)
    if isinstance(owner, nn.Module):
        for child in owner.children().values():
            if isinstance(child, nn.Module):
                yield from _numbers(child)
