"""Layers of the GLU family, and the ways checkpoints pack their weights."""

from __future__ import annotations

import copy
import math
from typing import Any, Literal, get_args

import mlx.core as mx
import mlx.nn as nn

from . import ops, reference, variants
from .quantization import QuantizedWeight, Weight
from .variants import Variant

Order = Literal["gate_first", "value_first"]
Layout = Literal["separate", "concat", "interleave"]


class GatedMLP(nn.Module):
    r"""Gated feed-forward block.

    .. math:: y = (\phi(x W_g^\top) \odot \psi(x W_u^\top)) W_d^\top

    ``gate_proj``, ``up_proj`` and ``down_proj`` (the names of Hugging Face) are
    ``nn.Linear`` or ``nn.QuantizedLinear``; another layer in their place, such as
    an adapter, is called as it is.

    Args:
        dims: K, size of the input and of the output.
        hidden_dims: N, intermediate size.
        variant: a key of :data:`variants.VARIANTS`, or a variant.
        bias: whether the three projections have a bias.

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
    ) -> None:
        super().__init__()
        self.variant = variants.get(variant)
        self.gate_proj = nn.Linear(dims, hidden_dims, bias=bias)
        self.up_proj = nn.Linear(dims, hidden_dims, bias=bias)
        self.down_proj = nn.Linear(hidden_dims, dims, bias=bias)

    def __call__(self, x: mx.array) -> mx.array:
        """Apply the block.

        Args:
            x: [..., K] activations; float16, bfloat16 or float32.

        Returns:
            [..., K] array of the dtype of ``x``.

        Raises:
            ValueError: weights do not match ``x`` in K or dtype.
        """
        gate, up = self.gate_proj, self.up_proj
        if _is_plain(gate) and _is_plain(up):
            y = ops.glu_linear(
                x,
                _weight(gate),
                _weight(up),
                variant=self.variant,
                gate_bias=gate.get("bias"),
                up_bias=up.get("bias"),
            )
        else:
            y = ops.glu_mul(project(gate, x), project(up, x), variant=self.variant)
        return project(self.down_proj, y)

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
        for name in ("gate_proj", "up_proj", "down_proj"):
            child = self[name]
            if hasattr(child, "to_quantized"):
                setattr(new, name, child.to_quantized(group_size, bits, mode))
        return new

    def _extra_repr(self) -> str:
        return f"variant={self.variant.name}"


_DENSE = (nn.Linear, nn.Embedding)
_PLAIN = (*_DENSE, nn.QuantizedLinear, nn.QuantizedEmbedding)


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer is its arrays alone; a subclass may compute more."""
    return type(layer) in _PLAIN


def _weight(layer: Any) -> Weight:
    weight: mx.array = layer.weight
    if type(layer) in _DENSE:
        return weight
    arrays = weight, layer.scales, layer.get("biases")
    return QuantizedWeight(*arrays, layer.group_size, layer.bits, layer.mode)


def project(layer: Any, x: mx.array) -> mx.array:
    """Apply a linear layer, or an embedding as the output head that it is tied to.

    Args:
        layer: a linear layer or an embedding, plain or quantized; or any other
            module, such as an adapter, which is called.
        x: [..., K] activations.

    Returns:
        [..., N] array of the dtype of ``x``.
    """
    if _is_plain(layer):
        return reference.linear(x, _weight(layer), layer.get("bias"))
    y: mx.array = layer(x)
    return y


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


def split_packed(
    packed: mx.array, *, order: Order, layout: Layout, axis: int
) -> tuple[mx.array, mx.array]:
    """Split a packed projection, its weight or its output, into gate and up.

    A quantized weight is split array by array along its rows, axis 0.

    Args:
        packed: array with 2N along ``axis``.
        order: which half, or which of two neighbours, comes first.
        layout: "concat" for halves, "interleave" for neighbours.
        axis: the axis of 2N: 0 for weights and biases, -1 for outputs.

    Returns:
        gate and up, in this order, each with N along ``axis``.

    Raises:
        ValueError: ``order`` or ``layout`` is unknown, or "separate"; there is no
            such axis, or its size is odd.
    """
    axis = _check_packing("split_packed", packed, order, layout, axis)
    n, odd = divmod(packed.shape[axis], 2)
    if odd:
        raise ValueError(
            f"[split_packed] axis {axis} holds gate and up, an even size, but got "
            f"{list(packed.shape)}; choose the axis of the outputs"
        )
    inner = layout == "interleave"
    pairs = mx.unflatten(packed, axis, (n, 2) if inner else (2, n))
    halves = mx.split(pairs, 2, axis=axis + inner)
    first, second = (mx.squeeze(half, axis=axis + inner) for half in halves)
    return (first, second) if order == "gate_first" else (second, first)


def pack(
    gate: mx.array, up: mx.array, *, order: Order, layout: Layout, axis: int
) -> mx.array:
    """Pack gate and up, each N along ``axis``; the inverse of `split_packed`.

    Returns:
        Array with 2N along ``axis``.

    Raises:
        ValueError: as in :func:`split_packed`.
    """
    axis = _check_packing("pack", gate, order, layout, axis)
    pair = [gate, up] if order == "gate_first" else [up, gate]
    stacked = mx.stack(pair, axis=axis + (layout == "interleave"))
    return mx.flatten(stacked, axis, axis + 1)


def _check_packing(op: str, a: mx.array, order: str, layout: str, axis: int) -> int:
    """Check the arguments of packing and return the axis counted from the front."""
    layouts = [known for known in get_args(Layout) if known != "separate"]
    if order not in get_args(Order) or layout not in layouts:
        raise ValueError(
            f"[{op}] order is one of {list(get_args(Order))} and layout of {layouts} "
            f"but got {order!r} and {layout!r}; separate weights need no packing"
        )
    if not -a.ndim <= axis < a.ndim:
        raise ValueError(
            f"[{op}] axis {axis} is not in {list(a.shape)}; "
            "take 0 for a weight, -1 for an output"
        )
    return axis % a.ndim
