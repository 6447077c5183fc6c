"""Layers of the GLU family, and the ways checkpoints pack their weights."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn

from . import lean, ops, reference, variants
from .elementwise import Packing
from .feed_forward import Block
from .variants import Variant


class RMSNorm(nn.RMSNorm):
    """MLX's, in the dtype of its input: a float32 weight must not widen the model.

    ``offset`` is 1 where the weight is stored as ``w - 1``, as in Gemma.
    """

    offset = 0

    def __call__(self, x: mx.array) -> mx.array:
        """Normalise the last axis of ``x`` [..., K]."""
        return reference.rms_norm(x, self.parts())

    def parts(self) -> ops.Norm:
        """What a fused projection needs of it."""
        return ops.Norm(self.weight, self.eps, self.offset)


def scaled(x: mx.array, factor: float) -> mx.array:
    """``factor * x`` in the dtype of ``x``, to which the factor is not rounded."""
    return (x.astype(mx.float32) * factor).astype(x.dtype)


class GatedMLP(nn.Module):
    r"""Gated feed-forward block.

    .. math:: y = (\phi(x W_g^\top) \odot \psi(x W_u^\top)) W_d^\top

    ``gate_proj``, ``up_proj`` and ``down_proj`` (the names of Hugging Face) are
    ``nn.Linear`` or ``nn.QuantizedLinear``; another layer in their place, such as
    an adapter, is called as it is.

    In training mode a gradient keeps ``x``, what ``norm`` makes of it, gate and up
    alone, and computes the rest again; in evaluation mode also their product. It
    computes the gradients of all weights that are not frozen, whichever are asked for.

    Args:
        dims: K, size of the input and of the output.
        hidden_dims: N, intermediate size.
        variant: a key of :data:`variants.VARIANTS`, or a variant.
        bias: whether the projections have a bias.
        packed: gate and up are one layer, ``gate_up_proj``, the gate's rows first.
        recompute: in training mode keep ``x`` alone: 11 matrix products a step, not 9.

    Raises:
        ValueError: ``variant`` is unknown.

    Source: Shazeer 2020, arXiv:2002.05202, section 2.
    """

    def __init__(
        self,
        dims: int,
        hidden_dims: int,
        *,
        variant: str | Variant = "swiglu",
        bias: bool = False,
        packed: bool = False,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.recompute = recompute
        self.block = Block(variants.get(variant))
        if packed:
            how: Packing = ("gate_first", "concat")
            self.block = replace(self.block, gate="gate_up_proj", up="", packing=how)
            self.gate_up_proj = nn.Linear(dims, 2 * hidden_dims, bias=bias)
        else:
            self.gate_proj = nn.Linear(dims, hidden_dims, bias=bias)
            self.up_proj = nn.Linear(dims, hidden_dims, bias=bias)
        self.down_proj = nn.Linear(hidden_dims, dims, bias=bias)

    def __call__(
        self,
        x: mx.array,
        *,
        norm: RMSNorm | None = None,
        residual: mx.array | None = None,
    ) -> mx.array:
        """Apply the block: two kernels for up to 5 rows where they are fused.

        Args:
            x: [..., K] activations; float16, bfloat16 or float32.
            norm: normalises ``x`` first; None for an ``x`` that is normalised.
            residual: [..., K] of the dtype of ``x``, added to the result; or None.

        Returns:
            [..., K] array of the dtype of ``x``.

        Raises:
            ValueError: weights do not match ``x`` in K or dtype; with ``recompute``,
                a layer draws random numbers.
        """
        parts = None if norm is None else norm.parts()
        if self.recompute and self.training:
            return lean.from_input(self.block, self, x, parts, residual)
        return self.block(self, x, parts, residual, training=self.training)

    @property
    def variant(self) -> Variant:
        """The unit between the projections."""
        return self.block.variant

    def to_quantized(
        self,
        group_size: int | None = None,
        bits: int | None = None,
        mode: str = "affine",
    ) -> GatedMLP:
        """Return a block with quantized projections; self is unchanged.

        As in ``nn.quantize``, a projection without ``to_quantized`` is kept.

        Args:
            group_size: columns that share a scale; None for MLX's default.
            bits: bits per element; None for MLX's default.
            mode: "affine", "mxfp4", "mxfp8" or "nvfp4".
        """
        new = copy.copy(self)
        for name in filter(None, (self.block.gate, self.block.up, self.block.down)):
            child = self[name]
            if hasattr(child, "to_quantized"):
                setattr(new, name, child.to_quantized(group_size, bits, mode))
        return new

    def _extra_repr(self) -> str:
        return f"variant={self.variant.name}"


def glu_hidden_size(
    dims: int,
    *,
    mult: float = 4,
    ratio: float = 2 / 3,
    ffn_dim_multiplier: float | None = None,
    multiple_of: int = 256,
) -> int:
    """Return the intermediate size N that keeps a GLU block at the cost of an MLP.

    Three matrices at 2/3 of the width hold what two hold at full width.

    Args:
        dims: K, hidden size.
        mult: width of the ungated block, in units of ``dims``.
        ratio: what gating leaves of it.
        ffn_dim_multiplier: Meta's factor after the cut; None for 1.
        multiple_of: the result is rounded up to a multiple of this.

    Returns:
        N; 11008 for LLaMA-7B (4096), 14336 for Llama-3-8B (4096, 1.3, 1024).

    Raises:
        ValueError: a size is not positive.

    Source: Meta, llama/model.py, FeedForward; Shazeer 2020, arXiv:2002.05202.
    """
    factor = 1.0 if ffn_dim_multiplier is None else ffn_dim_multiplier
    if min(dims, mult, ratio, factor, multiple_of) <= 0:
        raise ValueError(
            f"[glu_hidden_size] sizes and factors are > 0 but got dims = {dims}, "
            f"mult = {mult}, ratio = {ratio}, ffn_dim_multiplier = "
            f"{ffn_dim_multiplier}, multiple_of = {multiple_of}; check the config"
        )
    hidden = int(factor * int(ratio * mult * dims))
    return multiple_of * math.ceil(hidden / multiple_of)
