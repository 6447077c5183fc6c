"""What a feed-forward costs: parameters, operations, and memory of a training step.

Three matrices at two thirds of the width cost what two cost at full width (Shazeer
2020, arXiv:2002.05202, section 2). What gating costs is activation memory: two tensors
of 8/3 K for each token, where an ungated block needs one of 4 K, a third more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import mlx.core as mx

#: What the gradient of a block keeps: all that MLX's autograd does, the inputs of the
#: activation alone, or the input of the block alone.
Keeps = Literal["plain", "lean", "recompute"]

#: Tensors [M, N] beside the input, gated and ungated. Plain is the composition
#: ``down(silu(gate) * up)``: gate, its sigmoid, their product, up, and the input of
#: ``down``; or ``down(act(up))``: up and the input of ``down``.
KEPT: dict[str, tuple[int, int]] = {
    "plain": (5, 2),
    "lean": (2, 1),
    "recompute": (0, 0),
}


@dataclass(frozen=True)
class FeedForward:
    """A block of two projections, or of three with a gate.

    Operations are those of matrix products, two for each multiplication and addition;
    what is done element by element is not counted.

    Attributes:
        dims: K, size of the input and of the output.
        hidden_dims: N, intermediate size.
        gated: whether it is a ``GatedMLP`` or a ``training.ungated.MLP``.
        bias: whether the projections have a bias.

    Raises:
        ValueError: a size is below 1.
    """

    dims: int
    hidden_dims: int
    gated: bool = True
    bias: bool = False

    def __post_init__(self) -> None:
        _check(dims=self.dims, hidden_dims=self.hidden_dims)

    @property
    def projections(self) -> int:
        """Two, or three."""
        return 3 if self.gated else 2

    @property
    def parameters(self) -> int:
        """Numbers in its weights and biases."""
        K, N = self.dims, self.hidden_dims
        biases = (self.projections - 1) * N + K if self.bias else 0
        return self.projections * K * N + biases

    def flops(self, tokens: int = 1) -> int:
        """Operations of a forward pass."""
        return 2 * self.projections * self.dims * self.hidden_dims * tokens

    def training_flops(self, tokens: int = 1, *, recompute: bool = False) -> int:
        """Operations of a pass forward and of one back to all weights and the input.

        Args:
            tokens: M.
            recompute: whether all but the last projection are computed again.
        """
        once = self.flops(tokens) // self.projections
        again = self.projections - 1 if recompute else 0
        return once * (3 * self.projections + again)

    def kept_columns(self, keeps: Keeps = "lean") -> int:
        """Numbers that a gradient keeps of each token, beside the input.

        Args:
            keeps: "lean" is ``GatedMLP`` and the least of a block without a gate;
                "recompute" is ``GatedMLP(recompute=True)``.

        Raises:
            ValueError: ``keeps`` is unknown.
        """
        if keeps not in KEPT:
            raise ValueError(
                f"[costs] keeps is one of {', '.join(KEPT)} but got {keeps!r}; "
                "GatedMLP is lean"
            )
        gated, ungated = KEPT[keeps]
        return (gated if self.gated else ungated) * self.hidden_dims

    def kept_bytes(
        self,
        tokens: int = 1,
        dtype: mx.Dtype = mx.bfloat16,
        *,
        keeps: Keeps = "lean",
    ) -> int:
        """Bytes that a gradient keeps of a layer, the input included.

        Args:
            tokens: M.
            dtype: of the activations.
            keeps: as in :meth:`kept_columns`.
        """
        return tokens * (self.dims + self.kept_columns(keeps)) * dtype.size


@dataclass(frozen=True)
class Mixture:
    """A mixture of experts, as ``training.moe.MoE``.

    Attributes:
        expert: one expert.
        num_experts: E.
        top_k: experts of a token.
        shared: the expert of all tokens, or None.
        shared_gate: whether each token weighs the shared expert.

    Raises:
        ValueError: a size is impossible.
    """

    expert: FeedForward
    num_experts: int
    top_k: int
    shared: FeedForward | None = None
    shared_gate: bool = False

    def __post_init__(self) -> None:
        _check(num_experts=self.num_experts, top_k=self.top_k)
        if self.top_k > self.num_experts:
            raise ValueError(
                f"[costs] a token runs top_k = {self.top_k} of {self.num_experts} "
                "experts; give top_k <= num_experts"
            )

    @property
    def parameters(self) -> int:
        """Numbers in all experts, the router and the shared expert."""
        return self._parameters(self.num_experts)

    @property
    def active_parameters(self) -> int:
        """Numbers that one token is multiplied with."""
        return self._parameters(self.top_k)

    def flops(self, tokens: int = 1) -> int:
        """Operations of a forward pass, the router's included."""
        experts = self.top_k * self.expert.flops(tokens)
        shared = 0 if self.shared is None else self.shared.flops(tokens)
        return experts + shared + 2 * self._routing * tokens

    def _parameters(self, experts: int) -> int:
        shared = 0 if self.shared is None else self.shared.parameters
        return experts * self.expert.parameters + shared + self._routing

    @property
    def _routing(self) -> int:
        return self.expert.dims * (self.num_experts + self.shared_gate)


def _check(**sizes: int) -> None:
    if min(sizes.values()) < 1:
        given = ", ".join(f"{name} = {size}" for name, size in sizes.items())
        raise ValueError(f"[costs] sizes are >= 1 but got {given}; check the config")
