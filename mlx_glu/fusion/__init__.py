"""Any model's feed-forwards, fused in place and taken apart again."""

from __future__ import annotations

from typing import TypeVar

import mlx.nn as nn

from .. import jit
from ..dispatch import is_off
from . import patches
from .explanation import Explanation, Row, explain
from .measured import tune
from .survey import check_model, survey

__all__ = ["Explanation", "Row", "explain", "fuse", "tune", "unfuse"]

Model = TypeVar("Model", bound=nn.Module)


def fuse(model: Model, *, measure: bool = True) -> Model:
    """Run the feed-forwards of a model fused, wherever that is right and faster.

    Finds every gated block of any class by the shapes of its projections, and its
    activation by probing; compares block and module before it is kept. Parameters and
    their names, quantization, adapters, sharding and training stay as they are, and
    each call still asks ``dispatch``: what is not fused runs the module's own code.
    :func:`explain` says what was found and what runs. Fuse after loading: settings
    that are changed afterwards, such as the limit of a clamp, are not seen.

    Args:
        model: any tree of MLX modules; changed in place.
        measure: on an Apple GPU, :func:`tune` the kernels that have no verdict yet.
            Without one, stock runs.

    Returns:
        ``model``.

    Raises:
        ValueError: ``model`` is no module, or ``MLX_GLU_IMPL`` is wrong.
    """
    for site in survey(model):
        if patches.is_ours(site.module) or patches.block_of(site.module) is not None:
            continue
        if site.block is not None:
            patches.patch_block(site.module, site.block)
        elif site.experts is not None and patches.experts_of(site.module) is None:
            patches.patch_experts(site.module, site.experts)
    if measure and jit.backend() == "metal" and not is_off():
        tune(model)
    return model


def unfuse(model: Model) -> Model:
    """Undo :func:`fuse`: every module is of its own class again.

    Args:
        model: changed in place.

    Returns:
        ``model``.

    Raises:
        ValueError: ``model`` is no module.
    """
    check_model(model)
    for module in model.modules():
        patches.unpatch(module)
    return model
