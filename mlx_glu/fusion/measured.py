"""Have verdicts for the kernels that a model can use."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import mlx.core as mx
import mlx.nn as nn

from .. import dispatch, tuning
from ..choosing import mul_case
from ..dispatch import MUL_RANGES, PRODUCT_RANGES, Case
from ..models.llama import Model
from .anatomy import stack_size
from .explanation import dtype_of
from .survey import Site, survey


def tune(model: nn.Module, *, progress: Callable[[str], None] | None = None) -> None:
    """Measure here and now which of a model's kernels are right and worth it.

    Each kernel is tested, then timed against stock, once for a machine and versions
    of macOS, MLX and this package: what has a verdict is not measured again. A kernel
    takes a few seconds. ``mlx-glu explain --tuning`` shows the verdicts.

    Args:
        model: any tree of modules, fused or not.
        progress: gets a line for each kernel; a terminal shows a bar.

    Raises:
        ValueError: there is no Apple GPU, or ``MLX_GLU_IMPL=stock`` holds.
    """
    from tqdm import tqdm

    cases = wanted(model)
    with tqdm(total=len(cases), desc="measuring", unit="kernel", disable=None) as bar:

        def step(line: str) -> None:
            bar.update()
            if progress is not None:
                progress(line)

        tuning.tune(cases, progress=step)


def wanted(model: nn.Module) -> list[tuple[Case, int]]:
    """The cases of a model's feed-forwards, with the first M of each range."""
    default = dtype_of(model)
    if isinstance(model, Model):
        found = list(_called(model))
    else:
        found = [
            case
            for site in survey(model)
            for case in _cases(site, dtype_of(site.module) or default or mx.bfloat16)
        ]
    return [
        (case, first)
        for case in dict.fromkeys(found)
        for first, _ in (MUL_RANGES if case.op == "glu_mul" else PRODUCT_RANGES)
        if case.variant is None or case.variant.pointwise
    ]


def _cases(site: Site, dtype: mx.Dtype) -> Iterator[Case]:
    if site.experts is not None:
        N = stack_size(site.module["down_proj"])[1]
        yield mul_case(dtype, N, site.experts[0])
    elif site.block is not None:
        yield from filter(None, site.block.cases(site.module, dtype))


def _called(model: nn.Module) -> Iterator[Case]:
    """What a model of ours asks, with its norms and residuals."""
    with dispatch.record() as choices:
        model(mx.zeros((1, 1), mx.int32))
        model(mx.zeros((1, dispatch.MAX_M + 1), mx.int32))
    return (choice.case for choice in choices)
