"""Self-attention to train with: no cache, no mask but the causal one."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from ..linear_layers import project


class CausalSelfAttention(nn.Module):
    r"""Grouped-query attention with rotary positions.

    Position t attends to 0 .. t, with scores over :math:`\sqrt D`. Names of
    parameters are those of ``models.llama``.

    Args:
        dims: K, size of the input and of the output.
        num_heads: H, heads of the queries.
        num_kv_heads: heads of the keys and values; None for H, 1 for multi-query.
        head_dim: D, size of a head; None for K / H.
        rope_theta: base of the wavelengths.
        traditional: rotated pairs are neighbours, not one number of each half.
        bias: whether the projections have a bias.

    Raises:
        ValueError: sizes do not divide each other, or D is odd.

    Source: Ainslie et al. 2023, arXiv:2305.13245; Su et al. 2021, arXiv:2104.09864.
    """

    def __init__(
        self,
        dims: int,
        num_heads: int,
        *,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        rope_theta: float = 10000.0,
        traditional: bool = False,
        bias: bool = False,
    ) -> None:
        super().__init__()
        H = num_heads
        H_kv = H if num_kv_heads is None else num_kv_heads
        if min(H, H_kv) < 1 or H % H_kv or (head_dim is None and dims % H):
            raise ValueError(
                "[CausalSelfAttention] num_heads divides dims and num_kv_heads "
                f"divides num_heads, but got dims = {dims}, num_heads = {H}, "
                f"num_kv_heads = {H_kv}; choose others, or a head_dim"
            )
        D = dims // H if head_dim is None else head_dim
        if D < 2 or D % 2:
            raise ValueError(
                f"[CausalSelfAttention] pairs of a head are rotated, but D = {D}; "
                "choose an even head_dim"
            )
        self.head_dim = D
        self.q_proj = nn.Linear(dims, H * D, bias=bias)
        self.k_proj = nn.Linear(dims, H_kv * D, bias=bias)
        self.v_proj = nn.Linear(dims, H_kv * D, bias=bias)
        self.o_proj = nn.Linear(H * D, dims, bias=bias)
        self.rope = nn.RoPE(D, traditional=traditional, base=rope_theta)

    def __call__(self, x: mx.array) -> mx.array:
        """Attend within ``x`` [B, L, K], whose first position is 0.

        Returns:
            [B, L, K] array of the dtype of ``x``.
        """
        B, L, _ = x.shape
        q, k, v = (
            project(layer, x).reshape(B, L, -1, self.head_dim).swapaxes(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        y = mx.fast.scaled_dot_product_attention(
            self.rope(q), self.rope(k), v, scale=self.head_dim**-0.5, mask="causal"
        )
        return project(self.o_proj, y.swapaxes(1, 2).reshape(B, L, -1))
