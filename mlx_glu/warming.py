"""Build kernels before they are needed."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from . import jit
from .dispatch import MAX_M


def warmup(model: nn.Module) -> int:
    """Build every fused kernel that generating with a model will call.

    Metal compiles a kernel when it first runs, which the first token would wait
    for. There are kernels for a single row, for a few and for many, so the model is
    run on one token, on two and on six; where nothing is fused this builds nothing.

    Args:
        model: maps token ids [B, L] to logits.

    Returns:
        How many kernels were built.
    """
    before = jit.built()
    for L in (1, 2, MAX_M + 1):
        mx.eval(model(mx.zeros((1, L), mx.int32)))
    return jit.built() - before
