"""What a module computes between its projections, found by asking it.

A copy of the module gets wires for projections: the gate's lets the first half of x
through, the value's the second half, and the one back lets everything through. So
the copy returns its activation of numbers that we choose, exact and in float32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import product
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from .. import reference
from ..elementwise import Packing
from ..packing import pack
from ..proof.oracle import oracle_mul
from ..proof.tolerance import f64, worst
from ..variants import VARIANTS, Variant
from .anatomy import Roles

#: Spread of gates and values: the plain shape, the tails, and where limits cut; and
#: the batch and tokens of each, for a module may look at them.
_SCALES = ((1.0, (2, 3)), (4.0, (1, 1)), (40.0, (1, 3)))

#: Of |y| and of the largest: tells a branch for 16 bits from a rounding.
_LOOSE = 0.05

_PACKINGS: tuple[Packing, ...] = (
    ("gate_first", "concat"),
    ("value_first", "concat"),
    ("gate_first", "interleave"),
    ("value_first", "interleave"),
)

Pairs = tuple[tuple[mx.array, mx.array], ...]
Call = Callable[[mx.array, mx.array], Any]


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
    half = K // 2
    if half == 0:
        raise Unknown("it has a single input")
    pairs, probe = _pairs(half), _wired(module, roles, half)
    for packing in _PACKINGS if not roles.up else (None,):
        order, layout = packing or ("gate_first", "concat")

        def call(g: mx.array, u: mx.array, o: Any = order, p: Any = layout) -> Any:
            return probe(pack(g, u, order=o, layout=p, axis=-1))

        variant = _match(call, pairs, module, probe)
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
    if isinstance(activation, nn.Module):
        _refuse_parameters(activation, ())
    probe = _copied(activation)
    for value_first in (True, False):

        def call(g: mx.array, u: mx.array, swap: bool = value_first) -> Any:
            return probe(u, g) if swap else probe(g, u)

        variant = _match(call, _pairs(32), activation, probe)
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


def _wired(module: nn.Module, roles: Roles, half: int) -> nn.Module:
    """A copy with wires, which shares nothing with the module that a call changes."""
    _refuse_parameters(module, roles)
    probe = copy.copy(module)
    setattr(probe, roles.down, Wire(slice(None)))
    setattr(probe, roles.gate, Wire(slice(half) if roles.up else slice(None)))
    if roles.up:
        setattr(probe, roles.up, Wire(slice(half, None)))
    copied: nn.Module = _copied(probe)
    return copied


def _copied(probe: Any) -> Any:
    with suppress(Exception):  # some objects have no copy, as a compiled function
        return copy.deepcopy(probe)
    return probe


def _refuse_parameters(module: nn.Module, roles: Sequence[str]) -> None:
    """What may be trained or loaded later is not known now."""
    flat: Any = tree_flatten(module.parameters())
    own = [path for path, _ in flat if path.split(".")[0] not in roles]
    if own:
        raise Unknown(f"it has parameters beside its projections: {own[0]}")


@lru_cache(8)
def _pairs(n: int) -> Pairs:
    rng = np.random.default_rng(0)
    draw = lambda *given: mx.array(rng.normal(0, *given), mx.float32)
    return tuple(
        (draw(scale, (*rows, n)), draw(scale, (*rows, n))) for scale, rows in _SCALES
    )


def _match(call: Call, pairs: Pairs, owner: object, probe: object) -> Variant | None:
    """The first variant that a call is right for, in training and out of it."""
    results = [_run(call, pairs, owner)]
    if isinstance(probe, nn.Module):
        was = probe.training
        try:
            probe.train(not was)
            results.append(_run(call, pairs, owner))
        finally:
            probe.train(was)
    if not all(mx.all(mx.isfinite(y)).item() for own in results for y in own):
        return None
    for variant in _candidates(owner):
        oracles = _oracles(variant, pairs[0][0].shape[-1])
        if all(_is_right(own, pairs, oracles, variant) for own in results):
            _check_16_bits(call, pairs, oracles, owner)
            return variant
    return None


def _run(call: Call, pairs: Pairs, owner: object) -> list[mx.array]:
    name = type(owner).__name__
    try:
        results = [call(*pair) for pair in pairs]
        mx.eval(results)
    except Exception as error:
        # Whatever a stranger's module raises means that it is not this simple.
        reason = str(error).splitlines()[0] if str(error) else ""
        raise Unknown(
            f"{name} computes more than a gated product "
            f"({type(error).__name__}: {reason})"
        ) from None
    for y, (g, _) in zip(results, pairs, strict=True):
        if not isinstance(y, mx.array) or (y.shape, y.dtype) != (g.shape, g.dtype):
            raise Unknown(f"{name} gives another shape or dtype than gate and up")
    return results


def _is_right(
    results: Sequence[mx.array],
    pairs: Pairs,
    oracles: Sequence[np.ndarray],
    variant: Variant,
) -> bool:
    """Whether the one tolerance holds at every scale."""
    given = zip(results, pairs, oracles, strict=True)
    return all(
        worst(y, reference.glu_mul(g, u, variant), oracle, terms=1).ratio <= 1
        for y, (g, u), oracle in given
    )


def _check_16_bits(
    call: Call, pairs: Pairs, oracles: Sequence[np.ndarray], owner: object
) -> None:
    """Refuse what widens 16 bits, or computes something else in them."""
    for dtype in (mx.float16, mx.bfloat16):
        narrow = tuple((g.astype(dtype), u.astype(dtype)) for g, u in pairs[:2])
        for y, oracle in zip(_run(call, narrow, owner), oracles[:2], strict=True):
            bound = _LOOSE * (np.abs(oracle) + np.abs(oracle).max())
            if not (np.abs(f64(y) - oracle) <= bound).all():
                raise Unknown(f"{type(owner).__name__} differs in {dtype}")


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
