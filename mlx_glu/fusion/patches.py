"""Modules that run fused where dispatch says so, and else are what they were.

A block gets a class of its own, whose call asks dispatch first; the tree of modules
and its parameters stay as they are. Between stacked experts the activation is
replaced by such a copy of itself, as models share one object.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .. import fused
from ..checks import DTYPES
from ..choosing import decide, mul_case
from ..dispatch import note
from ..experts import SwitchGLU
from ..feed_forward import Block
from ..layers import GatedMLP
from ..variants import Variant

Experts = tuple[Variant, bool]


def patch_block(module: nn.Module, block: Block) -> None:
    """Give a module the class that runs it as this block."""
    module.__class__ = _block_class(type(module), block)


def patch_experts(module: nn.Module, experts: Experts) -> None:
    """Give a module an activation that is fused where it pays."""
    module.activation = _fused_activation(module.activation, experts)


def unpatch(module: nn.Module) -> bool:
    """Undo either; says whether there was something to undo."""
    if block_of(module) is not None:
        module.__class__ = type(module).__mro__[1]
        return True
    if experts_of(module) is not None:
        module.activation = module.activation._glu_original
        return True
    return False


def is_ours(module: nn.Module) -> bool:
    """Whether a module asks dispatch by itself."""
    call: Any = type(module).__call__
    return call in (GatedMLP.__call__, SwitchGLU.__call__)


def block_of(module: nn.Module) -> Block | None:
    """The block of a patched module."""
    block: Block | None = vars(type(module)).get("_glu_block")
    return block


def experts_of(module: nn.Module) -> Experts | None:
    """Variant of a patched activation of a module, and whether value comes first."""
    activation = getattr(module, "activation", None)
    experts: Experts | None = vars(type(activation)).get("_glu_experts")
    return experts


@cache
def _block_class(kind: type[nn.Module], block: Block) -> type[nn.Module]:
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        # Read at each call, for a program may replace it.
        original = kind.__call__
        if kwargs or len(args) != 1 or not _is_plain(args[0]):
            return original(self, *args, **kwargs)
        return block(self, args[0], otherwise=original)

    made: type[nn.Module] = _subclass(kind, block, __call__, _glu_block=block)
    return made


def _fused_activation(activation: Any, experts: Experts) -> Any:
    if isinstance(activation, nn.Module):
        fused = copy.copy(activation)
        fused.__class__ = _activation_class(type(activation), experts)
    else:
        fused = _activation_class(_Function, experts)(activation)
    object.__setattr__(fused, "_glu_original", activation)
    return fused


class _Function:
    """A function that can have a class of its own."""

    def __init__(self, function: Any) -> None:
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)


@cache
def _activation_class(kind: type, experts: Experts) -> type:
    variant, value_first = experts

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        original: Any = kind.__call__
        if kwargs or len(args) != 2 or not _are_pair(*args):
            return original(self, *args, **kwargs)
        gate, up = reversed(args) if value_first else args
        N = gate.shape[-1]
        choice = decide(mul_case(gate.dtype, N, variant), gate.size // N, args)
        note(choice)
        if choice.impl == "fused":
            return fused.glu_mul(gate, up, variant)
        return original(self, *args)

    made: type = _subclass(kind, experts, __call__, _glu_experts=experts)
    return made


def _is_plain(x: Any) -> bool:
    return isinstance(x, mx.array) and x.dtype in DTYPES and x.size > 0


def _are_pair(gate: Any, up: Any) -> bool:
    same = _is_plain(gate) and _is_plain(up) and gate.dtype == up.dtype
    return same and gate.shape == up.shape


def _subclass(kind: type, how: Block | Experts, call: Any, **attributes: Any) -> Any:
    def __reduce_ex__(self: Any, protocol: Any) -> Any:
        # A class that was made cannot be found by name, so it is made again.
        original: Any = kind.__reduce_ex__
        return _rebuild, (kind, how), *original(self, protocol)[2:]

    body = {"__call__": call, "__reduce_ex__": __reduce_ex__, **attributes}
    name = f"Fused{kind.__name__}"
    return type(name, (kind,), {"__module__": kind.__module__, **body})


def _rebuild(kind: Any, how: Any) -> Any:
    make: Any = _block_class if isinstance(how, Block) else _activation_class
    made = make(kind, how)
    return made.__new__(made)
