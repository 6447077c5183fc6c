"""Blocks around a gated unit: PaLM's and that of the Temporal Fusion Transformer."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from .. import ops
from ..linear_layers import project
from ..variants import Variant, get
from .attention import CausalSelfAttention
from .ungated import feed_forward


class ParallelBlock(nn.Module):
    r"""Attention and feed-forward side by side, as in PaLM.

    .. math:: y = x + \mathrm{MLP}(\mathrm{LN}(x)) + \mathrm{Attention}(\mathrm{LN}(x))

    Defaults are PaLM's: SwiGLU at N = 4 K, one head of keys and values, rotary
    positions, one LayerNorm for both, no biases, not even in the norm.

    Args:
        dims: K, size of the input and of the output.
        num_heads: heads of the queries.
        hidden_dims: N, intermediate size; None for 4 K.
        unit: a key of ``VARIANTS`` or of ``ACTIVATIONS``.
        num_kv_heads: heads of the keys and values; None for ``num_heads``.
        head_dim: size of a head; None for K / ``num_heads``.
        rope_theta: base of the wavelengths.
        traditional: rotated pairs are neighbours, not one number of each half.
        eps: what LayerNorm adds to the variance.

    Raises:
        ValueError: ``unit`` is unknown, or sizes do not fit.

    Source: Chowdhery et al. 2022, arXiv:2204.02311, section 2.
    """

    def __init__(
        self,
        dims: int,
        num_heads: int,
        *,
        hidden_dims: int | None = None,
        unit: str = "swiglu",
        num_kv_heads: int | None = 1,
        head_dim: int | None = None,
        rope_theta: float = 10000.0,
        traditional: bool = False,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        N = 4 * dims if hidden_dims is None else hidden_dims
        self.input_layernorm = nn.LayerNorm(dims, eps, bias=False)
        self.self_attn = CausalSelfAttention(
            dims,
            num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            rope_theta=rope_theta,
            traditional=traditional,
        )
        self.mlp = feed_forward(unit, dims, N)

    def __call__(self, x: mx.array) -> mx.array:
        """Map ``x`` [B, L, K] to [B, L, K], of its dtype."""
        y = self.input_layernorm(x).astype(x.dtype)
        return self.mlp(y, residual=x + self.self_attn(y))


class GatedResidualNetwork(nn.Module):
    r"""A nonlinear map that its gate can close, which leaves the input.

    .. math::
        \eta_2 &= \mathrm{ELU}(W_2 a + W_3 c + b_2), \quad
        \eta_1 = W_1 \eta_2 + b_1 \\
        y &= \mathrm{LayerNorm}(a + \sigma(W_4 \eta_1 + b_4) \odot
        (W_5 \eta_1 + b_5))

    W1 is ``hidden_proj``, W2 ``in_proj``, W3 ``context_proj``, W4 ``gate_proj`` and W5
    ``up_proj``.

    Args:
        input_dims: size of a.
        hidden_dims: size of both inner layers.
        output_dims: size of y; where it is not ``input_dims``, the skipped a passes
            ``skip_proj``. None for ``input_dims``.
        context_dims: size of c; None for a network without one.
        dropout: share of :math:`\eta_1` that is dropped in training.
        variant: a key of ``VARIANTS``, or a variant.

    Raises:
        ValueError: ``variant`` is unknown, or ``dropout`` is no probability.

    Source: Lim et al. 2019, arXiv:1912.09363, equations 2 to 5.
    """

    def __init__(
        self,
        input_dims: int,
        hidden_dims: int,
        output_dims: int | None = None,
        *,
        context_dims: int | None = None,
        dropout: float = 0.0,
        variant: str | Variant = "glu",
    ) -> None:
        super().__init__()
        out = input_dims if output_dims is None else output_dims
        self.variant = get(variant)
        self.in_proj = nn.Linear(input_dims, hidden_dims)
        if context_dims is not None:
            self.context_proj = nn.Linear(context_dims, hidden_dims, bias=False)
        self.hidden_proj = nn.Linear(hidden_dims, hidden_dims)
        self.dropout = nn.Dropout(dropout)
        self.gate_proj = nn.Linear(hidden_dims, out)
        self.up_proj = nn.Linear(hidden_dims, out)
        if out != input_dims:
            self.skip_proj = nn.Linear(input_dims, out)
        self.norm = nn.LayerNorm(out)

    def __call__(self, x: mx.array, context: mx.array | None = None) -> mx.array:
        """Apply the network.

        Args:
            x: [..., input_dims]; float16, bfloat16 or float32.
            context: [..., context_dims], broadcast against ``x``; None for zeros.

        Returns:
            [..., output_dims] array of the dtype of ``x``.

        Raises:
            ValueError: there is a context, but the network was built without one.
        """
        h = project(self.in_proj, x)
        if context is not None:
            if "context_proj" not in self:
                raise ValueError(
                    "[GatedResidualNetwork] a network without context_dims takes no "
                    f"context, but got {list(context.shape)}; give it context_dims"
                )
            h = h + project(self.context_proj, context.astype(x.dtype))
        h = self.dropout(project(self.hidden_proj, _elu(h)))
        gate, up = project(self.gate_proj, h), project(self.up_proj, h)
        skip = project(self.skip_proj, x) if "skip_proj" in self else x
        y: mx.array = self.norm(skip + ops.glu_mul(gate, up, self.variant))
        return y.astype(x.dtype)


def _elu(x: mx.array) -> mx.array:
    """ELU in float32, rounded once; small x do not cancel."""
    z = x.astype(mx.float32)
    return mx.where(z > 0, z, mx.expm1(mx.minimum(z, 0.0))).astype(x.dtype)
