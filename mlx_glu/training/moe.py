"""A mixture of experts to train.

Shapes: E experts, k of them a token. Parameters have the names of mlx-lm's mixtures.
Source: Jiang et al. 2024, Mixtral, arXiv:2401.04088; Qwen2, arXiv:2407.10671.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..experts import SwitchGLU, mix
from ..layers import GatedMLP, RMSNorm
from ..lean import plus
from ..linear_layers import project
from ..variants import Variant
from .router import Router, RouterKind, Routing


class MoE(nn.Module):
    r"""Feed-forward of which each token runs some experts, and maybe a shared one.

    .. math:: y = \sum_{e \in \mathrm{top}_k} w_e \, \mathrm{GLU}_e(x) +
        \sigma(x W_s^\top) \, \mathrm{GLU}_s(x)

    Every token runs all its experts; none is dropped for a full one. ``gate`` is the
    router, ``switch_mlp`` the experts; ``shared_expert`` and ``shared_expert_gate``
    are there when asked for. Weights of ``models.mixtral`` and ``models.qwen_moe``
    load as they are.

    Args:
        dims: K, size of the input and of the output.
        hidden_dims: N, intermediate size of an expert.
        num_experts: E.
        top_k: k, experts of a token.
        variant: a key of :data:`variants.VARIANTS`, or a variant.
        bias: whether the experts' projections have biases.
        router: "softmax" (Mixtral, Qwen) or "sigmoid" (DeepSeek-V3, in one group).
        renormalise: the weights of a token's experts sum to 1; with one expert the
            router then has no gradient but by its losses.
        routed_scaling_factor: by which those weights are multiplied.
        shared_hidden_dims: intermediate size of the shared expert, or None.
        shared_gate: whether each token weighs the shared expert (Qwen2).

    Raises:
        ValueError: ``variant`` or ``router`` is unknown, or sizes are impossible.
    """

    def __init__(
        self,
        dims: int,
        hidden_dims: int,
        num_experts: int,
        top_k: int = 2,
        *,
        variant: str | Variant = "swiglu",
        bias: bool = False,
        router: RouterKind = "softmax",
        renormalise: bool = True,
        routed_scaling_factor: float = 1.0,
        shared_hidden_dims: int | None = None,
        shared_gate: bool = False,
    ) -> None:
        super().__init__()
        _check(hidden_dims, shared_hidden_dims, shared_gate)
        self.gate = Router(
            dims,
            num_experts,
            top_k,
            kind=router,
            renormalise=renormalise,
            routed_scaling_factor=routed_scaling_factor,
        )
        form: dict[str, Any] = {"variant": variant, "bias": bias}
        self.switch_mlp = SwitchGLU(dims, hidden_dims, num_experts, **form)
        if shared_hidden_dims is not None:
            self.shared_expert = GatedMLP(dims, shared_hidden_dims, **form)
        if shared_gate:
            self.shared_expert_gate = nn.Linear(dims, 1, bias=False)

    def __call__(
        self,
        x: mx.array,
        *,
        norm: RMSNorm | None = None,
        residual: mx.array | None = None,
    ) -> mx.array:
        """Apply the block, called as :class:`layers.GatedMLP`.

        Args:
            x: [..., K] activations; float16, bfloat16 or float32.
            norm: normalises ``x`` first; None for an ``x`` that is normalised.
            residual: [..., K] of the dtype of ``x``, added to the result; or None.

        Returns:
            [..., K] array of the dtype of ``x``.

        Raises:
            ValueError: ``residual`` has another shape or dtype than the result.
        """
        return self.with_routing(x, norm=norm, residual=residual)[0]

    def with_routing(
        self,
        x: mx.array,
        *,
        norm: RMSNorm | None = None,
        residual: mx.array | None = None,
    ) -> tuple[mx.array, Routing]:
        """As a call; returns the routing too, for what ``balancing`` has."""
        x = x if norm is None else norm(x)
        routing = self.gate(x)
        y = mix(self.switch_mlp(x, routing.indices), routing.weights)
        if "shared_expert" in self:
            y = y + self._shared(x)
        return plus(residual, y), routing

    def _shared(self, x: mx.array) -> mx.array:
        y: mx.array = self.shared_expert(x)
        if "shared_expert_gate" in self:
            y = mx.sigmoid(project(self.shared_expert_gate, x)) * y
        return y


def _check(hidden: int, shared: int | None, gated: bool) -> None:
    if hidden < 1 or (shared is not None and shared < 1):
        raise ValueError(
            "[MoE] expected intermediate sizes >= 1; got hidden_dims = "
            f"{hidden}, shared_hidden_dims = {shared}; choose others"
        )
    if gated and shared is None:
        raise ValueError(
            "[MoE] shared_gate weighs a shared expert and there is none; give "
            "shared_hidden_dims"
        )
