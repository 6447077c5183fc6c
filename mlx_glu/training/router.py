"""Which experts each token of a mixture runs.

Source: Jiang et al. 2024, Mixtral, arXiv:2401.04088; DeepSeek-V3, arXiv:2412.19437,
section 2.1.2.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import mlx.core as mx
import mlx.nn as nn

from ..experts import largest, route
from ..reference import linear
from .fixed import fix

RouterKind = Literal["softmax", "sigmoid"]


class Routing(NamedTuple):
    """Where the tokens go.

    Attributes:
        logits: [..., E] float32 scores of all experts.
        indices: [..., k] the experts chosen, in no order.
        weights: [..., k] float32 share of each in the result.
    """

    logits: mx.array
    indices: mx.array
    weights: mx.array


class Router(nn.Module):
    r"""Choose the experts of each token, in float32 whatever the dtype of its input.

    A "softmax" router weighs them by their probabilities. A "sigmoid" router weighs
    them by :math:`\sigma` of their logits, but chooses by that plus
    ``e_score_correction_bias`` [E], which starts at 0 and is set by :meth:`balance`.
    It has no gradient and stays frozen, also in a model that is unfrozen; keep it
    float32. ``nn.quantize`` leaves a router alone: fewer bits choose other experts.

    Args:
        dims: K, size of the input.
        num_experts: E.
        top_k: k.
        kind: "softmax" or "sigmoid".
        renormalise: the weights of a token sum to 1, before they are scaled; with
            one expert they are 1, and the router has no gradient but by its losses.
        routed_scaling_factor: by which weights are multiplied.

    Raises:
        ValueError: ``kind`` is unknown, or a size is impossible.
    """

    def __init__(
        self,
        dims: int,
        num_experts: int,
        top_k: int,
        *,
        kind: RouterKind = "softmax",
        renormalise: bool = True,
        routed_scaling_factor: float = 1.0,
    ) -> None:
        super().__init__()
        if kind not in get_args(RouterKind):
            raise ValueError(
                f"[MoE] expected a router of {', '.join(get_args(RouterKind))} but got "
                f"{kind!r}; choose one of them"
            )
        if dims < 1 or not 1 <= top_k <= num_experts:
            raise ValueError(
                "[MoE] expected dims >= 1 and 1 <= top_k <= num_experts; got dims = "
                f"{dims}, top_k = {top_k}, num_experts = {num_experts}; choose others"
            )
        scale = math.sqrt(1 / dims)
        self.weight = mx.random.uniform(-scale, scale, (num_experts, dims))
        if kind == "sigmoid":
            self.e_score_correction_bias = mx.zeros((num_experts,))
            fix(self, "e_score_correction_bias")
        self.kind, self.top_k, self.renormalise = kind, top_k, renormalise
        self.routed_scaling_factor = routed_scaling_factor

    def __call__(self, x: mx.array) -> Routing:
        """Route ``x`` [..., K]; choices have no gradient, weights have."""
        logits = linear(x.astype(mx.float32), self.weight.astype(mx.float32))
        if self.kind == "softmax":
            chosen = route(logits, self.top_k, renormalise=self.renormalise)
        else:
            chosen = self._by_sigmoid(logits)
        indices, weights = chosen
        return Routing(logits, indices, weights * self.routed_scaling_factor)

    def _by_sigmoid(self, logits: mx.array) -> tuple[mx.array, mx.array]:
        choice = mx.sigmoid(logits) + self.e_score_correction_bias
        indices = largest(choice, self.top_k)
        logits = mx.take_along_axis(logits, indices, axis=-1)
        if self.renormalise:
            # Their shares, without dividing by a sum that may underflow.
            return indices, mx.softmax(nn.log_sigmoid(logits), axis=-1)
        return indices, mx.sigmoid(logits)

    def balance(self, load: mx.array, rate: float = 0.001) -> None:
        """Make busy experts a little less likely, after a step of the optimizer.

        Args:
            load: [E], of :func:`balancing.expert_load`.
            rate: by how much a bias moves.

        Raises:
            ValueError: a softmax router has no such biases.

        Source: Wang et al. 2024, arXiv:2408.15664, algorithm 1.
        """
        if self.kind != "sigmoid":
            raise ValueError(
                "[MoE] expected a sigmoid router; a softmax router has no correction "
                "bias, add load_balancing_loss to the loss"
            )
        step = rate * mx.sign(load.mean() - load)
        self.e_score_correction_bias = self.e_score_correction_bias + step

    def _extra_repr(self) -> str:
        E, K = self.weight.shape
        return f"dims={K}, num_experts={E}, top_k={self.top_k}, kind={self.kind}"
