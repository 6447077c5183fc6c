"""Mixtures of experts: stacks of projections, of which each token runs a few.

Names and shapes of parameters are mlx-lm's. Shapes: E experts, k of them a token.
Source: Shazeer et al. 2017, arXiv:1701.06538; Fedus et al. 2021, arXiv:2101.03961.
"""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn

from . import ops, variants
from .gathered import gathered_linear
from .quantization import Quantization, QuantizedWeight, choose
from .variants import Variant

#: Pairs of token and expert from which they are sorted by expert, as in mlx-lm.
SORT_FROM = 64


def route(
    logits: mx.array, top_k: int, *, renormalise: bool
) -> tuple[mx.array, mx.array]:
    """Choose the experts of each token.

    Args:
        logits: [..., E] scores of the router.
        top_k: k, how many are chosen.
        renormalise: their weights sum to 1; else each keeps its share among all.

    Returns:
        Indices [..., k], in no order, each expert at most once, and their float32
        weights [..., k], a softmax.
    """
    indices = largest(logits, top_k)
    logits = logits.astype(mx.float32)
    if renormalise:
        scores = mx.take_along_axis(logits, indices, axis=-1)
        return indices, mx.softmax(scores, axis=-1)
    shares = mx.softmax(logits, axis=-1)
    return indices, mx.take_along_axis(shares, indices, axis=-1)


def largest(scores: mx.array, top_k: int) -> mx.array:
    """Where the ``top_k`` largest of the last axis are, in no order; no gradient."""
    last = scores.shape[-1] - top_k
    return mx.argpartition(mx.stop_gradient(scores), kth=last, axis=-1)[..., last:]


def mix(y: mx.array, weights: mx.array) -> mx.array:
    """Sum what the experts of a token gave.

    Args:
        y: [..., k, K] results.
        weights: [..., k] of each.

    Returns:
        [..., K] array of the dtype of ``y``; the sum is not rounded between terms.
    """
    return (weights.astype(y.dtype)[..., None, :] @ y).squeeze(-2)


class SwitchLinear(nn.Module):
    """One linear layer for each expert.

    Args:
        input_dims: K.
        output_dims: N.
        num_experts: E.
        bias: whether each has a bias.
    """

    def __init__(
        self, input_dims: int, output_dims: int, num_experts: int, bias: bool = True
    ) -> None:
        super().__init__()
        scale = math.sqrt(1 / input_dims)
        shape = (num_experts, output_dims, input_dims)
        self.weight = mx.random.uniform(-scale, scale, shape)
        if bias:
            self.bias = mx.zeros((num_experts, output_dims))

    def __call__(
        self, x: mx.array, indices: mx.array, sorted_indices: bool = False
    ) -> mx.array:
        """As :func:`gathered.gathered_linear`: [..., 1, K] to [..., 1, N]."""
        weight, bias = self["weight"], self.get("bias")
        return gathered_linear(x, weight, indices, bias, is_sorted=sorted_indices)

    def to_quantized(
        self,
        group_size: int | None = None,
        bits: int | None = None,
        mode: str = "affine",
    ) -> QuantizedSwitchLinear:
        """The same layers packed; None takes the mode's default.

        Raises:
            ValueError: MLX has no such format.
        """
        return QuantizedSwitchLinear(
            self.weight, choose(mode, group_size, bits), self.get("bias")
        )

    def _extra_repr(self) -> str:
        E, N, K = self.weight.shape
        return f"input_dims={K}, output_dims={N}, num_experts={E}"


class QuantizedSwitchLinear(nn.Module):
    """`SwitchLinear` with packed weights, which are not trained.

    Args:
        weight: [E, N, K] floats to pack.
        quantization: the format.
        bias: [E, N], or None.
    """

    def __init__(
        self, weight: mx.array, quantization: Quantization, bias: mx.array | None
    ) -> None:
        super().__init__()
        self.group_size, self.bits = quantization.group_size, quantization.bits
        self.mode = quantization.mode
        packed = mx.quantize(weight, **quantization.as_config())
        self.weight, self.scales, *biases = packed
        if biases:
            self.biases = biases[0]
        if bias is not None:
            self.bias = bias
        self.freeze()

    def __call__(
        self, x: mx.array, indices: mx.array, sorted_indices: bool = False
    ) -> mx.array:
        """As :func:`gathered.gathered_linear`: [..., 1, K] to [..., 1, N]."""
        arrays = self["weight"], self["scales"], self.get("biases")
        weight = QuantizedWeight(*arrays, self.group_size, self.bits, self.mode)
        bias = self.get("bias")
        return gathered_linear(x, weight, indices, bias, is_sorted=sorted_indices)

    def _extra_repr(self) -> str:
        form = Quantization(self.group_size, self.bits, self.mode)
        return f"num_experts={self.weight.shape[0]}, {form}"


class SwitchGLU(nn.Module):
    r"""A gated feed-forward for each expert; each token runs those that it is given.

    .. math:: y_e = (\phi(x W_{g,e}^\top) \odot \psi(x W_{u,e}^\top)) W_{d,e}^\top

    Args:
        input_dims: K, size of the input and of the output.
        hidden_dims: N, intermediate size of one expert.
        num_experts: E.
        variant: a key of :data:`variants.VARIANTS`, or a variant.
        bias: whether the projections have biases.

    Raises:
        ValueError: ``variant`` is unknown.

    Source: Shazeer et al. 2017, arXiv:1701.06538; Jiang et al. 2024, Mixtral,
    arXiv:2401.04088.
    """

    def __init__(
        self,
        input_dims: int,
        hidden_dims: int,
        num_experts: int,
        *,
        variant: str | Variant = "swiglu",
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.variant = variants.get(variant)
        self.gate_proj = SwitchLinear(input_dims, hidden_dims, num_experts, bias)
        self.up_proj = SwitchLinear(input_dims, hidden_dims, num_experts, bias)
        self.down_proj = SwitchLinear(hidden_dims, input_dims, num_experts, bias)

    def __call__(self, x: mx.array, indices: mx.array) -> mx.array:
        """Run the experts of each token.

        Args:
            x: [..., K] activations; float16, bfloat16 or float32.
            indices: [..., k] experts of each token, integers below E.

        Returns:
            [..., k, K] array of the dtype of ``x``.
        """
        shape, chosen = indices.shape, mx.stop_gradient(indices)
        x = mx.expand_dims(x, (-2, -3))  # [..., 1, 1, K]
        # Unsorted, MLX's gradient by a weight holds one matrix for each pair.
        is_sorted = self.training or indices.size >= SORT_FROM
        if is_sorted:
            order = mx.argsort(chosen.flatten())
            x = x.flatten(0, -3)[order // shape[-1]]  # [pairs, 1, K]
            chosen = chosen.flatten()[order]
        gate = self.gate_proj(x, chosen, is_sorted)
        up = self.up_proj(x, chosen, is_sorted)
        y = ops.glu_mul(gate, up, self.variant)
        y = self.down_proj(y, chosen, is_sorted).squeeze(-2)
        if is_sorted:
            y = y[mx.argsort(order)].reshape(*shape, y.shape[-1])
        return y

    def _extra_repr(self) -> str:
        return f"variant={self.variant}"
