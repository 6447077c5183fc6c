"""Every feed-forward of a model, and whether its activation is known."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from ..dispatch import is_off
from ..experts import SwitchGLU
from ..feed_forward import Block
from ..linear_layers import PARTS, inner
from ..variants import Variant
from . import anatomy, probing
from .confirm import confirm
from .patches import block_of, experts_of, is_ours
from .probing import Unknown


class Site(NamedTuple):
    """A feed-forward.

    Attributes:
        path: of its module in the model.
        module: the module.
        block: a dense block, or None.
        experts: variant of the activation between stacked projections, and whether
            it takes the value first; or None.
        fault: why it is neither; "" where it is one.
    """

    path: str
    module: nn.Module
    block: Block | None = None
    experts: tuple[Variant, bool] | None = None
    fault: str = ""


def survey(model: nn.Module) -> list[Site]:
    """Find the feed-forwards of a model, each module once, in their order.

    Activations are probed once for each class and its settings.

    Raises:
        ValueError: ``model`` is no module, or ``MLX_GLU_IMPL`` is wrong.
    """
    check_model(model)
    is_off()  # else its error would be taken for one of a stranger's module
    known: dict[Hashable, Site | None] = {}
    seen: set[int] = set()
    sites = []
    for path, module in _named_modules(model):
        if id(module) in seen:
            continue
        seen.add(id(module))
        site = _already(path, module)
        if site is None and _may_be(module):
            key = _settings(module)
            if key not in known:
                known[key] = _probe(path, module)
            site = known[key]
        if site is not None:
            sites.append(site._replace(path=path, module=module))
    return sites


def check_model(model: object) -> None:
    """A module, and not what ``mlx_lm.load`` returns."""
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"[fuse] expected an mlx.nn.Module but got {type(model).__name__}; load() "
            "returns a model and a tokenizer, pass the first"
        )


def _named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    named = model.named_modules()
    return iter(sorted(named, key=lambda item: _natural(item[0])))


def _natural(path: str) -> list[tuple[bool, int, str]]:
    return [(p.isdigit(), int(p) if p.isdigit() else 0, p) for p in path.split(".")]


def _already(path: str, module: nn.Module) -> Site | None:
    if is_ours(module):
        if isinstance(module, SwitchGLU):
            return Site(path, module, experts=(module.variant, False))
        return Site(path, module, module.block)
    block = block_of(module)
    if block is not None:
        return Site(path, module, block)
    experts = experts_of(module)
    return None if experts is None else Site(path, module, experts=experts)


def _may_be(module: nn.Module) -> bool:
    return (
        anatomy.has_experts(module)
        or next(anatomy.roles(module), None) is not None
        or anatomy.is_ungated(module)
    )


def _probe(path: str, module: nn.Module) -> Site | None:
    """The site that a module is; None for what is no feed-forward at all."""
    if anatomy.has_experts(module):
        try:
            found = probing.probe_activation(module.activation)
        except Unknown as unknown:
            return Site(path, module, fault=str(unknown))
        return Site(path, module, experts=found)
    faults = []
    for roles in anatomy.roles(module):
        K = anatomy.projections(module)[roles.gate][1]
        try:
            variant, packing = probing.probe_block(module, roles, K)
        except Unknown as unknown:
            faults.append(str(unknown))
            continue
        block = Block(variant, *roles, packing=packing)
        try:
            fault = confirm(module, block)
        except Exception as error:  # of a stranger's module
            fault = str(error)
        if fault:
            return Site(path, module, fault=f"not as its activation says: {fault}")
        return Site(path, module, block)
    if len(anatomy.projections(module)) == 2 and not _is_named_like_one(module):
        return None
    fault = faults[0] if faults else "not a GLU: two projections and no gate"
    return Site(path, module, fault=fault)


def _is_named_like_one(module: nn.Module) -> bool:
    """Much has two projections; what nobody calls a feed-forward is none."""
    name = type(module).__name__.lower()
    return any(part in name for part in ("mlp", "ffn", "feedforward", "expert"))


def _settings(module: nn.Module) -> Hashable:
    """What may change a module's arithmetic, but the values of its weights.

    Objects count by identity: they live as long as the model does.
    """
    own: list[Hashable] = [type(module)]
    for name, value in sorted(vars(module).items()):
        if name != "_no_grad":  # an object of each module's own
            plain = isinstance(value, bool | int | float | str | type(None))
            own.append((name, value if plain else id(value)))
    for name, value in module.items():
        if isinstance(value, mx.array):
            own.append((name, value.item() if value.size == 1 else value.shape))
        elif not isinstance(value, nn.Module):
            own.append((name, repr(value)))
        elif anatomy.size_of(value) is None:
            own.append((name, _settings(value)))
        else:
            own.append((name, type(value), *_projection(inner(value))))
    return tuple(own)


def _projection(layer: Any) -> Iterator[Hashable]:
    for name in PARTS:
        a = layer.get(name)
        yield None if a is None else (a.shape, a.dtype)
    yield from map(vars(layer).get, ("group_size", "bits", "mode"))
